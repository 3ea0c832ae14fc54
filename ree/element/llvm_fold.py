"""Folds as LLVM IR, in the order that their meaning fixes.

Two forms. A fold that gives every lane the same runs its own lanes along k ("across");
one that depends on the lane steps k by one, each lane folding its own element ("down").
`sum` keeps 16 partial sums either way: in the lanes of one vector, or in 16 vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ree.element.llvm_text import LLVM_TYPE, Val, Writer, literal, suffix, vector
from ree.element.program import DOT_CHUNK, SUM_LANES, Block, Instr, neutral_bits
from ree.types import Type

if TYPE_CHECKING:
    from ree.element.llvm import Printer
    from ree.element.llvm_ops import Ops

_LEVELS = 6  # sums of sums: 256^6 = 2^48 elements


def print_fold(p: Printer, instr: Instr, region: Block) -> list[Val]:
    """The fold's results, in the current lanes or uniform."""
    kind = instr.op.removeprefix("fold:")
    if p.is_uniform(instr):
        with p.lanes(1, None):
            if kind in ("dot", "chain"):
                return _DOWN[kind](p, instr, region)
            return [_sum_across(p, instr, region) if kind == "sum" else _reduce_across(p, instr, region)]
    return _DOWN.get(kind, _reduce_down)(p, instr, region)


# -- order-free folds ---------------------------------------------------------------------
def _combine(p: Printer, kind: str, type: Type, width: int, a: str, b: str) -> str:
    """Two partial results in the form that they are carried in."""
    if _is_ranked(kind, type):
        return p.w.intrinsic(f"s{kind}", vector(f"i{type.bits}", width), a, b)
    op = {"isum": "add", "any": "or", "all": "and"}.get(kind, kind)
    return p.ops(width).emit(op, type, [a, b], type, ())


def _is_ranked(kind: str, type: Type) -> bool:
    """Whether a fold compares floats: it is carried as integers in the same order, one instruction a step."""
    return type.is_float and kind in ("max", "min")


def _carried(kind: str, type: Type) -> str:
    return f"i{type.bits}" if _is_ranked(kind, type) else LLVM_TYPE[type]


def _start(kind: str, type: Type) -> str:
    """The identity in the form that partial results are carried in."""
    if not _is_ranked(kind, type):
        return literal(neutral_bits(kind, type), type)
    infinity = 0x7F800000 if type is Type.F32 else 0x7FF0000000000000
    return str(-infinity - 1 if kind == "max" else infinity)


def _rank(p: Printer, kind: str, type: Type, width: int, value: str) -> str:
    """A float as an integer that compares as it does: -0 below +0, and NaN as the result that it forces."""
    if not _is_ranked(kind, type):
        return value
    ops, bits = p.ops(width), f"i{type.bits}"
    most = (1 << (type.bits - 1)) - 1
    raw = ops.cast("bitcast", ops.type(type), value, ops.of(bits))
    nan = ops.compare("uno", ops.type(type), value, value)
    return ops.select(
        nan, ops.of(bits), ops.constant(bits, most if kind == "max" else -most - 1), _turn(ops, type, raw)
    )


def _unrank(p: Printer, kind: str, type: Type, width: int, carried: str) -> str:
    if not _is_ranked(kind, type):
        return carried
    ops = p.ops(width)
    return ops.cast("bitcast", ops.of(f"i{type.bits}"), _turn(ops, type, carried), ops.type(type))


def _turn(ops: Ops, type: Type, raw: str) -> str:
    """All bits but the sign flipped where the sign is set; its own inverse."""
    bits = f"i{type.bits}"
    sign = ops.binary("ashr", ops.of(bits), raw, ops.constant(bits, type.bits - 1))
    flip = ops.binary("and", ops.of(bits), sign, ops.constant(bits, (1 << (type.bits - 1)) - 1))
    return ops.binary("xor", ops.of(bits), raw, flip)


def _reduce_across(p: Printer, instr: Instr, region: Block) -> Val:
    kind, type = instr.op.removeprefix("fold:"), instr.types[0]
    width = 2 * SUM_LANES
    carried_type = _carried(kind, type)
    neutral = p.w.splat(LLVM_TYPE[type], literal(neutral_bits(kind, type), type), width)
    start = p.w.splat(carried_type, _start(kind, type), width)

    def body(k: Val, carried: Sequence[str]) -> list[str]:
        value = _rank(p, kind, type, width, _evaluate(p, region, k, neutral))
        return [_combine(p, kind, type, width, carried[0], value)]

    lanes = p.strip("0", p.values[instr.args[0]].text, width, [(vector(carried_type, width), start)], body)[0]
    whole = p.w.halve(lanes, carried_type, width, lambda n, a, b: _combine(p, kind, type, n, a, b))
    return Val(type, _unrank(p, kind, type, 1, whole))


