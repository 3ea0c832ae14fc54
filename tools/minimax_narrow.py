"""Makes the polynomial coefficients of ree/element/narrow_coefficients.py (writes that file).

They are for float-float evaluation (ree/element/float_float.py): the coefficients of high powers are single binary32
numbers, those of low powers are sums of two. A step of the evaluation, s x + c, gives its rounding error exactly if
(s x + c) - c is a binary32 number: so it is where s x + c is at least c / 2 (Sterbenz), provided that c has as many
trailing zeros as s x + c may have more digits before the point. The script sees to the zeros, and prints how large an
error a step can make where the sum is smaller. Run `python tools/minimax_narrow.py` and commit the result.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import minimax
from mpmath import mp, mpf

TARGET = Path(__file__).parent.parent / "ree" / "element" / "narrow_coefficients.py"
DIGITS = 24  # of binary32
_ZERO = mpf(0)
_NEAR_ZERO = mpf("1e-20")  # known coefficients leave nothing to be fitted at 0 itself


@dataclass(frozen=True)
class Spec:
    """A polynomial in t = x - centre for x in [low, high]; known: coefficients that are given, by number.

    degree: of the whole; doubles: how many coefficients are sums of two.
    """

    function: Callable[[mpf], mpf]
    low: mpf
    high: mpf
    degree: int
    doubles: int
    about: str
    known: dict[int, mpf] = field(default_factory=dict)
    centre: mpf = _ZERO

    def at(self, t: mpf) -> mpf:
        return self.function(t + self.centre)

    def nodes(self, count: int) -> list[mpf]:
        return minimax._nodes(self.low - self.centre, self.high - self.centre, count)


Coefficients = list[tuple[mpf, ...]]


def rounded(x: mpf, digits: int = DIGITS) -> mpf:
    """x to so many binary digits."""
    if x == 0:
        return x
    unit = mpf(2) ** (mp.floor(mp.log(abs(x), 2)) - digits + 1)
    return mp.nint(x / unit) * unit


def fit(spec: Spec) -> Coefficients:
    """The coefficients; each one that is rounded to a single number leaves its error to those below."""
    above: list[mpf] = []
    for degree in range(spec.degree, spec.doubles - 1, -1):
        above.insert(0, rounded(_interpolated(spec, degree, above)[-1]))
    return [*_in_two(spec, _interpolated(spec, spec.doubles - 1, above), above), *((c,) for c in above)]


def _interpolated(spec: Spec, degree: int, above: list[mpf]) -> list[mpf]:
    """Coefficients up to `degree`, those above it given, through as many Chebyshev nodes as are not known."""
    unknown = [k for k in range(degree + 1) if k not in spec.known]
    nodes = [t if abs(t) > _NEAR_ZERO else _NEAR_ZERO for t in spec.nodes(len(unknown))]
    given = [spec.known.get(k, mpf(0)) for k in range(degree + 1)] + above
    with mp.workdps(200):
        rest = [spec.at(t) - mp.polyval(given[::-1], t) for t in nodes]
        found = mp.lu_solve(mp.matrix([[t**k for k in unknown] for t in nodes]), mp.matrix(rest))
    for k, c in zip(unknown, found, strict=True):
        given[k] = c
    return given[: degree + 1]


def _in_two(spec: Spec, exact: list[mpf], above: list[mpf]) -> Coefficients:
    """The coefficients of low powers as sums of two, the first of which has the zeros that its step needs."""
    everything = [*exact, *above]
    found: Coefficients = []
    for k, c in enumerate(exact):
        growth = max(abs(_partial(everything, k, t) / c) for t in spec.nodes(101)) if c else mpf(0)
        zeros = 0 if growth <= 2 else int(mp.ceil(mp.log(growth, 2)))
        high = rounded(c, DIGITS - zeros)
        found.append((high, rounded(c - high)))
    return found


def _partial(coefficients: list[mpf], k: int, t: mpf) -> mpf:
    """Horner's sum down to coefficient k."""
    return mp.polyval(list(reversed(coefficients[k:])), t)


def step_error(spec: Spec, coefficients: Coefficients) -> float:
    """log2 of the largest error, relative to the function, of a step whose sum may be less than half of c."""
    values = [mp.fsum(c) for c in coefficients]
    worst = mpf(2) ** -99
    for k in range(min(spec.doubles, spec.degree)):
        for t in spec.nodes(101):
            if values[k] != 0 and _partial(values, k, t) / values[k] < mpf("0.5"):
                size = abs(values[k]) + abs(_partial(values, k, t))
                worst = max(worst, mpf(2) ** -DIGITS * size * abs(t**k / spec.at(t)))
    return float(mp.log(worst, 2))


