"""Dimension expressions of dynamic programs, in a normal form.

A dimension is an `int`, or a `Dim`: an integer polynomial over atoms, where an atom is a
symbol ("batch") or a floor division, remainder, min or max of two dimensions. Equal
expressions have equal normal forms for everything that polynomial arithmetic can show,
so shapes compare structurally.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Atom:
    """A symbol (op "sym", name) or a non-polynomial function of two dimensions."""

    op: str  # sym | floordiv | mod | min | max
    args: tuple[Any, ...]

    def sort_key(self) -> str:
        return str(self)

    def __str__(self) -> str:
        if self.op == "sym":
            return str(self.args[0])
        return f"{self.op}({self.args[0]},{self.args[1]})"


Monomial = tuple[Atom, ...]


@dataclass(frozen=True, slots=True)
class Dim:
    """Sum of integer coefficients times products of atoms, sorted; never a plain integer."""

    terms: tuple[tuple[Monomial, int], ...]

    def __add__(self, other: int | Dim) -> int | Dim:
        total = dict(self.terms)
        for monomial, coefficient in _terms(other):
            total[monomial] = total.get(monomial, 0) + coefficient
        return _normal(total)

    __radd__ = __add__

    def __neg__(self) -> int | Dim:
        return _normal({monomial: -coefficient for monomial, coefficient in self.terms})

    def __sub__(self, other: int | Dim) -> int | Dim:
        return self + (-other)

    def __rsub__(self, other: int) -> int | Dim:
        return (-self) + other

    def __mul__(self, other: int | Dim) -> int | Dim:
        product: dict[Monomial, int] = {}
        for left, left_coefficient in self.terms:
            for right, right_coefficient in _terms(other):
                monomial = tuple(sorted(left + right, key=Atom.sort_key))
                product[monomial] = product.get(monomial, 0) + left_coefficient * right_coefficient
        return _normal(product)

    __rmul__ = __mul__

    def __floordiv__(self, other: int | Dim) -> int | Dim:
        return floordiv(self, other)

    def __rfloordiv__(self, other: int) -> int | Dim:
        return floordiv(other, self)

    def __mod__(self, other: int | Dim) -> int | Dim:
        return mod(self, other)

    def __repr__(self) -> str:
        return str(self)

    def __str__(self) -> str:
        parts = []
        for monomial, coefficient in self.terms:
            factors = [str(atom) for atom in monomial]
            if coefficient != 1 or not factors:
                factors.insert(0, str(coefficient))
            parts.append("*".join(factors))
        return "+".join(parts)


def _terms(value: int | Dim) -> tuple[tuple[Monomial, int], ...]:
    return value.terms if isinstance(value, Dim) else ((((), value),) if value else ())


def _normal(total: dict[Monomial, int]) -> int | Dim:
    terms = {monomial: coefficient for monomial, coefficient in total.items() if coefficient}
    if not terms:
        return 0
    if len(terms) == 1 and () in terms:
        return terms[()]
    key: Callable[[tuple[Monomial, int]], Any] = lambda term: tuple(map(str, term[0]))  # noqa: E731
    return Dim(tuple(sorted(terms.items(), key=key)))


def symbol(name: str) -> Dim:
    """The dimension that is bound at a call under this name."""
    return Dim((((Atom("sym", (name,)),), 1),))


def _function(op: str, a: int | Dim, b: int | Dim) -> Dim:
    return Dim((((Atom(op, (a, b)),), 1),))


def floordiv(a: int | Dim, b: int | Dim) -> int | Dim:
    """Floor division; exact where the divisor divides every coefficient or is a factor."""
    if isinstance(a, int) and isinstance(b, int):
        return a // b
    if a == b:
        return 1
    if isinstance(b, int):
        if b == 1:
            return a
        if all(coefficient % b == 0 for _, coefficient in _terms(a)):
            return _normal({m: c // b for m, c in _terms(a)})
    elif isinstance(a, Dim) and len(b.terms) == 1:
        quotient = _divide_by_monomial(a, b)
        if quotient is not None:
            return quotient
    return _function("floordiv", a, b)


def _divide_by_monomial(a: Dim, b: Dim) -> int | Dim | None:
    ((divisor, divisor_coefficient),) = b.terms
    quotient: dict[Monomial, int] = {}
    for monomial, coefficient in a.terms:
        rest = list(monomial)
        for atom in divisor:
            if atom not in rest:
                return None
            rest.remove(atom)
        if coefficient % divisor_coefficient:
            return None
        quotient[tuple(rest)] = coefficient // divisor_coefficient
    return _normal(quotient)


def mod(a: int | Dim, b: int | Dim) -> int | Dim:
    """Remainder of the floor division."""
    if isinstance(a, int) and isinstance(b, int):
        return a % b
    if a == b or b == 1:
        return 0
    if isinstance(b, int) and all(coefficient % b == 0 for _, coefficient in _terms(a)):
        return 0
    return _function("mod", a, b)


def minimum(a: int | Dim, b: int | Dim, ranges: Ranges | None = None) -> int | Dim:
    """The smaller; one of the two where the symbols' ranges decide it."""
    if isinstance(a, int) and isinstance(b, int):
        return min(a, b)
    low, high = bounds(a - b, ranges or {})
    if high <= 0:
        return a
    if low >= 0:
        return b
    return _function("min", a, b)