def _reduce_down(p: Printer, instr: Instr, region: Block) -> list[Val]:
    kind, type = instr.op.removeprefix("fold:"), instr.types[0]
    carried_type = _carried(kind, type)
    neutral = p.w.splat(LLVM_TYPE[type], literal(neutral_bits(kind, type), type), p.width)
    start = p.w.splat(carried_type, _start(kind, type), p.width)
    stop, counts = _counts(p, instr)
    with p.w.loop("0", stop, 1, [(vector(carried_type, p.width), start)]) as loop:
        value = _rank(p, kind, type, p.width, _evaluate_at(p, region, loop.index, counts, neutral))
        loop.next = [_combine(p, kind, type, p.width, loop.carried[0], value)]
    return [Val(type, _unrank(p, kind, type, p.width, loop.results[0]), lanes=True)]


# -- sum ----------------------------------------------------------------------------------------
def _sum_across(p: Printer, instr: Instr, region: Block) -> Val:
    type = instr.types[0]
    llvm = LLVM_TYPE[type]
    wide = vector(llvm, SUM_LANES)

    def chunk(start: str, end: str) -> str:
        def body(k: Val, carried: Sequence[str]) -> list[str]:
            # a partial sum is never -0, so that +0 leaves a lane beyond the end unchanged
            value = _evaluate(p, region, k, "zeroinitializer")
            return [p.w.do(f"fadd {wide} {carried[0]}, {value}")]

        lanes = p.strip(start, end, SUM_LANES, [(wide, "zeroinitializer")], body)[0]
        return p.w.halve(lanes, llvm, SUM_LANES, lambda n, a, b: p.w.do(f"fadd {vector(llvm, n)} {a}, {b}"))

    return Val(type, _sum_chunks(p, llvm, p.values[instr.args[0]].text, chunk))


def _sum_down(p: Printer, instr: Instr, region: Block) -> list[Val]:
    type = instr.types[0]
    wide = vector(LLVM_TYPE[type], p.width)
    stop, counts = _counts(p, instr)
    partial = p.w.do_entry(f"alloca [{SUM_LANES} x {wide}], align 64")

    def chunk(start: str, end: str) -> str:
        _clear(p.w, wide, partial)
        with p.w.loop(start, end, 1) as loop:
            value = _evaluate_at(p, region, loop.index, counts, "zeroinitializer")
            place = _slot(p.w, wide, partial, p.w.do(f"and i64 {loop.index}, {SUM_LANES - 1}"))
            before = p.w.do(f"load {wide}, ptr {place}")
            p.w.void(f"store {wide} {p.w.do(f'fadd {wide} {before}, {value}')}, ptr {place}")
        return _tree(p.w, wide, partial)

    return [Val(type, _sum_chunks(p, wide, stop, chunk), lanes=True)]


def _sum_chunks(p: Printer, wide: str, count: str, chunk: Callable[[str, str], str]) -> str:
    """Sum `chunk(start, end)` over chunks of 256, then their sums by the same rule."""
    w = p.w
    add, finish = _level_functions(p, wide)
    state = w.do_entry(f"alloca {_state_type(wide)}, align 64")
    cell = w.do_entry(f"alloca {wide}, align 64")
    many = w.do(f"icmp sgt i64 {count}, {DOT_CHUNK}")

    def clear() -> list[str]:
        w.void(f"store {_state_type(wide)} zeroinitializer, ptr {state}")
        return []

    w.when(many, clear)
    with w.loop("0", count, DOT_CHUNK, [(wide, _zero(wide))]) as loop:
        total = chunk(loop.index, _chunk_end(w, loop.index, count))

        def push() -> list[str]:
            w.void(f"store {wide} {total}, ptr {cell}")
            w.call(add, "void", [("ptr", state), ("ptr", cell)])
            return []

        w.when(many, push)
        loop.next = [total]

    def close() -> list[str]:
        w.call(finish, "void", [("ptr", state), ("ptr", cell)])
        return [w.do(f"load {wide}, ptr {cell}")]

    return w.when(many, close, [(wide, loop.results[0])])[0]


def _zero(wide: str) -> str:
    return "zeroinitializer" if wide.startswith("<") else "0.0"


def _chunk_end(w: Writer, start: str, stop: str) -> str:
    return w.intrinsic("smin", "i64", w.add(start, str(DOT_CHUNK)), stop)


