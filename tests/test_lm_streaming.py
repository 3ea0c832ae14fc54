"""The same bits by one pass, token by token, in chunks and in batches, for every architecture and instruction set."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ree
from ree.errors import InputError, LimitError, UnsupportedError
from ree.lm import rows
from ree.lm.capture import capture
from ree.lm.engine import Engine, Row
from ree.lm.model import LanguageModel
from ree.program import Program
from ree.reference import evaluate
from ree_kernels import cpu
from tests import lm_folders
from tests.lm_worker import feed

VOCAB = 300
DTYPES = ("fp32", "bf16", "int8")


def model_of(tmp: Path, architecture: str, dtype: str = "fp32", **config: Any) -> LanguageModel:
    folder = lm_folders.make(tmp / f"{architecture}-{dtype}", architecture, vocab=VOCAB, **config)
    return LanguageModel.open(folder, dtype, cached=False)


def one_pass(program: Program, tokens: list[int]) -> np.ndarray:
    """All logits by the plain plan."""
    count = len(tokens)
    places = np.arange(count)
    return program(np.array([tokens]), places[None], places)[0]


def tokens_of(seed: int, *counts: int) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, VOCAB, count).tolist() for count in counts]


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and a.tobytes() == b.tobytes()


@pytest.mark.parametrize("architecture", lm_folders.ARCHITECTURES)
def test_every_way_to_feed_tokens_gives_the_same_bits(architecture: str, tmp_path: Path) -> None:
    model = model_of(tmp_path, architecture)
    sequences = tokens_of(1, 61, 40, 7)
    plain = [one_pass(model.program, s) for s in sequences]
    engine = model.engine(slots=3, rows_max=64)
    (decoded,) = feed_singly(engine, sequences[:1])
    assert same(decoded, plain[0])
    for seed in range(3):  # chunks and batches
        for found, expected in zip(feed(engine, sequences, seed), plain, strict=True):
            assert same(found, expected)
    assert np.unique(np.argmax(plain[0], axis=1)).size > 10  # the model does say different things


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "mixtral"])
@pytest.mark.parametrize("dtype", ["bf16", "int8"])
def test_so_do_narrow_numbers(architecture: str, dtype: str, tmp_path: Path) -> None:
    model = model_of(tmp_path, architecture, dtype)
    sequences = tokens_of(2, 40, 33)
    plain = [one_pass(model.program, s) for s in sequences]
    engine = model.engine(slots=2, rows_max=64)
    for seed in range(2):
        for found, expected in zip(feed(engine, sequences, seed), plain, strict=True):
            assert same(found, expected)
    assert same(feed_singly(engine, sequences[:1])[0], plain[0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt2"])
def test_the_plan_gives_the_bits_of_the_definition(architecture: str, dtype: str, tmp_path: Path) -> None:
    model = model_of(tmp_path, architecture, dtype, hidden=32, layers=1, heads=2)
    (tokens,) = tokens_of(3, 30)
    graph = model.program.graph
    places = np.arange(len(tokens))
    static = model.program.static(tuple(len(tokens) for _ in graph.symbols))
    (expected,) = evaluate(static, [np.array([tokens]), places[None], places])
    assert same(one_pass(model.program, tokens), expected[0])


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2", "mistral", "opt"])
def test_logits_are_those_of_torch_up_to_rounding(architecture: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = model_of(tmp_path, architecture)
    (tokens,) = tokens_of(4, 60)
    reference = AutoModelForCausalLM.from_pretrained(
        model.folder.path, attn_implementation="eager", dtype=torch.float64
    ).eval()
    eager = AutoModelForCausalLM.from_pretrained(
        model.folder.path, attn_implementation="eager", dtype=torch.float32
    ).eval()
    with torch.no_grad():
        exact, theirs = (m(torch.tensor([tokens])).logits[0].double().numpy() for m in (reference, eager))
    error = np.abs(one_pass(model.program, tokens) - exact).max()
    assert error < 2 * np.abs(theirs - exact).max() + 1e-6


def feed_singly(engine: Engine, sequences: list[list[int]]) -> list[np.ndarray]:
    found = []
    for sequence in sequences:
        slot = engine.open()
        found.append(np.concatenate([engine.step([Row(t, n, slot, True)]) for n, t in enumerate(sequence)]))
        engine.close(slot)
    return found


# -- long sequences, and cuts of all kinds ---------------------------------------------------


@pytest.fixture(scope="module")
def long_model(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    """Windows and contexts of more than one chunk of 256 keys."""
    return model_of(
        tmp_path_factory.mktemp("long"), "mistral", hidden=32, heads=2, max_position_embeddings=1100, sliding_window=300
    )


@pytest.fixture(scope="module")
def long_plain(long_model: LanguageModel) -> tuple[list[int], np.ndarray]:
    (tokens,) = tokens_of(5, 1100)
    return tokens, one_pass(long_model.program, tokens)


def test_a_whole_context_with_a_window(long_model: LanguageModel, long_plain: tuple[list[int], np.ndarray]) -> None:
    tokens, plain = long_plain
    engine = long_model.engine(slots=2)
    assert same(feed_singly(engine, [tokens])[0], plain)
    assert same(feed(engine, [tokens, tokens[::-1]], 7)[0], plain)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_cut_into_steps(
    long_model: LanguageModel, long_plain: tuple[list[int], np.ndarray], data: st.DataObject
) -> None:
    """Chunks of any length, only some logits asked for, another sequence in the same steps, any number of threads."""
    tokens, plain = long_plain
    length = data.draw(st.integers(1, 700))
    engine = _engine(long_model)
    before = cpu.threads()
    ree.threads(data.draw(st.integers(1, 3)))
    mine, other = engine.open(), engine.open()
    try:
        fed = fed_other = 0
        while fed < length:
            count = data.draw(st.integers(1, min(300, length - fed)))
            wants = data.draw(st.sets(st.integers(fed, fed + count - 1), min_size=0, max_size=5))
            step = [Row(tokens[n], n, mine, n in wants) for n in range(fed, fed + count)]
            beside = data.draw(st.integers(0, 3))
            extra = [Row(n % VOCAB, fed_other + n, other, False) for n in range(beside)]
            found = engine.step([*extra, *step] if data.draw(st.booleans()) else [*step, *extra])
            assert same(found, plain[sorted(wants)])
            fed, fed_other = fed + count, fed_other + beside
    finally:
        engine.close(mine)
        engine.close(other)
        ree.threads(before)


_engines: dict[int, Engine] = {}


def _engine(model: LanguageModel) -> Engine:
    return _engines.setdefault(id(model), model.engine(slots=3))


# -- other processors ------------------------------------------------------------------------


def test_every_instruction_set_gives_the_same_bits(tmp_path: Path) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    for architecture, dtype in (("llama", "fp32"), ("llama", "bf16"), ("llama", "int8"), ("gemma2", "fp32")):
        model_of(tmp_path, architecture, dtype).program.save(programs / f"{architecture}-{dtype}.ree")
    np.save(programs / "tokens.npy", np.array(tokens_of(6, 50, 50, 50)))
    found = []
    for isa in cpu.supported():
        environment = {**os.environ, "REE_ISA": isa}
        command = [sys.executable, "-m", "tests.lm_worker", str(programs)]
        result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        found.append(json.loads(result.stdout))
    assert all(other == found[0] for other in found)
    for digests in found[0].values():  # three sequences, and the same under one, two and three threads
        assert digests[:3] * 3 == digests and len(set(digests)) == 3


# -- infinities and NaN ----------------------------------------------------------------------


def test_a_poisoned_token_is_seen_by_those_after_it_alone(tmp_path: Path) -> None:
    """Values that are infinite or NaN stay out of rows that do not see them, in both plans alike."""
    model = model_of(tmp_path, "llama", hidden=32, layers=2, heads=2)
    graph = model.program.graph
    poisoned = []
    for constant in graph.constants:
        data = constant.array().copy()
        if "embed_tokens" in constant.name:
            data[7] = np.inf
            data[8, ::2] = np.nan
        poisoned.append(type(constant)(constant.name, constant.type, data))
    program = Program(
        type(graph)(graph.inputs, poisoned, graph.nodes, graph.outputs, graph.symbols),
        model.program.input_structure,
        model.program.output_structure,
    )
    (clean,) = tokens_of(8, 40)
    clean = [t if t > 8 else 9 for t in clean]
    for bad in (7, 8):
        tokens = [*clean[:20], bad, *clean[21:]]
        plain = one_pass(program, tokens)
        assert same(plain[:20], one_pass(program, clean)[:20])
        assert not np.isfinite(plain[20:]).any()
        engine = Engine(program, 64, 2, 64)
        assert same(feed_singly(engine, [tokens])[0], plain)
        again, beside = feed(engine, [tokens, clean], 3)
        assert same(again, plain) and same(beside, one_pass(program, clean))


# -- what an engine refuses -------------------------------------------------------------------


def test_an_engine_takes_rows_that_follow_on_and_nothing_else(long_model: LanguageModel) -> None:
    engine = _engine(long_model)
    slot = engine.open()
    engine.step([Row(1, 0, slot, False), Row(2, 1, slot, False)])
    wrong = [
        [Row(1, 1, slot, True)], [Row(1, 3, slot, True)], [Row(1, 2, slot + 1, True)], [Row(VOCAB, 2, slot, True)],
        [Row(-1, 2, slot, True)], [], [Row(1, 2 + n, slot, False) for n in range(engine.rows_max + 1)],
    ]  # fmt: skip
    for step in wrong:
        with pytest.raises(InputError):
            engine.step(step)
    other = engine.open()
    with pytest.raises(InputError, match="together"):
        engine.step([Row(1, 2, slot, True), Row(1, 0, other, True), Row(1, 3, slot, True)])
    assert engine.length(slot) == 2 and engine.length(other) == 0  # nothing was fed
    engine.close(other)
    with pytest.raises(InputError):
        engine.close(other)
    taken = [engine.open() for _ in range(engine.slots - 1)]
    with pytest.raises(LimitError):
        engine.open()
    for n in [*taken, slot]:
        engine.close(n)


def test_a_sequence_ends_with_the_context(tmp_path: Path) -> None:
    model = model_of(tmp_path, "llama", hidden=32, layers=1, heads=2)
    engine = model.engine(context=5)
    slot = engine.open()
    engine.step([Row(1, n, slot, False) for n in range(5)])
    with pytest.raises(InputError, match="context of 5"):
        engine.step([Row(1, 5, slot, False)])
    for context in (0, -1, 10**9):
        with pytest.raises(InputError):
            model.engine(context=context)
    for slots in (0, 10**9):
        with pytest.raises(LimitError):
            model.engine(slots=slots)


# -- models that cannot be streamed -------------------------------------------------------------


class _Backbone(torch.nn.Module):
    """A model in transformers' manner whose hidden rows `mix` may mix."""

    def __init__(self, mix: Any) -> None:
        super().__init__()
        self.embed, self.head, self.mix = torch.nn.Embedding(VOCAB, 8), torch.nn.Linear(8, VOCAB), mix
        self.is_causal = True

    def forward(self, tokens: torch.Tensor, positions: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        return self.head(self.mix(self.embed(tokens) + positions[..., None])[:, chosen])


MIXING = {
    "the mean over the sequence": lambda x: x - x.mean(1, keepdim=True),
    "the row before": lambda x: torch.cat([x[:, :1], x[:, :-1]], 1),
    "a running sum": lambda x: x.cumsum(1),
    "a turned sequence": lambda x: x.flip(1),
    "every pair of rows": lambda x: x @ x.transpose(1, 2) @ x,
    "attention to what comes later": lambda x: torch.nn.functional.scaled_dot_product_attention(
        x[:, None], x[:, None], x[:, None]
    )[:, 0],
}
APART = {
    "a norm": lambda x: torch.nn.functional.rms_norm(x, (8,)),
    "other orders of axes": lambda x: x.reshape(1, -1, 2, 4).transpose(1, 2).transpose(1, 2).reshape(1, -1, 8),
    "causal attention": lambda x: torch.nn.functional.scaled_dot_product_attention(
        x[:, None], x[:, None], x[:, None], is_causal=True
    )[:, 0],
}


def _graph_of(mix: Any) -> Any:
    dynamic = torch.export.Dim.DYNAMIC
    example = (torch.arange(7)[None], torch.arange(7)[None], torch.tensor([3, 1, 2]))
    return ree.compile(_Backbone(mix).eval(), example, ({1: dynamic}, {1: dynamic}, {0: dynamic})).graph


@pytest.mark.parametrize("what", MIXING)
def test_a_model_that_mixes_rows_is_refused(what: str) -> None:
    with pytest.raises(UnsupportedError, match="rows"):
        rows.check(_graph_of(MIXING[what]))


@pytest.mark.parametrize("what", APART)
def test_a_model_that_keeps_rows_apart_is_not(what: str) -> None:
    rows.check(_graph_of(APART[what]))


def test_a_model_without_causal_attention_is_refused() -> None:
    from transformers import BertConfig, BertLMHeadModel

    from ree.lm import torch_model

    torch_model.register()
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = BertLMHeadModel._from_config(BertConfig(vocab_size=VOCAB, **sizes), attn_implementation="ree").eval()
    with pytest.raises(UnsupportedError, match="causal"):
        capture(model, 64)
