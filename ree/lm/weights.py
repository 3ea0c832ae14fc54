"""A transformers model whose weights stay in the folder's files: read where they lie, when they are needed.

torch needs shapes to trace a model, not numbers. So the model is built without memory for its parameters, and the
program's constants read the files through maps. What is packed for the kernels is then the only copy in memory.
"""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ree.capture import from_torch_dtype, to_numpy
from ree.errors import CaptureError, Error, UnsupportedError
from ree.lm.shards import Shards
from ree.types import DType, TensorType

if TYPE_CHECKING:
    import torch

    from ree.lm.folder import Folder


@dataclass(frozen=True, slots=True)
class ShardData:
    """A constant's numbers in a file of the folder, converted to the dtype that the program has them in."""

    shards: Shards
    name: str
    type: TensorType

    def read(self) -> np.ndarray:
        """A view of the file where the dtypes agree, else a converted copy."""
        array, stored = self.shards.array(self.name)
        if stored is self.type.dtype:
            return array
        if stored is DType.BF16 and self.type.dtype is DType.F32:
            return (array.astype(np.uint32) << 16).view(np.float32)
        from ree.capture import to_torch_dtype

        return to_numpy(self.shards.tensor(self.name).to(to_torch_dtype(self.type.dtype)))


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model for capture; data: where the numbers of its parameters are to be had, by name, if not in itself."""

    model: Any
    data: Mapping[str, ShardData]


def load(folder: Folder, dtype: str) -> Loaded:
    """The folder's model, in evaluation mode, with ree's attention; dtype: "float32" or "bfloat16".

    Where the files hold the model's parameters under other names or in other shapes than the model does, transformers
    converts them, which takes memory for those that it joins or converts. CaptureError: transformers cannot build it.
    """
    from ree.lm import torch_model

    torch_model.register()
    with _quiet():
        try:
            model = _without_memory(folder, dtype)
            data = _places(model, folder.shards, from_torch_dtype(_torch_dtype(dtype)))
            if data is None:
                return Loaded(_converted(folder, dtype), {})
        except Error:
            raise
        except Exception as error:  # whatever transformers raises for a configuration that it cannot build
            if isinstance(error, KeyError) and error.args == (torch_model.IMPLEMENTATION,):
                what = "computes attention by itself, not through transformers' table of implementations"
                raise UnsupportedError(f"{folder.path}: {folder.architecture} {what}") from None
            text = next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")
            what = f"{type(error).__name__}: {text[:300]}"
            raise CaptureError(f"{folder.path}: transformers cannot build the model ({what})") from error
    return Loaded(model, data)


def _torch_dtype(name: str) -> torch.dtype:
    import torch

    found: torch.dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]
    return found


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the advice that transformers logs, and its bars of progress."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        logging.enable_progress_bar()


def _options(dtype: str) -> dict[str, Any]:
    from ree.lm import experts, torch_model

    return {
        "dtype": _torch_dtype(dtype),
        "attn_implementation": torch_model.IMPLEMENTATION,
        "experts_implementation": experts.IMPLEMENTATION,
    }


def _without_memory(folder: Folder, dtype: str) -> Any:
    """The model with real buffers, and parameters that are one zero, repeated by strides of 0."""
    import torch
    from transformers import AutoModelForCausalLM

    with _parameters_on_meta():
        model = AutoModelForCausalLM.from_config(
            copy.deepcopy(folder.config), trust_remote_code=False, **_options(dtype)
        ).eval()
    fresh: dict[int, torch.nn.Parameter] = {}  # a parameter that stands in two places is tied
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                zero = torch.zeros((), dtype=parameter.dtype).expand(parameter.shape)
                fresh.setdefault(id(parameter), torch.nn.Parameter(zero, requires_grad=False))
                module._parameters[name] = fresh[id(parameter)]
    return model


@contextlib.contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Parameters lose their memory as soon as a module has them; buffers keep theirs, for no file has them."""
    import torch

    register = torch.nn.Module.register_parameter

    def register_on_meta(self: Any, name: str, parameter: Any) -> None:
        register(self, name, parameter)
        if parameter is not None and not parameter.is_meta:  # one that is there is being tied: it stays the same
            self._parameters[name] = torch.nn.Parameter(parameter.to("meta"), requires_grad=False)

    torch.nn.Module.register_parameter = register_on_meta  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.nn.Module.register_parameter = register  # type: ignore[method-assign]


def _places(model: Any, shards: Shards, dtype: DType) -> dict[str, ShardData] | None:
    """Where each parameter lies, by all names that it has; None if the files do not hold just these tensors."""
    names: dict[int, list[str]] = {}
    shapes: dict[int, tuple[int, ...]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
        shapes[id(parameter)] = tuple(parameter.shape)
        if from_torch_dtype(parameter.dtype) is not dtype:
            raise UnsupportedError(f"parameter {name} is kept in {parameter.dtype}, the others in {dtype.value}")
    prefix = model.base_model_prefix + "."
    found: dict[str, ShardData] = {}
    for key, same in names.items():
        known = [form for name in same for form in (name, name.removeprefix(prefix)) if form in shards]
        if not known or shards[known[0]].shape != shapes[key] or not _are_one(shards, known):
            return None
        data = ShardData(shards, known[0], TensorType(shapes[key], dtype))
        found.update(dict.fromkeys(same, data))
    persistent = set(model.state_dict()) - found.keys()
    return None if any(name in shards for name in persistent) else found


def _are_one(shards: Shards, names: Sequence[str]) -> bool:
    """Whether tensors under the names of one tied parameter are the same; if not, transformers decides between them."""
    (first, dtype), *others = (shards.array(name) for name in names)
    return all(d is dtype and a.shape == first.shape and a.tobytes() == first.tobytes() for a, d in others)


def _converted(folder: Folder, dtype: str) -> Any:
    """The model with its weights as transformers makes them of the folder's tensors; most stay where they lie."""
    import transformers

    from ree.peers import silence

    with silence():  # a bar of progress
        model, report = getattr(transformers, folder.architecture).from_pretrained(
            None,
            config=copy.deepcopy(folder.config),
            state_dict={name: folder.shards.tensor(name) for name in folder.shards},
            output_loading_info=True,
            **_options(dtype),
        )
    missing = sorted(report["missing_keys"])
    if missing:
        raise CaptureError(f"{folder.path}: the files hold no weights for {missing[0]} and {len(missing) - 1} others")
    return model.eval()
