"""The thread pool: every box exactly once, steps in order, and a clean floating-point state everywhere."""

from __future__ import annotations

import ctypes
import itertools
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ree_kernels import KernelError, cpu
from tests.kernel_runs import pointer

FFI, LIB = cpu.runtime().ffi, cpu.runtime().lib
ROUND_UP = {"x86_64": 0x800, "aarch64": 0x400000}


@pytest.fixture(autouse=True)
def one_thread_afterwards() -> Iterator[None]:
    before = cpu.threads()
    yield
    cpu.threads(before)


class Trace:
    """A step that counts how often each element is computed, and in which floating-point state."""

    def __init__(self, rows: int, cols: int, row_grain: int, col_grain: int, spin: int = 0, scratch: int = 0) -> None:
        self.out = np.zeros((rows, cols), np.int32)
        self.state = np.zeros((rows, cols), np.uint64)
        self.args = FFI.new("ree_trace *")
        self.args.out = FFI.cast("int32_t *", self.out.ctypes.data)
        self.args.fp_state = FFI.cast("uint64_t *", self.state.ctypes.data)
        self.args.cols, self.args.spin = cols, spin
        kernel = FFI.addressof(LIB, "ree_trace_kernel")
        self.step = (kernel, self.args, rows, cols, row_grain, col_grain, scratch)


def run(traces: list[Trace]) -> None:
    cpu.run(FFI.new("ree_step[]", [t.step for t in traces]), len(traces))


def random_trace(rng: np.random.Generator) -> Trace:
    rows, cols, row_grain, col_grain = (int(v) for v in rng.integers([0, 0, 1, 1], [40, 20, 50, 30]))
    return Trace(rows, cols, row_grain, col_grain, int(rng.integers(0, 200)), int(rng.choice([0, 1, 4096, 3 << 20])))


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_every_element_once(threads: int) -> None:
    rng = np.random.default_rng(threads)
    cpu.threads(threads)
    for _ in range(30):
        traces = [random_trace(rng) for _ in range(int(rng.integers(0, 30)))]
        run(traces)
        for trace in traces:
            assert (trace.out == 1).all()


def test_steps_are_in_order() -> None:
    """A step sees everything that the step before it wrote."""
    cpu.threads(2)
    kernels = cpu.kernels()
    n = 64
    a, identity = np.ones((n, n), np.float32), np.ones((n, n), np.float32)
    buffers = [a] + [np.zeros((n, n), np.float32) for _ in range(20)]
    packed = np.zeros(int(kernels.lib.ree_pack_b_floats(n, n)), np.float32)
    to = pointer(kernels, packed, "float *")
    assert kernels.lib.ree_pack_b(to, n, n, 0, n, pointer(kernels, identity, "float *"), n, 1) == 0
    steps, keep = [], []
    for source, target in itertools.pairwise(buffers):
        args = kernels.ffi.new("ree_matmul_args *")
        args.a, args.b, args.c = pointer(kernels, source, "float *"), to, pointer(kernels, target, "float *")
        args.a_row, args.a_k, args.c_row, args.m, args.n, args.k, args.b_packed = n, 1, n, n, n, n, 1
        keep.append(args)
        address = FFI.cast("void *", int(kernels.ffi.cast("uintptr_t", args)))
        kernel = FFI.cast("ree_kernel", kernels.address("ree_matmul"))
        steps.append((kernel, address, n, n, 5, 64, int(kernels.lib.ree_matmul_scratch_bytes(5, n, True))))
    for _ in range(50):
        cpu.run(FFI.new("ree_step[]", steps), len(steps))
        for power, buffer in enumerate(buffers):
            assert (buffer == float(n) ** power).all()
            buffer[...] = 1.0 if power == 0 else 0.0


def assert_clean(change: Any, restore: Any) -> None:
    """Run with the caller's state changed: kernels see the default one, the caller keeps its own."""
    trace = Trace(64, 8, 1, 1, spin=100)
    clean = Trace(64, 8, 1, 1)
    run([clean])
    change()
    try:
        before = LIB.ree_fp_state()
        run([trace])
        after = LIB.ree_fp_state()
    finally:
        restore()
    assert before == after
    default = 0x1F80 if os.uname().machine == "x86_64" else 0
    assert set(np.unique(trace.state)) == set(np.unique(clean.state)) == {default}


@pytest.mark.parametrize("threads", [1, 3])
def test_flush_denormal_does_not_reach_kernels(threads: int) -> None:
    cpu.threads(threads)
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush subnormals")
    torch.set_flush_denormal(False)
    assert_clean(lambda: torch.set_flush_denormal(True), lambda: torch.set_flush_denormal(False))


@pytest.mark.parametrize("threads", [1, 3])
def test_rounding_direction_does_not_reach_kernels(threads: int) -> None:
    upward = ROUND_UP.get(os.uname().machine)
    if upward is None:
        pytest.skip("no known constant for this processor")
    cpu.threads(threads)
    libm = ctypes.CDLL(None)
    assert_clean(lambda: libm.fesetround(upward), lambda: libm.fesetround(0))


