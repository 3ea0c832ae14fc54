"""A language model from a folder: its program, its tokenizer, and the ids that a receipt binds."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ree.commit.trace import list_id
from ree.device.backend import backend_of
from ree.errors import InputError
from ree.limits import STEP_ROWS_MAX
from ree.lm import capture, program_cache, quantise, weights
from ree.lm.engine import Engine
from ree.lm.folder import Folder
from ree.lm.generation import Binding
from ree.lm.spelling import Spelling
from ree.program import Program

FP32, BF16, INT8 = "fp32", "bf16", "int8"
DTYPES = (FP32, BF16, INT8)
Progress = Callable[[str], None]  # is told what is being done


@dataclass(frozen=True)
class LanguageModel:
    """A folder's model, ready to run; dtype: one of DTYPES."""

    folder: Folder
    program: Program
    dtype: str

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        dtype: str | None = None,
        progress: Progress = lambda what: None,
        cached: bool = True,
        device: str = "cpu",
    ) -> LanguageModel:
        """Read a Hugging Face model folder and compile its model.

        dtype: of weights and activations; None: bf16 if the folder's weights are, else fp32. int8: products in int8,
        all else in fp32. cached: take the program from the cache if the same files were compiled before, and keep it
        there; device: where it runs, as for Program.to. InputError, FormatError, LimitError: the folder is not sound;
        CaptureError, UnsupportedError: the model is none that can be compiled; DeviceError.
        """
        if dtype is not None and dtype not in DTYPES:
            raise InputError(f"dtype {dtype!r} is none of {', '.join(DTYPES)}")
        backend_of(device)  # first, since it is cheap
        progress("reading the folder")
        folder = Folder.open(path)
        dtype = dtype or (BF16 if _is_bf16(folder) else FP32)

        def compile() -> Program:
            progress("building the model")
            loaded = weights.load(folder, "bfloat16" if dtype == BF16 else "float32")
            progress("compiling")
            rewrite = quantise.quantise if dtype == INT8 else None
            return capture.capture(loaded.model, folder.context, loaded.data, rewrite)

        progress("reading the weights")
        program = program_cache.compiled(folder.path, folder.shards, dtype, compile) if cached else compile()
        return cls(folder, program.to(device), dtype)

    def engine(self, slots: int = 1, context: int | None = None, rows_max: int = STEP_ROWS_MAX) -> Engine:
        """An engine for so many sequences of up to `context` tokens (None: as many as the model knows)."""
        if context is not None and not 1 <= context <= self.folder.context:
            raise InputError(f"the model's context is {self.folder.context} tokens; {context} is not within it")
        return Engine(self.program, context or self.folder.context, slots, rows_max)

    @property
    def program_id(self) -> bytes:
        return self.program.program_id

    @functools.cached_property
    def weights_id(self) -> bytes:
        """The id of the list of all weights' ids."""
        return list_id(self.program.weight_ids)

    @property
    def tokenizer_id(self) -> bytes:
        return self.folder.tokenizer_id

    @property
    def chat_template_id(self) -> bytes | None:
        return self.folder.chat_template_id

    @property
    def vocab_size(self) -> int:
        return self.folder.vocab_size

    @property
    def context(self) -> int:
        return self.folder.context

    def text(self, prompt_tokens: Sequence[int], stop_strings: Sequence[str]) -> Spelling:
        """What spells the text after a prompt."""
        return Spelling(self.folder.tokenizer, prompt_tokens, stop_strings)

    def binding(self, templated: bool) -> Binding:
        """What a receipt states of the model; templated: the prompt was made by the chat template."""
        template = self.chat_template_id if templated else None
        return Binding(self.program_id, self.weights_id, self.tokenizer_id, template)


def _is_bf16(folder: Folder) -> bool:
    """Whether most of the folder's numbers are bfloat16."""
    bf16 = sum(place.size_bytes for place in folder.shards.values() if place.dtype == "bfloat16")
    return 2 * bf16 > folder.shards.size_bytes
