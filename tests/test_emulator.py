"""The emulated device: right kernels give right results, and wrong ones are found out."""

from __future__ import annotations

import functools
import gc
import shutil
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from ree_kernels import KernelError
from ree_kernels.cuda import DeviceMemoryError, Launch
from tools.emulator.device import Emulator, Memory, Module, shared

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")

DEVICE = shared()
WARP = 32

KERNELS = r"""
#include "ree.cuh"
struct pair_args { const i32 *x; i32 *out; i64 n; };

/* the sum of a block's values, by halves */
template <bool has_barrier> __device__ void tree(const pair_args &a)
{
    __shared__ i32 sums[256];
    const int thread = threadIdx.x;
    sums[thread] = a.x[blockIdx.x * blockDim.x + thread];
    for (int step = blockDim.x / 2; step > 0; step /= 2) {
        if (has_barrier)
            __syncthreads();
        if (thread < step)
            sums[thread] += sums[thread + step];
    }
    if (thread == 0)
        a.out[blockIdx.x] = sums[0];
}
REE_KERNEL(block_sum, pair_args, 256) { tree<true>(a); }
REE_KERNEL(block_sum_without_barriers, pair_args, 256) { tree<false>(a); }

/* every thread passes its value on through shared memory, in one warp */
template <bool has_barrier> __device__ void rotate(const pair_args &a)
{
    i32 *values = reinterpret_cast<i32 *>(ree_shared());
    values[threadIdx.x] = a.x[blockIdx.x * 32 + threadIdx.x];
    if (has_barrier)
        __syncwarp();
    a.out[blockIdx.x * 32 + threadIdx.x] = values[(threadIdx.x + 1) % 32];
}
REE_KERNEL(warp_rotate, pair_args, 32) { rotate<true>(a); }
REE_KERNEL(warp_rotate_without_barrier, pair_args, 32) { rotate<false>(a); }

/* when each thread ran */
REE_KERNEL(turns, pair_args, 1024)
{
    __shared__ i32 next;
    if (threadIdx.x == 0)
        next = 0;
    __syncthreads();
    a.out[blockIdx.x * blockDim.x + threadIdx.x] = atomicAdd(&next, 1);
}

/* -- faults */
REE_KERNEL(barrier_in_a_branch, pair_args, 256)
{
    if (threadIdx.x < a.n)
        __syncthreads();
}
REE_KERNEL(barriers_of_two_kinds, pair_args, 256)
{
    if (threadIdx.x < 32)
        __syncthreads();
    else
        __syncthreads_or(1);
}
REE_KERNEL(shuffle_in_a_branch, pair_args, 256)
{
    if (threadIdx.x != 7)
        a.out[threadIdx.x] = __shfl_xor_sync(REE_ALL_LANES, 1, 1);
}
REE_KERNEL(half_a_warp, pair_args, 256) { __syncwarp(0xffffu); }
REE_KERNEL(copy_values, pair_args, 1024)
{
    const i64 i = static_cast<i64>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < a.n)
        a.out[i] = a.x[i];
}
REE_KERNEL(misaligned, pair_args, 32) { a.out[0] = reinterpret_cast<const int4 *>(a.x + 1)->x; }
REE_KERNEL(index_outside, pair_args, 32)
{
    __shared__ i32 values[4];
    values[threadIdx.x] = 1;
    a.out[0] = values[0];
}
REE_KERNEL(wide_shift, pair_args, 32) { a.out[0] = 1u << a.n; }
REE_KERNEL(divides, pair_args, 32) { a.out[0] = static_cast<i32>(1 / a.n); }

/* -- where a thread is */
struct place_args { u32 *out; };
REE_KERNEL(places, place_args, 64)
{
    const i64 block = (static_cast<i64>(blockIdx.z) * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    u32 *out = a.out + (block * blockDim.x + threadIdx.x) * 5;
    const u32 values[5] = {blockIdx.x, blockIdx.y, blockIdx.z, threadIdx.x, blockDim.x};
    for (int i = 0; i < 5; i++)
        out[i] = values[i];
}
struct fields_args { i64 *out; i64 shape[3]; const float *x; i64 last; };
REE_KERNEL(fields, fields_args, 1)
{
    for (int i = 0; i < 3; i++)
        a.out[i] = a.shape[i];
    a.out[3] = static_cast<i64>(*a.x);
    a.out[4] = a.last;
}

/* -- warps */
struct shuffle_args { const void *x; void *out; i64 width, operand; };
template <class T> __device__ void shuffle_all(const shuffle_args &a)
{
    const T value = static_cast<const T *>(a.x)[threadIdx.x];
    T *out = static_cast<T *>(a.out);
    const int width = static_cast<int>(a.width), operand = static_cast<int>(a.operand);
    out[threadIdx.x] = __shfl_sync(REE_ALL_LANES, value, operand, width);
    out[64 + threadIdx.x] = __shfl_up_sync(REE_ALL_LANES, value, operand, width);
    out[128 + threadIdx.x] = __shfl_down_sync(REE_ALL_LANES, value, operand, width);
    out[192 + threadIdx.x] = __shfl_xor_sync(REE_ALL_LANES, value, operand, width);
}
REE_KERNEL(shuffle_i32, shuffle_args, 64) { shuffle_all<i32>(a); }
REE_KERNEL(shuffle_f32, shuffle_args, 64) { shuffle_all<f32>(a); }
REE_KERNEL(shuffle_u64, shuffle_args, 64) { shuffle_all<u64>(a); }
REE_KERNEL(shuffle_f64, shuffle_args, 64) { shuffle_all<f64>(a); }
REE_KERNEL(votes, pair_args, 64)
{
    const int x = a.x[threadIdx.x];
    i32 *out = a.out + 6 * threadIdx.x;
    out[0] = static_cast<i32>(__ballot_sync(REE_ALL_LANES, x));
    out[1] = __any_sync(REE_ALL_LANES, x);
    out[2] = __all_sync(REE_ALL_LANES, x);
    out[3] = __syncthreads_count(x);
    out[4] = __syncthreads_or(x);
    out[5] = __syncthreads_and(x);
}
struct mma_args { const u32 *a_words; const u32 *b_words; i32 *d; };
REE_KERNEL(mma, mma_args, 64)
{
    u32 x[4], y[2];
    i32 d[4];
    for (int i = 0; i < 4; i++)
        x[i] = a.a_words[4 * threadIdx.x + i], d[i] = a.d[4 * threadIdx.x + i];
    for (int i = 0; i < 2; i++)
        y[i] = a.b_words[2 * threadIdx.x + i];
    ree_mma_s8(d, x, y);
    for (int i = 0; i < 4; i++)
        a.d[4 * threadIdx.x + i] = d[i];
}

/* -- asynchronous copies: two groups of 16 bytes a thread; `waited`: that are waited for */
template <int left, bool waits, bool has_barrier> __device__ void copies(const pair_args &a)
{
    i32 *tile = reinterpret_cast<i32 *>(ree_shared());
    const int thread = threadIdx.x, other = blockDim.x - 1 - thread;
    ree_copy_async16(tile + 4 * thread, a.x + 4 * thread, thread < a.n);
    ree_copy_commit();
    for (int i = 0; i < 4; i++)
        ree_copy_async4(tile + 256 + 4 * thread + i, a.x + 256 + 4 * thread + i, thread < a.n);
    ree_copy_commit();
    if (waits)
        ree_copy_wait<left>();
    if (has_barrier)
        __syncthreads();
    for (int i = 0; i < 4; i++) {
        a.out[4 * other + i] = tile[4 * other + i];
        a.out[256 + 4 * other + i] = tile[256 + 4 * other + i];
    }
}
REE_KERNEL(copies_waited, pair_args, 64) { copies<0, true, true>(a); }
REE_KERNEL(copies_half_waited, pair_args, 64) { copies<1, true, true>(a); }
REE_KERNEL(copies_not_waited, pair_args, 64) { copies<0, false, true>(a); }
REE_KERNEL(copies_without_barrier, pair_args, 64) { copies<0, true, false>(a); }
REE_KERNEL(copy_to_device_memory, pair_args, 64) { ree_copy_async16(a.out, a.x); }

/* -- memory */
REE_KERNEL(first_of_shared, pair_args, 1)
{
    __shared__ i32 own[2];
    const i32 *dynamic = reinterpret_cast<const i32 *>(ree_shared());
    a.out[2 * blockIdx.x] = own[1], a.out[2 * blockIdx.x + 1] = dynamic[a.n];
    own[1] = 1;
}
REE_KERNEL(atomics, pair_args, 256)
{
    const i32 x = a.x[blockIdx.x * blockDim.x + threadIdx.x];
    u64 *wide = reinterpret_cast<u64 *>(a.out + 6);
    atomicAdd(a.out, x);
    atomicMax(a.out + 1, x);
    atomicMin(a.out + 2, x);
    atomicOr(reinterpret_cast<u32 *>(a.out + 3), 1u << (x & 31));
    if (atomicCAS(a.out + 4, 0, 1) == 0)
        atomicAdd(a.out + 5, 1);
    atomicAdd(wide, static_cast<u64>(static_cast<i64>(x)));
}

/* -- arithmetic */
struct integer_args { const u32 *x; u32 *out; };
REE_KERNEL(integers, integer_args, 256)
{
    const u32 p = a.x[3 * threadIdx.x], q = a.x[3 * threadIdx.x + 1], s = a.x[3 * threadIdx.x + 2];
    const u32 out[11] = {
        static_cast<u32>(__popc(p)), static_cast<u32>(__clz(static_cast<int>(p))),
        static_cast<u32>(__ffs(static_cast<int>(p))), __brev(p), __umulhi(p, q), __funnelshift_l(p, q, s),
        __funnelshift_r(p, q, s), __byte_perm(p, q, s), min(p, q),
        static_cast<u32>(max(static_cast<int>(p), static_cast<int>(q))), __ldg(a.x)};
    for (int i = 0; i < 11; i++)
        a.out[11 * threadIdx.x + i] = out[i];
}
struct float_args { const float *x; float *out; i64 n; };
REE_KERNEL(float_results, float_args, 1)
{
    const float x = a.x[0], y = a.x[1], z = a.x[2];
    const float out[6] = {f32_add(x, y), f32_mul(x, y), f32_div(x, y), f32_sqrt(x), f32_fma(x, y, z),
                          f32_add(f32_mul(x, y), z)};
    for (int i = 0; i < 6; i++)
        a.out[i] = out[i];
}
"""