def _state_type(wide: str) -> str:
    """Of each level above the elements: how many sums came, and its 16 partial sums."""
    return f"{{ [{_LEVELS} x i64], [{_LEVELS * SUM_LANES} x {wide}] }}"


def _slot(w: Writer, wide: str, array: str, number: str) -> str:
    return w.do(f"getelementptr {wide}, ptr {array}, i64 {number}")


def _tree(w: Writer, wide: str, array: str) -> str:
    """The 16 partial sums of an array folded 16 -> 8 -> 4 -> 2 -> 1."""
    if not wide.startswith("<"):
        lanes = w.do(f"load {vector(wide, SUM_LANES)}, ptr {array}, align 8")
        return w.halve(lanes, wide, SUM_LANES, lambda n, a, b: w.do(f"fadd {vector(wide, n)} {a}, {b}"))
    values = [w.do(f"load {wide}, ptr {_slot(w, wide, array, str(lane))}") for lane in range(SUM_LANES)]
    while len(values) > 1:
        half = len(values) // 2
        values = [w.do(f"fadd {wide} {values[i]}, {values[i + half]}") for i in range(half)]
    return values[0]


def _clear(w: Writer, wide: str, array: str) -> None:
    """Set the 16 partial sums of an array to +0."""
    if not wide.startswith("<"):
        w.void(f"store {vector(wide, SUM_LANES)} zeroinitializer, ptr {array}, align 8")
        return
    for lane in range(SUM_LANES):
        w.void(f"store {wide} zeroinitializer, ptr {_slot(w, wide, array, str(lane))}")


def _level_functions(p: Printer, wide: str) -> tuple[str, str]:
    """The two functions that sum chunk sums, made once a module: add one, and finish."""
    add, finish = f"ree_sum_add_{suffix(wide)}", f"ree_sum_finish_{suffix(wide)}"
    p.helpers[add] = _add_function(add, wide)
    p.helpers[finish] = _finish_function(finish, wide)
    return add, finish


def _helper(name: str, w: Writer) -> str:
    head = f"define internal void @{name}(ptr %state, ptr %cell) noinline #0 {{\nentry:\n"
    return head + "\n".join([*w.lines, "  ret void", "}"]) + "\n"


def _level(w: Writer, wide: str, level: str) -> tuple[str, str, str, str]:
    """Of a level: the address of its count, the count, its partial sums, and the next one's slot."""
    place = w.do(f"getelementptr {_state_type(wide)}, ptr %state, i64 0, i32 0, i64 {level}")
    count = w.do(f"load i64, ptr {place}")
    first = w.do(f"mul i64 {level}, {SUM_LANES}")
    sums = w.do(f"getelementptr {_state_type(wide)}, ptr %state, i64 0, i32 1, i64 {first}")
    slot = _slot(w, wide, sums, w.do(f"and i64 {count}, {SUM_LANES - 1}"))
    return place, count, sums, slot


def _accumulate(w: Writer, wide: str, slot: str, value: str) -> None:
    before = w.do(f"load {wide}, ptr {slot}")
    w.void(f"store {wide} {w.do(f'fadd {wide} {before}, {value}')}, ptr {slot}")


def _add_function(name: str, wide: str) -> str:
    """Add *cell to the lowest level; a level that has 256 gives its sum to the next."""
    w = Writer()
    first = w.do(f"load {wide}, ptr %cell")
    # levels below `stop` are visited; the loop ends where a level is not yet full
    with w.loop("0", str(_LEVELS), 1, [(wide, first), ("i1", "true")]) as loop:
        value, going = loop.carried

        def visit() -> list[str]:
            place, count, sums, slot = _level(w, wide, loop.index)
            _accumulate(w, wide, slot, value)
            more = w.do(f"add i64 {count}, 1")
            full = w.do(f"icmp eq i64 {more}, {DOT_CHUNK}")
            w.void(f"store i64 {w.do(f'select i1 {full}, i64 0, i64 {more}')}, ptr {place}")

            def carry() -> list[str]:
                total = _tree(w, wide, sums)
                _clear(w, wide, sums)
                return [total]

            return [*w.when(full, carry, [(wide, value)]), full]

        loop.next = w.when(going, visit, [(wide, value), ("i1", "false")])
    return _helper(name, w)


