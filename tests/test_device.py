"""Programs on a second device: interface, receipts across devices, errors. Without a GPU the device is emulated."""

from __future__ import annotations

import gc
import itertools
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

import ree
from ree.cli import main
from ree.commit.keys import Signer
from ree.device.cuda import TorchTensors
from ree.errors import DeviceError, InputError, LimitError, RunError
from ree_kernels import KernelError, blake3, cuda
from tests.cuda_case import hash_there, on_device, same_outputs
from tools.emulator import device as emulator


class Net(torch.nn.Module):
    """A product with an epilogue, a norm, a softmax: every form of kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = torch.nn.Linear(24, 40), torch.nn.LayerNorm(40)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.softmax(self.norm(torch.nn.functional.gelu(self.linear(x))), -1)


class Pick(torch.nn.Module):
    """Rows of a table, whose numbers may be wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(10, 5)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.table(ids) * 2.0


@pytest.fixture
def emulated() -> Iterator[emulator.Emulator]:
    with cuda.use(emulator.shared()) as device:
        yield device


def net(device: str = "cpu") -> tuple[ree.Program, torch.Tensor]:
    torch.manual_seed(0)
    x = torch.randn(3, 24)
    return ree.compile(Net().eval(), (x,), device=device), x


# -- interface --------------------------------------------------------------------------------
def test_compile_and_load_for_a_device(emulated: object, tmp_path: Path) -> None:
    program, x = net()
    expected = program(x)
    program.save(tmp_path / "m.ree")
    for other in (net("cuda")[0], ree.load(tmp_path / "m.ree", device="cuda"), program.to("cuda:0")):
        assert other.device.startswith("cuda") and other.program_id == program.program_id
        assert torch.equal(other(x), expected)
        back = other.to("cpu")
        assert back.device == "cpu" and torch.equal(back(x), expected)
    assert program.to("cpu") is program


def test_arrays_in_arrays_out(emulated: object) -> None:
    program, x = net()
    found = on_device(program).run_flat([x.numpy()])[0]
    assert isinstance(found, np.ndarray) and found.tobytes() == program.run_flat([x.numpy()])[0].tobytes()


def test_inputs_and_outputs_that_lie_on_the_device(emulated: emulator.Emulator) -> None:
    """What tensors of torch on a GPU are: addresses there, other ones at each call."""
    program, x = net()
    plan = on_device(program).plan(())
    array = x.numpy()
    for scale in (1.0, -2.0, 0.5):
        given, found = array * np.float32(scale), np.empty((3, 40), np.float32)
        source, target = emulated.allocate(given.nbytes), emulated.allocate(found.nbytes)
        emulated.write(source.address, given.ctypes.data, given.nbytes)
        plan.run([source.address], [target.address], on_device=True)
        emulated.read(found.ctypes.data, target.address, found.nbytes)
        assert found.tobytes() == program.run_flat([given])[0].tobytes()


def test_dynamic_sizes(emulated: object) -> None:
    torch.manual_seed(1)
    x = torch.randn(3, 24)
    batch = torch.export.Dim("batch", min=1, max=16)
    program = ree.compile(Net().eval(), (x,), dynamic_shapes=({0: batch},))
    other = on_device(program)
    for rows in (1, 2, 7, 16, 3, 1):
        same_outputs(program, other, [torch.randn(rows, 24)])


@pytest.mark.parametrize(
    "name", ["tpu", "cuda:", "cuda:٣", "cuda:00", "cuda:-1", "cuda:1000", "CPU", "", "cuda:0 ", 3, None]
)
def test_other_names_are_refused(name: object) -> None:
    program, _ = net()
    with pytest.raises(DeviceError, match="is not supported"):
        program.to(name)  # type: ignore[arg-type]
    with pytest.raises(DeviceError, match="is not supported"):
        ree.compile(torch.nn.ReLU(), torch.zeros(2), device=name)  # type: ignore[arg-type]


def test_a_tensor_that_lies_elsewhere_is_refused(emulated: object) -> None:
    """What says of itself that it is on another device: `meta` is one that every torch has."""
    program, x = net()
    there = x.to("meta")
    with pytest.raises(InputError, match="is on meta"):
        program(there)
    with pytest.raises(InputError):
        on_device(program)(there)


# -- traces and receipts ----------------------------------------------------------------------
def test_traces_are_those_of_the_processor(emulated: object) -> None:
    program, x = net()
    other = on_device(program)
    _, here = program.run(x, commit=True)
    found, there = other.run(x, commit=True)
    assert there.root == here.root and torch.equal(found, program(x))
    _, kept = other.run(x, keep=True)
    for a, b in zip(kept.tensors.values(), here.tensors.values(), strict=True):
        assert a.tobytes() == b.tobytes()


