"""`ree generate`, and what `ree verify --model` does: a language model's text with a receipt, checked by one pass."""

from __future__ import annotations

import datetime
import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from ree.cli_options import Device
from ree.errors import InputError, VerificationError

if TYPE_CHECKING:
    from ree.commit.keys import PublicKey
    from ree.lm.check import Verified
    from ree.lm.generate import Generated, Wanted
    from ree.lm.generation import Generation, Receipt, Recorder
    from ree.lm.model import LanguageModel
    from ree.lm.sample import Sampling

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Folder = Annotated[Path, typer.Option("--model", "-m", help="A Hugging Face model folder.")]
Prompt = Annotated[str | None, typer.Option(help="The prompt.")]
PromptFile = Annotated[Path | None, typer.Option(help="A file with the prompt; - reads standard input.")]
Dtype = Annotated[str | None, typer.Option(help="fp32, bf16 or int8; the folder's own if not given.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads; the result does not depend on them.")]
TEXT_BYTES_MAX = 16 << 20
ANYONE = "; anyone may have signed it: name the key that you trust with --key"


def add_to(root: typer.Typer) -> None:
    """Hang the command into the command line."""
    root.command("generate")(generate)


def generate(
    model: Folder,
    prompt: Prompt = None,
    prompt_file: PromptFile = None,
    chat: Annotated[bool, typer.Option("--chat", help="Put the prompt as a user's message to the template.")] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens to generate at most.")] = 64,
    temperature: Annotated[float | None, typer.Option(help="0: always the likeliest token.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Keep the likeliest tokens up to this probability.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Keep so many of the likeliest tokens; 0: all.")] = None,
    min_p: Annotated[float | None, typer.Option(help="Keep tokens at least so likely, next to the likeliest.")] = None,
    repetition_penalty: Annotated[float | None, typer.Option(help="Divide the logits of tokens seen before.")] = None,
    seed: Annotated[int, typer.Option(help="Of the random numbers, 64 bits.")] = 0,
    stop: Annotated[list[str] | None, typer.Option(help="A text that ends the generation; may be repeated.")] = None,
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="Go on after the model's end tokens.")] = False,
    dtype: Dtype = None,
    context: Annotated[int | None, typer.Option(min=1, help="Tokens that there is room for.")] = None,
    threads: Threads = None,
    device: Device = "cpu",
    receipt: Annotated[Path | None, typer.Option(help="Receipt to write; its salt goes beside it.")] = None,
    sign: Annotated[Path | None, typer.Option(help="Private key (Ed25519, PEM); yours by default.")] = None,
    nonce: Annotated[str | None, typer.Option(help="64 hex digits of whoever wants the receipt.")] = None,
    trace: Annotated[Path | None, typer.Option(help="Trace file to write: all tensors of one pass over it.")] = None,
    as_json: Json = False,
) -> None:
    """Generate text: streamed to standard output, the same for the same prompt and seed on every machine."""
    import ree
    from ree.lm import tracing
    from ree.lm.generate import Wanted
    from ree.lm.generate import generate as run

    if threads is not None:
        ree.threads(threads)
    if receipt is None and (sign is not None or nonce is not None):
        raise InputError("--sign and --nonce go with --receipt FILE")
    _check_outputs(receipt, trace)
    text = _prompt(prompt, prompt_file)
    given = {
        "temperature": temperature, "top_p": top_p, "top_k": top_k, "min_p": min_p,
        "repetition_penalty": repetition_penalty,
    }  # fmt: skip
    with Progress() as progress:
        found = _open(model, dtype, progress, device)
        moment = int(time.time())
        tokens = prompt_tokens(found, text, chat, moment)
        stops = frozenset() if ignore_eos else frozenset(found.folder.eos_ids)
        wanted = Wanted(tokens, _sampling(found, given, seed), max_new_tokens, stops, tuple(stop or ()))
        engine = found.engine(context=context)
        recorder = _recorder(found, wanted, chat, sign, nonce, moment) if receipt else None
        result = run(
            engine,
            found.folder.tokenizer,
            wanted,
            recorder,
            (lambda piece: None) if as_json else progress.text,
            lambda done: progress.tell(f"reading the prompt: {done} of {len(tokens)} tokens"),
        )
        if trace is not None:
            progress.tell("writing the trace")
            tracing.run(found.program, tokens, result.tokens).save(trace)
    described = _describe(result, len(tokens))
    if recorder is not None and receipt is not None:
        described["receipt"] = _write(recorder, result.reason, receipt)
    if as_json:
        print(json.dumps(described, indent=1))
        return
    print(flush=True)
    rate = f", {result.tokens_per_second:.1f} tokens/s" if len(result.tokens) > 1 else ""
    print(f"{len(result.tokens)} tokens{rate} (prompt: {len(tokens)} in {result.prefill_s:.2f} s)", file=sys.stderr)
    if recorder is not None:
        print(f"receipt {described['receipt']['id']}, {receipt}", file=sys.stderr)


