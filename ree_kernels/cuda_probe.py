"""Holds a device, with the compiler for it, to IEEE arithmetic before anything is computed with it.

What `cuda/probe.cu` gives is compared, bit by bit, with what NumPy and exact rationals give.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from ree_kernels import KernelError, cuda
from ree_kernels.cpu import default_fp_state

BLOCK = 128
RANDOM_CASES = 256
INTEGERS = (np.int32, np.uint32, np.int64, np.uint64)
SUM = "x * y + z"


class Format(NamedTuple):
    """A binary floating-point format: its NumPy types, bits of precision, exponent of the least normal number."""

    name: str
    real: type
    bits: type
    precision: int
    least_exponent: int

    @property
    def least_normal(self) -> int:
        return 1 << (self.precision - 1)

    @property
    def sign(self) -> int:
        return 1 << (8 * np.dtype(self.bits).itemsize - 1)

    def encode(self, values: Any) -> np.ndarray:
        """The bits of numbers, every NaN being the canonical one."""
        reals: np.ndarray = np.asarray(values, self.real)
        nan = np.array(np.nan, self.real).view(self.bits) & ~np.array(self.sign, self.bits)
        return np.where(np.isnan(reals), nan, reals.view(self.bits)).astype(np.uint64)

    def decode(self, bits: Any) -> np.ndarray:
        return np.asarray(bits, np.uint64).astype(self.bits).view(self.real)


F32 = Format("f32", np.float32, np.uint32, 24, -126)
F64 = Format("f64", np.float64, np.uint64, 53, -1022)


class Cases(NamedTuple):
    """What a kernel of the probe is run on, and what it must give.

    format: of the operands, None where there are several; operands: their bits, uint64 [3, n];
    results: by operation, in the kernel's order, uint64 [n].
    """

    kernel: str
    format: Format | None
    operands: np.ndarray
    results: dict[str, np.ndarray]


def probe(device: cuda.Device) -> None:
    """Run the probe on a device; KernelError names what is wrong."""
    module = device.load(device.compile(cuda.source("probe.cu")))
    with default_fp_state(), np.errstate(all="ignore"):
        for cases in all_cases():
            for (operation, wanted), given in zip(cases.results.items(), _run(device, module, cases), strict=True):
                wrong = np.flatnonzero(given != wanted)
                if wrong.size:
                    fault = _fault(cases, operation, wrong, given)
                    raise KernelError(f"the device {device.name} cannot be trusted: {fault}")


def _run(device: cuda.Device, module: cuda.Module, cases: Cases) -> np.ndarray:
    n = cases.operands.shape[1]
    operands, out = cases.operands, np.empty((len(cases.results), n), np.uint64)
    memory, results = device.allocate(operands.nbytes), device.allocate(out.nbytes)
    device.write(memory.address, operands.ctypes.data, operands.nbytes)
    device.fill(results.address, 0xA5, out.nbytes)
    args = np.array([*(memory.address + 8 * n * row for row in range(3)), results.address, n], np.uint64)
    device.launch(cuda.Launch(module.function(cases.kernel, 0), (-(-n // BLOCK), 1, 1), BLOCK, 0, args))
    device.read(out.ctypes.data, results.address, out.nbytes)
    return out


# -- what is wrong --------------------------------------------------------------------------------------


def _fault(cases: Cases, operation: str, wrong: np.ndarray, given: np.ndarray) -> str:
    """What is wrong with an operation, in words, and an example: one of ordinary numbers if there is any."""
    form, wanted = cases.format, cases.results[operation]
    if form is not None:
        seen = np.stack([*cases.operands, wanted, given])[:, wrong]
        wrong = wrong[np.argsort(~_ordinary(form, seen).all(0), kind="stable")]
    case = int(wrong[0])
    operands = [int(bits) for bits in cases.operands[:, case]]
    example = f"{operation} of ({', '.join(map(hex, operands))}) gave {given[case]:#x}, not {wanted[case]:#x}"
    if form is None:
        return f"conversions are wrong: {example}"
    return f"{_cause(form, operation, operands, int(wanted[case]), int(given[case]))}: {form.name} {example}"


def _cause(form: Format, operation: str, operands: Sequence[int], wanted: int, given: int) -> str:
    def subnormal(bits: int) -> bool:
        return 0 < bits & ~form.sign < form.least_normal

    if operation == SUM and given == form.encode(_fma(form, *form.decode(operands)))[()]:
        return "contraction, a product is not rounded before the sum"
    if subnormal(wanted) and not given & ~form.sign:
        return "subnormal results become zero"
    if any(map(subnormal, operands)):
        return "subnormal operands are not taken as they are"
    if np.isnan(form.decode(wanted)) or np.isnan(form.decode(given)):
        return "NaN is not handled as defined"
    return "results are not rounded as IEEE 754 defines"


def _ordinary(form: Format, bits: np.ndarray) -> np.ndarray:
    """Whether numbers are zero or normal."""
    size = bits & np.uint64(form.sign - 1)
    return (size == 0) | ((size >= form.least_normal) & (size < int(form.encode(np.inf))))


# -- operands -------------------------------------------------------------------------------------------


def _edges(form: Format) -> np.ndarray:
    """Values at the edges of the format, of rounding and of conversions, of both signs; as bits."""
    one, infinity = (int(form.encode(value)) for value in (1, np.inf))
    step = form.least_normal
    small = one + form.least_exponent // 2 * step  # the products of such numbers are subnormal or just not
    bits = [
        0, 1, 3, step - 1, step, step + 1, one - 1, one, one + 1, one + step // 2, small, small + 5, small - step + 7,
        infinity - 1, infinity, infinity + 1, infinity + step // 2, infinity + step - 1,
    ]  # fmt: skip
    numbers = [0.5, 2.5, 3, 1 / 3, 1e-40, 6e-8, 65504, 65520, 3e9, 1e15, 2.0**31, 2.0**32, 2.0**63, 2.0**64]
    bits += form.encode(numbers).tolist()
    return np.array([value | sign for value in bits for sign in (0, form.sign)], np.uint64)


def _operands(form: Format) -> np.ndarray:
    """Edges with one another, sums that cancel a product, and any bits; uint64 [3, n]."""
    random = np.random.default_rng(1)
    edges = _edges(form)
    pairs = [[edges, np.roll(edges, by), np.roll(edges, by + 7)] for by in range(0, edges.size, 3)]
    mantissas = random.integers(0, form.least_normal, (2, RANDOM_CASES), np.uint64) | form.encode(1)
    product = form.decode(mantissas[0]) * form.decode(mantissas[1])
    cancelled = np.stack([*mantissas, form.encode(-product)])
    return np.concatenate([*pairs, cancelled, random.integers(0, 2 * form.sign, (3, RANDOM_CASES), np.uint64)], axis=1)


# -- results --------------------------------------------------------------------------------------------


def _fma(form: Format, x: Any, y: Any, z: Any) -> float:
    """x * y + z, rounded once."""
    x, y, z = float(x), float(y), float(z)
    if not (math.isfinite(x) and math.isfinite(y)):
        return x * y + z
    if not math.isfinite(z):
        return z
    product = Fraction(x) * Fraction(y)
    exact = product + Fraction(z)
    if not exact:
        return 0.0 if product else x * y + z
    exponent = exact.numerator.bit_length() - exact.denominator.bit_length()
    exponent -= abs(exact) < Fraction(2) ** exponent
    quantum = max(exponent, form.least_exponent) - form.precision + 1
    digits = round(abs(exact) / Fraction(2) ** quantum)  # to even
    rounded = math.ldexp(digits, quantum) if digits.bit_length() + quantum <= 2 - form.least_exponent else math.inf
    return -rounded if exact < 0 else rounded


def _extremum(form: Format, x: np.ndarray, y: np.ndarray, better: Callable[..., Any], zeros: Callable[..., Any]) -> Any:
    """The better of two, zeros by their signs; NaN if either is."""
    equal = form.decode(zeros(x.view(form.bits), y.view(form.bits)))
    return np.where(np.isnan(x) | np.isnan(y), form.real(np.nan), np.where(x == y, equal, better(x, y)))


def _integer(x: np.ndarray, kind: type) -> np.ndarray:
    """Truncated and saturated; NaN gives 0."""
    limits = np.iinfo(kind)
    exact = [0 if math.isnan(v) else v if math.isinf(v) else math.trunc(v) for v in x.tolist()]
    clipped: np.ndarray = np.array([int(min(max(v, limits.min), limits.max)) for v in exact], kind)
    return clipped.view(f"u{clipped.itemsize}").astype(np.uint64)


def _float_cases(form: Format) -> list[Cases]:
    operands = _operands(form)
    x, y, z = (form.decode(row) for row in operands)
    rounded = {
        "add": x + y,
        "sub": x - y,
        "mul": x * y,
        "div": x / y,
        "sqrt": np.sqrt(x),
        "fma": [_fma(form, *case) for case in zip(x, y, z, strict=True)],
        "max": _extremum(form, x, y, np.maximum, np.bitwise_and),
        "min": _extremum(form, x, y, np.minimum, np.bitwise_or),
        "floor": np.floor(x),
        "ceil": np.ceil(x),
        "trunc": np.trunc(x),
        "rint": np.rint(x),
    }
    functions = {name: form.encode(values) for name, values in rounded.items()}
    integers = {f"to {np.dtype(kind)}": _integer(x, kind) for kind in INTEGERS}
    apart = form.encode(x * y + z)
    kernel = f"ree_probe_{form.name}"
    return [
        Cases(kernel, form, operands, {**functions, **integers}),
        Cases(f"{kernel}_sum", form, operands, {SUM: apart}),
        Cases(f"{kernel}_plain", form, operands, {SUM: apart, "x / y": functions["div"]}),
    ]


def _to_bf16(operands: np.ndarray) -> np.ndarray:
    """The nearest of the two neighbours, the even one of a tie."""
    low, rest = operands >> np.uint64(16), operands & np.uint64(0xFFFF)
    up = (rest > 0x8000) | ((rest == 0x8000) & (low & np.uint64(1) == 1))
    return np.where(np.isnan(F32.decode(operands)), np.uint64(0x7FC0), low + up.astype(np.uint64))


def _to_f16(operands: np.ndarray) -> np.ndarray:
    x = F32.decode(operands)
    return np.where(np.isnan(x), 0x7E00, x.astype(np.float16).view(np.uint16)).astype(np.uint64)


def _format_cases() -> Cases:
    # at and beside ties; some are ties only after they were rounded to 53 bits
    near = [
        2**24 + 1,
        2**25 + 6,
        2**53 + 1,
        2**54 + 6,
        2**62 + 2**38,
        2**62 + 2**38 + 1,
        2**63 + 2**39 + 1,
        2**63 + 2**40,
    ]
    ties = np.array([1, 2**63 - 1, 2**63, 2**64 - 1, *near, *(2**64 - value for value in near)], np.uint64)
    operands = np.concatenate([_operands(F32), _operands(F64), np.stack([ties] * 3)], axis=1)
    x, halves = operands[0], operands[0].astype(np.uint16)
    numbers = [x.astype(kind) for kind in INTEGERS]
    results = {
        "f32 to bf16": _to_bf16(x.astype(np.uint32).astype(np.uint64)),
        "f32 to f16": _to_f16(x),
        "f32 to f64": F64.encode(F32.decode(x).astype(np.float64)),
        "f64 to f32": F32.encode(F64.decode(x).astype(np.float32)),
        "bf16 to f32": F32.encode(F32.decode(halves.astype(np.uint32) << 16)),
        "f16 to f32": F32.encode(halves.view(np.float16).astype(np.float32)),
        **{f"{values.dtype} to f32": F32.encode(values.astype(np.float32)) for values in numbers},
        **{f"{values.dtype} to f64": F64.encode(values.astype(np.float64)) for values in numbers},
    }
    return Cases("ree_probe_formats", None, operands, results)


@functools.cache
def all_cases() -> tuple[Cases, ...]:
    """The probe's kernels with operands and results."""
    with default_fp_state(), np.errstate(all="ignore"):  # also for those who only look at them
        return (*_float_cases(F32), *_float_cases(F64), _format_cases())