def test_a_receipt_of_either_is_verified_on_the_other(emulated: object, tmp_path: Path) -> None:
    program, x = net()
    other = on_device(program)
    signer = _signer(tmp_path)
    for maker, verifier in ((program, other), (other, program)):
        _, trace = maker.run(x, commit=True)
        receipt = trace.receipt(signer)
        found = ree.verify(receipt, verifier, (x,), salt=trace.input_salt)
        assert found.claim.trace_root == trace.root
        assert found.claim.device == maker.device_text
    assert other.device_text.startswith("cuda emulated")


def _signer(folder: Path) -> Signer:
    from ree.commit.keys import generate

    generate(folder / "key.pem")
    return Signer.load(folder / "key.pem")


def test_a_proof_and_a_dispute_of_a_run_there(emulated: object, tmp_path: Path) -> None:
    from ree.tampering import flip, lie

    program, x = net()
    other = on_device(program)
    signer = _signer(tmp_path)
    _, trace = other.run(x, keep=True)
    receipt, proof = trace.receipt(signer), trace.prove(samples=40)
    assert ree.check(proof, receipt, program).samples == 40
    honest = program.run(x, keep=True)[1]
    found = ree.dispute(other, trace, lie(honest, 1, flip(3)))
    assert list(found.wrong) == ["b"] and not ree.dispute(program, trace, honest).wrong


def test_results_are_computed_again_when_asked_for(emulated: object) -> None:
    program, x = net()
    _, trace = on_device(program).run(x, commit=True)
    expected = program.run(x, keep=True)[1].tensors
    for number in range(len(expected)):
        assert trace.tensors[number].tobytes() == expected[number].tobytes()


# -- errors -----------------------------------------------------------------------------------
def test_an_index_out_of_range_is_refused_and_forgotten(emulated: object) -> None:
    program = ree.compile(Pick().eval(), (torch.tensor([1, 2]),))
    other = on_device(program)
    for wrong in ([1, 10], [-11, 0]):
        with pytest.raises(RunError, match="out of range"):
            other(torch.tensor(wrong))
        with pytest.raises(RunError, match="out of range"):
            other.run(torch.tensor(wrong), commit=True)
        same_outputs(program, other, [torch.tensor([9, 0])])


def test_no_memory_is_one_error_and_loses_nothing() -> None:
    program, x = net()
    expected = program(x)
    small = emulator.Emulator(memory_bytes=24 << 10)
    with cuda.use(small):
        other = program.to("cuda")
        held = small.allocate(20 << 10)
        with pytest.raises(LimitError):
            other(x)
        assert torch.equal(program(x), expected)
        del held
        assert torch.equal(other(x), expected)


class Broken:
    """A device that fails from some call on, as one that is lost does."""

    def __init__(self, device: emulator.Emulator) -> None:
        self.device, self.calls_left = device, 1 << 60

    def __getattr__(self, name: str) -> object:
        value = getattr(self.device, name)
        if not callable(value):
            return value

        def call(*args: object) -> object:
            self.calls_left -= 1
            if self.calls_left < 0:
                raise KernelError("the device is lost")
            return value(*args)

        return call


def test_a_lost_device_is_one_error_wherever_it_is_noticed() -> None:
    program, x = net()
    expected = program(x)
    broken = Broken(emulator.Emulator())
    with cuda.use(broken):  # type: ignore[arg-type]
        for left in range(60):
            broken.calls_left = left
            try:
                found = program.to("cuda").run(x, commit=True)
            except DeviceError as error:
                assert "lost" in str(error)
            else:
                assert torch.equal(found[0], expected)
                break
        else:
            raise AssertionError("60 calls were not enough")
        assert left > 10
    assert torch.equal(program(x), expected)


def test_a_text_that_does_not_compile_is_a_device_error(emulated: object) -> None:
    from ree.device.images import Wanted, functions

    with pytest.raises(DeviceError):
        functions(emulator.shared(), [Wanted('#include "ree.cuh"\nnonsense;', "kernel", 0)])


def test_hashing_of_device_memory(emulated: emulator.Emulator) -> None:
    data = np.arange(5000, dtype=np.uint8)
    memory = emulated.allocate(len(data))
    emulated.write(memory.address, data.ctypes.data, len(data))
    for n_bytes in (1, 1024, 1025, 5000):
        assert hash_there(emulated, memory.address, n_bytes) == blake3.hash(data[:n_bytes].data)


# -- the command line -------------------------------------------------------------------------
def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in arguments])
    assert isinstance(stop.value.code, int)
    return stop.value.code


