"""What `ree inspect` tells about a program: operators, groups, floating-point operations, bytes, digests."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ree import file
from ree.errors import InputError
from ree.graph import Graph, Node, bind

if TYPE_CHECKING:
    from ree.program import Program

SIZE_DEFAULT = 8  # value of a dynamic dimension that the caller does not give


def describe(program: Program, sizes: Mapping[str, int] | None = None) -> dict[str, Any]:
    """Everything that can be said without running it, as JSON values.

    sizes: values of dynamic dimensions at which it is planned (InputError if out of range).
    """
    binding = binding_of(program.graph, sizes or {})
    graph = bind(program.graph, binding) if binding else program.graph
    plan = program.host_plan(tuple(binding.values()))
    description = file.describe(program.graph, program.input_structure, program.output_structure)
    weights = zip(graph.constants, (digest for _, _, digest in description["constants"]), strict=True)
    return {
        "program_id": program.program_id.hex(),
        "inputs": {i.name: str(i.type) for i in program.graph.inputs},
        "outputs": [str(program.graph.type_of(v)) for v in program.graph.outputs],
        "dynamic": {name: [low, high] for name, (low, high) in program.graph.symbols.items()},
        "planned_at": binding,
        "operators": dict(sorted(Counter(n.op for n in graph.nodes).items())),
        "groups": [
            {"kernel": step.name, "operators": [_op(graph, v) for v in step.members], "rows_columns": list(step.shape)}
            for step in plan.steps
        ],
        "flops": sum(flops(graph, node) for node in graph.nodes),
        "weights_bytes": sum(c.type.size_bytes() for c in graph.constants),
        "intermediate_bytes": sum(n.type.size_bytes() for n in graph.nodes),
        "arena_bytes": plan.arena_bytes,
        "weights": {c.name: {"type": str(c.type), "blake3": digest} for c, digest in weights},
    }


def flops(graph: Graph, node: Node) -> int:
    """Multiplications and additions of matrix products, convolutions and attention; 0 for all others."""
    types = [graph.type_of(v) for v in node.inputs]
    shapes = [tuple(int(n) for n in t.shape) for t in types]  # type: ignore[arg-type]
    out = node.type.numel()
    if node.op in ("matmul", "expert_matmul"):
        return 2 * out * shapes[0][-1]
    if node.op == "conv":
        return 2 * out * math.prod(shapes[1][1:])
    if node.op == "conv_transpose":
        return 2 * types[0].numel() * math.prod(shapes[1][1:])
    if node.op == "attention":
        rows = math.prod(shapes[0][:3])
        keys = shapes[1][2]
        return 2 * rows * keys * (shapes[0][3] + shapes[2][3])
    return 0


def _op(graph: Graph, value: int) -> str:
    node = graph.node_of(value)
    assert node is not None
    return node.op


def binding_of(graph: Graph, sizes: Mapping[str, int]) -> dict[str, int]:
    unknown = sorted(set(sizes) - set(graph.symbols))
    if unknown:
        raise InputError(f"no dynamic dimension {unknown[0]!r}; the program has {sorted(graph.symbols) or 'none'}")
    binding = {}
    for name, (low, high) in graph.symbols.items():
        value = sizes.get(name, max(low, min(SIZE_DEFAULT, high)))
        if not low <= value <= high:
            raise InputError(f"dynamic dimension {name} is {value}, not in {low}..{high}")
        binding[name] = value
    return binding
