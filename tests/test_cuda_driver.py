"""The driver's device over a stand-in for the driver: what it asks for, in which order, what becomes of errors."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ree_kernels import KernelError, cuda, cuda_api, cuda_driver, nvrtc
from ree_kernels.cuda import DeviceMemoryError, Launch
from ree_kernels.cuda_driver import Driver
from tests.fake_cuda import FakeCuda

CHUNK, SMALL = 4096, 256


def accept(device: cuda.Device) -> None:
    """A probe that every device passes."""


@pytest.fixture(autouse=True)
def small_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_driver, "CHUNK_BYTES", CHUNK)
    monkeypatch.setattr(cuda_driver, "SMALL_BYTES", SMALL)
    monkeypatch.setattr(cuda_driver, "SMALL_COUNT", 2)


def copy_kernel(args: np.ndarray, grid: tuple[int, int, int], block: int, shared_bytes: int) -> None:
    """args: target, source, bytes, and what is added to each."""
    target, source = (as_array(int(address), int(args[2])) for address in args[:2])
    target[:] = source + args[3].astype(np.uint8)


def as_array(address: int, n_bytes: int) -> np.ndarray:
    return np.ctypeslib.as_array((ctypes.c_uint8 * n_bytes).from_address(address))


@pytest.fixture
def api() -> FakeCuda:
    fake = FakeCuda()
    fake.kernels["copy"] = copy_kernel
    return fake


@pytest.fixture
def device(api: FakeCuda) -> Iterator[Driver]:
    driver = Driver(0, api, accept)
    yield driver
    driver.close()
    assert not +api.alive and not api.stack


def numbers(n_bytes: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, n_bytes, np.uint8)


def put(device: Driver, data: np.ndarray) -> Any:
    memory = device.allocate(data.nbytes)
    device.write(memory.address, data.ctypes.data, data.nbytes)
    return memory


def get(device: Driver, memory: Any, n_bytes: int | None = None) -> np.ndarray:
    out = np.zeros(memory.n_bytes if n_bytes is None else n_bytes, np.uint8)
    device.read(out.ctypes.data, memory.address, out.nbytes)
    return out


def copy_launch(device: Driver, target: Any, source: Any, add: int = 0) -> Launch:
    function = device.load(b"image").function("copy", 0)
    args = np.array([target.address, source.address, source.n_bytes, add], np.uint64)
    return Launch(function, (1, 1, 1), 32, 0, args)


def one_line(error: BaseException) -> str:
    text = str(error)
    assert text and "\n" not in text and len(text) < 400
    return text


# -- what a device is -----------------------------------------------------------------------------------


def test_attributes(device: Driver) -> None:
    assert (device.name, device.capability, device.multiprocessors) == ("Fake 0", (9, 0), 132)
    assert (device.shared_bytes_max, device.l2_bytes, device.clock_khz) == (227 << 10, 50 << 20, 1_980_000)
    assert device.memory_bytes == 1 << 30
    assert device.target == "sm_90a"
    assert device.compiler.startswith(f"nvrtc {nvrtc.version()} ") and "--fmad=false" in device.compiler


@pytest.mark.parametrize(("ratio", "slow"), [(2, False), (4, False), (32, True), (64, True)])
def test_whether_doubles_are_slow(ratio: int, slow: bool) -> None:
    api = FakeCuda()
    api.double_ratio = ratio
    assert Driver(0, api, accept).slow_doubles is slow


def test_the_second_of_two_devices() -> None:
    api = FakeCuda(count=2)
    device = Driver(1, api, accept)
    assert device.name == "Fake 1"
    device.close()
    assert not +api.alive


def test_a_context_is_current_only_inside(device: Driver, api: FakeCuda) -> None:
    assert api.stack == []
    api.stack.append(99)  # another library's
    put(device, numbers(10))
    assert api.stack == [99]
    api.stack.clear()


# -- memory ---------------------------------------------------------------------------------------------


SIZES = [0, 1, SMALL - 1, SMALL, SMALL + 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 2 * CHUNK + 1, 7 * CHUNK + 13]


@pytest.mark.parametrize("n_bytes", SIZES)
def test_written_and_read_back(device: Driver, n_bytes: int) -> None:
    data = numbers(n_bytes)
    source = data.copy()
    memory = put(device, source)
    source[:] = 0  # the caller may change it at once
    assert np.array_equal(get(device, memory, n_bytes), data)
    assert np.array_equal(get(device, memory, n_bytes), data)


def test_many_writes_wait_for_their_buffers(device: Driver) -> None:
    parts = [numbers(size, seed) for seed, size in enumerate([3, SMALL, 9 * CHUNK, 1, SMALL, CHUNK, 2, 3, 4, 5, 6])]
    memories = [put(device, part.copy()) for part in parts]
    for part, memory in zip(parts, memories, strict=True):
        assert np.array_equal(get(device, memory), part)


def test_copy_and_fill_keep_the_order(device: Driver) -> None:
    data = numbers(1000)
    first, second = put(device, data), device.allocate(1000)
    device.copy(second.address, first.address, 1000)
    device.fill(first.address + 10, 7, 20)
    device.fill(first.address, 9, 0)
    device.copy(first.address, second.address, 0)
    filled = data.copy()
    filled[10:30] = 7
    assert np.array_equal(get(device, second), data)
    assert np.array_equal(get(device, first), filled)


def test_memory_goes_back_with_the_next_call(device: Driver, api: FakeCuda) -> None:
    memory = put(device, numbers(100))
    assert api.alive["memory"] == 1
    calls = len(api.calls)
    del memory
    assert len(api.calls) == calls, "a finalizer must not call the driver: it may run anywhere"
    device.synchronize()
    assert api.alive["memory"] == 0


def test_memory_that_another_thread_drops(device: Driver, api: FakeCuda) -> None:
    memories = [device.allocate(10) for _ in range(100)]
    thread = threading.Thread(target=memories.clear)
    thread.start()
    thread.join()
    device.allocate(1)
    device.synchronize()
    assert api.alive["memory"] == 0


def test_memory_that_only_a_cycle_holds_is_found_when_it_is_needed() -> None:
    api = FakeCuda(memory_bytes=1000)
    device = Driver(0, api, accept)
    cycle: list[Any] = [device.allocate(900)]
    cycle.append(cycle)
    gc.disable()
    try:
        del cycle
        assert device.allocate(800).n_bytes == 800
    finally:
        gc.enable()
    device.close()
    assert not +api.alive


def test_no_memory() -> None:
    api = FakeCuda(memory_bytes=1000)
    device = Driver(0, api, accept)
    held = device.allocate(600)
    with pytest.raises(DeviceMemoryError, match="Fake 0 has no memory for 500 bytes") as caught:
        device.allocate(500)
    one_line(caught.value)
    assert device.allocate(400).n_bytes == 400, "the device goes on"
    assert held.n_bytes == 600
    device.close()
    assert not +api.alive


# -- kernels --------------------------------------------------------------------------------------------


def test_arguments_are_those_of_the_launch(device: Driver) -> None:
    data = numbers(64)
    source, target = put(device, data), device.allocate(64)
    launch = copy_launch(device, target, source, add=3)
    device.launch(launch)
    launch.args[:] = 0  # the kernel has not run yet
    assert np.array_equal(get(device, target), data + np.uint8(3))


def test_recorded_arguments_are_those_of_the_recording(device: Driver, api: FakeCuda) -> None:
    first, second = put(device, numbers(64)), device.allocate(64)
    there, back = copy_launch(device, second, first, add=1), copy_launch(device, first, second)
    replay = device.record([there, back])
    assert api.alive["graph"] == 0
    there.args[:] = back.args[:] = 0
    for _ in range(3):
        replay.run()
    assert np.array_equal(get(device, first), numbers(64) + np.uint8(3))


def test_nothing_recorded(device: Driver) -> None:
    device.record([]).run()
    device.synchronize()


def test_a_recording_that_fails_is_ended(device: Driver, api: FakeCuda) -> None:
    memory = put(device, numbers(8))
    good = copy_launch(device, memory, memory)
    with pytest.raises(KernelError, match=r"copy: .*INVALID_VALUE.*grid \(1, 1, 1\), block 2000") as caught:
        device.record([good, good._replace(block=2000)])
    one_line(caught.value)
    assert api.captured is None and api.alive["graph"] == 0
    device.launch(good)
    device.synchronize()


def test_a_module_stays_as_long_as_something_needs_it(device: Driver, api: FakeCuda) -> None:
    memory = put(device, numbers(8))
    replay = device.record([copy_launch(device, memory, memory)])
    gc.collect()
    replay.run()
    device.synchronize()
    assert api.alive["module"] == 1
    replay.run()
    del replay  # its kernels have not run yet
    device.allocate(1)
    assert (api.alive["module"], api.alive["replay"]) == (0, 0)


def test_shared_memory_of_a_function(device: Driver, api: FakeCuda) -> None:
    api.fixed_shared["copy"] = 1024
    module = device.load(b"image")
    module.function("copy", 40_000)
    assert "cuFuncSetAttribute" not in api.calls
    module.function("copy", 100_000)
    assert api.limits["copy"] == 100_000
    module.function("copy", 50_000)
    assert api.limits["copy"] == 100_000, "a limit is not lowered: an earlier function leans on it"
    module.function("copy", (227 << 10) - 1024)
    with pytest.raises(KernelError, match=r"copy: 1024 and 231425 bytes .* a block of Fake 0 has 232448") as caught:
        module.function("copy", (227 << 10) - 1023)
    one_line(caught.value)


def test_an_unknown_kernel(device: Driver) -> None:
    with pytest.raises(KernelError, match=r"nothing: .*there is nothing of this name") as caught:
        device.load(b"image").function("nothing", 0)
    one_line(caught.value)


def test_compiled_for_the_device(device: Driver) -> None:
    assert device.compile('#include "ree.cuh"\n').startswith(b"\x7fELF")


def test_time(device: Driver, api: FakeCuda) -> None:
    memory = put(device, numbers(8))
    launch = copy_launch(device, memory, memory)
    assert device.time(lambda: device.launch(launch), 3) == [0.5] * 3
    assert device.time(device.record([launch]), 2) == [0.5] * 2
    device.synchronize()
    events = api.alive["event"]
    with pytest.raises(ZeroDivisionError):
        device.time(lambda: 1 / 0, 1)
    device.synchronize()
    assert api.alive["event"] == events


# -- other streams --------------------------------------------------------------------------------------


@pytest.mark.parametrize("waits", [True, False])
def test_waits_for_another_stream(device: Driver, api: FakeCuda, waits: bool) -> None:
    other = 77
    api.streams[other] = api.streams.pop(other, type(api.streams[0])())
    memory = device.allocate(4)
    api.enqueue(other, lambda: as_array(memory.address, 4).fill(5))
    if waits:
        device.wait_for(other)
    assert (get(device, memory) == 5).all() == waits


@pytest.mark.parametrize("signals", [True, False])
def test_another_stream_waits(device: Driver, api: FakeCuda, signals: bool) -> None:
    other = 0  # torch's usual stream
    memory, seen = device.allocate(4), []
    device.fill(memory.address, 6, 4)
    if signals:
        device.signal(other)
    api.enqueue(other, lambda: seen.append(int(as_array(memory.address, 4)[0])))
    api._run(other)
    assert (seen == [6]) == signals
    device.synchronize()


def test_whose_memory(device: Driver, api: FakeCuda) -> None:
    memory, host = device.allocate(100), np.zeros(100, np.uint8)
    assert device.owns(memory.address) == device.owns(memory.address + 99) == 0
    assert device.owns(host.ctypes.data) is None
    assert device.owns(next(iter(api.pinned))) is None


# -- threads --------------------------------------------------------------------------------------------


def test_many_threads(device: Driver, api: FakeCuda) -> None:
    wrong: list[Any] = []

    def work(seed: int) -> None:
        try:
            for turn in range(20):
                data = numbers(3 * CHUNK + turn, seed)
                source, target = put(device, data), device.allocate(data.nbytes)
                launch = copy_launch(device, target, source, add=seed)
                if turn % 2:
                    device.launch(launch)
                else:
                    device.record([launch]).run()
                if not np.array_equal(get(device, target), data + np.uint8(seed)):
                    wrong.append((seed, turn))
            assert api.stack == []
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# -- errors ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("NO_DEVICE", "no CUDA device"),
        ("STUB_LIBRARY", "no CUDA driver"),
        ("SYSTEM_DRIVER_MISMATCH", "library and kernel module differ in version; restart"),
        ("COMPAT_NOT_SUPPORTED_ON_DEVICE", "forward compatibility package"),
        ("NOT_PERMITTED", "does not permit"),
        ("UNKNOWN", "cuInit: CUDA_ERROR_UNKNOWN"),
    ],
)
def test_cuda_does_not_start(code: str, says: str) -> None:
    api = FakeCuda()
    api.fail[0] = code
    with pytest.raises(KernelError, match=says) as caught:
        Driver(0, api, accept)
    one_line(caught.value)
    assert api.calls == ["cuInit"]


@pytest.mark.parametrize(("ordinal", "count"), [(0, 0), (1, 1), (-1, 1)])
def test_no_such_device(ordinal: int, count: int) -> None:
    api = FakeCuda(count=count)
    with pytest.raises(KernelError, match="no CUDA device"):
        Driver(ordinal, api, accept)
    assert not +api.alive


@pytest.mark.parametrize("capability", [(7, 0), (6, 1), (3, 5)])
def test_too_old_a_device(capability: tuple[int, int]) -> None:
    api = FakeCuda(capability)
    said = f"Fake 0: compute capability {capability[0]}.{capability[1]}: 7.5 or later is needed"
    with pytest.raises(KernelError, match=said) as caught:
        Driver(0, api, accept)
    one_line(caught.value)
    assert not +api.alive


def test_packages_are_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(KernelError, match=r"packages that are not installed .*: pip install 'ree\[cuda\]'") as caught:
        Driver()
    one_line(caught.value)
    assert cuda_driver.device_count() == 0


class Missing:
    """Bindings that do not find a library or a function."""

    def cuInit(self, flags: int) -> tuple[Any, ...]:
        raise RuntimeError('Function "cuInit" not found\nmore')


@pytest.mark.parametrize(
    ("library", "says"),
    [(False, "no CUDA driver: this machine has no libcuda.so.1"), (True, "does not do cuInit .*not")],
)
def test_no_driver_or_an_old_one(monkeypatch: pytest.MonkeyPatch, library: bool, says: str) -> None:
    monkeypatch.setattr(cuda_api, "has_library", lambda: library)
    with pytest.raises(KernelError, match=says) as caught:
        Driver(0, Missing(), accept)
    one_line(caught.value)


@pytest.mark.skipif(cuda_api.has_library(), reason="this machine has a CUDA driver")
def test_this_machine_has_no_driver() -> None:
    with pytest.raises(KernelError, match=r"no CUDA driver: this machine has no libcuda\.so\.1"):
        Driver()
    assert cuda_driver.device_count() == 0


@pytest.mark.parametrize("code", ["NO_BINARY_FOR_GPU", "UNSUPPORTED_PTX_VERSION", "INVALID_IMAGE"])
def test_an_image_that_the_driver_cannot_load(device: Driver, code: str) -> None:
    said = (
        f"cannot load this image; update the driver, .*{code}.* for sm_90a by NVRTC {nvrtc.version()}.* for CUDA 12.4"
    )
    with pytest.raises(KernelError, match=said) as caught:
        device.load(b"!" + code.encode())
    one_line(caught.value)
    device.load(b"image")


def test_a_lost_device(api: FakeCuda) -> None:
    device = Driver(0, api, accept)
    memory = put(device, numbers(8))
    launch = copy_launch(device, memory, memory)
    outside = launch._replace(args=launch.args + np.array([1 << 20, 0, 0, 0], np.uint64))
    api.kernels["copy"] = lambda args, *rest: api.check(int(args[0]), 8)
    device.launch(outside)
    said = "Fake 0 is lost, start a new process: a kernel used memory that it does not have .*ILLEGAL_ADDRESS"
    with pytest.raises(KernelError, match=said) as caught:
        device.synchronize()
    one_line(caught.value)
    calls = len(api.calls)
    attempts: list[Callable[[], object]] = [
        device.synchronize,
        lambda: device.allocate(8),
        lambda: device.launch(launch),
        lambda: device.record([launch]),
        lambda: device.load(b"image"),
        lambda: get(device, memory),
        lambda: device.owns(memory.address),
    ]
    for attempt in attempts:
        with pytest.raises(KernelError, match=said):
            attempt()
    assert len(api.calls) == calls, "a lost device is not asked again"
    assert api.stack == []
    device.close()
    with pytest.raises(KernelError, match=said):
        device.synchronize()


def test_closed(api: FakeCuda) -> None:
    device = Driver(0, api, accept)
    memory = device.allocate(8)
    device.close()
    device.close()
    assert not +api.alive
    with pytest.raises(KernelError, match="Fake 0 is closed"):
        device.allocate(8)
    del memory


def test_after_a_fork(device: Driver, api: FakeCuda) -> None:
    memory, inside, leave = device.allocate(8), threading.Event(), threading.Event()

    def stay_inside() -> None:
        with device._context:
            inside.set()
            leave.wait()

    thread = threading.Thread(target=stay_inside)
    thread.start()
    inside.wait()
    child = os.fork()
    if child == 0:
        signal.alarm(20)  # ends it, should it wait for a lock
        calls = len(api.calls)
        try:
            device.synchronize()
        except KernelError as error:
            device.close()
            del memory
            os._exit(0 if "after a fork; start processes with spawn" in str(error) and len(api.calls) == calls else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    leave.set()
    thread.join()
    device.synchronize()
    assert memory.n_bytes == 8


def test_error_codes_exist() -> None:
    of_later_bindings = {"CUDA_ERROR_CALL_REQUIRES_NEWER_DRIVER"}
    codes = {*cuda_api.LOST, *cuda_api.REASONS, cuda_api.MEMORY} - of_later_bindings
    assert codes <= set(FakeCuda.CUresult.__members__)


# -- the probe ------------------------------------------------------------------------------------------


def test_the_probe_is_asked_once() -> None:
    api, asked = FakeCuda(count=2), []
    for ordinal in (0, 0, 1, 0):
        Driver(ordinal, api, lambda device: asked.append(device.name)).close()
    assert asked == ["Fake 0", "Fake 1"]


def test_a_device_that_fails_the_probe_is_given_back(api: FakeCuda) -> None:
    def refuse(device: cuda.Device) -> None:
        device.allocate(100)
        device.load(b"image")
        raise KernelError("the device Fake 0 cannot be trusted")

    for _ in range(2):  # and it is asked again
        with pytest.raises(KernelError, match="cannot be trusted"):
            Driver(0, api, refuse)
        assert not +api.alive and not api.stack


# -- every call may fail --------------------------------------------------------------------------------


def everything(api: FakeCuda, made: list[Driver] | None = None) -> None:
    """Use all of a device; made: takes it."""
    device = Driver(0, api, accept)
    if made is not None:
        made.append(device)
    try:
        data = numbers(2 * CHUNK + 5)
        source, target = put(device, data), device.allocate(data.nbytes)
        small = put(device, numbers(9))
        launch = copy_launch(device, target, source, add=1)
        replay = device.record([launch])
        device.launch(launch)
        replay.run()
        device.copy(source.address, target.address, 10)
        device.fill(target.address, 1, 4)
        device.wait_for(0)
        device.signal(0)
        assert device.owns(small.address) in (0, None)
        device.time(replay, 1)
        device.load(b"other").function("copy", 60_000)
        device.synchronize()
        get(device, target)
        del replay, launch, small
        device.synchronize()
    finally:
        device.close()


def calls_of_everything() -> list[str]:
    api = FakeCuda()
    api.kernels["copy"] = copy_kernel
    everything(api)
    assert not +api.alive
    return api.calls


def closing(names: list[str]) -> int:
    """Where `close` starts."""
    return len(names) - 1 - names[::-1].index("cuCtxPushCurrent")


def is_free(device: Driver) -> bool:
    """Whether no thread is left inside."""
    found: list[bool] = []

    def work() -> None:
        if device._context._lock.acquire(blocking=False):
            device._context._lock.release()
            found.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return found == [True]


# what stays behind where such a call fails: errors while something is given back are told, but not tried again
RELEASES = {
    "cuStreamDestroy": "stream", "cuEventDestroy": "event", "cuMemFreeAsync": "memory", "cuMemFreeHost": "pinned",
    "cuModuleUnload": "module", "cuGraphDestroy": "graph", "cuGraphExecDestroy": "replay",
    "cuDevicePrimaryCtxRelease": "context",
}  # fmt: skip


def test_everything_calls_all_that_the_fake_has(monkeypatch: pytest.MonkeyPatch) -> None:
    has = {name[1:] for name in dir(FakeCuda) if name.startswith("_cu")}
    assert set(calls_of_everything()) == has - {"cuDriverGetVersion"}


@pytest.mark.parametrize("code", ["INVALID_VALUE", "OUT_OF_MEMORY", "UNKNOWN"])
def test_every_call_may_fail(code: str) -> None:
    names = calls_of_everything()
    for number, name in enumerate(names):
        api, made, told = FakeCuda(), list[Driver](), ""
        api.kernels["copy"] = copy_kernel
        api.fail[number] = code
        try:
            everything(api, made)
        except KernelError as error:
            told = one_line(error)
        assert api.calls[number] == name
        is_tried_again = code == "OUT_OF_MEMORY" and name == "cuMemAllocAsync"
        is_answered = name in ("cuGraphDestroy", "cuPointerGetAttribute")
        if number >= closing(names) or is_tried_again or is_answered:
            assert told == "" or name == "cuPointerGetAttribute", (number, name, told)
        else:
            assert code in told and name in told, (number, name, told)
        left = +api.alive
        if name in RELEASES:
            left[RELEASES[name]] -= 1
        if number == closing(names):  # no context to give anything back in, but the context itself
            assert left.pop("context", 0) == 0
            left.clear()
        assert not +left, (number, name, left)
        assert api.stack == [] and api.captured is None, (number, name)
        assert all(map(is_free, made)), (number, name)


@pytest.mark.parametrize("code", ["ILLEGAL_ADDRESS", "LAUNCH_FAILED", "ECC_UNCORRECTABLE"])
def test_the_device_may_be_lost_at_every_call(code: str) -> None:
    names = calls_of_everything()
    for number, name in enumerate(names[: closing(names)]):
        api, made = FakeCuda(), list[Driver]()
        api.kernels["copy"] = copy_kernel
        api.fail[number] = code
        with pytest.raises(KernelError, match=f"lost, start a new process: .*{code}") as caught:
            everything(api, made)
        one_line(caught.value)
        assert api.stack == [] and all(map(is_free, made)), (number, name)


# -- the real bindings ----------------------------------------------------------------------------------


def test_through_the_real_bindings(tmp_path: Path) -> None:
    """They pass every argument on as the driver takes it; the driver being a library of the test."""
    root = Path(__file__).resolve().parent
    library = tmp_path / "libcuda.so.1"
    command = ["gcc", "-O1", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", str(library)]
    subprocess.run([*command, str(root / "fake_libcuda.c")], check=True)
    worker = [sys.executable, "-m", "tests.bindings_worker", str(library)]
    done = subprocess.run(worker, cwd=root.parent, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "good\n"), done.stderr
