"""Captures a small torch function, runs it by the reference interpreter, compares with torch."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from ree.capture import Importer, from_torch_dtype, to_numpy
from ree.graph import Graph, check
from ree.lower import T
from ree.ops.spec import lowerings
from ree.reference import evaluate

Function = Callable[..., Any]


def _decompositions() -> dict[Any, Any]:
    table = torch.export.default_decompositions()
    known = set(lowerings())
    return {op: rule for op, rule in table.items() if str(op) not in known}


_TABLE: dict[Any, Any] = {}


def graph_of(function: Function, *inputs: torch.Tensor) -> Graph:
    """The function's graph, without any pass."""
    if not _TABLE:
        _TABLE.update(_decompositions())
    traced = make_fx(lambda *tensors: function(*tensors), tracing_mode="fake", decomposition_table=_TABLE)(*inputs)
    importer = Importer()
    holders = [n for n in traced.graph.nodes if n.op == "placeholder"]
    for node, tensor in zip(holders, inputs, strict=True):
        importer.values[node] = importer.placeholder(node.name, tensor)
    results = torch.utils._pytree.tree_leaves(importer.run_graph(traced))
    graph = importer.lowering.finish([r for r in results if isinstance(r, T)])
    check(graph)
    return graph


def run(function: Function, *inputs: torch.Tensor) -> tuple[np.ndarray, ...]:
    """The function's tensor results as ree defines them."""
    return tuple(evaluate(graph_of(function, *inputs), [to_numpy(i) for i in inputs]))


def expect(function: Function, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The function's tensor results as torch has them."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        result = function(*inputs)
    flat = torch.utils._pytree.tree_leaves(result)
    return tuple(r for r in flat if isinstance(r, torch.Tensor))


def check_exact(function: Function, *inputs: torch.Tensor) -> None:
    """Equal values (any NaN is a NaN, -0 is 0), dtypes and shapes."""
    for number, (ours, torchs) in enumerate(_pairs(function, inputs)):
        np.testing.assert_array_equal(ours, to_numpy(torchs), err_msg=f"result {number} of {function}")


def check_close(function: Function, *inputs: torch.Tensor, rtol: float = 2e-6, atol: float = 1e-6) -> None:
    """f32 results close to torch's in f64 on the same inputs; others exact."""
    wide = [i.double() if i.dtype == torch.float32 else i for i in inputs]
    references = expect(function, *wide)
    for (ours, torchs), reference in zip(_pairs(function, inputs), references, strict=True):
        if torchs.dtype.is_floating_point:
            np.testing.assert_allclose(ours, to_numpy(reference.double()), rtol=rtol, atol=atol)
        else:
            np.testing.assert_array_equal(ours, to_numpy(torchs))


def _pairs(function: Function, inputs: Sequence[torch.Tensor]) -> list[tuple[np.ndarray, torch.Tensor]]:
    ours, torchs = run(function, *inputs), expect(function, *inputs)
    assert len(ours) == len(torchs)
    for a, b in zip(ours, torchs, strict=True):
        assert a.shape == tuple(b.shape)
        assert a.dtype == np.dtype(from_torch_dtype(b.dtype).numpy)
    return list(zip(ours, torchs, strict=True))


def together(calls: Sequence[tuple[Function, list[torch.Tensor]]]) -> tuple[Function, list[torch.Tensor]]:
    """Several calls as one function of all their tensors: one trace instead of many."""
    tensors = [t for _, own in calls for t in own]

    def function(*given: torch.Tensor) -> tuple[Any, ...]:
        remaining = iter(given)
        return tuple(call(*[next(remaining) for _ in own]) for call, own in calls)

    return function, tensors


def samples(name: str, dtype: torch.dtype, numel_max: int = 400) -> list[tuple[Function, list[torch.Tensor]]]:
    """torch's own sample calls of an operator ("op" or "op.variant") with small tensors."""
    from torch.testing._internal.common_methods_invocations import op_db

    base, _, variant = name.partition("/")
    (info,) = [o for o in op_db if o.name == base and o.variant_test_name == variant]
    torch.manual_seed(0)
    found = []
    for sample in info.sample_inputs("cpu", dtype, requires_grad=False):
        leaves, spec = torch.utils._pytree.tree_flatten(((sample.input, *sample.args), dict(sample.kwargs)))
        tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        if sum(t.numel() for t in tensors) > numel_max:
            continue
        found.append((_Call(info.op, leaves, spec), tensors))
    return found


class _Call:
    """A sample call as a function of its tensors."""

    def __init__(self, op: Function, leaves: list[Any], spec: Any) -> None:
        self.op, self.leaves, self.spec = op, leaves, spec
        self.keywords = set(torch.utils._pytree.tree_unflatten(leaves, spec)[1])

    def __call__(self, *tensors: torch.Tensor) -> Any:
        remaining = iter(tensors)
        leaves = [next(remaining) if isinstance(leaf, torch.Tensor) else leaf for leaf in self.leaves]
        args, kwargs = torch.utils._pytree.tree_unflatten(leaves, self.spec)
        return self.op(*args, **kwargs)

    def __repr__(self) -> str:
        return f"{getattr(self.op, '__name__', self.op)}{self.leaves}"
