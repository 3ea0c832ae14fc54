"""What `ree check --freivalds` does: a disclosed trace of an int8 program, checked without computing its products."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ree import cli_generate
from ree.errors import VerificationError

if TYPE_CHECKING:
    from ree.freivalds.trace import Checked


@dataclass(frozen=True)
class Run:
    """A run of a .ree file, as its receipt states it."""

    receipt: Path
    file: Path
    keys: list[str] | None
    salt: Path | None
    nonce: str | None


def check(path: Path, of: Run | cli_generate.Asked) -> tuple[dict[str, Any], str]:
    """Check a trace file, of a run or of a generation: what was found, as JSON values and as a line."""
    receipt, checked, root, what = _run(path, of) if isinstance(of, Run) else _generation(path, of)
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
    return result, line + ("" if of.keys else cli_generate.ANYONE)


def _run(path: Path, run: Run) -> tuple[Any, Checked, bytes, str]:
    """A trace of a run whose receipt states its root."""
    import ree
    from ree import signing
    from ree.commit import receipt as receipts
    from ree.commit.trace import list_id
    from ree.freivalds.trace import check_trace

    found = receipts.read(receipts.load(run.receipt), signing.trusted(run.keys))
    nonce = {} if run.nonce is None else {"nonce": signing.digest(run.nonce, "--nonce")}
    program = ree.load(run.file)
    found.claim.expect(program_id=program.program_id, **nonce)
    trace = ree.load_trace(path, program)
    if trace.root != found.claim.trace_root:
        raise VerificationError("the trace is not the receipt's: it has another root")
    opening = signing.read_salt(run.salt)
    if opening is not None:
        found.claim.open_input(opening, list_id(trace.manifest.inputs))
    return found, check_trace(trace), trace.root, "the receipt's run"


def _generation(path: Path, asked: cli_generate.Asked) -> tuple[Any, Checked, bytes, str]:
    """A trace of one pass over a generation: its logits are the receipt's, and its tokens follow from them."""
    import ree
    from ree.freivalds.trace import check_trace
    from ree.lm import tracing

    with cli_generate.Progress() as progress:
        found = cli_generate.expected(asked, progress)
        progress.tell("reading the trace")
        trace = ree.load_trace(path, found.model.program)
        tracing.check(trace, found.receipt.claim, found.tokens, found.model.vocab_size)
        progress.tell("checking the trace")
        checked = check_trace(trace)
    return (
        found.receipt,
        checked,
        trace.root,
        f"of the receipt's generation, all {len(found.receipt.claim.tokens)} tokens",
    )