@dataclass(frozen=True)
class Expected:
    """A receipt whose signature and statement are good, of this model and prompt as far as shows without a run."""

    envelope: bytes
    receipt: Receipt
    model: LanguageModel
    tokens: list[int]
    salt: bytes | None
    nonce: bytes | None
    keys: list[PublicKey] | None


@dataclass(frozen=True)
class Asked:
    """What a verifier names: a receipt, and the model, prompt and keys that it must fit."""

    receipt: Path
    model: Path
    prompt: str | None
    prompt_file: Path | None
    keys: list[str] | None
    salt: Path | None
    nonce: str | None
    dtype: str | None
    device: str = "cpu"


def expected(asked: Asked, progress: Progress) -> Expected:
    """Read a receipt, its model and its prompt; VerificationError: they do not belong together."""
    from ree import signing
    from ree.lm import check, generation

    envelope, trusted = generation.load(asked.receipt), signing.trusted(asked.keys)
    found = generation.read(envelope, trusted)  # a receipt that is no good needs no model
    beside = asked.receipt.with_name(asked.receipt.name + signing.SALT_SUFFIX)
    opening = signing.read_salt(asked.salt or (beside if beside.exists() else None))
    text = _prompt(asked.prompt, asked.prompt_file)
    lm = _open(asked.model, asked.dtype, progress, asked.device)
    if found.claim.program_id != lm.program_id:
        mine, theirs = lm.program_id.hex(), found.claim.program_id.hex()
        why = f"as {lm.dtype}: another model, or another --dtype"
        raise VerificationError(f"the receipt's programId is {theirs}, that of this folder {mine} {why}")
    tokens = prompt_tokens(lm, text, found.claim.chat_template_id is not None, found.claim.issued_at)
    wanted = None if asked.nonce is None else signing.digest(asked.nonce, "--nonce")
    check.expect(found.claim, lm, tokens, opening, wanted)
    return Expected(envelope, found, lm, tokens, opening, wanted, trusted)


@dataclass(frozen=True)
class Part:
    """What of a generation is looked at: all, one token, or one layer on the tensors of a trace."""

    step: int | None = None
    trace: Path | None = None
    layer: int | None = None


@dataclass(frozen=True)
class Answer:
    """What the asker got and asked for, as far as he says: the text, the seed."""

    text: str | None = None
    seed: int | None = None

    def check(self, claim: Generation, text: str) -> None:
        """VerificationError: the receipt is about another text or seed."""
        if self.text is not None and self.text != text:
            raise VerificationError(f"the receipt's text is {text[:200]!r}, not {self.text[:200]!r}")
        if self.seed is not None and self.seed != claim.sampling.seed:
            raise VerificationError(f"the receipt's seed is {claim.sampling.seed}, not {self.seed}")


def verify(asked: Asked, part: Part, answer: Answer) -> tuple[dict[str, Any], str]:
    """Check a generation's receipt by one pass over prompt and tokens: what was found, as JSON values and as text."""
    from ree.lm import check

    step = part.step
    if (part.trace is None) != (part.layer is None) or (part.layer is not None and step is not None):
        raise InputError("--trace FILE and --layer N go together, and without --step")
    with Progress() as progress:
        found = expected(asked, progress)
        text = _text_of(found)
        answer.check(found.receipt.claim, text)
        if part.trace is not None and part.layer is not None:
            return _verify_layer(found, part.trace, part.layer, progress)
        verified = check.verify(
            found.envelope,
            found.model,
            found.tokens,
            salt=found.salt,
            trusted_keys=found.keys,
            nonce=found.nonce,
            only=None if step is None else range(step, step + 1),
            progress=lambda done, total: progress.tell(f"checking: {done} of {total} tokens read"),
        )
    return _verdict(verified, found, text)


def _verify_layer(expected: Expected, path: Path, layer: int, progress: Progress) -> tuple[dict[str, Any], str]:
    """Compute one layer of a generation's trace again, on the trace's own tensors."""
    import ree
    from ree.commit.local import inconsistencies
    from ree.lm import layers, tracing

    receipt = expected.receipt
    progress.tell("reading the trace")
    trace = ree.load_trace(path, expected.model.program)
    tracing.check(trace, receipt.claim, expected.tokens, expected.model.vocab_size)
    of = layers.of_stages(trace.manifest.stages)
    chosen = [number for number, found in enumerate(of) if found == layer]
    if not chosen:
        raise InputError(f"the model has the layers {min(of)} (before the first) to {max(of)}, not {layer}")
    progress.tell(f"computing layer {layer}")
    if wrong := inconsistencies(trace, chosen):
        raise VerificationError(f"layer {layer}: stage {wrong[0][0]} of the trace, element {wrong[0][1]}, is wrong")
    result = {
        "receipt_id": receipt.id.hex(),
        "signer": receipt.signer.id,
        "verified": "one layer, on the tensors of the trace",
        "trace_root": trace.root.hex(),
        "layer": layer,
        "stages": len(chosen),
    }
    line = (
        f"layer {layer} holds: its {len(chosen)} of {len(of)} stages follow from what the trace says they read, and "
        f"the trace's logits are the receipt's; signed by {receipt.signer.id}"
    )
    return result, line + ("" if expected.keys else ANYONE)


