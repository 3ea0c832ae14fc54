"""Runs a device over the real cuda-bindings and the library fake_libcuda.c; a process of its own, for the bindings keep
the first library that they find.

    python -m tests.bindings_worker PATH-OF-LIBRARY
"""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from ree_kernels import KernelError
from ree_kernels.cuda import DeviceMemoryError, Launch


def main(library: str) -> None:
    ctypes.CDLL(library)  # the bindings' own search gives this one, by its name
    from ree_kernels.cuda_driver import CHUNK_BYTES, Driver, device_count

    assert device_count() == 1
    device = Driver(0, probe=lambda _: None)
    assert (device.name, device.capability, device.multiprocessors) == ("Host 0", (9, 0), 132)
    assert (device.shared_bytes_max, device.l2_bytes, device.clock_khz) == (227 << 10, 50 << 20, 1980000)
    assert device.memory_bytes == 5 << 30

    data = np.random.default_rng(0).integers(0, 256, 2 * CHUNK_BYTES + 5, np.uint8)
    source, target = device.allocate(data.nbytes), device.allocate(data.nbytes)
    device.write(source.address, data.ctypes.data, data.nbytes)
    module = device.load(b"image\0")
    args = np.array([target.address, source.address, data.nbytes, 3], np.uint64)
    launch = Launch(module.function("add", 0), (2, 3, 4), 64, 0, args)
    assert np.array_equal(read(device, source, data.nbytes), data)
    device.launch(launch)
    assert np.array_equal(read(device, target, data.nbytes), data + np.uint8(3))
    twice = device.record([launch, launch._replace(args=np.array([target.address] * 2 + [data.nbytes, 1], np.uint64))])
    device.fill(target.address, 0, data.nbytes)
    twice.run()
    assert np.array_equal(read(device, target, data.nbytes), data + np.uint8(4))
    device.copy(target.address, source.address, 100)
    assert np.array_equal(read(device, target, 100), data[:100])

    shape = module.function("shape", 100_000)
    device.launch(Launch(shape, (5, 6, 7), 96, 90_000, np.array([target.address, 0, 0, 0], np.uint64)))
    assert read(device, target, 20).view(np.uint32).tolist() == [5, 6, 7, 96, 90_000]

    assert device.time(twice, 2) == [1.5, 1.5]
    device.wait_for(0)
    device.signal(0)
    assert (device.owns(source.address), device.owns(0)) == (0, None)
    assert device.owns(device._small.buffers[0].address) is None, "memory of the host"

    refused("NO_BINARY_FOR_GPU", lambda: device.load(b"other\0"))
    refused("nothing: ", functools.partial(module.function, "nothing", 0))
    refused("INVALID_VALUE", functools.partial(device.launch, launch._replace(shared_bytes=50_000)))
    refused("Host 0 has no memory for 6442450944 bytes", lambda: device.allocate(6 << 30), DeviceMemoryError)
    del launch, twice, shape, module, source, target
    device.synchronize()
    device.close()
    print("good")


def refused(says: str, work: Callable[[], object], kind: type[KernelError] = KernelError) -> None:
    try:
        work()
    except KernelError as error:
        assert says in str(error) and type(error) is kind, error
    else:
        raise AssertionError(says)


def read(device: Any, memory: Any, n_bytes: int) -> np.ndarray:
    out = np.zeros(n_bytes, np.uint8)
    device.read(out.ctypes.data, memory.address, n_bytes)
    return out


if __name__ == "__main__":
    main(sys.argv[1])
