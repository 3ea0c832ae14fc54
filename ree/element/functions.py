"""Elementary functions of binary32: evaluated in binary64 by branch-free programs, rounded once.

`UNIVARIATE` lists the bodies that benchmarks/exhaustive.py checks over all 2**32 inputs
(docs/FUNCTIONS.md has the counts). Two-argument functions are defined by their sequence of
operations; they follow C99 (Annex F) in the special cases.

Within `narrow_first` the programs of many of them begin in binary32 and come to binary64 where that does not settle the
result, which has the same bits: for devices on which binary64 is slow. Definitions are the programs built outside it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar

from ree.element import activations, angles, bell, narrow, power, real
from ree.element.program import Builder, Value
from ree.types import Type

Body = Callable[[Builder, Value], Value]

UNIVARIATE: dict[str, Body] = {
    "exp": real.exp,
    "exp2": real.exp2,
    "expm1": real.expm1,
    "log": real.log,
    "log2": real.log2,
    "log10": real.log10,
    "log1p": real.log1p,
    "sin": angles.sin,
    "cos": angles.cos,
    "tan": angles.tan,
    "asin": angles.asin,
    "acos": angles.acos,
    "atan": angles.atan,
    "sinh": real.sinh,
    "cosh": real.cosh,
    "tanh": real.tanh,
    "asinh": real.asinh,
    "acosh": real.acosh,
    "atanh": real.atanh,
    "erf": bell.erf,
    "erfc": bell.erfc,
    "sigmoid": real.sigmoid,
    "rsqrt": real.rsqrt,
    "gelu": bell.gelu,
    "gelu_tanh": activations.gelu_tanh,
    "silu": activations.silu,
    "mish": activations.mish,
    "log_sigmoid": activations.log_sigmoid,
}

_begin_narrow: ContextVar[bool] = ContextVar("begin_narrow", default=False)


@contextlib.contextmanager
def narrow_first(wanted: bool = True) -> Iterator[None]:
    """Let functions that are built meanwhile begin in binary32 (ree/element/narrow.py), if wanted."""
    token = _begin_narrow.set(wanted)
    try:
        yield
    finally:
        _begin_narrow.reset(token)


def _narrow(b: Builder, value: Value) -> Value:
    return b.convert(value, Type.F32)


def _wide(b: Builder, value: Value) -> Value:
    return b.convert(value, Type.F64)


def univariate(name: str) -> Body:
    """The function of this name in `UNIVARIATE`, f32 Value -> f32 Value."""
    body = UNIVARIATE[name]

    def function(b: Builder, x: Value) -> Value:
        if _begin_narrow.get() and name in narrow.NEAR:
            result, settled = narrow.settle(b, narrow.NEAR[name](b, x))
            return b.select(settled, result, _narrow(b, body(b, _wide(b, x))))
        return _narrow(b, body(b, _wide(b, x)))

    function.__name__ = name
    function.__doc__ = f"{name} of an f32 value, rounded once."
    return function


exp = univariate("exp")
exp2 = univariate("exp2")
expm1 = univariate("expm1")
log = univariate("log")
log2 = univariate("log2")
log10 = univariate("log10")
log1p = univariate("log1p")
sin = univariate("sin")
cos = univariate("cos")
tan = univariate("tan")
asin = univariate("asin")
acos = univariate("acos")
atan = univariate("atan")
sinh = univariate("sinh")
cosh = univariate("cosh")
tanh = univariate("tanh")
asinh = univariate("asinh")
acosh = univariate("acosh")
atanh = univariate("atanh")
erf = univariate("erf")
erfc = univariate("erfc")
sigmoid = univariate("sigmoid")
rsqrt = univariate("rsqrt")
_gelu_in_full = univariate("gelu")
gelu_tanh = univariate("gelu_tanh")
silu = univariate("silu")
mish = univariate("mish")
log_sigmoid = univariate("log_sigmoid")


def gelu(b: Builder, x: Value) -> Value:
    """x Phi(x) rounded once: cheaply where bounds on it settle the rounding, else in full.

    The printer of kernels skips the full evaluation where no lane of a vector needs it.
    """
    if _begin_narrow.get():
        return _gelu_in_full(b, x)
    low, high = (_narrow(b, bound) for bound in bell.gelu_near(b, _wide(b, x)))
    settled = low.eq(high) & (b.op("abs", x) <= bell.GELU_NEAR)
    return b.select(settled, low, _gelu_in_full(b, x))


def softplus(b: Builder, x: Value, beta: float = 1.0, threshold: float = 20.0) -> Value:
    """log(1 + e**(beta x)) / beta, and x where beta x > threshold."""
    if _begin_narrow.get() and narrow.has_softplus(beta, threshold):
        result, settled = narrow.settle(b, narrow.softplus(b, x, threshold))
        return b.select(settled, result, _narrow(b, activations.softplus(b, _wide(b, x), beta, threshold)))
    return _narrow(b, activations.softplus(b, _wide(b, x), beta, threshold))


def logaddexp(b: Builder, x: Value, y: Value) -> Value:
    """log(e**x + e**y)."""
    return _narrow(b, activations.logaddexp(b, _wide(b, x), _wide(b, y)))


def xlogy(b: Builder, x: Value, y: Value) -> Value:
    """x log(y); 0 where x is 0 and y is no NaN."""
    wide_x, wide_y = _wide(b, x), _wide(b, y)
    product = wide_x * real.log(b, wide_y)
    return _narrow(b, b.select(wide_x.eq(0.0) & wide_y.eq(wide_y), 0.0, product))


def pow(b: Builder, x: Value, y: Value) -> Value:
    """x**y with C99's special cases."""
    return _narrow(b, power.pow(b, _wide(b, x), _wide(b, y)))


def atan2(b: Builder, y: Value, x: Value) -> Value:
    """The angle of the point (x, y) with C99's special cases."""
    return _narrow(b, angles.atan2(b, _wide(b, y), _wide(b, x)))