def _text_of(found: Expected) -> str:
    """The text that the receipt's tokens spell, as the asker got it."""
    claim = found.receipt.claim
    speller = found.model.text(found.tokens, claim.stop_strings)
    spelt = [speller.push(token) for token in claim.tokens if token not in claim.stop_tokens]
    return "".join(spelt) + speller.finish()


def _verdict(verified: Verified, expected: Expected, text: str) -> tuple[dict[str, Any], str]:
    claim = verified.receipt.claim
    own_stops = set(expected.model.folder.eos_ids)
    count = len(claim.tokens)
    result = {
        "receipt_id": verified.receipt.id.hex(),
        "signer": verified.receipt.signer.id,
        "claim": claim.predicate(),
        "verified": "by one pass over prompt and tokens",
        "steps": len(verified.steps),
        "rows": verified.rows,
        "prompt_opened": verified.prompt_opened,
        "seconds": verified.seconds,
        "text": text,
        "seed": claim.sampling.seed,
        "stop_tokens_are_the_models": set(claim.stop_tokens) == own_stops,
    }
    what = f"all {count} tokens" if len(verified.steps) == count else f"token {verified.steps.start}"
    sampling = claim.sampling
    ends = f"at most {claim.max_new_tokens} tokens, stop tokens {list(claim.stop_tokens)}"
    ends += f", stop strings {list(claim.stop_strings)}" if claim.stop_strings else ""
    ends += "" if set(claim.stop_tokens) <= own_stops else " (not the model's own: it may have been cut short)"
    asked = (
        f"temperature {sampling.temperature:g}, top-k {sampling.top_k}, top-p {sampling.top_p:g}, seed {sampling.seed}"
    )
    line = (
        f"text: {json.dumps(text, ensure_ascii=False)}\n"
        f"asked for: {asked}; {ends}; ended by {claim.finish_reason}\n"
        f"the receipt holds: {what} {'follow' if len(verified.steps) > 1 else 'follows'} from the prompt, checked by "
        f"reading {verified.rows} tokens in one pass ({verified.seconds:.2f} s) instead of {count} steps; "
        f"signed by {verified.receipt.signer.id}"
    )
    line += "" if expected.keys else ANYONE
    line += "" if verified.prompt_opened else "; without the salt, its commitment to the prompt was not opened"
    return result, line


def inspect(path: Path, dtype: str | None, text: Path | None, device: str = "cpu") -> dict[str, Any]:
    """What a model folder holds; with a text, how well the model predicts it in fp32 and in this dtype."""
    from ree.lm.model import FP32

    with Progress() as progress:
        found = _open(path, dtype, progress, device)
        folder = found.folder
        described: dict[str, Any] = {
            "architecture": folder.architecture,
            "dtype": found.dtype,
            "context": folder.context,
            "vocabulary": folder.vocab_size,
            "program_id": found.program_id.hex(),
            "weights_id": found.weights_id.hex(),
            "tokenizer_id": found.tokenizer_id.hex(),
            "chat_template_id": None if folder.chat_template_id is None else folder.chat_template_id.hex(),
            "weights_bytes": sum(constant.type.size_bytes() for constant in found.program.graph.constants),
        }
        if text is None:
            return described
        tokens = folder.tokenizer.encode(_read(text, str(text)))
        narrow = _perplexity(found, tokens, progress)
        wide = found if found.dtype == FP32 else _open(path, FP32, progress, device)
        full = narrow if wide is found else _perplexity(wide, tokens, progress)
    change = (narrow / full - 1) * 100
    return described | {
        "tokens": len(tokens),
        "perplexity_fp32": full,
        "perplexity": narrow,
        "perplexity_change_percent": change,
    }


def _perplexity(model: LanguageModel, tokens: list[int], progress: Progress) -> float:
    from ree.lm.perplexity import perplexity

    def tell(done: int) -> None:
        progress.tell(f"{model.dtype}: {done} of {len(tokens)} tokens")

    return perplexity(model.engine(), tokens, tell)