@functools.cache
def module() -> Module:
    return DEVICE.load(DEVICE.compile(KERNELS))


def put(array: np.ndarray) -> Memory:
    array = np.ascontiguousarray(array)
    memory = DEVICE.allocate(array.nbytes)
    DEVICE.write(memory.address, array.ctypes.data, array.nbytes)
    return memory


def get(memory: Memory, dtype: Any) -> np.ndarray:
    array = np.empty(memory.n_bytes // np.dtype(dtype).itemsize, dtype)
    DEVICE.read(array.ctypes.data, memory.address, array.nbytes)
    return array


def args_of(values: Sequence[Memory | int]) -> np.ndarray:
    return np.array([value.address if isinstance(value, Memory) else value for value in values], np.uint64)


def run(name: str, grid: int | tuple[int, int, int], block: int, *args: Memory | int, shared_bytes: int = 0) -> None:
    function = module().function(name, shared_bytes)
    blocks = (grid, 1, 1) if isinstance(grid, int) else grid
    DEVICE.launch(Launch(function, blocks, block, shared_bytes, args_of(args)))


def integers(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-1000, 1000, shape, np.int32)


class TestOrder:
    @pytest.mark.parametrize("block", [1, 32, 64, 256])
    def test_a_block_sums_with_barriers(self, block: int) -> None:
        x = integers(50, block)
        out = put(np.zeros(50, np.int32))
        run("block_sum", 50, block, put(x), out, 0)
        assert np.array_equal(get(out, np.int32), x.sum(1))

    def test_missing_barriers_give_wrong_sums(self) -> None:
        x = integers(12, 256)
        out = put(np.zeros(12, np.int32))
        run("block_sum_without_barriers", 12, 256, put(x), out, 0)
        wrong = get(out, np.int32) != x.sum(1)
        assert wrong[0]
        assert wrong.sum() >= 8  # there may be one order in which it works

    def test_a_missing_warp_barrier_gives_wrong_data(self) -> None:
        x = integers(6, WARP)
        good, bad = put(np.zeros_like(x)), put(np.zeros_like(x))
        run("warp_rotate", 6, 32, put(x), good, 0, shared_bytes=128)
        run("warp_rotate_without_barrier", 6, 32, put(x), bad, 0, shared_bytes=128)
        assert np.array_equal(get(good, np.int32).reshape(x.shape), np.roll(x, -1, axis=1))
        assert (get(bad, np.int32).reshape(x.shape) != np.roll(x, -1, axis=1)).any(1).all()

    def test_orders_change_from_block_to_block(self) -> None:
        out = put(np.zeros(3 * 80, np.int32))
        run("turns", 3, 80, put(np.zeros(1, np.int32)), out, 0)
        shuffled, descending, ascending = get(out, np.int32).reshape(3, 80)
        assert np.array_equal(ascending, np.arange(80))
        assert np.array_equal(descending, np.arange(80)[::-1])
        assert sorted(shuffled) == list(range(80))
        assert not np.array_equal(shuffled, ascending)

    def test_the_seed_gives_the_order(self) -> None:
        turns = []
        for seed in (3, 6, 3):
            device = Emulator(seed=seed)
            out, x = put(np.zeros(64, np.int32)), put(np.zeros(1, np.int32))
            device.launch(Launch(module().function("turns", 0), (1, 1, 1), 64, 0, args_of([x, out, 0])))
            turns.append(get(out, np.int32).tolist())
        assert turns[0] == turns[2] != turns[1]


class TestFaults:
    @pytest.mark.parametrize("reached", [1, 31, 32, 63])
    def test_a_barrier_that_some_threads_miss(self, reached: int) -> None:
        with pytest.raises(KernelError, match="barrier_in_a_branch: barrier not reached by all threads"):
            run("barrier_in_a_branch", 4, 64, 0, 0, reached)

    def test_a_barrier_that_all_or_none_reach(self) -> None:
        run("barrier_in_a_branch", 4, 64, 0, 0, 64)
        run("barrier_in_a_branch", 4, 64, 0, 0, 0)

    def test_barriers_of_two_kinds(self) -> None:
        with pytest.raises(KernelError, match=r"at __syncthreads_count.*at __syncthreads|at __syncthreads.*_count"):
            run("barriers_of_two_kinds", 1, 64, 0, 0, 0)

    def test_a_warp_primitive_that_a_lane_misses(self) -> None:
        out = put(np.zeros(32, np.int32))
        with pytest.raises(KernelError, match="shuffle_in_a_branch: warp primitive not reached by all lanes"):
            run("shuffle_in_a_branch", 1, 32, 0, out, 0)

    def test_a_mask_of_some_lanes(self) -> None:
        with pytest.raises(KernelError, match="lanes 0x0000ffff"):
            run("half_a_warp", 1, 32, 0, 0, 0)

    @pytest.mark.parametrize("n", [1, 4, 1000, 4096])
    def test_the_end_of_an_allocation(self, n: int) -> None:
        x = integers(n)
        source, out = put(x), put(np.zeros_like(x))
        run("copy_values", -(-n // 64), 64, source, out, n)
        assert np.array_equal(get(out, np.int32), x)
        past = -(-n // 4) * 4 + 1  # the guard stands at a multiple of 16 bytes
        with pytest.raises(KernelError, match=rf"copy_values: memory fault.*from the start \(of {4 * n}\)"):
            run("copy_values", -(-past // 64), 64, source, put(np.zeros(past, np.int32)), past)
        with pytest.raises(KernelError, match="memory fault"):
            run("copy_values", -(-past // 64), 64, put(np.zeros(past, np.int32)), out, past)

    def test_a_fault_on_another_thread(self) -> None:
        n = 1 << 16
        source, out = put(integers(n)), put(np.zeros(1, np.int32))
        for _ in range(3):  # many blocks: some run on an own thread
            with pytest.raises(KernelError, match="memory fault"):
                run("copy_values", n // 256, 256, source, out, n)

    def test_a_null_pointer(self) -> None:
        with pytest.raises(KernelError, match="memory fault at 0x0 "):
            run("copy_values", 1, 1, 0, put(integers(1)), 1)

    def test_a_released_allocation(self) -> None:
        source, out = put(integers(64)), put(np.zeros(64, np.int32))
        address = source.address
        del source
        gc.collect()
        with pytest.raises(KernelError, match="memory fault"):
            run("copy_values", 1, 64, address, out, 64)

    def test_a_misaligned_vector(self) -> None:
        with pytest.raises(KernelError, match=r"misaligned: kernel.cu:\d+: misaligned address"):
            run("misaligned", 1, 1, put(integers(8)), put(integers(1)), 0)

    def test_an_index_outside_an_array(self) -> None:
        out = put(integers(1))
        run("index_outside", 1, 4, out, out, 0)
        with pytest.raises(KernelError, match=r"kernel.cu:\d+: index 4 is outside"):
            run("index_outside", 1, 5, out, out, 0)

    def test_a_shift_by_too_many_bits(self) -> None:
        with pytest.raises(KernelError, match="shift by 32 bits"):
            run("wide_shift", 1, 1, 0, put(integers(1)), 32)

    def test_a_division_by_zero(self) -> None:
        with pytest.raises(KernelError, match="division by zero"):
            run("divides", 1, 1, 0, put(integers(1)), 0)

    def test_faults_of_several_python_threads(self) -> None:
        module()
        found: list[str] = []

        def fault() -> None:
            with pytest.raises(KernelError) as raised:
                run("copy_values", 1, 32, 0, 0, 1)
            found.append(str(raised.value))

        threads = [threading.Thread(target=fault) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 4


class TestLaunch:
    def test_places_in_a_grid_of_three_dimensions(self) -> None:
        grid, block = (3, 4, 5), 37
        out = put(np.zeros(5 * 60 * block, np.uint32))
        run("places", grid, block, out)
        z, y, x, thread = np.indices((5, 4, 3, block))
        want = np.stack([x, y, z, thread, np.full_like(x, block)], axis=-1)
        assert np.array_equal(get(out, np.uint32).reshape(want.shape), want)

    def test_the_argument_struct(self) -> None:
        out, x = put(np.zeros(5, np.int64)), put(np.array([7], np.float32))
        run("fields", 1, 1, out, 2**40, -1 % 2**64, 3, x, 11)
        assert get(out, np.int64).tolist() == [2**40, -1, 3, 7, 11]

    def test_a_replay_has_the_arguments_of_its_recording(self) -> None:
        x, out = integers(40), put(np.zeros(40, np.int32))
        source = put(x)
        args = args_of([source, out, 40])
        replay = DEVICE.record([Launch(module().function("copy_values", 0), (1, 1, 1), 64, 0, args)])
        args[:] = 0
        for values in (x, x + 1):
            DEVICE.write(source.address, values.ctypes.data, values.nbytes)
            replay.run()
            assert np.array_equal(get(out, np.int32), values)

    def test_what_no_driver_launches(self) -> None:
        out = put(np.zeros(5, np.int64))
        for grid, block, args, shared_bytes, message in [
            ((1, 1, 1), 65, [out], 0, "65 threads"),
            ((1, 1, 1), 0, [out], 0, "0 threads"),
            ((0, 1, 1), 1, [out], 0, "a grid of"),
            ((1, 65536, 1), 1, [out], 0, "a grid of"),
            ((1, 1, 1), 1, [out, 1], 0, "16 bytes of arguments"),
            ((1, 1, 1), 1, [out], 200, "200 bytes of shared memory"),
        ]:
            with pytest.raises(KernelError, match=message):
                DEVICE.launch(Launch(module().function("places", 100), grid, block, shared_bytes, args_of(args)))

    def test_functions_that_are_not_there(self) -> None:
        with pytest.raises(KernelError, match="no kernel missing"):
            module().function("missing", 0)
        with pytest.raises(KernelError, match="bytes of shared memory of 232448"):
            module().function("places", 232449)

    def test_an_image_that_is_none(self) -> None:
        with pytest.raises(KernelError, match="cannot be loaded"):
            DEVICE.load(b"none")

    def test_a_text_that_does_not_compile(self) -> None:
        text = '#include "ree.cuh"\nstruct x_args { i64 n; };\nREE_KERNEL(x, x_args, 1) { a.m = 1; }\n'
        with pytest.raises(KernelError, match=r"kernel\.cu:3.*has no member named"):
            DEVICE.compile(text)


class TestWarps:
    @pytest.mark.parametrize("dtype", ["i32", "f32", "u64", "f64"])
    @pytest.mark.parametrize("width", [32, 16, 8, 1])
    @pytest.mark.parametrize("operand", [0, 1, 5, 16, 31])
    def test_shuffles(self, dtype: str, width: int, operand: int) -> None:
        numpy_type = {"i32": np.int32, "f32": np.float32, "u64": np.uint64, "f64": np.float64}[dtype]
        x = (np.random.default_rng(1).integers(0, 2**62, 64) >> (31 if dtype == "i32" else 0)).astype(numpy_type)
        out = put(np.zeros(256, numpy_type))
        run(f"shuffle_{dtype}", 1, 64, put(x), out, width, operand)
        lane = np.arange(WARP)
        first, last = lane // width * width, lane // width * width + width - 1
        up, down, across = lane - operand, lane + operand, lane ^ operand
        sources = [
            first + operand % width,
            np.where(up >= first, up, lane),
            np.where(down <= last, down, lane),
            np.where(across <= last, across, lane),
        ]
        want = [x.reshape(2, WARP)[:, source].ravel() for source in sources]
        assert np.array_equal(get(out, numpy_type), np.concatenate(want))

    def test_lanes_that_a_block_lacks_have_no_values(self) -> None:
        out = put(np.zeros(256, np.int32))
        run("shuffle_i32", 1, 40, put(np.arange(40, dtype=np.int32)), out, 32, 31)
        assert get(out, np.int32)[:40].tolist() == [31] * 32 + [-1] * 8

    @pytest.mark.parametrize("kept", ["none", "all", "some"])
    def test_votes(self, kept: str) -> None:
        x = {"none": np.zeros(64), "all": np.full(64, 9), "some": np.random.default_rng(2).integers(0, 2, 64)}[kept]
        out = put(np.zeros(6 * 64, np.int32))
        run("votes", 1, 64, put(x.astype(np.int32)), out, 0)
        got = get(out, np.int32).reshape(64, 6)
        for thread in range(64):
            warp = x.reshape(2, WARP)[thread // WARP] != 0
            bits = int((warp << np.arange(WARP)).sum()) % 2**32
            want = [bits, warp.any(), warp.all(), (x != 0).sum(), (x != 0).any(), (x != 0).all()]
            assert got[thread].astype(np.uint32).tolist() == [int(value) for value in want]

    def test_lanes_that_a_block_lacks_do_not_vote(self) -> None:
        out = put(np.zeros(6 * 40, np.int32))
        run("votes", 1, 40, put(np.ones(40, np.int32)), out, 0)
        got = get(out, np.int32).reshape(40, 6)
        assert got[:, 0].tolist() == [-1] * 32 + [255] * 8
        assert (got[:, 2] == 1).all()
        assert (got[:, 3] == 40).all()

    def test_integer_products_of_tiles(self) -> None:
        rng = np.random.default_rng(3)
        left, right = rng.integers(-128, 128, (2, 16, 32), np.int8), rng.integers(-128, 128, (2, 32, 8), np.int8)
        left[0, :2], right[0, :, :2] = -128, -128
        start = rng.integers(-(2**31), 2**31, (2, 16, 8), np.int64).astype(np.int32)
        # the fragments as the PTX ISA gives them: element i of a lane's registers
        lane, i = np.indices((WARP, 16))
        group, member = lane // 4, lane % 4
        a = left[:, group + 8 * (i // 4 % 2), 4 * member + i % 4 + 16 * (i // 8)]
        b = right[:, (4 * member + i % 4 + 16 * (i // 4))[:, :8], group[:, :8]]
        rows, columns = (group + 8 * (i // 2))[:, :4], (2 * member + i % 2)[:, :4]
        d = put(start[:, rows, columns])
        run("mma", 1, 64, put(a), put(b), d)
        want = start + left.astype(np.int32) @ right.astype(np.int32)
        assert np.array_equal(get(d, np.int32).reshape(2, WARP, 4), want[:, rows, columns])

    def test_a_product_needs_a_whole_warp(self) -> None:
        words = put(np.zeros(256, np.uint32))
        with pytest.raises(KernelError, match="a warp of 8 lanes"):
            run("mma", 1, 40, words, words, words)


class TestMemory:
    def copies(self, name: str, n: int = 64) -> tuple[np.ndarray, np.ndarray]:
        x, out = integers(512, seed=4), put(np.zeros(512, np.int32))
        run(name, 1, 64, put(x), out, n, shared_bytes=2048)
        return x, get(out, np.int32)

    def test_copies_that_are_waited_for(self) -> None:
        x, got = self.copies("copies_waited")
        assert np.array_equal(got, x)

    def test_copies_from_outside_give_zeros(self) -> None:
        x, got = self.copies("copies_waited", 20)
        assert np.array_equal(got, np.where(np.arange(512) % 256 < 80, x, 0))

    def test_copies_that_are_not_waited_for(self) -> None:
        assert (self.copies("copies_not_waited")[1] == -1).all()

    def test_copies_of_a_later_group(self) -> None:
        x, got = self.copies("copies_half_waited")
        assert np.array_equal(got[:256], x[:256])
        assert (got[256:] == -1).all()

    def test_copies_of_other_threads_without_a_barrier(self) -> None:
        x, got = self.copies("copies_without_barrier")
        assert not np.array_equal(got, x)

    def test_copies_go_to_shared_memory_alone(self) -> None:
        x = put(integers(4))
        with pytest.raises(KernelError, match="not from device memory to shared memory"):
            run("copy_to_device_memory", 1, 1, x, x, 0)

    def test_shared_memory_is_poisoned_for_each_block(self) -> None:
        out = put(np.zeros(8, np.int32))
        run("first_of_shared", 4, 1, 0, out, 3, shared_bytes=16)
        assert (get(out, np.int32) == -1).all()

    def test_the_end_of_dynamic_shared_memory(self) -> None:
        with pytest.raises(KernelError, match="memory fault"):
            run("first_of_shared", 1, 1, 0, put(np.zeros(2, np.int32)), 4, shared_bytes=16)

    def test_device_memory_is_poisoned(self) -> None:
        assert np.isnan(get(DEVICE.allocate(64), np.float32)).all()

    def test_atomics(self) -> None:
        x = integers(40, 256)
        out = put(np.array([0, -5000, 5000, 0, 0, 0, 0, 0], np.int32))
        run("atomics", 40, 256, put(x), out, 0)
        got = get(out, np.int32)
        assert got[:3].tolist() == [x.sum(), x.max(), x.min()]
        assert got[3:6].tolist() == [-1, 1, 1]
        assert got[6:].view(np.int64)[0] == x.sum()

    def test_out_of_memory(self) -> None:
        device = Emulator(memory_bytes=1000)
        held = device.allocate(600)
        with pytest.raises(DeviceMemoryError, match="500 bytes asked for, 400 of 1000 left"):
            device.allocate(500)
        del held
        gc.collect()
        assert device.allocate(1000).n_bytes == 1000

    def test_memory_that_cannot_be_had(self) -> None:
        with pytest.raises(DeviceMemoryError):
            Emulator(memory_bytes=1 << 62).allocate(1 << 60)

    def test_copies_and_fills_by_the_host(self) -> None:
        x = integers(8)
        source, target = put(x), put(np.zeros(8, np.int32))
        DEVICE.copy(target.address + 8, source.address, 16)
        DEVICE.fill(target.address, 1, 3)
        assert get(target, np.int32).tolist() == [0x010101, 0, *x[:4].tolist(), 0, 0]
        assert DEVICE.allocate(0).n_bytes == 0

    def test_the_host_stays_in_its_allocations(self) -> None:
        memory, host = DEVICE.allocate(32), np.zeros(64, np.uint8)
        for call in (
            lambda: DEVICE.write(memory.address, host.ctypes.data, 33),
            lambda: DEVICE.read(host.ctypes.data, memory.address - 1, 1),
            lambda: DEVICE.copy(memory.address, host.ctypes.data, 1),
            lambda: DEVICE.fill(memory.address + 32, 0, 1),
        ):
            with pytest.raises(KernelError, match="not in device memory"):
                call()


class TestArithmetic:
    def test_integers(self) -> None:
        x = np.random.default_rng(5).integers(0, 2**32, (256, 3), np.uint32)
        x[:3] = [[0, 0, 0], [1, 2**31, 32], [2**32 - 1, 2**32 - 1, 0x7654]]
        out = put(np.zeros(11 * 256, np.uint32))
        run("integers", 1, 256, put(x), out)
        for (p, q, s), got in zip(x.tolist(), get(out, np.uint32).reshape(256, 11).tolist(), strict=True):
            wide, bits = q << 32 | p, f"{p:032b}"
            bytes_of = [wide >> 8 * (s >> 4 * n & 7) & 255 for n in range(4)]
            signed = [int(np.array(v, np.uint32).view(np.int32)) for v in (p, q)]
            assert got == [
                bits.count("1"),
                32 - p.bit_length(),
                (p & -p).bit_length(),
                int(bits[::-1], 2),
                p * q >> 32,
                wide << s % 32 >> 32 & 0xFFFFFFFF,
                wide >> s % 32 & 0xFFFFFFFF,
                sum(byte << 8 * n for n, byte in enumerate(bytes_of)),
                min(p, q),
                max(signed) % 2**32,
                int(x[0, 0]),
            ]

    @pytest.mark.parametrize("flush", [False, True])
    def test_floats_whatever_the_state_of_the_caller(self, flush: bool) -> None:
        x = np.array([1e-40, 0.75, -7.5e-41], np.float32)
        out = put(np.zeros(6, np.float32))
        source = put(x)
        if not torch.set_flush_denormal(flush):
            pytest.skip("no such state here")
        try:
            run("float_results", 1, 1, source, out, 0)
            assert (torch.tensor([1e-40]) * 0.5 == 0).item() == flush  # the caller's is as before
        finally:
            torch.set_flush_denormal(False)
        fma = np.float32(float(x[0]) * float(x[1]) + float(x[2]))
        want = [x[0] + x[1], x[0] * x[1], x[0] / x[1], np.sqrt(x[0]), fma]
        assert get(out, np.float32)[:5].tolist() == [float(value) for value in want]

    def test_no_contraction_and_an_exact_fma(self) -> None:
        x = np.array([1 + 2**-12, 1 + 2**-12, -1 - 2**-11], np.float32)
        out = put(np.zeros(6, np.float32))
        run("float_results", 1, 1, put(x), out, 0)
        assert get(out, np.float32)[4:].tolist() == [2.0**-24, 0.0]
