"""The registry of operators: what each means (an element program), its shape rule, its lowering.

One operator = one block in one file of ree/ops:

    @operator("exp", doc="e**x, correctly rounded")
    def exp(b, ins, out, attrs):            # the element program of one output element
        return functions.exp(b, b.load(0, *b.indices()))

    @lowers("aten.exp.default")             # how ATen's calls become nodes
    def _(ctx, x): return ctx.unary("exp", x)

All operators have ONE output; ATen operators with several lower to several nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ree.element.program import Builder, Port, Program, Value
from ree.errors import GraphError, UnsupportedError
from ree.types import TensorType

Attrs = Mapping[str, Any]
Infer = Callable[[Sequence[TensorType], Attrs], TensorType]
Define = Callable[[Builder, Sequence[TensorType], TensorType, Attrs], Value]


@dataclass(frozen=True, slots=True)
class Operator:
    """An operator's name, meaning and rules.

    kind: "pointwise" (all inputs have the output's shape; element i depends on elements i),
    "view" (a load at computed coordinates, nothing else), "fold" (reductions along rows),
    or the name of a schedule of its own ("matmul", "conv", "attention", "sort", "scan",
    "scatter", "experts"); "any" has neither.
    """

    name: str
    kind: str
    infer: Infer
    define: Define
    doc: str

    def program(self, ins: Sequence[TensorType], out: TensorType, attrs: Attrs) -> Program:
        """The checked element program for these (static) types and attributes."""
        builder = Builder([Port(t.dtype, t.rank) for t in ins], out.rank)
        return builder.finish([self.define(builder, ins, out, attrs)], [out.dtype])


ADVICE = "write it with operators that are (docs/OPERATORS.md lists them)"
_OPERATORS: dict[str, Operator] = {}
_LOWERINGS: dict[str, Callable[..., Any]] = {}


def same_type(ins: Sequence[TensorType], attrs: Attrs) -> TensorType:
    """Shape rule: the type of the first input."""
    return ins[0]


def operator_def(
    name: str, *, kind: str = "pointwise", infer: Infer = same_type, doc: str
) -> Callable[[Define], Define]:
    """Register the decorated function as the definition of operator `name`."""

    def register(define: Define) -> Define:
        if name in _OPERATORS:
            raise GraphError(f"operator {name} is defined twice")
        _OPERATORS[name] = Operator(name, kind, infer, define, doc)
        return define

    return register


def lowers(*targets: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register the decorated rule for FX targets such as "aten.add.Tensor"."""

    def register(rule: Callable[..., Any]) -> Callable[..., Any]:
        for target in targets:
            if target in _LOWERINGS:
                raise GraphError(f"{target} is lowered twice")
            _LOWERINGS[target] = rule
        return rule

    return register


@lru_cache(maxsize=1)
def _load_all() -> None:
    import importlib
    import pkgutil

    import ree.ops

    for module in sorted(m.name for m in pkgutil.iter_modules(ree.ops.__path__)):
        importlib.import_module(f"ree.ops.{module}")


def operator(name: str) -> Operator:
    """The operator of this name (GraphError if there is none)."""
    _load_all()
    found = _OPERATORS.get(name)
    if found is None:
        raise GraphError(f"unknown operator {name!r}")
    return found


def operators() -> dict[str, Operator]:
    """All operators by name, sorted."""
    _load_all()
    return dict(sorted(_OPERATORS.items()))


def lowering(target: str) -> Callable[..., Any]:
    """The rule for an FX target (UnsupportedError if there is none)."""
    _load_all()
    rule = _LOWERINGS.get(target)
    if rule is None:
        raise UnsupportedError(f"operator {target} is not supported; {ADVICE}")
    return rule


def lowerings() -> tuple[str, ...]:
    """All FX targets that have a rule, sorted."""
    _load_all()
    return tuple(sorted(_LOWERINGS))
