"""The pool with random pauses where the order of its threads matters: still every box exactly once.

A pause of some microseconds stands for a thread that the operating system takes off its core at the worst place.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ree_kernels import build

PAUSE = """
#define _GNU_SOURCE
#include <sched.h>
#include <stdint.h>
#include <time.h>
static __thread uint32_t ree_pause_state;
static void ree_pause(void)
{
    if (!ree_pause_state)
        ree_pause_state = (uint32_t)(uintptr_t)&ree_pause_state | 1u;
    ree_pause_state = ree_pause_state * 1664525u + 1013904223u;
    const uint32_t draw = ree_pause_state >> 24;
    struct timespec pause = {0, 1000 * (1 + draw % 64)};
    if (draw < 48)
        nanosleep(&pause, 0);
    else if (draw < 96)
        sched_yield();
}
#define REE_POOL_PAUSE ree_pause()
"""


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The runtime module, built with pauses."""
    folder = tmp_path_factory.mktemp("pool")
    (folder / "pause.h").write_text(PAUSE)
    flags = ["-pthread", "-include", str(folder / "pause.h")]
    ffi = build.builder_of("paused", [build.RUNTIME], list(build.RUNTIME_SOURCES), flags, build.SOURCES)
    built = Path(ffi.compile(tmpdir=str(folder), verbose=False))
    spec = importlib.util.spec_from_file_location("ree_kernels._paused", built)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("threads", [2, 3, 8])
def test_every_box_exactly_once(runtime: Any, threads: int) -> None:
    """Many short runs of few boxes, one after another: workers are still on their way in or out."""
    ffi, lib = runtime.ffi, runtime.lib
    shapes = [(2, 1), (1, 1), (0, 4), (3, 2), (1, 5)]
    outs = [np.zeros(shape, np.int32) for shape in shapes]
    states = [np.zeros(shape, np.uint64) for shape in shapes]
    traces, steps = [], []
    for out, state in zip(outs, states, strict=True):
        trace = ffi.new("ree_trace *")
        trace.out, trace.fp_state = ffi.cast("int32_t *", out.ctypes.data), ffi.cast("uint64_t *", state.ctypes.data)
        trace.cols, trace.spin = out.shape[1], 20
        traces.append(trace)
        steps.append((ffi.addressof(lib, "ree_trace_kernel"), trace, *out.shape, 1, 1, 64))
    table = ffi.new("ree_step[]", steps)
    assert lib.ree_set_threads(threads) == 0
    try:
        for number in range(1, 400):
            assert lib.ree_run(table, len(steps)) == 0
            assert all((out == number).all() for out in outs), (number, outs)
    finally:
        lib.ree_set_threads(1)
        lib.ree_run(table, 0)
