"""What in a kernel's PTX could make its floating-point results differ from the CPU's."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping

FLOAT = r"(?:f16|f16x2|bf16|bf16x2|f32|f32x2|f64|tf32|e4m3|e5m2|e4m3x2|e5m2x2|e3m2|e2m3|e2m1)"

# what is found in the instruction's dotted name, and why it is not allowed
FORBIDDEN = {
    r"\.ftz\b": "flushes subnormals",
    r"\.approx\b": "is an approximation",
    r"^(?:ex2|lg2|sin|cos|rsqrt|tanh)\.": "is an approximation",
    r"^div\.full\b": "is an approximation",
    r"^(?:add|sub|mul|fma|div|sqrt|rcp)\.(?!.*\brn\b).*\b(?:f32|f32x2|f64)$": "is fused or rounds otherwise",
    r"^mad\..*\b(?:f32|f64)$": "rounds as the device likes",
    rf"^(?:red|atom|redux)\..*\b{FLOAT}$": "combines floats in any order",
    rf"^(?:mma|wmma|wgmma|tcgen05)\b.*\.(?:mma|mma_async)\b.*\b{FLOAT}\b": "adds floats in an order of its own",
    rf"^mma\b.*\b{FLOAT}\b": "adds floats in an order of its own",
    r"^tcgen05\.mma\b.*\bkind::(?!i8)": "adds floats in an order of its own",
    r"^(?:add|sub|mul|fma|mad)\..*\b(?:f16|f16x2|bf16|bf16x2)$": "computes in 16 bits",
    rf"^cvt\.(?:rz|rm|rp|rs|rna)\b.*\.(?:{FLOAT})\.(?:f32|f64)$": "narrows by another rounding",
    r"^(?:add|sub|mul|fma|mad)\..*\bsat\b.*\b(?:f32|f64)$": "clamps",
}


def audit(ptx: str, fma: Mapping[str, int] | None = None) -> list[str]:
    """Complaints about a text, none if it is good.

    fma: how many fused multiply-adds of a type there may be, {"f32": 2}; others are not allowed. None: any number.
    """
    names = Counter(_instructions(ptx))
    complaints = [
        f"{name} ({count} times) {why}"
        for name, count in sorted(names.items())
        for pattern, why in FORBIDDEN.items()
        if re.search(pattern, name)
    ]
    if fma is not None:
        found = Counter[str]()
        for name, count in names.items():
            if name.startswith("fma."):
                found[name.rsplit(".", 1)[1].removesuffix("x2")] += count
        complaints += [
            f"{count} fma of {kind}, where {fma.get(kind, 0)} are asked for"
            for kind, count in sorted(found.items())
            if count > fma.get(kind, 0)
        ]
    return complaints


def _instructions(ptx: str) -> list[str]:
    """The dotted names of all instructions, with what stands between double colons."""
    found = []
    for line in re.sub(r"//[^\n]*|/\*.*?\*/", "", ptx, flags=re.S).split(";"):
        match = re.search(r"(?:^|[{}\n])\s*(?:\$?[\w$]+:\s*)*(?:@!?%?\w+\s+)?([a-z][a-z0-9]*(?:(?:\.|::)\w+)+)\s", line)
        if match is not None:
            found.append(match[1])
    return found