def error_bits(spec: Spec, coefficients: Coefficients) -> float:
    """-log2 of the largest relative error on a fine grid."""
    values = [mp.fsum(c) for c in coefficients]
    return float(-mp.log(max(abs(_partial(values, 0, t) / spec.at(t) - 1) for t in spec.nodes(301)), 2))


def single_bits(spec: Spec, coefficients: Coefficients) -> float:
    """-log2 of the largest sum that is rounded to a single number, relative to the function."""
    values = [mp.fsum(c) for c in coefficients]
    k = spec.doubles
    return float(-mp.log(max(abs(_partial(values, k, t) * t**k / spec.at(t)) for t in spec.nodes(101)), 2))


def _even(function: Callable[[mpf], mpf]) -> Callable[[mpf], mpf]:
    return lambda z: function(mp.sqrt(abs(z)))


def _of_u(u: mpf) -> mpf:
    """Phi(-a) e**(a**2 / 2) (a + 4) with u = (a - 4) / (a + 4)."""
    with mp.workdps(200):
        a = BELL_SCALE * (1 + u) / (1 - u)
        return mp.exp(a * a / 2) * mp.erfc(a / mp.sqrt(2)) / 2 * (a + BELL_SCALE)


_HALF_LN2 = mp.log(2) / 2 * mpf("1.0001")
_QUARTER_Z = (mp.pi / 4 * mpf("1.01")) ** 2
_ONE, _HALF = mpf(1), mpf(1) / 2
_TINY = mpf("1e-30")
BELL_SCALE = mpf(4)
BELL_MOST = mpf(9)  # a
BELL_SHIFT = mpf(float.fromhex("0x1.42f6ccp+0"))  # 1 - u where the fifth derivative vanishes

SPECS: dict[str, Spec] = {
    "EXP": Spec(mp.exp, -_HALF_LN2, _HALF_LN2, 9, 6, "e**r", {0: _ONE, 1: _ONE, 2: _HALF}),
    "LOG": Spec(
        _even(lambda t: mp.atanh(t / 2) / (t / 2)),
        _TINY,
        4 * minimax._LOG_Z,
        5,
        3,
        "2 atanh(t / 2) / t in t**2",
        {0: _ONE},
    ),
    "SIN": Spec(_even(lambda r: mp.sin(r) / r), _TINY, _QUARTER_Z, 6, 4, "sin(r) / r in r**2", {0: _ONE}),
    "COS": Spec(_even(mp.cos), _TINY, _QUARTER_Z, 6, 4, "cos(r) in r**2", {0: _ONE, 1: -_HALF}),
    "ERF": Spec(
        _even(lambda x: mp.erf(x) / x), _TINY, mpf("3.925") ** 2, 22, 19, "erf(x) / x in x**2 - 8", centre=mpf(8)
    ),
    "BELL": Spec(
        _of_u,
        mpf(-1),
        (BELL_MOST - BELL_SCALE) / (BELL_MOST + BELL_SCALE),
        14,
        8,
        "Phi(-a) e**(a**2 / 2) (a + 4) in (a - 4) / (a + 4) - centre",
        known={5: mpf(0)},
        centre=1 - BELL_SHIFT,
    ),
}


def _text(c: tuple[mpf, ...]) -> str:
    return "    " + " ".join(float(part).hex() for part in c)


def main() -> None:
    lines = [
        '"""Polynomial coefficients of the float-float functions, constant term first: a number or the sum of two.',
        "",
        "Written by tools/minimax_narrow.py; each comment says what is approximated, on which range, and the error.",
        '"""',
        "",
        "Coefficients = tuple[tuple[float, ...], ...]",
        "",
        "",
        "def _sums(text: str) -> Coefficients:",
        "    return tuple(tuple(float.fromhex(word) for word in line.split()) for line in text.strip().splitlines())",
        "",
    ]
    for name, spec in SPECS.items():
        coefficients = fit(spec)
        bits = error_bits(spec, coefficients)
        low, high = mp.nstr(spec.low, 5), mp.nstr(spec.high, 5)
        where = "" if spec.centre == 0 else " before the shift"
        lines += ["", f"# {spec.about}"]
        lines += [f"# on [{low}, {high}]{where}, degree {spec.degree}, relative error < 2**-{int(bits)}"]
        lines += [f'{name} = _sums("""', *(_text(c) for c in coefficients), '""")']
        singles, step = single_bits(spec, coefficients), step_error(spec, coefficients)
        print(f"{name:5} degree {spec.degree:2} error 2**-{bits:.1f} singles 2**-{singles:.1f} steps 2**{step:.1f}")
    TARGET.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
