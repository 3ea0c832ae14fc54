"""What needs a GPU: tensors of torch there, its streams, its errors; all digests (`pytest -m gpu`)."""

from __future__ import annotations

import json

import pytest
import torch

import ree
from ree.errors import DeviceError, InputError, LimitError, RunError
from ree.program import Program
from tests.test_device import Net, Pick
from tools.device.__main__ import DIGESTS, check

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def both() -> tuple[Program, Program, torch.Tensor]:
    torch.manual_seed(0)
    x = torch.randn(3, 24)
    program = ree.compile(Net().eval(), (x,))
    return program, program.to("cuda"), x


def test_digests_are_those_of_the_processor() -> None:
    assert check(False, json.loads(DIGESTS.read_text())) == []


def test_tensors_on_the_gpu_stay_there(both: tuple[Program, Program, torch.Tensor]) -> None:
    here, there, x = both
    found = there(x.cuda())
    assert found.is_cuda and torch.equal(found.cpu(), here(x))
    assert not there(x).is_cuda and torch.equal(there(x), here(x))
    found, trace = there.run(x.cuda(), commit=True)
    assert found.is_cuda and trace.root == here.run(x, commit=True)[1].root


def test_views_that_lie_at_any_address(both: tuple[Program, Program, torch.Tensor]) -> None:
    here, there, x = both
    for offset in range(5):
        memory = torch.zeros(x.numel() + offset, device="cuda")
        view = memory[offset:].reshape(x.shape)
        view.copy_(x)
        assert torch.equal(there(view).cpu(), here(x))
    assert torch.equal(there(x.cuda().T.contiguous().T).cpu(), here(x))


def test_runs_keep_the_order_of_torchs_stream(both: tuple[Program, Program, torch.Tensor]) -> None:
    """Inputs that are being computed, outputs that are used at once, on streams of their own."""
    here, there, x = both
    heavy = torch.randn(2048, 2048, device="cuda")
    expected = here(x * 3.0)
    for _ in range(20):
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            given = x.cuda(non_blocking=True)
            for _ in range(3):
                heavy @ heavy
            given = given * 3.0
            found = there(given) + 0.0
        stream.synchronize()
        assert torch.equal(found.cpu(), expected)


def test_tensors_of_another_place_are_refused(both: tuple[Program, Program, torch.Tensor]) -> None:
    here, there, x = both
    with pytest.raises(InputError, match="the program runs on the CPU"):
        here(x.cuda())
    two = ree.compile(torch.nn.Bilinear(4, 4, 3).eval(), (torch.randn(2, 4), torch.randn(2, 4)), device="cuda")
    with pytest.raises(InputError, match="is on"):
        two(torch.randn(2, 4).cuda(), torch.randn(2, 4))
    if torch.cuda.device_count() > 1:
        with pytest.raises(InputError, match="is on cuda:1"):
            there(x.to("cuda:1"))
    with pytest.raises(DeviceError, match="no CUDA device"):
        here.to("cuda:99")


def test_an_index_out_of_range(both: tuple[Program, Program, torch.Tensor]) -> None:
    program = ree.compile(Pick().eval(), (torch.tensor([1, 2]),), device="cuda")
    with pytest.raises(RunError):
        program(torch.tensor([1, 10]).cuda())
    assert program(torch.tensor([9, 0]).cuda()).shape == (2, 5)


def test_no_memory(both: tuple[Program, Program, torch.Tensor]) -> None:
    here, there, x = both
    large = ree.compile(torch.nn.Softmax(-1), (torch.zeros(1, 8),), {"input": {0: torch.export.Dim("n", max=1 << 33)}})
    free, _ = torch.cuda.mem_get_info()
    held = torch.empty(int(free * 0.9), dtype=torch.uint8, device="cuda")
    with pytest.raises(LimitError):
        large.to("cuda").run_flat([torch.zeros(free // 64, 8)])
    del held
    torch.cuda.empty_cache()
    assert torch.equal(there(x), here(x))


def test_torch_compile_runs_where_the_tensors_are() -> None:
    torch.manual_seed(0)
    model, x = Net().eval(), torch.randn(3, 24)
    expected = ree.compile(model, (x,))(x)
    with torch.no_grad():
        found = torch.compile(model.cuda(), backend="ree")(x.cuda())
    assert found.is_cuda and torch.equal(found.cpu(), expected)