def prompt_tokens(model: LanguageModel, text: str, chat: bool, moment: int) -> list[int]:
    """Tokens of a prompt; chat: as a user's message, through the model's template.

    moment: seconds since 1970, for templates that print the date, which they get in UTC; a receipt states it.
    """
    tokenizer = model.folder.tokenizer
    if not chat:
        return tokenizer.encode(text)
    now = datetime.datetime.fromtimestamp(moment, datetime.UTC)
    return tokenizer.chat([{"role": "user", "content": text}], now=now).ids


def _check_outputs(receipt: Path | None, trace: Path | None) -> None:
    """Refuse files that cannot be written before anything is generated. InputError: they cannot, or are the same."""
    from ree import signing

    files = [path for path in (receipt, trace) if path is not None]
    for path in files:
        if path.is_dir():
            raise InputError(f"cannot write {path}: it is a folder")
        if not os.access(path.parent, os.W_OK | os.X_OK):
            raise InputError(f"cannot write {path}: no such folder, or no right to write in it")
    if receipt is not None:
        files.append(receipt.with_name(receipt.name + signing.SALT_SUFFIX))
    if len({os.path.abspath(path) for path in files}) < len(files):
        raise InputError("receipt, its salt and the trace need files of their own")


def _prompt(prompt: str | None, file: Path | None) -> str:
    if (prompt is None) == (file is None):
        raise InputError("a prompt is needed: either --prompt TEXT or --prompt-file FILE")
    if file is None:
        assert prompt is not None
        return prompt
    return _read(file, "the prompt")


def _read(file: Path, what: str) -> str:
    """A text in a file, or of standard input. InputError: it is too long, or not UTF-8."""
    if str(file) == "-":
        data = sys.stdin.buffer.read(TEXT_BYTES_MAX + 1)
    else:
        with file.open("rb") as opened:
            data = opened.read(TEXT_BYTES_MAX + 1)
    if len(data) > TEXT_BYTES_MAX:
        raise InputError(f"{what} has more than {TEXT_BYTES_MAX} bytes")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise InputError(f"{what} is not UTF-8") from None


def _open(path: Path, dtype: str | None, progress: Progress, device: str = "cpu") -> LanguageModel:
    progress.tell("starting")
    from ree.lm.model import LanguageModel

    return LanguageModel.open(path, dtype, progress.tell, device=device)


def _sampling(model: LanguageModel, given: dict[str, Any], seed: int) -> Sampling:
    """What was given; for the rest what the folder proposes, if it says that tokens are to be drawn."""
    from ree.lm.sample import Sampling

    defaults = model.folder.defaults
    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
    proposed = {"temperature": 1.0} | {name: getattr(defaults, name) for name in names if defaults.do_sample}
    values = (proposed if defaults.do_sample else {}) | {n: v for n, v in given.items() if v is not None}
    return Sampling(**{name: value for name, value in values.items() if value is not None}, seed=seed)


def _recorder(
    model: LanguageModel, wanted: Wanted, chat: bool, sign: Path | None, nonce: str | None, moment: int
) -> Recorder:
    from ree import signing
    from ree.lm.generation import Recorder

    return Recorder(
        model.binding(chat),
        wanted.prompt,
        wanted.sampling,
        wanted.max_new_tokens,
        wanted.stop_tokens,
        wanted.stops,
        signing.signer_or_own(sign),
        None if nonce is None else signing.digest(nonce, "--nonce"),
        moment,
        model.program.device_text,
    )


def _write(recorder: Recorder, reason: str, path: Path) -> dict[str, Any]:
    from ree import signing
    from ree.lm import generation

    identity, envelope = recorder.finish(reason)
    salt = signing.write_with_salt(path, envelope, recorder.salt)
    return {"id": identity, "file": str(path), "salt": str(salt), "signer": generation.read(envelope).signer.id}


def _describe(result: Generated, prompt_count: int) -> dict[str, Any]:
    return {
        "text": result.text,
        "tokens": result.tokens,
        "prompt_tokens": prompt_count,
        "finish_reason": result.reason,
        "prefill_s": result.prefill_s,
        "decode_s": result.decode_s,
        "tokens_per_second": result.tokens_per_second,
        "receipt": None,
    }


class Progress:
    """A line on standard error that says what is being done, on terminals only, until text comes."""

    def __init__(self) -> None:
        self._status = Console(file=sys.stderr).status("starting")
        self._is_shown = False

    def __enter__(self) -> Progress:
        self._status.start()
        self._is_shown = True
        return self

    def __exit__(self, *error: object) -> None:
        self._hide()

    def tell(self, what: str) -> None:
        self._status.update(what)

    def text(self, piece: str) -> None:
        """Text of the model, to standard output as it comes."""
        self._hide()
        print(piece, end="", flush=True)

    def _hide(self) -> None:
        if self._is_shown:
            self._status.stop()
            self._is_shown = False
