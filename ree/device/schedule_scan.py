"""Scans on a device: rows walked by threads or, where any order gives the same bits, segments scanned by blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ree.device.schedule_sort import Rows, rows_of
from ree.device.step import Args, Epilogue, Step
from ree.plan.step import Slot
from ree.types import DType

if TYPE_CHECKING:
    from ree.device.planner import DevicePlanner

_FILE = "scan.cu"
_KINDS = {"cumsum": "sum", "cumprod": "product", "cummax_index": "best", "cummin_index": "best"}
_WALK_WARPS, _ROW_BITS_MAX = 4, 5  # warps of a block; 2^5 rows of a warp
_WARPS_WANTED = 8  # walking, for a multiprocessor: with fewer rows a warp brings longer pieces of them
_WALKED_MAX = 64  # shorter rows are always walked
_SCAN_THREADS = 512
_DEFINES = {"REE_WALK_WARPS": _WALK_WARPS, "REE_SCAN_THREADS": _SCAN_THREADS}
_SEGMENT_MIN = 8 * _SCAN_THREADS
_SEGMENTS_WANTED, _SEGMENTS_MAX = 4, 1024  # for a multiprocessor, of a row
_INDEX_MAX, _BLOCKS_MAX = 1 << 32, 1 << 31


def scan(p: DevicePlanner, value: int, epilogue: Epilogue | None) -> list[Step] | None:
    """cumsum, cumprod, cummax_index and cummin_index."""
    assert epilogue is None
    node = p.node(value)
    dtype = p.graph.type_of(node.inputs[0]).dtype
    kind = _KINDS[node.op]
    is_float = dtype is DType.F32 and kind != "best"
    name = f"{kind}_{'float' if is_float else 8 * dtype.size_bytes}"
    rows, steps = rows_of(p, node.inputs[0])
    if rows.count >= _BLOCKS_MAX or rows.n >= _INDEX_MAX:
        return None
    args = Args(_FILE, "ree_scan_args")
    args.point(x=rows.slot, out=p.pointer(value))
    args.set(rows=rows.count, n=rows.n, x_row=rows.row, x_step=rows.step, dtype=list(DType).index(dtype))
    args.set(is_min=int(node.op == "cummin_index"))
    enough = _WARPS_WANTED * p.device.multiprocessors
    if is_float or rows.n <= _WALKED_MAX or rows.count >= enough:
        bits = min(_ROW_BITS_MAX, (-(-rows.count // enough) - 1).bit_length())
        args.set(row_bits=bits)
        grid = (-(-rows.count // (_WALK_WARPS << bits)), 1, 1)
        return [*steps, args.step(node.op, f"ree_walk_{name}", grid, 32 * _WALK_WARPS, 0, _DEFINES)]
    return [*steps, *_segments(p, node.op, name, rows, args)]


def _segments(p: DevicePlanner, op: str, name: str, rows: Rows, args: Args) -> list[Step]:
    """Scan segments by blocks, after a launch that joins the elements of each, if there are several in a row."""
    wanted = -(-_SEGMENTS_WANTED * p.device.multiprocessors // rows.count)
    wanted = min(wanted, _SEGMENTS_MAX, -(-rows.n // _SEGMENT_MIN))
    segment = -(-rows.n // (wanted * _SCAN_THREADS)) * _SCAN_THREADS
    segments = -(-rows.n // segment)
    args.set(segments=segments, segment=segment)
    grid = (rows.count * segments, 1, 1)
    if segments == 1:
        passes = ["scan"]
    else:
        passes = ["totals", "scan"]
        state_bytes = {"best_32": 8, "best_64": 16}.get(name, int(name[-2:]) // 8)
        args.point(totals=Slot(p.temporary(rows.count * segments * state_bytes)))
    return [args.step(op, f"ree_{pass_}_{name}", grid, _SCAN_THREADS, 0, _DEFINES) for pass_ in passes]
