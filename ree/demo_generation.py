"""The third part of the demonstration: a generation with a receipt, verified by one pass, and lies about it.

A language model in int8 (small, with seeded random weights: what it says is noise) draws tokens one by one and signs
what it did. A verifier reads prompt and tokens once, under other instruction sets too. Freivalds' check looks at a
disclosed trace without one product of matrices. Then the provider lies: about a token, the seed, the model.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ree.demo_checks import HONEST, Line, flipped, short, verify_elsewhere, with_weights
from ree.errors import VerificationError

if TYPE_CHECKING:
    from rich.console import Console

    from ree.commit.keys import Signer
    from ree.lm.generation import Generation
    from ree.lm.model import LanguageModel

PROMPT = "The ferry to the island leaves at half past seven,"
TOKENS = 48
DTYPE = "int8"
SIZES = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4}
CONTEXT = 256


@dataclass(frozen=True)
class Made:
    """What the provider has: the model, its prompt, a receipt with its salt, the seconds that generating took."""

    model: LanguageModel
    prompt: list[int]
    envelope: bytes
    salt: bytes
    seconds: float


def checks(folder: Path, progress: Callable[[str], None] = lambda _: None) -> list[Line]:
    """Generate, sign, verify, lie; in a folder where `provider.pem` is the provider's key."""
    import ree_kernels.cpu as cpu
    from ree.commit.keys import Signer
    from ree.lm.model import LanguageModel

    progress("a language model")
    path = make_model(folder / "lm")
    signer = Signer.load(folder / "provider.pem")
    model = LanguageModel.open(path, DTYPE)
    made = _generate(model, model, signer)
    lines = [_one_pass(HONEST, made)]
    receipt = folder / "generation.json"
    receipt.write_bytes(made.envelope)
    options = ["--model", str(path), "--prompt", PROMPT, "--dtype", DTYPE, "--key", signer.public.id]
    for isa in cpu.supported()[:-1]:
        progress(f"a generation: verified with {isa}")
        lines.append(verify_elsewhere(HONEST, "one pass", "the same logits", receipt, options, isa))
    progress("a generation: Freivalds' check")
    lines.append(_freivalds(made))
    for name, lie in _lies(made, signer):
        progress(f"a generation: {name}")
        lines.append(_one_pass(name, lie))
    return lines


def make_model(path: Path) -> Path:
    """The folder of a small Llama with seeded random weights, and the tokenizer of the demonstration's other model."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    from ree import sentences

    tokenizer = sentences.minilm_folder() / "tokenizer.json"
    config = LlamaConfig(
        **SIZES, num_key_value_heads=2, vocab_size=30522, max_position_embeddings=CONTEXT, eos_token_id=None
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    from ree.loaders import quietly

    quietly(lambda: model.save_pretrained(path))
    shutil.copyfile(tokenizer, path / "tokenizer.json")
    return path


def _generate(model: LanguageModel, runs: LanguageModel, signer: Signer) -> Made:
    """Tokens of the model that `runs`, with a receipt that says they are of `model`."""
    from ree.lm.generate import Wanted, generate
    from ree.lm.generation import Recorder
    from ree.lm.sample import Sampling

    prompt = model.folder.tokenizer.encode(PROMPT)
    wanted = Wanted(prompt, Sampling(temperature=0.8, top_p=0.95, seed=7), TOKENS)
    engine = runs.engine()
    generate(engine, model.folder.tokenizer, replace(wanted, max_new_tokens=2))  # plans are made
    recorder = Recorder(model.binding(False), prompt, wanted.sampling, TOKENS, (), (), signer)
    start = time.perf_counter()
    result = generate(engine, model.folder.tokenizer, wanted, recorder)
    seconds = time.perf_counter() - start
    return Made(model, prompt, recorder.finish(result.reason)[1], recorder.salt, seconds)


def _one_pass(name: str, made: Made) -> Line:
    """`ree.lm.check.verify`: prompt and tokens are read once."""
    from ree.lm import check

    start = time.perf_counter()
    try:
        found = check.verify(made.envelope, made.model, made.prompt, salt=made.salt, trusted_keys=None)
        objects, says = False, f"{len(found.steps)} tokens follow; to draw them took {made.seconds * 1e3:.0f} ms"
    except VerificationError as error:
        objects, says = True, short(str(error))
    time_ms = (time.perf_counter() - start) * 1e3
    return Line(name, "one pass", objects, says, time_ms, len(made.envelope), "one pass")


def _freivalds(made: Made) -> Line:
    """A disclosed trace of one pass: products by random projections, all else computed again."""
    from ree.freivalds.trace import check_trace
    from ree.lm import generation, tracing

    tokens = generation.read(made.envelope).claim.tokens
    trace = tracing.run(made.model.program, made.prompt, tokens)
    found = check_trace(trace)
    sizes = sum(stage.type.size_bytes() for stage in trace.manifest.stages)
    says = f"{found.products} products hold, {found.stages - found.products} other stages computed again"
    return Line(HONEST, "Freivalds", False, says, found.seconds * 1e3, sizes, "no product")


def _lies(made: Made, signer: Signer) -> list[tuple[str, Made]]:
    """A token that was not drawn, a seed that was not used, a model with one changed weight under this one's name."""
    from ree.lm import generation

    def signed(**changed: Any) -> Made:
        claim: Generation = replace(generation.read(made.envelope).claim, **changed)
        return replace(made, envelope=generation.make(claim, signer))

    claim = generation.read(made.envelope).claim
    middle = TOKENS // 2
    tokens = (*claim.tokens[:middle], (claim.tokens[middle] + 1) % made.model.vocab_size, *claim.tokens[middle + 1 :])
    constants = made.model.program.graph.constants
    number = next(n for n, c in enumerate(constants) if c.name.endswith("layers.1.mlp.down_proj.weight.int8"))
    other = with_weights(made.model.program, lambda n, array: flipped(array) if n == number else array)
    return [
        ("a token", signed(tokens=tokens)),
        ("the seed", signed(sampling=replace(claim.sampling, seed=8))),
        ("a weight", _generate(made.model, replace(made.model, program=other), signer)),
    ]


def show(lines: list[Line], console: Console) -> None:
    """The table and what it means."""
    from rich.table import Table

    title = f"{TOKENS} tokens of a language model in int8, and who notices a lie"
    table = Table("altered", "check", "verdict", "says", "ms", "bytes seen", "arithmetic", title=title)
    previous = ""
    for line in lines:
        if previous and line.claim != previous:
            table.add_section()
        verdict = "refused" if line.objects else "holds"
        first = line.claim if line.claim != previous else ""
        table.add_row(first, line.check, verdict, line.says, f"{line.time_ms:.0f}", f"{line.bytes:,}", line.work)
        previous = line.claim
    console.print(table, markup=False)
    text = (
        "The logits of a token have the same bits whether it was decoded or read with all others, so one pass over "
        "prompt and tokens checks a generation to the last bit, on any processor."
    )
    console.print(text, markup=False, highlight=False, soft_wrap=True)
