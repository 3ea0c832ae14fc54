"""What `ree compile INPUT` accepts: a .pt2 file, a Hugging Face model folder, or `module.py:factory`.

Each loader gives a `Loaded`: something that `ree.compile` takes, with example inputs and
dynamic shapes. Nothing is fetched from the network and no code of a model folder is run;
a factory is the user's own code and runs with the user's rights.
"""

from __future__ import annotations

import inspect
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ree import nesting
from ree.errors import InputError

CONFIG_BYTES_MAX = 1 << 20
SEQUENCE_MAX = 1 << 20

TEXT_SUFFIXES = ("LMHeadModel", "ForMaskedLM", "ForSequenceClassification", "ForTokenClassification", "Model")


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model ready for `ree.compile`.

    model: nn.Module in evaluation mode, or ExportedProgram; example_inputs: tuple of
    tensors; dynamic_shapes: as torch.export takes them, or None.
    """

    name: str
    model: Any
    example_inputs: tuple[Any, ...]
    dynamic_shapes: Any = None


def load(source: str | Path) -> Loaded:
    """The model that `source` names; InputError says in one line what is wrong with it."""
    try:
        return _load(str(source))
    except OSError as error:
        raise InputError(f"{error.filename or source}: {error.strerror or error}") from None


def _load(text: str) -> Loaded:
    path = Path(text)
    if path.is_dir():
        return load_folder(path)
    if path.suffix == ".pt2":
        return load_exported(path)
    file, separator, factory = text.rpartition(":")
    if separator and file.endswith(".py"):
        return load_factory(Path(file), factory)
    if not path.exists():
        raise InputError(f"{text}: no such file or folder")
    raise InputError(f"{text}: not a .pt2 file, a model folder, or FILE.py:FACTORY")


def load_exported(path: Path) -> Loaded:
    """A program saved by `torch.export.save`, with the example inputs stored in it."""
    import torch

    if not path.is_file():
        raise InputError(f"{path}: no such file")
    with path.open("rb") as file:  # which says so if it may not be read
        is_archive = zipfile.is_zipfile(file)
    if not is_archive:
        raise InputError(f"{path}: not a file that torch.export.save wrote")
    try:
        program = torch.export.load(str(path))
    except Exception as error:  # torch.export.load documents no error type of its own
        raise InputError(f"{path}: torch.export cannot read it: {first_line(error)}") from None
    args, kwargs = program.example_inputs or ((), {})
    if kwargs:
        raise InputError(f"{path}: exported with keyword inputs; export it with positional inputs")
    return Loaded(path.stem, program, tuple(args))


def load_factory(path: Path, factory: str) -> Loaded:
    """What the function `factory` of a Python file returns: (module, example_inputs[, dynamic_shapes])."""
    import torch

    function = _import_function(path, factory)
    try:
        made = function()
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        raise InputError(f"{path}:{factory} raised {type(error).__name__}: {first_line(error)}") from error
    if not isinstance(made, tuple) or len(made) not in (2, 3) or not isinstance(made[0], torch.nn.Module):
        raise InputError(f"{path}:{factory} must return (module, example_inputs) or (module, example_inputs, shapes)")
    inputs = made[1] if isinstance(made[1], tuple | list) else (made[1],)
    return Loaded(factory, made[0].eval(), tuple(inputs), made[2] if len(made) == 3 else None)


def _import_function(path: Path, factory: str) -> Callable[[], Any]:
    import importlib.util

    if not path.is_file():
        raise InputError(f"{path}: no such file")
    spec = importlib.util.spec_from_file_location(f"ree_factory_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise InputError(f"{path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # the user's code may raise anything
        raise InputError(f"{path} raised {type(error).__name__}: {first_line(error)}") from error
    function = getattr(module, factory, None)
    if not callable(function):
        raise InputError(f"{path}: no function {factory!r}")
    return function  # type: ignore[no-any-return]


# -- Hugging Face folders ---------------------------------------------------------


def load_folder(folder: Path) -> Loaded:
    """A Hugging Face model folder: config.json and safetensors weights, in fp32, local files only.

    The architecture that config.json names must be a class of `transformers` itself. Batch
    is dynamic, and so is the sequence length of a text model.
    """
    config_path = folder / "config.json"
    if not config_path.is_file():
        raise InputError(f"{folder}: no config.json, so not a Hugging Face model folder")
    kind = _architecture(config_path)
    try:
        import transformers
    except ImportError:
        raise InputError("a model folder needs the package transformers: pip install 'ree[hf]'") from None
    model_class: Any = getattr(transformers, kind, None)
    is_model: bool = inspect.isclass(model_class) and issubclass(model_class, transformers.PreTrainedModel)
    if not is_model:
        raise InputError(f"{folder}: transformers {transformers.__version__} has no model class {kind!r}")
    try:
        model = quietly(
            lambda: model_class.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False, use_safetensors=True, dtype="float32"
            )
        )
    except Exception as error:  # transformers raises OSError, ValueError, KeyError, SafetensorError ...
        raise InputError(f"{folder}: transformers cannot load it: {first_line(error)}") from None
    return from_transformers(model, folder.name)


def _architecture(path: Path) -> str:
    if path.stat().st_size > CONFIG_BYTES_MAX:
        raise InputError(f"{path}: larger than {CONFIG_BYTES_MAX} bytes")
    try:
        config = nesting.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON: {first_line(error)}") from None
    names = config.get("architectures") if isinstance(config, dict) else None
    if not (isinstance(names, list) and names and isinstance(names[0], str)):
        raise InputError(f"{path}: names no architecture")
    return names[0]


def quietly(function: Callable[[], Any]) -> Any:
    """Call it without the progress bars and the advice that transformers prints."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        return function()
    finally:
        logging.set_verbosity(level)
        logging.enable_progress_bar()