def test_changed_state_changes_no_bit() -> None:
    """A product with subnormal results, with flushing on and rounding upward."""
    from tests.test_kernels_matmul import dot, pack, product, same_bits

    rng = np.random.default_rng(5)
    a = rng.standard_normal((20, 40), np.float32) * np.float32(1e-22)
    b = rng.standard_normal((40, 50), np.float32) * np.float32(1e-19)
    kernels = cpu.kernels()
    expected, packed = dot(a, b), pack(kernels, b)
    saved = LIB.ree_fp_state()
    try:
        torch.set_flush_denormal(True)
        if os.uname().machine == "x86_64":
            LIB.ree_set_fp_state(0x1F80 | 0x8040 | 0x4000)  # flush, denormals are zero, round up
        flushed = product(kernels, a, b, packed, 2)
    finally:
        LIB.ree_set_fp_state(saved)
        torch.set_flush_denormal(False)
    assert 0 < np.abs(expected).max() < np.finfo(np.float32).tiny
    same_bits(flushed, expected)


def test_calls_from_several_threads_are_serialised() -> None:
    cpu.threads(2)
    traces = [[Trace(50, 3, 1, 2, spin=50) for _ in range(20)] for _ in range(4)]
    callers = [threading.Thread(target=run, args=(mine,)) for mine in traces]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert all((t.out == 1).all() for mine in traces for t in mine)


def _in_child() -> None:
    cpu.threads(3)
    trace = Trace(100, 3, 1, 1, spin=50)
    run([trace])
    os._exit(0 if (trace.out == 1).all() else 1)


def test_a_forked_child_has_its_own_threads() -> None:
    cpu.threads(3)
    run([Trace(100, 3, 1, 1, spin=50)])
    child = multiprocessing.get_context("fork").Process(target=_in_child)
    child.start()
    child.join(20)
    assert child.exitcode == 0
    trace = Trace(100, 3, 1, 1)
    run([trace])
    assert (trace.out == 1).all()


def test_idle_threads_sleep() -> None:
    cpu.threads(4)
    run([Trace(100, 3, 1, 1, spin=50)])
    time.sleep(0.05)
    before = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - before < 0.1


def test_malformed_steps_and_numbers_are_refused() -> None:
    good = Trace(2, 2, 1, 1)
    for place, value in ((0, FFI.NULL), (2, -1), (4, 0), (5, 0), (6, -1)):
        step = list(good.step)
        step[place] = value
        with pytest.raises(KernelError, match="Invalid argument"):
            cpu.run(FFI.new("ree_step[]", [tuple(step)]), 1)
    huge = (good.step[0], good.args, 1 << 40, 1 << 40, 1, 1, 0)
    with pytest.raises(KernelError, match="Invalid argument"):
        cpu.run(FFI.new("ree_step[]", [huge]), 1)
    assert not good.out.any()
    for n in (0, -1, 5000):
        with pytest.raises(KernelError, match="threads"):
            cpu.threads(n)


def test_no_memory_for_scratch_is_an_error() -> None:
    trace = Trace(2, 2, 1, 1, scratch=1 << 60)
    with pytest.raises(KernelError, match="memory"):
        run([trace])
    assert not trace.out.any()


def choose(isa: str) -> subprocess.CompletedProcess[str]:
    """What a fresh process with REE_ISA set takes."""
    code = "from ree_kernels import cpu; print(cpu.kernels().isa)"
    environment = {**os.environ, "REE_ISA": isa}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("isa", cpu.supported())
def test_variable_forces_an_isa(isa: str) -> None:
    assert choose(isa).stdout.strip() == isa


def test_unknown_isa_is_an_error() -> None:
    told = choose("mmx")
    assert told.returncode != 0 and "KernelError" in told.stderr and "REE_ISA=mmx" in told.stderr


def worker_cpus() -> list[set[int]]:
    """The CPUs that each worker may run on."""
    tasks = [path for path in Path("/proc/self/task").iterdir() if (path / "comm").read_text().strip() == "ree-worker"]
    return [os.sched_getaffinity(int(path.name)) for path in tasks]


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one CPU: nowhere else to go")
def test_workers_keep_off_the_callers_cpu() -> None:
    """Else a worker that is woken there waits for milliseconds; the caller's restrictions hold for workers too."""
    allowed = os.sched_getaffinity(0)
    cpu.threads(2)
    try:
        for here in sorted(allowed)[:3]:
            os.sched_setaffinity(0, {here})
            os.sched_setaffinity(0, allowed)  # still here, for as long as nothing moves it
            run([Trace(100, 3, 1, 1, spin=50)])
            (cpus,) = worker_cpus()
            assert cpus < allowed and len(cpus) == len(allowed) - 1
        cpu.threads(len(allowed) + 1)  # more than there is room for: anywhere
        run([Trace(100, 3, 1, 1, spin=50)])
        assert worker_cpus() == [allowed] * len(allowed)
    finally:
        os.sched_setaffinity(0, allowed)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one CPU: nowhere to be confined to")
def test_workers_follow_the_callers_restrictions() -> None:
    allowed = os.sched_getaffinity(0)
    here = min(allowed)
    cpu.threads(2)
    try:
        for mine, workers in (({here}, {here}), (allowed, allowed - {here}), ({here}, {here})):
            os.sched_setaffinity(0, {here})
            os.sched_setaffinity(0, mine)
            run([Trace(100, 3, 1, 1, spin=50)])
            assert worker_cpus() == [workers]
    finally:
        os.sched_setaffinity(0, allowed)