def _finish_function(name: str, wide: str) -> str:
    """Fold what every level holds into *cell; empty levels add +0, which changes nothing."""
    w = Writer()
    with w.loop("0", str(_LEVELS), 1, [(wide, _zero(wide))]) as loop:
        _, _, sums, slot = _level(w, wide, loop.index)
        _accumulate(w, wide, slot, loop.carried[0])
        loop.next = [_tree(w, wide, sums)]
    w.void(f"store {wide} {loop.results[0]}, ptr %cell")
    return _helper(name, w)


# -- folds in sequence ---------------------------------------------------------------------------
def _dot(p: Printer, instr: Instr, region: Block) -> list[Val]:
    wide = vector("float", p.width)
    zero = p.w.splat("float", literal(0, Type.F32), p.width)
    stop, counts = _counts(p, instr)
    with p.w.loop("0", stop, DOT_CHUNK, [(wide, zero)]) as outer:
        end = _chunk_end(p.w, outer.index, stop)
        with p.w.loop(outer.index, end, 1, [(wide, zero)]) as inner:
            active = _active(p, counts, inner.index)
            with p.lanes(p.width, active):
                _run_region(p, region, Val(Type.I64, inner.index))
                a, b = (p.wide(p.values[r]) for r in region.results)
            after = p.w.intrinsic("fma", wide, a, b, inner.carried[0])
            inner.next = [_where(p, counts, active, wide, after, inner.carried[0])]
        outer.next = [p.w.do(f"fadd {wide} {outer.carried[0]}, {inner.results[0]}")]
    return [Val(Type.F32, outer.results[0], lanes=p.width > 1)]


def _chain(p: Printer, instr: Instr, region: Block) -> list[Val]:
    types = [vector(LLVM_TYPE[type], p.width) for type in instr.types]
    starts = [p.wide(p.values[a]) for a in instr.args[1:]]
    stop, counts = _counts(p, instr)
    with p.w.loop("0", stop, 1, list(zip(types, starts, strict=True))) as loop:
        active = _active(p, counts, loop.index)
        carried = [Val(t, v, lanes=p.width > 1) for t, v in zip(instr.types, loop.carried, strict=True)]
        with p.lanes(p.width, active):
            _run_region(p, region, Val(Type.I64, loop.index), *carried)
            following = [p.wide(p.values[r]) for r in region.results]
        both = zip(types, following, loop.carried, strict=True)
        loop.next = [_where(p, counts, active, type, new, old) for type, new, old in both]
    return [Val(t, v, lanes=p.width > 1) for t, v in zip(instr.types, loop.results, strict=True)]


# -- what all share ---------------------------------------------------------------------------------
def _run_region(p: Printer, region: Block, *params: Val) -> None:
    p.values.update(zip(region.params, params, strict=True))
    p.run(region.body, region.results)


def _evaluate(p: Printer, region: Block, k: Val, neutral: str) -> str:
    """The region's value for lanes of k; `neutral` in lanes that are masked off."""
    _run_region(p, region, k)
    result = p.values[region.results[0]]
    value = p.wide(result)
    if p.mask is None:
        return value
    ops = p.ops()
    return ops.select(p.mask, ops.type(result.type), value, neutral)


def _evaluate_at(p: Printer, region: Block, k: str, counts: str | None, neutral: str) -> str:
    """The region's value at one k for every lane; `neutral` where a lane counts less far."""
    active = _active(p, counts, k)
    with p.lanes(p.width, active):
        _run_region(p, region, Val(Type.I64, k))
        result = p.values[region.results[0]]
        value = p.wide(result)
    return _where(p, counts, active, p.ops().type(result.type), value, neutral)


def _where(p: Printer, counts: str | None, active: str | None, wide: str, new: str, old: str) -> str:
    """New in the lanes that are active, where lanes count differently far at all."""
    if counts is None or active is None:
        return new
    return p.ops().select(active, wide, new, old)


def _counts(p: Printer, instr: Instr) -> tuple[str, str | None]:
    """How far k goes, and each lane's own count where they differ (0 in lanes that are off)."""
    n = p.values[instr.args[0]]
    if n.uniform:
        return n.text, None
    wide = vector("i64", p.width)
    counts = p.wide(n)
    if p.mask is not None:
        counts = p.ops().select(p.mask, wide, counts, "zeroinitializer")
    return p.w.call(f"llvm.vector.reduce.smax.{suffix(wide)}", "i64", [(wide, counts)]), counts


def _active(p: Printer, counts: str | None, k: str) -> str | None:
    if counts is None:
        return p.mask
    return p.w.do(f"icmp sgt {vector('i64', p.width)} {counts}, {p.w.splat('i64', k, p.width)}")


_DOWN = {"sum": _sum_down, "dot": _dot, "chain": _chain}
