"""What only a GPU can show of its driver's device: that copies, launches, recordings and errors are as defined."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ree_kernels import KernelError, cuda_probe, nvrtc
from ree_kernels.cuda import DeviceMemoryError, Launch
from ree_kernels.cuda_driver import CHUNK_BYTES, SMALL_BYTES, Driver

pytestmark = pytest.mark.gpu

TEXT = """
#include "ree.cuh"
struct add_args { u8 *out; const u8 *x; i64 n; i64 value; };
REE_KERNEL(add, add_args, 256)
{
    for (i64 i = static_cast<i64>(blockIdx.x) * blockDim.x + threadIdx.x; i < a.n; i += gridDim.x * blockDim.x)
        a.out[i] = static_cast<u8>(a.x[i] + a.value);
}
/* through all of a block's dynamic shared memory */
struct turn_args { u8 *out; const u8 *x; i64 n; };
REE_KERNEL(turn, turn_args, 256)
{
    char *shared = ree_shared();
    for (i64 i = threadIdx.x; i < a.n; i += blockDim.x)
        shared[i] = static_cast<char>(a.x[i]);
    __syncthreads();
    for (i64 i = threadIdx.x; i < a.n; i += blockDim.x)
        a.out[i] = static_cast<u8>(shared[a.n - 1 - i]);
}
"""


@pytest.fixture(scope="module")
def device() -> Iterator[Driver]:
    driver = Driver()
    yield driver
    driver.close()


@pytest.fixture(scope="module")
def module(device: Driver) -> Any:
    return device.load(device.compile(TEXT))


def numbers(n_bytes: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, n_bytes, np.uint8)


def put(device: Driver, data: np.ndarray) -> Any:
    memory = device.allocate(data.nbytes)
    device.write(memory.address, data.ctypes.data, data.nbytes)
    return memory


def get(device: Driver, memory: Any) -> np.ndarray:
    out = np.zeros(memory.n_bytes, np.uint8)
    device.read(out.ctypes.data, memory.address, out.nbytes)
    return out


def add(module: Any, out: int, x: int, n: int, value: int) -> Launch:
    return Launch(module.function("add", 0), (64, 1, 1), 256, 0, np.array([out, x, n, value], np.uint64))


def test_the_device(device: Driver) -> None:
    assert device.capability >= (7, 5) and device.multiprocessors > 0
    assert device.shared_bytes_max >= 64 << 10 and device.memory_bytes > 1 << 30 and device.l2_bytes > 1 << 20
    assert device.name and device.target.startswith("sm_")


def test_the_probe_also_of_what_the_driver_compiles(device: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda_probe.probe(device)
    monkeypatch.setattr(device, "compile", lambda text: nvrtc.compile(text, "compute_75").data)
    cuda_probe.probe(device)


@pytest.mark.parametrize("n_bytes", [1, SMALL_BYTES, SMALL_BYTES + 1, CHUNK_BYTES, 5 * CHUNK_BYTES + 13])
def test_written_and_read_back(device: Driver, n_bytes: int) -> None:
    data = numbers(n_bytes)
    source = data.copy()
    memory = put(device, source)
    source[:] = 0
    assert memory.address % 256 == 0
    assert np.array_equal(get(device, memory), data)
    other = device.allocate(n_bytes)
    device.fill(other.address, 9, n_bytes)
    device.copy(other.address, memory.address, n_bytes // 2)
    assert np.array_equal(get(device, other), np.where(np.arange(n_bytes) < n_bytes // 2, data, 9))


def test_many_small_writes_behind_a_long_kernel(device: Driver, module: Any) -> None:
    large = put(device, numbers(256 << 20))
    device.launch(add(module, large.address, large.address, large.n_bytes, 1))
    parts = [numbers(1 + 37 * turn, turn) for turn in range(300)]
    memories = [put(device, part.copy()) for part in parts]
    for part, memory in zip(parts, memories, strict=True):
        assert np.array_equal(get(device, memory), part)


def test_launched_and_recorded(device: Driver, module: Any) -> None:
    data = numbers(100_003)
    x, out = put(device, data), device.allocate(data.nbytes)
    launches = [
        add(module, out.address, x.address, data.nbytes, 3),
        add(module, x.address, out.address, data.nbytes, 4),
    ]
    replay = device.record(launches)
    for launch in launches:
        launch.args[:] = 0  # what was recorded does not change
    for _ in range(5):
        replay.run()
    assert np.array_equal(get(device, x), data + np.uint8(35))
    assert all(0 < ms < 1000 for ms in device.time(replay, 3))


@pytest.mark.parametrize("kept", [1000, None])
def test_shared_memory(device: Driver, module: Any, kept: int | None) -> None:
    n_bytes = kept or device.shared_bytes_max
    data = numbers(n_bytes)
    x, out = put(device, data), device.allocate(n_bytes)
    args = np.array([out.address, x.address, n_bytes], np.uint64)
    device.launch(Launch(module.function("turn", n_bytes), (1, 1, 1), 256, n_bytes, args))
    assert np.array_equal(get(device, out), data[::-1])


def test_no_memory(device: Driver) -> None:
    with pytest.raises(DeviceMemoryError, match="has no memory for"):
        device.allocate(4 * device.memory_bytes)
    assert np.array_equal(get(device, put(device, numbers(10))), numbers(10))


def test_launches_that_are_refused(device: Driver, module: Any) -> None:
    memory = put(device, numbers(10))
    good = add(module, memory.address, memory.address, 10, 1)
    for wrong in (good._replace(block=2048), good._replace(grid=(0, 1, 1)), good._replace(shared_bytes=1 << 20)):
        with pytest.raises(KernelError, match="add: "):
            device.launch(wrong)
        with pytest.raises(KernelError, match="add: "):
            device.record([good, wrong])
    with pytest.raises(KernelError, match="nothing: "):
        module.function("nothing", 0)
    with pytest.raises(KernelError, match="cannot load this image"):
        device.load(b"no image at all\0")
    device.launch(good)
    assert np.array_equal(get(device, memory), numbers(10) + np.uint8(1))


def test_in_many_threads(device: Driver, module: Any) -> None:
    wrong: list[Any] = []

    def work(seed: int) -> None:
        for turn in range(10):
            data = numbers(200_000, seed)
            x, out = put(device, data), device.allocate(data.nbytes)
            launch = add(module, out.address, x.address, data.nbytes, seed)
            if turn % 2:
                device.launch(launch)
            else:
                device.record([launch]).run()
            if not np.array_equal(get(device, out), data + np.uint8(seed)):
                wrong.append((seed, turn))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_beside_torch(device: Driver, module: Any) -> None:
    if not torch.cuda.is_available():
        pytest.skip("this torch has no CUDA")
    stream = torch.cuda.current_stream().cuda_stream
    x = torch.arange(1 << 22, device="cuda").remainder(251).to(torch.uint8)
    expected = x.clone()
    for _ in range(10):
        x += 1
        device.wait_for(stream)
        device.launch(add(module, x.data_ptr(), x.data_ptr(), x.numel(), 2))
        device.signal(stream)
    assert torch.equal(x, expected + 30)
    assert device.owns(x.data_ptr()) == 0 and device.owns(torch.zeros(9).data_ptr()) is None


LOST = """
import numpy as np
from ree_kernels import KernelError
from ree_kernels.cuda import Launch
from ree_kernels.cuda_driver import Driver
from tests.test_cuda_gpu import TEXT, add
device = Driver()
module = device.load(device.compile(TEXT))
device.launch(add(module, 4096, 8192, 1000, 1))
for _ in range(2):
    try:
        device.synchronize()
    except KernelError as error:
        print(error)
device.close()
"""


def test_a_lost_device() -> None:
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run([sys.executable, "-c", LOST], cwd=root, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 2 and lines[0] == lines[1] and "is lost, start a new process" in lines[0]
