"""Grouping: which nodes get memory of their own, and which live inside their reader's kernel.

Every node that is not inlined is the root of one group; a matrix product or convolution
may host the group that reads it as its epilogue. All decisions follow from the graph alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ree.element.program import Program, walk
from ree.graph import Graph, Node
from ree.ops.spec import operator
from ree.plan.layout import Layout, contiguous, view
from ree.types import DType

# kind -> dtypes for which a C kernel exists; other dtypes run the kernel printed from the definition
_NUMBERS = frozenset({DType.F32, DType.I32, DType.I64})
SCHEDULED = {
    "matmul": frozenset({DType.F32}),
    "matmul_i8": frozenset({DType.I8}),
    "conv": frozenset({DType.F32}),
    "attention": frozenset({DType.F32}),
    "sort": frozenset({DType.F32, DType.I32, DType.I64, DType.U8, DType.BOOL}),
    "scan": _NUMBERS,
    "scatter": _NUMBERS,
    "experts": frozenset({DType.F32}),
}
HOSTS = frozenset({"matmul", "conv"})
# more evaluations than this per element of a producer, and it is computed once instead
_EVALUATIONS_MAX = 1.5
_DEPTH_MAX = 64  # values between one and the root of its group: programs are built and printed by recursion


@dataclass
class Groups:
    """For each value: its kind and, for nodes, whether it is inlined; and epilogue hosts.

    programs: element program of every non-view node; inlined: values without memory;
    host: group root -> the scheduled value whose kernel runs the group as its epilogue;
    known: programs that `node_program` made.
    """

    programs: dict[int, Program] = field(default_factory=dict)
    inlined: set[int] = field(default_factory=set)
    host: dict[int, int] = field(default_factory=dict)
    known: dict[Any, Program] = field(default_factory=dict)


def node_program(graph: Graph, value: int, known: dict[Any, Program]) -> Program:
    """The element program of a node at its static types; `known` keeps it for equal nodes, which layers repeat."""
    node = graph.node_of(value)
    assert node is not None
    types = tuple(graph.type_of(v) for v in node.inputs)
    # by representation: 1, 1.0 and True are equal, and so are 0.0 and -0.0, but they mean different things
    key = (node.op, types, node.type, repr(sorted(node.attrs.items())))
    if key not in known:
        known[key] = operator(node.op).program(types, node.type, node.attrs)
    return known[key]


def kind_of(graph: Graph, node: Node) -> str:
    """The operator's kind; "any" where its schedule has no kernel for these operands.

    Exact products of bytes are a kind of their own, which hosts nothing: a trace has their sums, so that these can be
    checked without computing them again.
    """
    kind = operator(node.op).kind
    if kind == "matmul" and node.attrs.get("out") == DType.I32:
        kind = "matmul_i8"
    if kind in SCHEDULED and graph.type_of(node.inputs[0]).dtype not in SCHEDULED[kind]:
        return "any"
    if kind in ("conv", "experts") and not _is_constant(graph, node.inputs[1]):
        return "any"  # the kernel takes weights that were packed beforehand
    if kind in ("matmul", "matmul_i8") and graph.type_of(node.inputs[1]).dtype is not DType.F32:
        # bytes and floats of 16 bits are read from packed form alone
        return kind if _is_packable(graph, node.inputs[1]) else "any"
    return kind


def _behind_views(graph: Graph, value: int) -> tuple[int, list[Node]]:
    """The value that a chain of views begins with, and the views, first one first."""
    views: list[Node] = []
    node = graph.node_of(value)
    while node is not None and operator(node.op).kind == "view":
        views.append(node)
        value = node.inputs[0]
        node = graph.node_of(value)
    return value, views[::-1]


def _is_constant(graph: Graph, value: int) -> bool:
    """True for a constant, or a view of one."""
    return graph.constant_of(_behind_views(graph, value)[0]) is not None


def _is_packable(graph: Graph, value: int) -> bool:
    """True for a constant matrix, or a constant seen as a matrix through strides."""
    if graph.type_of(value).rank != 2 or not _is_constant(graph, value):
        return False
    source, views = _behind_views(graph, value)
    layout: Layout | None = contiguous(graph.type_of(source).extents())
    for node in views:
        layout = layout and view(node.op, node.attrs, node.type.extents(), layout)
    return layout is not None


def has_folds(program: Program) -> bool:
    return any(instr.region is not None for instr in program.body)


def _loads(program: Program) -> dict[int, list[int]]:
    """Input number -> nesting depth (number of enclosing folds) of each load site."""
    found: dict[int, list[int]] = {}

    def visit(body: tuple, depth: int) -> None:  # type: ignore[type-arg]
        for instr in body:
            if instr.op in ("load", "load_if"):
                found.setdefault(int(instr.imm[0]), []).append(depth)
            if instr.region is not None:
                visit(instr.region.body, depth + 1)

    visit(program.body, 0)
    return found


class Grouper:
    """Decides, in reverse order, which values are inlined into the group that reads them."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.groups = Groups()
        self.is_view = [False] * graph.value_count
        self.kinds = [""] * graph.value_count
        for value in range(graph.first_node, graph.value_count):
            node = graph.node_of(value)
            assert node is not None
            self.kinds[value] = kind_of(graph, node)
            self.is_view[value] = self.kinds[value] == "view"
            if self.kinds[value] not in SCHEDULED:
                self.groups.programs[value] = node_program(graph, value, self.groups.known)
        self.uses = graph.uses()
        self.tail = self._tails()
        self.root_of: dict[int, int] = {}
        self.evaluations: dict[int, float] = {}
        self.depth: dict[int, int] = {}  # of inlined values below the root of their group
        self.folding: set[int] = set()  # roots of groups that contain folds

    def run(self) -> Groups:
        for value in reversed(range(self.graph.first_node, self.graph.value_count)):
            if self.is_view[value] or not self.is_used(value):
                continue
            root = self._inline_into(value)
            if root is None:
                self.root_of[value] = value
                self.evaluations[value] = float(self.graph.type_of(value).numel())
            else:
                self.groups.inlined.add(value)
                self.root_of[value] = root
            if value in self.groups.programs and has_folds(self.groups.programs[value]):
                self.folding.add(self.root_of[value])
        self._choose_hosts()
        return self.groups

    def _tails(self) -> set[int]:
        """Pointwise values that follow a host directly or through pointwise values read once.

        They belong in the host's epilogue, so no group with folds takes them in.
        """
        found: set[int] = set()
        for value in range(self.graph.first_node, self.graph.value_count):
            node = self.graph.node_of(value)
            if node is None or self.kinds[value] != "pointwise":
                continue
            for source in node.inputs:
                behind = self._behind_reshapes(source)
                is_link = self.kinds[behind] in HOSTS or behind in found
                if is_link and self.graph.type_of(behind).numel() == node.type.numel() and self._is_read_once(behind):
                    found.add(value)
        return found

    def _behind_reshapes(self, value: int) -> int:
        node = self.graph.node_of(value)
        while node is not None and node.op == "reshape":
            value = node.inputs[0]
            node = self.graph.node_of(value)
        return value

    def _is_read_once(self, value: int) -> bool:
        readers = self.readers(value)
        return readers is not None and len({reader for reader, _ in readers}) == 1

    def is_used(self, value: int) -> bool:
        return bool(self.uses[value]) or value in self.graph.outputs

    def readers(self, value: int) -> list[tuple[int, int]] | None:
        """(node, value it reads) of all non-view nodes that read a value directly or through
        views; None if the value or a view of it is an output of the graph."""
        if value in self.graph.outputs:
            return None
        found: list[tuple[int, int]] = []
        for user in sorted(set(self.uses[value])):
            if not self.is_view[user]:
                found.append((user, value))
                continue
            through = self.readers(user)
            if through is None:
                return None
            found.extend(through)
        return found

    def _inline_into(self, value: int) -> int | None:
        """The root of the one group that this value can live in, or None."""
        if self.kinds[value] in SCHEDULED:
            return None
        readers = self.readers(value)
        if not readers:
            return None
        if any(self.kinds[reader] in SCHEDULED for reader, _ in readers):
            return None
        program = self.groups.programs[value]
        node = self.graph.node_of(value)
        assert node is not None
        roots = {self.root_of[reader] for reader, _ in readers}
        free = not node.inputs and not has_folds(program)
        if free:
            self.evaluations[value] = 0.0
            return min(roots)
        if len(roots) != 1:
            return None
        (root,) = roots
        self.depth[value] = 1 + max(self.depth.get(reader, 0) for reader, _ in readers)
        if self.depth[value] > _DEPTH_MAX:
            self.depth[value] = 0
            return None
        if value in self.tail and root in self.folding:
            return None
        evaluations = self._all_evaluations(value, readers)
        hoisted = self._is_row_invariant(value, root)
        if hoisted:
            evaluations /= max(1, self.graph.type_of(root).shape[-1])  # type: ignore[operator,type-var]
        if evaluations > _EVALUATIONS_MAX * max(1, self.graph.type_of(value).numel()):
            return None
        if has_folds(program) and not (hoisted and self._folds_last_axis(node)):
            return None
        self.evaluations[value] = evaluations
        return root

    def _all_evaluations(self, value: int, readers: list[tuple[int, int]]) -> float:
        """How often one run evaluates `value`; pointwise readers of one view share an evaluation."""
        shared: dict[int, float] = {}
        others = 0.0
        for reader, source in readers:
            count = self._evaluations(value, reader, source)
            if self.kinds[reader] == "pointwise":
                node = self.graph.node_of(reader)
                assert node is not None
                shared[source] = max(shared.get(source, 0.0), count / node.inputs.count(source))
            else:
                others += count
        return sum(shared.values()) + others

    def _evaluations(self, value: int, reader: int, source: int) -> float:
        """How often one run evaluates `value` on behalf of one reader."""
        node = self.graph.node_of(reader)
        assert node is not None
        loads = _loads(self.groups.programs[reader])
        total = 0.0
        for position, read in enumerate(node.inputs):
            if read != source:
                continue
            for depth in loads.get(position, []):
                if depth == 0:
                    total += self.evaluations[reader] / self._alternatives(node)
                else:  # inside a fold: once for each element that the fold runs over
                    total += max(self.evaluations[reader], float(self.graph.type_of(read).numel()))
        return total

    def _alternatives(self, node: Node) -> int:
        """Of a concatenation's inputs each output element reads one."""
        return len(node.inputs) if node.op == "cat" else 1

    def _is_row_invariant(self, value: int, root: int) -> bool:
        """True if the value has extent 1 along the root's last axis, as a row statistic has."""
        mine, root_shape = self.graph.type_of(value).shape, self.graph.type_of(root).shape
        return (
            len(mine) == len(root_shape)
            and len(mine) > 0
            and mine[-1] == 1
            and root_shape[-1] != 1
            and mine[:-1] == root_shape[:-1]
        )

    def _folds_last_axis(self, node: Node) -> bool:
        axes = node.attrs.get("axes")
        return axes is not None and tuple(axes) == (self.graph.type_of(node.inputs[0]).rank - 1,)

    # -- epilogues -----------------------------------------------------------------
    def _choose_hosts(self) -> None:
        for value in range(self.graph.first_node, self.graph.value_count):
            if self.kinds[value] not in HOSTS or not self.is_used(value):
                continue
            readers = self.readers(value)
            if not readers:
                continue
            roots = {self.root_of[reader] for reader, _ in readers}
            if len(roots) != 1:
                continue
            (root,) = roots
            if self.kinds[root] in SCHEDULED or not self._can_host(value, root):
                continue
            if not all(self._is_plain(value, source) for _, source in readers):
                continue
            # the last product that a group reads hosts it: all else is ready by then
            self.groups.host[root] = value

    def uses_inputs(self, value: int) -> bool:
        node = self.graph.node_of(value)
        return node is not None and bool(node.inputs)

    def _can_host(self, value: int, root: int) -> bool:
        members = [v for v, r in self.root_of.items() if r == root]
        if any(has_folds(self.groups.programs[m]) for m in members):
            return False
        if any(self.kinds[m] != "pointwise" and self.uses_inputs(m) for m in members):
            return False
        host, out = self.graph.type_of(value), self.graph.type_of(root)
        if host.numel() != out.numel() or host.numel() == 0:
            return False
        if self.kinds[value] == "conv":
            return host.shape == out.shape
        return out.rank >= 1 and host.shape[-1] == out.shape[-1]

    def _is_plain(self, value: int, source: int) -> bool:
        """True if `source` is the value itself or only reshapes of it that keep the last axis."""
        while source != value:
            node = self.graph.node_of(source)
            assert node is not None
            if node.op != "reshape" or self.kinds[value] == "conv":
                return False
            if self.graph.type_of(node.inputs[0]).shape[-1] != node.type.shape[-1]:
                return False
            source = node.inputs[0]
        return True


def size_of(program: Program) -> int:
    """Number of instructions, those of regions included."""
    return len(walk(program.body))
