"""Makes the polynomial coefficients of ree/element/coefficients.py (writes that file).

Each polynomial interpolates its function at Chebyshev nodes with 60 digits, which comes
within a factor of about three of the best polynomial of that degree, and is rounded to
binary64. Run `python tools/minimax.py` and commit the result.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mpmath import mp, mpf

mp.dps = 60
TARGET = Path(__file__).parent.parent / "ree" / "element" / "coefficients.py"


@dataclass(frozen=True)
class Spec:
    """A polynomial: what it approximates on [low, high], its degree, what stands in the docs."""

    function: Callable[[mpf], mpf]
    low: mpf
    high: mpf
    degree: int
    about: str


def _quotient(function: Callable[[mpf], mpf], low_terms: Callable[[mpf], mpf], power: int) -> Callable[[mpf], mpf]:
    """(function(x) - low_terms(x)) / x**power with enough digits for small x."""

    def value(x: mpf) -> mpf:
        with mp.workdps(200):
            x = x if abs(x) > mpf("1e-25") else mpf("1e-25")
            return (function(x) - low_terms(x)) / x**power

    return value


def _even(function: Callable[[mpf], mpf], low_terms: Callable[[mpf], mpf], power: int) -> Callable[[mpf], mpf]:
    """The same as a function of z = x**2."""
    inner = _quotient(function, low_terms, power)
    return lambda z: inner(mp.sqrt(z))


_HALF_LN2 = mp.log(2) / 2 * mpf("1.001")
_LOG_Z = mpf("0.1732") ** 2  # s = (m - 1) / (m + 1) for m in [sqrt(1/2), sqrt(2)], a little more
_TAN_8 = mpf("0.4143") ** 2
ERF_CENTRE = mpf("7.75")


def _erf_over_x(t: mpf) -> mpf:
    x = mp.sqrt(t + ERF_CENTRE)
    return mp.erf(x) / x


GELU_CENTRE = mpf("10.125")  # of x**2 in [0, 4.5**2]


def _bell_over_x(t: mpf) -> mpf:
    x = mp.sqrt(t + GELU_CENTRE)
    return mp.erf(x / mp.sqrt(2)) / (2 * x)


ERFC_SCALE = mpf(4)


def _erfcx_of_u(u: mpf) -> mpf:
    with mp.workdps(100):
        x = ERFC_SCALE * (1 + u) / (1 - u)
        return mp.exp(x * x) * mp.erfc(x) * (x + ERFC_SCALE)


SPECS: dict[str, Spec] = {
    "EXP": Spec(_quotient(mp.exp, lambda r: 1 + r, 2), -_HALF_LN2, _HALF_LN2, 9, "(e**r - 1 - r) / r**2"),
    "EXP2": Spec(_quotient(lambda r: mpf(2) ** r, lambda r: mpf(1), 1), mpf("-0.5"), mpf("0.5"), 10, "(2**r - 1) / r"),
    "SINH": Spec(_even(mp.sinh, lambda r: r, 3), mpf("1e-30"), _HALF_LN2**2, 4, "(sinh(r) - r) / r**3 in r**2"),
    "COSH": Spec(_even(mp.cosh, lambda r: mpf(1), 2), mpf("1e-30"), _HALF_LN2**2, 5, "(cosh(r) - 1) / r**2 in r**2"),
    "LOG": Spec(
        _even(lambda s: 2 * mp.atanh(s), lambda s: 2 * s, 3),
        mpf("1e-30"),
        _LOG_Z,
        7,
        "(2 atanh(s) - 2 s) / s**3 in s**2",
    ),
    "ATAN": Spec(_even(mp.atan, lambda t: t, 3), mpf("1e-30"), _TAN_8, 11, "(atan(t) - t) / t**3 in t**2"),
    "ASIN": Spec(_even(mp.asin, lambda t: t, 3), mpf("1e-30"), mpf("0.2501"), 13, "(asin(t) - t) / t**3 in t**2"),
    "ASINH": Spec(_even(mp.asinh, lambda t: t, 3), mpf("1e-30"), mpf("0.2501"), 12, "(asinh(t) - t) / t**3 in t**2"),
    "SIN": Spec(
        _even(lambda f: mp.sin(mp.pi / 2 * f), lambda f: mp.pi / 2 * f, 3),
        mpf("1e-30"),
        mpf("0.2501"),
        6,
        "(sin(pi/2 f) - pi/2 f) / f**3 in f**2",
    ),
    "COS": Spec(
        _even(lambda f: mp.cos(mp.pi / 2 * f), lambda f: mpf(1), 2),
        mpf("1e-30"),
        mpf("0.2501"),
        7,
        "(cos(pi/2 f) - 1) / f**2 in f**2",
    ),
    "ERF": Spec(_erf_over_x, mpf("1e-30") - ERF_CENTRE, ERF_CENTRE, 26, "erf(x) / x in x**2 - 7.75"),
    "GELU": Spec(_bell_over_x, mpf("1e-30") - GELU_CENTRE, GELU_CENTRE, 20, "(Phi(x) - 1/2) / x in x**2 - 10.125"),
    "ERFC": Spec(_erfcx_of_u, mpf(-1), mpf("0.44"), 24, "erfc(x) e**(x**2) (x + 4) in u = (x - 4) / (x + 4)"),
}


# Changes in units in the last place, found by search, after which no input is misrounded.
NUDGES: dict[str, dict[int, int]] = {"ERF": {0: 4}, "ERFC": {0: 3, 4: -2, 5: -3, 8: -29}}


def _nudged(name: str, coefficients: list[float]) -> list[float]:
    def move(value: float, steps: int) -> float:
        bits = struct.unpack("<q", struct.pack("<d", value))[0]
        return struct.unpack("<d", struct.pack("<q", bits + steps))[0]

    nudges = NUDGES.get(name, {})
    return [move(c, nudges.get(k, 0)) for k, c in enumerate(coefficients)]


def _nodes(low: mpf, high: mpf, count: int) -> list[mpf]:
    half, middle = (high - low) / 2, (high + low) / 2
    return [middle + half * mp.cos(mp.pi * (2 * k + 1) / (2 * count)) for k in range(count)]


def _interpolate(points: list[tuple[mpf, mpf]]) -> list[mpf]:
    """Monomial coefficients through the points (Newton's divided differences)."""
    xs = [x for x, _ in points]
    table = [y for _, y in points]
    for order in range(1, len(points)):
        for k in range(len(points) - 1, order - 1, -1):
            table[k] = (table[k] - table[k - 1]) / (xs[k] - xs[k - order])
    result = [mpf(0)]
    for k in reversed(range(len(points))):
        shifted = [mpf(0), *result]
        result = [a - xs[k] * b for a, b in zip(shifted, [*result, mpf(0)], strict=True)]
        result[0] += table[k]
    return result[: len(points)]


def fit(spec: Spec) -> list[float]:
    """Coefficients from the constant term up, as binary64 numbers."""
    nodes = _nodes(spec.low, spec.high, spec.degree + 1)
    return [float(c) for c in _interpolate([(x, spec.function(x)) for x in nodes])]


def error_bits(spec: Spec, coefficients: list[float]) -> float:
    """-log2 of the largest error on a fine grid, relative to the function's largest value."""
    worst, largest = mpf(0), mpf(0)
    for x in _nodes(spec.low, spec.high, 301):
        exact = spec.function(x)
        worst = max(worst, abs(mp.polyval([mpf(c) for c in reversed(coefficients)], x) - exact))
        largest = max(largest, abs(exact))
    return float(-mp.log(worst / largest, 2))


def main() -> None:
    lines = [
        '"""Polynomial coefficients of the elementary functions, constant term first.',
        "",
        "Written by tools/minimax.py; each comment says what is approximated, on which range, and the error.",
        '"""',
        "",
        "def _floats(text: str) -> tuple[float, ...]:",
        "    return tuple(float.fromhex(word) for word in text.split())",
        "",
    ]
    for name, spec in SPECS.items():
        coefficients = _nudged(name, fit(spec))
        bits = error_bits(spec, coefficients)
        low, high = mp.nstr(spec.low, 5), mp.nstr(spec.high, 5)
        lines += ["", f"# {spec.about}"]
        lines += [f"# on [{low}, {high}], degree {spec.degree}, error < 2**-{int(bits)} of the largest value"]
        lines += [f'{name} = _floats("""', *(f"    {c.hex()}" for c in coefficients), '""")']
        print(f"{name:6} degree {spec.degree:2} error 2**-{bits:.1f}")
    TARGET.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