def from_transformers(model: Any, name: str, batch: int = 2, length: int = 16) -> Loaded:
    """A `transformers` model as a module from tensors to one tensor, with example inputs of its kind."""
    import torch
    from torch.export import Dim

    config = model.config
    config.use_cache = False
    model = model.eval()
    batch_dim = Dim("batch", min=1, max=4096)
    generator = torch.Generator().manual_seed(0)
    parameters = inspect.signature(model.forward).parameters
    if "pixel_values" in parameters and "input_ids" not in parameters:
        size = _image_size(config)
        pixels = torch.randn(batch, getattr(config, "num_channels", 3), *size, generator=generator)
        return Loaded(name, wrapped(model, ("pixel_values",)), (pixels,), ({0: batch_dim},))
    if "input_ids" not in parameters or getattr(config, "is_encoder_decoder", False):
        raise InputError(f"{name}: {type(model).__name__} takes other inputs; use FILE.py:FACTORY")
    limit = getattr(config, "max_position_embeddings", None) or SEQUENCE_MAX
    shape = {0: batch_dim, 1: Dim("sequence", min=1, max=int(limit))}
    ids = torch.randint(0, config.vocab_size, (batch, min(length, int(limit))), generator=generator)
    if is_causal(model):
        return Loaded(name, wrapped(model, ("input_ids",)), (ids,), (shape,))
    inputs = (ids, torch.ones_like(ids))
    return Loaded(name, wrapped(model, ("input_ids", "attention_mask")), inputs, (shape, dict(shape)))


def is_causal(model: Any) -> bool:
    """Whether it is a decoder, where right padding needs no mask."""
    name = type(model).__name__
    return name.endswith(("ForCausalLM", "LMHeadModel")) or bool(getattr(model.config, "is_decoder", False))


def _image_size(config: Any) -> Sequence[int]:
    size = getattr(config, "image_size", 224)
    return (size, size) if isinstance(size, int) else tuple(size)[-2:]


def wrapped(model: Any, names: tuple[str, ...]) -> Any:
    """A module whose positional inputs are the model's inputs `names` and whose output is one tensor.

    The output is the model's `logits`, or its last hidden state where it has no head.
    """
    import torch

    class TwoInputs(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return _main_output(self.model(input_ids=input_ids, attention_mask=attention_mask))

    class Text(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            return _main_output(self.model(input_ids=input_ids))

    class Image(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
            return _main_output(self.model(pixel_values=pixel_values))

    classes: dict[tuple[str, ...], Any] = {
        ("pixel_values",): Image,
        ("input_ids",): Text,
        ("input_ids", "attention_mask"): TwoInputs,
    }
    return classes[names]().eval()


def _main_output(output: Any) -> Any:
    logits = getattr(output, "logits", None)
    return logits if logits is not None else output.last_hidden_state


def first_line(error: BaseException) -> str:
    """The first non-empty line of an error's text (with the next if it ends in a colon), or its type's name."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if len(lines) > 1 and lines[0].endswith(":"):
        return f"{lines[0]} {lines[1]}"
    return lines[0] if lines else type(error).__name__
