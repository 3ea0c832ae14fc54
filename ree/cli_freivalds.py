"""What `ree check --freivalds` does: a disclosed trace of an int8 program, checked without computing its products."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ree import cli_generate
from ree.errors import InputError, VerificationError

if TYPE_CHECKING:
    from ree.freivalds.trace import Checked


@dataclass(frozen=True)
class Question:
    """What is to be checked: a trace and the receipt of a run (file), or of a generation (model and prompt)."""

    trace: Path
    receipt: Path
    file: Path | None
    model: Path | None
    prompt: str | None
    prompt_file: Path | None
    dtype: str | None
    keys: list[str] | None
    salt: Path | None
    nonce: str | None


def check(question: Question) -> tuple[dict[str, Any], str]:
    """What was found, as JSON values and as a line. InputError: neither a program nor a model is named, or both."""
    if (question.file is None) == (question.model is None):
        raise InputError("--freivalds needs the .ree file of a run, or --model FOLDER and a prompt")
    receipt, checked, root, what = _generation(question) if question.model else _run(question)
    result = {
        "receipt_id": receipt.id.hex(),
        "signer": receipt.signer.id,
        "trace_root": root.hex(),
        "verified": "products by Freivalds' check, all else computed again",
        "products": checked.products,
        "stages": checked.stages,
        "seconds": checked.seconds,
    }
    line = (
        f"the trace holds, and it is {what}: {checked.products} products by random projections, "
        f"{checked.stages - checked.products} other stages computed again, in {checked.seconds:.2f} s; "
        f"signed by {receipt.signer.id}"
    )
    return result, line + ("" if question.keys else cli_generate.ANYONE)


def _run(question: Question) -> tuple[Any, Checked, bytes, str]:
    """A trace of a run whose receipt states its root."""
    import ree
    from ree import signing
    from ree.commit import receipt as receipts
    from ree.commit.trace import list_id
    from ree.freivalds.trace import check_trace

    if question.prompt is not None or question.prompt_file is not None or question.dtype is not None:
        raise InputError("a prompt and --dtype go with --model")
    assert question.file is not None
    found = receipts.read(receipts.load(question.receipt), signing.trusted(question.keys))
    nonce = {} if question.nonce is None else {"nonce": signing.digest(question.nonce, "--nonce")}
    program = ree.load(question.file)
    found.claim.expect(program_id=program.program_id, **nonce)
    trace = ree.load_trace(question.trace, program)
    if trace.root != found.claim.trace_root:
        raise VerificationError("the trace is not the receipt's: it has another root")
    opening = signing.read_salt(question.salt)
    if opening is not None:
        found.claim.open_input(opening, list_id(trace.manifest.inputs))
    return found, check_trace(trace), trace.root, "the receipt's run"


def _generation(question: Question) -> tuple[Any, Checked, bytes, str]:
    """A trace of one pass over a generation: its logits are the receipt's, and its tokens follow from them."""
    import ree
    from ree.freivalds.trace import check_trace
    from ree.lm import tracing

    assert question.model is not None
    with cli_generate.Progress() as progress:
        found = cli_generate.expected(
            question.receipt, question.model, question.prompt, question.prompt_file, question.keys, question.salt,
            question.nonce, question.dtype, progress,
        )  # fmt: skip
        progress.tell("reading the trace")
        trace = ree.load_trace(question.trace, found.model.program)
        tracing.check(trace, found.receipt.claim, found.tokens, found.model.vocab_size)
        progress.tell("checking the trace")
        checked = check_trace(trace)
    return (
        found.receipt,
        checked,
        trace.root,
        f"of the receipt's generation, all {len(found.receipt.claim.tokens)} tokens",
    )