def maximum(a: int | Dim, b: int | Dim, ranges: Ranges | None = None) -> int | Dim:
    """The larger; one of the two where the symbols' ranges decide it."""
    if isinstance(a, int) and isinstance(b, int):
        return max(a, b)
    low, high = bounds(a - b, ranges or {})
    if high <= 0:
        return b
    if low >= 0:
        return a
    return _function("max", a, b)


def is_static(value: int | Dim) -> bool:
    return isinstance(value, int)


Ranges = Mapping[str, tuple[int, int]]


def bounds(value: int | Dim, ranges: Ranges) -> tuple[float, float]:
    """(smallest, largest) that an expression can be while its symbols stay in their ranges; may be wide."""
    if isinstance(value, int):
        return value, value
    low, high = 0.0, 0.0
    for monomial, coefficient in value.terms:
        corners = [float(coefficient)]
        for atom in monomial:
            corners = [c * b if c and b else 0.0 for c in corners for b in _atom_bounds(atom, ranges)]
        low, high = low + min(corners), high + max(corners)
    return low, high


def _atom_bounds(atom: Atom, ranges: Ranges) -> tuple[float, float]:
    if atom.op == "sym":
        return ranges.get(atom.args[0], (-math.inf, math.inf))
    (low, high), (other_low, other_high) = (bounds(argument, ranges) for argument in atom.args)
    if atom.op in ("min", "max"):
        pick = min if atom.op == "min" else max
        return pick(low, other_low), pick(high, other_high)
    if atom.op == "mod" and other_low > 0:
        return 0.0, other_high - 1
    if atom.op == "floordiv" and other_low > 0 and low >= 0:
        return 0.0 if math.isinf(other_high) else low // other_high, high if math.isinf(high) else high // other_low
    return -math.inf, math.inf


_APPLY: dict[str, Callable[[int, int], int]] = {
    "floordiv": lambda a, b: a // b,
    "mod": lambda a, b: a % b,
    "min": min,
    "max": max,
}
FUNCTIONS = tuple(_APPLY)


def evaluate(value: int | Dim, binding: Mapping[str, int]) -> int:
    """The integer that an expression has under a binding of its symbols (KeyError if unbound)."""
    if isinstance(value, int):
        return value
    total = 0
    for monomial, coefficient in value.terms:
        product = coefficient
        for atom in monomial:
            if atom.op == "sym":
                product *= binding[atom.args[0]]
            else:
                left, right = (evaluate(argument, binding) for argument in atom.args)
                product *= _APPLY[atom.op](left, right)
        total += product
    return total


def symbols(value: int | Dim) -> set[str]:
    """Names of all symbols in an expression."""
    if isinstance(value, int):
        return set()
    names: set[str] = set()
    for monomial, _ in value.terms:
        for atom in monomial:
            if atom.op == "sym":
                names.add(atom.args[0])
            else:
                names |= symbols(atom.args[0]) | symbols(atom.args[1])
    return names


def complexity(value: int | Dim) -> int:
    """The number of symbols and functions in an expression; 0 for an integer."""
    if isinstance(value, int):
        return 0
    atoms = [atom for monomial, _ in value.terms for atom in monomial]
    return sum(1 if a.op == "sym" else 1 + sum(map(complexity, a.args)) for a in atoms)


def solve(value: int | Dim, result: int) -> tuple[str, int] | None:
    """(symbol, its value) where an expression a * symbol + b is `result`; None for others and for remainders."""
    terms = dict(_terms(value))
    rest = result - terms.pop((), 0)
    if len(terms) != 1:
        return None
    ((monomial, coefficient),) = terms.items()
    if len(monomial) != 1 or monomial[0].op != "sym" or rest % coefficient:
        return None
    return monomial[0].args[0], rest // coefficient


def to_json(value: int | Dim) -> Any:
    """An int, or nested lists that `from_json` reads back."""
    if isinstance(value, int):
        return value
    return [
        [coefficient, [[a.op, *([a.args[0]] if a.op == "sym" else map(to_json, a.args))] for a in monomial]]
        for monomial, coefficient in value.terms
    ]


def from_json(value: Any) -> int | Dim:
    """Inverse of `to_json`; ValueError on anything else."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if not isinstance(value, list):
        raise ValueError("a dimension is an integer or a list of terms")
    total: int | Dim = 0
    for term in value:
        coefficient, atoms = term
        if not isinstance(coefficient, int):
            raise ValueError("a coefficient is an integer")
        product: int | Dim = coefficient
        for atom in atoms:
            product = product * _atom_from_json(atom)
        total = total + product
    return total


def _atom_from_json(atom: Any) -> Dim:
    op, *args = atom
    if op == "sym":
        (name,) = args
        if not isinstance(name, str):
            raise ValueError("a symbol has a name")
        return symbol(name)
    if op not in _APPLY or len(args) != 2:
        raise ValueError(f"unknown dimension function {op!r}")
    return _function(op, from_json(args[0]), from_json(args[1]))
