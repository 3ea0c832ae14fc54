"""Correctly rounded float32 values of the elementary functions, by MPFR (gmpy2) with 200 bits."""

from __future__ import annotations

from collections.abc import Callable

import gmpy2
import numpy as np
from gmpy2 import mpfr

_CONTEXT = gmpy2.context(precision=200, emin=-100000, emax=100000)


def _sigmoid(x: mpfr) -> mpfr:
    return 1 / (1 + gmpy2.exp(-x))


def _gelu_tanh(x: mpfr) -> mpfr:
    inner = gmpy2.sqrt(2 / gmpy2.const_pi()) * (x + mpfr("0.044715") * x * x * x)
    return x * _sigmoid(2 * inner)


EXACT: dict[str, Callable[[mpfr], mpfr]] = {
    **{
        name: getattr(gmpy2, name)
        for name in [
            "exp",
            "exp2",
            "expm1",
            "log",
            "log2",
            "log10",
            "log1p",
            "sin",
            "cos",
            "tan",
            "asin",
            "acos",
            "atan",
            "sinh",
            "cosh",
            "tanh",
            "asinh",
            "acosh",
            "atanh",
            "erf",
            "erfc",
        ]
    },
    "sigmoid": _sigmoid,
    "rsqrt": lambda x: 1 / gmpy2.sqrt(x),
    "gelu": lambda x: x * gmpy2.erfc(-x / gmpy2.sqrt(mpfr(2))) / 2,
    "gelu_tanh": _gelu_tanh,
    "silu": lambda x: x * _sigmoid(x),
    "mish": lambda x: x * gmpy2.tanh(gmpy2.log1p(gmpy2.exp(x))),
    "log_sigmoid": lambda x: x - gmpy2.log1p(gmpy2.exp(x)) if x < 0 else -gmpy2.log1p(gmpy2.exp(-x)),
}

# closed interval in which a function is not NaN (everywhere else it is), and the limits at
# infinity that the formulas above do not give
DOMAIN: dict[str, tuple[float, float]] = {
    "log": (0.0, np.inf),
    "log2": (0.0, np.inf),
    "log10": (0.0, np.inf),
    "log1p": (-1.0, np.inf),
    "asin": (-1.0, 1.0),
    "acos": (-1.0, 1.0),
    "acosh": (1.0, np.inf),
    "atanh": (-1.0, 1.0),
    "rsqrt": (0.0, np.inf),
    **dict.fromkeys(("sin", "cos", "tan"), (-3.4028234663852886e38, 3.4028234663852886e38)),
}
LIMITS = {("gelu", -np.inf): -0.0, ("gelu_tanh", -np.inf): -0.0, ("silu", -np.inf): -0.0, ("mish", -np.inf): -0.0}


def domain(name: str) -> tuple[float, float]:
    return DOMAIN.get(name, (-np.inf, np.inf))


def exact(name: str, x: float) -> mpfr:
    """The function with 200 bits."""
    with gmpy2.context(_CONTEXT):
        if (name, x) in LIMITS:
            return mpfr(LIMITS[name, x])
        return EXACT[name](mpfr(x))


def to_float32(value: mpfr) -> np.float32:
    """Nearest float32, ties to even, subnormals included."""
    if gmpy2.is_nan(value) or gmpy2.is_infinite(value) or value == 0:
        return np.float32(float(value))
    sign = np.float32(1 if value > 0 else -1)
    digits = min(24, gmpy2.get_exp(value) + 149)
    if digits <= 0:  # below the smallest subnormal: half of it is a tie to 0
        return sign * np.float32(0.0 if abs(value) <= mpfr(2) ** -150 else 2.0**-149)
    with gmpy2.context(_CONTEXT, precision=digits):
        rounded = mpfr(value)
    return sign * np.float32(np.inf) if abs(rounded) >= mpfr(2) ** 128 else np.float32(float(rounded))


def correct(name: str, x: float) -> np.float32:
    """The correctly rounded float32 result for a float32 argument."""
    return to_float32(exact(name, float(x)))