def test_commands_run_on_the_device(emulated: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from safetensors.numpy import save_file

    program, x = net()
    program.save(tmp_path / "m.ree")
    (name,) = program.input_names
    save_file({name: x.numpy()}, tmp_path / "x.safetensors")
    _signer(tmp_path)
    given = (tmp_path / "m.ree", "--input", tmp_path / "x.safetensors")
    signed = ("--sign", tmp_path / "key.pem", "--receipt", tmp_path / "r.json")
    assert run("run", *given, "--device", "cuda", "--trace", tmp_path / "a.trace", *signed) == 0
    there = capsys.readouterr().out
    assert run("run", *given, "--commit") == 0
    here = capsys.readouterr().out
    assert next(line for line in there.splitlines() if "trace root" in line) in here
    assert run("verify", tmp_path / "r.json", *given) == 0
    assert run("verify", tmp_path / "r.json", *given, "--device", "cuda") == 0
    proof = ("--receipt", tmp_path / "r.json", "-o", tmp_path / "p.proof", "--samples", 20)
    assert run("prove", *given, *proof, "--device", "cuda") == 0
    assert run("check", tmp_path / "p.proof", tmp_path / "r.json", tmp_path / "m.ree") == 0
    assert run("dispute", tmp_path / "a.trace", tmp_path / "m.ree", "--device", "cuda") == 0


def test_a_command_without_a_device_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program, _ = net()
    program.save(tmp_path / "m.ree")
    try:
        cuda.device()
    except KernelError:
        pass
    else:
        pytest.skip("there is a CUDA device")
    assert run("run", tmp_path / "m.ree", "--input", tmp_path / "none", "--device", "cuda") == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1 and "cuda" in error.lower()
    assert run("run", tmp_path / "m.ree", "--input", tmp_path / "none", "--device", "gpu") == 2
    assert "is not supported" in capsys.readouterr().err


class Foreign:
    """A tensor of a library that ree does not know."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor, self.shape = tensor, tensor.shape

    def __dlpack__(self, **options: object) -> object:
        return self.tensor.__dlpack__()

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.tensor.__dlpack_device__()


def test_tensors_of_other_libraries(emulated: object) -> None:
    program, x = net()
    for p in (program, on_device(program)):
        assert torch.equal(p.run_flat([Foreign(x)])[0], program(x))


# -- what several programs share --------------------------------------------------------------
def test_weights_and_memory_go_with_their_program() -> None:
    device = emulator.Emulator()
    sizes = []
    with cuda.use(device):
        for _ in range(3):
            program, x = net("cuda")
            program(x)
            del program
            gc.collect()
            sizes.append(sum(device._allocated.values()))
    assert sizes[0] == sizes[2]


def test_programs_that_share_weights_may_begin_at_once(emulated: object) -> None:
    class Tables(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tables = torch.nn.ModuleList(torch.nn.Embedding(20000, 32) for _ in range(3))

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return torch.stack([table(ids) for table in self.tables]).sum(0)

    ids = torch.arange(0, 20000, 777)
    for _ in range(3):
        program = ree.compile(Tables().eval(), (ids,))
        expected = program(ids)
        others = [on_device(program) for _ in range(4)]
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda p: p(ids), others))
        assert all(torch.equal(a, expected) for a in found)
        assert all(torch.equal(p(ids), expected) for p in others)


def test_a_device_that_is_lost_while_torch_waits_is_a_device_error() -> None:
    class Stream:
        cuda_stream = 7

    class Torch:
        cuda = type("Cuda", (), {"current_stream": staticmethod(lambda name: Stream())})

    class Lost:
        def wait_for(self, stream: int) -> None:
            raise KernelError("the device is lost")

    with pytest.raises(DeviceError, match="lost"), TorchTensors(0, Lost(), Torch()):
        raise AssertionError("not reached")


FACTORY = """
import torch

def make():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.GELU()).eval(), (torch.randn(2, 8),)
"""


def test_compile_and_bench_for_a_device(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "zoo.py").write_text(FACTORY)
    source = f"{tmp_path / 'zoo.py'}:make"
    with cuda.use(emulator.Emulator()):  # on which nothing is loaded yet
        assert run("compile", source, "-o", tmp_path / "m.ree", "--device", "cuda") == 0
    assert list((tmp_path / "cache").glob("*.image"))
    capsys.readouterr()
    digests = []
    for what, device in itertools.product((source, tmp_path / "m.ree"), ("cpu", "cuda")):
        with cuda.use(emulator.shared()):
            assert run("bench", what, "--rounds", 1, "--device", device, "--json") == 0
            found = json.loads(capsys.readouterr().out)
            digests.append(found["engines"]["ree"]["digest"])
    assert digests[0] == digests[1] and digests[2] == digests[3]
    assert run("compile", source, "-o", tmp_path / "n.ree", "--device", "gpu") == 2
    assert not (tmp_path / "n.ree").exists()
