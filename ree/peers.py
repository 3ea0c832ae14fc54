"""Runs of one model by other means than ree: torch eager, torch.compile, onnxruntime.

Every engine is a function without arguments that runs the model on its inputs, so that the
same timer and the same digests serve all of them.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ree.errors import InputError

if TYPE_CHECKING:
    import numpy as np

PEERS = ("eager", "inductor", "onnxruntime")


@dataclass(frozen=True, slots=True)
class Engine:
    """run() gives the model's outputs as NumPy arrays; prepare_s: time to compile or export."""

    name: str
    run: Callable[[], list[np.ndarray]]
    prepare_s: float


def available(device: str = "cpu") -> tuple[str, ...]:
    """The peers that can run here, on this device."""
    if device != "cpu":
        import torch

        return PEERS[:1] if torch.cuda.is_available() else ()
    onnx = all(find_spec(package) for package in ("onnx", "onnxscript", "onnxruntime"))
    return PEERS if onnx else PEERS[:2]


def make(name: str, module: Any, inputs: Sequence[Any], threads: int, device: str = "cpu") -> Engine:
    """The engine `name` ("ree" or one of PEERS), ready to run: compiled and run once.

    On another device than the CPU a run has its inputs there, and ends when its outputs are back.
    """
    makers = {"ree": _ree, "eager": _eager, "inductor": _inductor, "onnxruntime": _onnxruntime}
    start = time.perf_counter()
    run = (makers if device == "cpu" else _there(device))[name](module, tuple(inputs), threads)
    run()
    return Engine(name, run, time.perf_counter() - start)


def arrays(outputs: Any) -> list[np.ndarray]:
    """All tensors of a model's output structure as NumPy arrays, in order."""
    import torch
    from torch.utils import _pytree

    return [leaf.detach().cpu().numpy() for leaf in _pytree.tree_leaves(outputs) if isinstance(leaf, torch.Tensor)]


def _ree(module: Any, inputs: tuple[Any, ...], threads: int) -> Callable[[], list[np.ndarray]]:
    import ree

    ree.threads(threads)
    program = ree.compile(module, inputs)
    return lambda: arrays(program(*inputs))


def _there(device: str) -> dict[str, Callable[..., Callable[[], list[np.ndarray]]]]:
    """The makers of engines that run on a CUDA device."""
    import torch

    def moved(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(x.to(device) for x in inputs) if torch.cuda.is_available() else inputs

    def ree_there(module: Any, inputs: tuple[Any, ...], threads: int) -> Callable[[], list[np.ndarray]]:
        import ree

        program, given = ree.compile(module, inputs, device=device), moved(inputs)
        return lambda: arrays(program(*given))

    def eager_there(module: Any, inputs: tuple[Any, ...], threads: int) -> Callable[[], list[np.ndarray]]:
        return _eager(copy.deepcopy(module).to(device), moved(inputs), threads)

    return {"ree": ree_there, "eager": eager_there}


def _eager(module: Any, inputs: tuple[Any, ...], threads: int) -> Callable[[], list[np.ndarray]]:
    import torch

    torch.set_num_threads(threads)

    def run() -> list[np.ndarray]:
        with torch.inference_mode():
            return arrays(module(*inputs))

    return run


def _inductor(module: Any, inputs: tuple[Any, ...], threads: int) -> Callable[[], list[np.ndarray]]:
    import torch

    torch.set_num_threads(threads)
    torch._dynamo.reset()
    compiled = torch.compile(module, backend="inductor")

    def run() -> list[np.ndarray]:
        with torch.inference_mode():
            return arrays(compiled(*inputs))

    return run


def _onnxruntime(module: Any, inputs: tuple[Any, ...], threads: int) -> Callable[[], list[np.ndarray]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export_onnx(module, inputs, path)
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]
    if len(names) != len(inputs):
        raise InputError(f"the ONNX export has {len(names)} inputs, the model {len(inputs)}")
    feeds = {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)}
    return lambda: session.run(None, feeds)  # type: ignore[no-any-return]


def export_onnx(module: Any, inputs: tuple[Any, ...], path: Path, dynamic_shapes: Any = None) -> None:
    """Write the model as ONNX through torch's exporter, without its messages."""
    import torch

    with silence():
        program = torch.onnx.export(
            module, inputs, dynamo=True, verbose=False, dynamic_shapes=dynamic_shapes, external_data=True
        )
        assert program is not None
        program.save(str(path), external_data=True)


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Without warnings, log lines below ERROR, and text on standard output and error."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
