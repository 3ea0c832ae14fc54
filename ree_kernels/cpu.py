"""Chooses, loads and runs the CPU kernels.

`REE_ISA=portable|avx2|avx512|neon` forces an instruction set; otherwise the best that the
processor has is taken. All give the same bits.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
from collections.abc import Iterator
from types import ModuleType
from typing import Any, NamedTuple

from ree_kernels import KernelError
from ree_kernels.build import isas
from ree_kernels.probe import probe

ISA_VARIABLE = "REE_ISA"


BLOCK_COLS = 512
PANELS_MIN = 4  # fewer panels in a box do not pay for copying its rows of A
SCORE_FLOATS = 1 << 17
SCORED_KEYS = 4096  # of a cache: most sequences are shorter than it could hold


class MatmulPlan(NamedTuple):
    """Box and scratch of a `ree_matmul` step (an epilogue's scratch comes on top)."""

    row_grain: int
    col_grain: int
    scratch_bytes: int


def _ceil(a: int, b: int) -> int:
    return -(-a // b) if a else 1


class Kernels:
    """The kernels of one instruction set.

    `lib` has the C functions, `ffi` the struct layouts (`ffi.new("ree_matmul_args *")`).
    """

    def __init__(self, isa: str) -> None:
        self.isa = isa
        module = _module(isa)
        probe(isa, module, runtime())
        self.ffi: Any = module.ffi
        self.lib: Any = module.lib
        self.panel_cols = int(self.lib.ree_panel_cols())
        self.tile_rows = int(self.lib.ree_tile_rows())

    def matmul_plan(self, m: int, n: int, k: int, n_threads: int, packed: int, batch: int = 1) -> MatmulPlan:
        """How to cut C [batch * m, n] into boxes for this many threads; the bits do not depend on it.

        packed: `ree_matmul_args.b_packed` (0: B is not packed).
        A block of C and its chunk of A fit L2; there are enough boxes that no thread waits long for another.
        """
        rows = batch * m
        block = rows if packed else m
        row_tiles = _ceil(block, self.tile_rows)
        row_grain = _ceil(row_tiles, _ceil(row_tiles, 20)) * self.tile_rows
        panels = _ceil(n, self.panel_cols)
        col_boxes = _ceil(panels, BLOCK_COLS // self.panel_cols)
        if n_threads > 1:
            # columns are split first, since every block of rows reads all of B again
            wanted = max(col_boxes, _ceil(2 * n_threads, _ceil(rows, row_grain)))
            col_boxes = min(_ceil(wanted, n_threads) * n_threads, _ceil(panels, PANELS_MIN))
            while _ceil(rows, row_grain) * col_boxes < 2 * n_threads and row_grain > 2 * self.tile_rows:
                row_grain = _ceil(_ceil(row_grain, self.tile_rows), 2) * self.tile_rows
        col_panels = _ceil(panels, col_boxes)
        if not packed and block < row_grain:  # several small products in a box
            row_grain = max(1, min(rows // (4 * n_threads), row_grain) // max(block, 1)) * max(block, 1)
        scratch = int(self.lib.ree_matmul_scratch_bytes(row_grain, k, packed))
        return MatmulPlan(row_grain, col_panels * self.panel_cols, scratch)

    def attention_plan(self, rows: int, t: int, s: int, d_v: int, n_threads: int) -> MatmulPlan:
        """Box and scratch of a `ree_attention` step; rows = batch * heads * t, score_row = s.

        The scores of a box stay in L2; boxes do not straddle heads more often than they must.
        """
        share = _ceil(rows, 2 * n_threads) if n_threads > 1 else rows
        limit = max(self.tile_rows, min(SCORE_FLOATS // max(s, 1), share))
        row_grain = _ceil(t, _ceil(t, limit)) if t >= self.tile_rows else max(t, limit // t * t) if t else 1
        return MatmulPlan(row_grain, max(d_v, 1), int(self.lib.ree_attention_scratch_bytes(row_grain, s, d_v)))

    def cached_grain(self, n: int, heads: int, k_heads: int, context: int, n_threads: int) -> int:
        """Rows in a box of a `ree_cached_attention` step: whole groups of heads where there are enough of them."""
        rows, members = heads * n, heads // max(k_heads, 1)
        share = _ceil(rows, 2 * n_threads) if n_threads > 1 else rows
        limit = max(self.tile_rows, min(SCORE_FLOATS // max(1, min(context, SCORED_KEYS)), share))
        grain = max(1, min(limit, share))
        return grain // members * members if grain > members else grain

    def address(self, name: str) -> int:
        """Address of a C function, for `ree_step.kernel` or a JIT-compiled caller."""
        try:
            return int(self.ffi.cast("uintptr_t", self.ffi.addressof(self.lib, name)))
        except AttributeError:
            raise KernelError(f"no kernel named {name!r} for {self.isa}") from None


def _module(name: str) -> ModuleType:
    try:
        return importlib.import_module(f"ree_kernels._{name}")
    except ImportError as error:
        raise KernelError(f"the {name} kernels are not built ({error}): run python -m ree_kernels.build") from None


@functools.cache
def runtime() -> Any:
    """The module of the pool and executor (`ffi`, `lib`)."""
    return _module("runtime")


def supported() -> list[str]:
    """Instruction sets that this processor can run, best last."""
    return [isa for isa in isas() if runtime().lib.ree_cpu_has(isa.encode())]


@functools.cache
def load(isa: str) -> Kernels:
    """The kernels of a named instruction set; KernelError if this processor lacks it."""
    if isa not in supported():
        raise KernelError(f"{ISA_VARIABLE}={isa}: this processor runs {', '.join(supported())}")
    return Kernels(isa)


@functools.cache
def kernels() -> Kernels:
    """The kernels that this process uses."""
    return load(os.environ.get(ISA_VARIABLE) or supported()[-1])


def address(name: str) -> int:
    """Address of a kernel of this process's instruction set."""
    return kernels().address(name)


def threads(n: int | None = None) -> int:
    """The number of threads of later runs; sets it first if `n` is given (1..1024)."""
    lib = runtime().lib
    if n is not None and lib.ree_set_threads(n):
        raise KernelError(f"threads({n}): the number must be in 1..1024")
    return int(lib.ree_get_threads())


def allocate(n_bytes: int) -> Any:
    """Memory for packed weights (a cffi `char[]` buffer owner): 64-byte aligned, huge pages where large."""
    ffi, lib = runtime().ffi, runtime().lib
    memory = lib.ree_alloc(n_bytes)
    if memory == ffi.NULL:
        raise KernelError(f"no memory for {n_bytes} bytes")
    return ffi.gc(ffi.cast("char *", memory), lib.ree_free, n_bytes)


def run(steps: Any, n_steps: int) -> None:
    """Run the steps (`runtime().ffi.new("ree_step[]", n)`) in order; the GIL is released."""
    status = runtime().lib.ree_run(steps, n_steps)
    if status:
        raise KernelError(f"the executor failed: {os.strerror(status)}")


def run_kernel(kernels: Kernels, name: str, args: Any, shape: tuple[int, int], grain: tuple[int, int]) -> None:
    """Run one kernel that needs no scratch over rows x columns; `args`: a pointer to its arguments."""
    ffi = runtime().ffi
    step = ffi.new("ree_step *")
    step.kernel = ffi.cast("ree_kernel", kernels.address(name))
    step.args = ffi.cast("void *", int(kernels.ffi.cast("uintptr_t", args)))
    step.rows, step.cols = shape
    step.row_grain, step.col_grain = grain
    run(step, 1)


def dot_lanes(a: Any, b: Any, counts: Any) -> Any:
    """FMA chains from +0, one for each lane: float32 arrays a, b [k, lanes], counts i64 [lanes]; gives [lanes]."""
    import numpy as np

    k = kernels()
    out = np.empty(a.shape[1], np.float32)
    arrays = zip(_DOT_TYPES, (a, b, counts, out), strict=True)
    left, right, lengths, result = (k.ffi.cast(kind, array.ctypes.data) for kind, array in arrays)
    k.lib.ree_dot_lanes(left, right, lengths, *a.shape, result)
    return out


_DOT_TYPES = ("float *", "float *", "int64_t *", "float *")


@contextlib.contextmanager
def default_fp_state() -> Iterator[None]:
    """Round to nearest with subnormals in this thread, whatever the process has set; restored at the end.

    Kernels enter this state by themselves; Python that makes constants needs it, too.
    """
    lib = runtime().lib
    saved = lib.ree_fp_enter()
    try:
        yield
    finally:
        lib.ree_set_fp_state(saved)
