"""Times, errors and digests, in one way for the demonstration, `ree bench` and benchmarks/.

Times are medians of interleaved runs in one process; errors are against the same model
evaluated in float64; a digest is BLAKE3 over the canonical bytes of the outputs.
"""

from __future__ import annotations

import copy
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

PACKAGES = ("torch", "numpy", "llvmlite", "onnxruntime", "transformers")
_SETTLE_S = 0.1
CANONICAL_NAN_F32 = 0x7FC00000
CANONICAL_NAN_F64 = 0x7FF8000000000000


def interleaved(
    runs: Mapping[str, Callable[[], object]], rounds: int, timed_per_visit: int = 2
) -> dict[str, list[float]]:
    """Seconds of every timed run. A visit is one run that is not counted, then the timed ones.

    The worker threads of an engine spin for a while after its last run, which would slow the
    next engine: a visit starts with a pause, and its first run, which finds caches cold, is
    not counted.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            time.sleep(_SETTLE_S)
            run()
            for _ in range(timed_per_visit):
                start = time.perf_counter()
                run()
                times[name].append(time.perf_counter() - start)
    return times


def medians_ms(times: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {name: round(statistics.median(values) * 1e3, 3) for name, values in times.items()}


def geometric_mean(values: Sequence[float]) -> float:
    return statistics.geometric_mean(values)


def digest(outputs: Sequence[np.ndarray]) -> str:
    """BLAKE3 (hex, 32 digits) over dtype, shape and bytes of each array, NaN canonical."""
    import blake3
    import numpy as np

    hasher = blake3.blake3()
    for array in outputs:
        array = canonical(np.ascontiguousarray(array))
        hasher.update(f"{array.dtype.str}{array.shape};".encode())
        hasher.update(array.tobytes())
    return hasher.hexdigest(length=16)  # type: ignore[no-any-return]


def canonical(array: np.ndarray) -> np.ndarray:
    """The array with every NaN replaced by the canonical one."""
    import numpy as np

    patterns = {np.dtype("f4"): (np.uint32, CANONICAL_NAN_F32), np.dtype("f8"): (np.uint64, CANONICAL_NAN_F64)}
    if array.dtype not in patterns:
        return array
    bits, pattern = patterns[array.dtype]
    return np.where(np.isnan(array), np.array(pattern, bits), array.view(bits)).view(array.dtype)


def relative_error(outputs: Sequence[np.ndarray], exact: Sequence[np.ndarray]) -> float:
    """Euclidean norm of the difference over the norm of the exact values, all outputs together."""
    import numpy as np

    difference = sum(float(np.sum((a.astype(np.float64) - e) ** 2)) for a, e in zip(outputs, exact, strict=True))
    norm = sum(float(np.sum(e.astype(np.float64) ** 2)) for e in exact)
    return (difference / norm) ** 0.5


def float64_outputs(module: Any, inputs: Sequence[Any]) -> list[np.ndarray]:
    """The model evaluated in float64 throughout, also where its code asks for float32.

    Weights and inputs are the float32 values, widened.
    """
    import torch
    from torch.overrides import TorchFunctionMode

    from ree.peers import arrays

    class Widen(TorchFunctionMode):
        """float32 means float64 in every call (models cast to float32 on their own)."""

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.Tensor.float:
                func = torch.Tensor.double
            kwargs = {k: _widen(v) for k, v in (kwargs or {}).items()}
            return func(*(_widen(a) for a in args), **kwargs)

    def _widen(value: Any) -> Any:
        return torch.float64 if value is torch.float32 else value

    wide = copy.deepcopy(module).double()
    wide_inputs = [t.double() if t.is_floating_point() else t for t in inputs]
    with torch.inference_mode(), Widen():
        return arrays(wide(*wide_inputs))


def machine() -> dict[str, Any]:
    """Processor, number of cores, platform, and the versions of the packages that matter."""
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "platform": platform.platform(terse=True),
        "python": platform.python_version(),
        "versions": {name: v for name in PACKAGES if (v := _version(name))},
    }


def cpu_name() -> str:
    """The processor's model name, with family and model where the kernel tells them."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    fields = {k.strip(): v.strip() for k, _, v in (line.partition(":") for line in reversed(lines)) if v}
    name = fields.get("model name", platform.machine())
    if "model" in fields:
        name += f" (family {fields.get('cpu family', '?')}, model {fields['model']})"
    return name


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
