"""Builds the one element program of a fusion group, and the layout of its kernel.

Fusion is substitution: a load of an inlined producer becomes the producer's own program at
those coordinates. A load of a view becomes a load of its buffer with other strides, or, of
a view of an inlined producer, the producer at the view's coordinates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ree.element.llvm import Layout as KernelLayout
from ree.element.program import OUT, Builder, Instr, Port, Program, Value, emit, walk
from ree.graph import Graph
from ree.ops.spec import operator
from ree.plan.group import Groups, node_program
from ree.plan.layout import Layout, aligned_groups


@dataclass
class Kernel:
    """A fused kernel ready to compile: program, its ports' values and layouts, its integers.

    space: extents of the index space, in kernel order; layouts: of each port, in elements,
    over the port's axes; the last port is the result. order: kernel axis -> logical axis.
    """

    program: Program
    ports: list[int]
    layouts: list[Layout]
    params: list[int]
    space: tuple[int, ...]
    order: tuple[int, ...] = ()

    def structure(self) -> KernelLayout:
        strides = tuple(
            tuple(0 if n == 1 or s == 0 else 1 if s == 1 else None for n, s in zip(x.shape, x.strides, strict=True))
            for x in self.layouts
        )
        return KernelLayout(strides, len(self.params))

    def integers(self) -> list[int]:
        """The run-time integers in the order of ree_jit_args.params."""
        return [*self.params, *self.space, *(s for x in self.layouts for s in x.strides)]

    @property
    def rows(self) -> int:
        return math.prod(self.space[:-1])

    @property
    def cols(self) -> int:
        return self.space[-1] if self.space else 1


@dataclass
class Fuser:
    """Builds group programs of one graph, given each value's layout where it has one.

    layouts: value -> layout, for values with memory and for views of them.
    """

    graph: Graph
    groups: Groups
    layouts: dict[int, Layout]
    _builder: Builder = field(init=False)
    _ports: dict[int, int] = field(init=False)
    _params: list[int] = field(init=False)
    _known: dict[tuple[int, int], Value] = field(init=False)
    _elements: dict[tuple[int, ...], tuple[Value, object]] = field(init=False)

    def build(self, root: int, result: Layout, order: Sequence[int]) -> Kernel:
        """The kernel of the group of `root`, its index space walked in axis order `order`."""
        return self._kernel(root, result, order, lambda index: self._element(root, index))

    def copy(self, value: int, result: Layout, order: Sequence[int]) -> Kernel:
        """The kernel that copies a value which has a layout into another layout."""
        return self._kernel(value, result, order, lambda index: self._load(value, index))

    def _kernel(
        self, root: int, result: Layout, order: Sequence[int], element: Callable[[Sequence[Value]], Value]
    ) -> Kernel:
        shape = self._shape(root)
        self._builder = Builder([], len(shape))
        self._ports, self._params, self._known, self._elements = {}, [], {}, {}
        position = {axis: p for p, axis in enumerate(order)}
        index = [self._builder.index(position[axis]) for axis in range(len(shape))]
        program = self._builder.finish([element(index)], [self.graph.type_of(root).dtype])
        ports = list(self._ports)
        layouts = [self.layouts[p] for p in ports]
        out = Layout(tuple(shape[a] for a in order), tuple(result.strides[a] for a in order), result.offset)
        kernel = Kernel(program, ports, [*layouts, out], self._params, out.shape, tuple(order))
        return _drop_unused(kernel)

    def _shape(self, value: int) -> tuple[int, ...]:
        return self.graph.type_of(value).extents()

    def _element(self, value: int, index: Sequence[Value]) -> Value:
        """The element of a node of this group at these coordinates; one that is in scope is reused."""
        key = (value, *(coordinate.id for coordinate in index))
        known = self._elements.get(key)
        if known is not None and self._builder.in_scope(known[1]):
            return known[0]
        result = self._inline(value, index)
        self._elements[key] = (result, self._builder.scope_of(result))
        return result

    def _inline(self, value: int, index: Sequence[Value]) -> Value:
        node = self.graph.node_of(value)
        assert node is not None
        if operator(node.op).kind == "view":
            return self._load(*self._through(value, index))
        program = self.groups.programs.get(value) or node_program(self.graph, value, self.groups.known)

        def extent(source: int, axis: int) -> Value:
            owner = value if source == OUT else node.inputs[source]
            return self._extent(owner, axis)

        (result,) = emit(
            program,
            self._builder,
            list(index),
            lambda source, coordinates: self._load(node.inputs[source], coordinates),
            extent,
            lambda condition, other, source, coordinates: self._load_if(
                condition, other, node.inputs[source], coordinates
            ),
        )
        return result

    def _extent(self, owner: int, axis: int) -> Value:
        extent = self._shape(owner)[axis]
        if extent == 1:
            return self._builder.i64(1)
        key = (owner, axis)
        if key not in self._known:
            self._params.append(extent)
            self._known[key] = self._builder.param(len(self._params) - 1)
        return self._known[key]

    def _load(self, value: int, coordinates: Sequence[Value]) -> Value:
        if value in self.layouts:
            return self._builder.load(self._port(value), *self._pinned(value, coordinates))
        if value in self.groups.inlined:
            return self._element(value, self._pinned(value, coordinates))
        source, inner = self._through(value, coordinates)
        return self._load(source, inner)

    def _load_if(self, condition: Value, other: Value, value: int, coordinates: Sequence[Value]) -> Value:
        if value in self.layouts:
            return self._builder.load_if(condition, other, self._port(value), *self._pinned(value, coordinates))
        if value not in self.groups.inlined:
            source, inner = self._through(value, coordinates)
            return self._load_if(condition, other, source, inner)
        # a producer inlined under a condition: coordinates are made safe, its value is selected
        b = self._builder
        safe = [b.select(condition, c, 0) for c in coordinates]
        return b.select(condition, self._element(value, safe), other)

    def _pinned(self, value: int, coordinates: Sequence[Value]) -> list[Value]:
        """Coordinates along axes of extent 1 are 0, which keeps accesses affine and kernels few."""
        return [self._builder.i64(0) if n == 1 else c for n, c in zip(self._shape(value), coordinates, strict=True)]

    def _port(self, value: int) -> int:
        if value not in self._ports:
            self._ports[value] = len(self._ports)
            type = self.graph.type_of(value)
            self._builder.inputs += (Port(type.dtype, type.rank),)
        return self._ports[value]

    def _through(self, value: int, coordinates: Sequence[Value]) -> tuple[int, list[Value]]:
        """The source of a view, and the source's coordinates for the view's."""
        node = self.graph.node_of(value)
        assert node is not None and operator(node.op).kind == "view"
        source = node.inputs[0]
        if node.op == "reshape":
            return source, self._reshape(source, value, coordinates)
        found: list[Value] = []

        def load(number: int, inner: list[Value]) -> Value:
            found[:] = inner
            return self._builder.const_from_bits(0, self.graph.type_of(source).dtype.element)

        emit(
            node_program(self.graph, value, self.groups.known),
            self._builder,
            list(coordinates),
            load,
            lambda number, axis: self._extent(value if number == OUT else source, axis),
            lambda condition, other, number, inner: load(number, inner),
        )
        return source, found

    def _reshape(self, source: int, value: int, coordinates: Sequence[Value]) -> list[Value]:
        """Coordinates before a reshape, axis group by axis group, so that equal axes stay affine."""
        b = self._builder
        old, new = self._shape(source), self._shape(value)
        result = [b.i64(0)] * len(old)
        if 0 in old:
            return result
        for left, right in aligned_groups(old, new):
            if len(left) == 1 and len(right) == 1:
                result[left[0]] = coordinates[right[0]]
                continue
            flat = coordinates[right[0]]
            for axis in right[1:]:
                flat = flat * self._extent(value, axis) + coordinates[axis]
            for axis in reversed(left[1:]):
                extent = self._extent(source, axis)
                result[axis] = b.op("rem", flat, extent)
                flat = flat / extent
            result[left[0]] = flat
        return result


def _drop_unused(kernel: Kernel) -> Kernel:
    """The kernel without ports and parameters that pruning left unread."""
    instrs = walk(kernel.program.body)
    read = sorted({int(i.imm[0]) for i in instrs if i.op in ("load", "load_if")})
    params = sorted({int(i.imm[0]) for i in instrs if i.op == "param"})
    port_number = {old: new for new, old in enumerate(read)}
    param_number = {old: new for new, old in enumerate(params)}

    def rename(instr: Instr) -> Instr:
        imm = instr.imm
        if instr.op in ("load", "load_if"):
            imm = (port_number[int(imm[0])],)
        elif instr.op == "param":
            imm = (param_number[int(imm[0])],)
        region = instr.region
        if region is not None:
            region = type(region)(
                region.params, region.param_types, tuple(rename(i) for i in region.body), region.results
            )
        return Instr(instr.op, instr.args, instr.results, instr.types, imm, region)

    old = kernel.program
    program = Program(
        tuple(old.inputs[p] for p in read), old.rank, tuple(rename(i) for i in old.body), old.results, old.dtypes
    )
    return Kernel(
        program,
        [kernel.ports[p] for p in read],
        [*(kernel.layouts[p] for p in read), kernel.layouts[-1]],
        [kernel.params[p] for p in params],
        kernel.space,
        kernel.order,
    )


def plain_strides(kernel: Kernel) -> list[tuple[int, ...]] | None:
    """Strides of every port along the index space, if all loads are at plain coordinates.

    Plain: each coordinate is an index of the space or the constant 0, no index is used
    otherwise, and each port is loaded in one way only. Then the kernel is a loop over
    strided arrays, whose adjacent axes may be merged.
    """
    index: dict[int, int] = {}
    zero: set[int] = set()
    strides: dict[int, tuple[int, ...]] = {}
    for instr in walk(kernel.program.body):
        if instr.op == "index":
            index[instr.results[0]] = int(instr.imm[0])
        elif instr.op == "const" and instr.imm == (0,) and instr.types[0].value == "i64":
            zero.add(instr.results[0])
        elif instr.op == "load":
            port = int(instr.imm[0])
            found = [0] * len(kernel.space)
            for coordinate, step in zip(instr.args, kernel.layouts[port].strides, strict=True):
                if coordinate in index:
                    found[index[coordinate]] += step
                elif coordinate not in zero:
                    return None
            if strides.setdefault(port, tuple(found)) != tuple(found):
                return None
        elif instr.region is not None or instr.op in ("load_if", "param", "bound") or index.keys() & set(instr.args):
            return None
    if len(strides) != len(kernel.ports) or any(result in index for result in kernel.program.results):
        return None
    return [strides[p] for p in range(len(kernel.ports))]


def merge_axes(kernel: Kernel, keep_last: bool = False) -> Kernel:
    """An equal kernel over fewer, longer axes, where all ports allow it.

    keep_last: the last axis stays as it is (rows and columns keep their meaning).
    """
    strides = plain_strides(kernel)
    if strides is None or not kernel.space:
        return kernel
    strides = [*strides, kernel.layouts[-1].strides]
    kept: list[list[int]] = []
    last = len(kernel.space) - 1
    for axis, extent in enumerate(kernel.space):
        alone = keep_last and axis == last
        if extent == 1 and not alone:
            continue
        if kept and not alone and all(s[kept[-1][-1]] == s[axis] * extent for s in strides):
            kept[-1].append(axis)
        else:
            kept.append([axis])
    space = tuple(math.prod(kernel.space[a] for a in axes) for axes in kept)
    inner = [tuple(s[axes[-1]] for axes in kept) for s in strides]
    return _respace(kernel, space, inner)


def _respace(kernel: Kernel, space: tuple[int, ...], strides: list[tuple[int, ...]]) -> Kernel:
    """The plain kernel over another index space: every load at the space's own coordinates."""
    old = kernel.program
    builder = Builder([Port(p.dtype, len(space)) for p in old.inputs], len(space))
    index = builder.indices()
    dummy = [builder.i64(0)] * old.rank
    results = emit(
        old,
        builder,
        dummy,
        lambda source, _: builder.load(source, *index),
        lambda source, axis: builder.i64(0),
        lambda condition, other, source, _: other,
    )
    program = builder.finish(results, old.dtypes)
    layouts = [Layout(space, tuple(s), layout.offset) for s, layout in zip(strides, kernel.layouts, strict=True)]
    return Kernel(program, kernel.ports, layouts, [], space, ())
