"""`ree dispute` and `ree judge`: claims, down to the step that is wrong, and a recorded game played again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ree.cli_options import Device
from ree.errors import InputError, VerificationError

if TYPE_CHECKING:
    from ree.referee.dispute import Claimed, Dispute
    from ree.referee.game import Verdict

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
FAILED = 1


def add_to(root: typer.Typer) -> None:
    """Hang the commands into the command line."""
    root.command("dispute")(dispute)
    root.command("judge")(judge)


def dispute(
    files: Annotated[list[Path], typer.Argument(help="One or two traces, then the .ree file.", metavar="A [B] M.ree")],
    at: Annotated[str | None, typer.Option(help="STAGE:ELEMENT to look at, instead of the first difference.")] = None,
    games: Annotated[Path | None, typer.Option(help="Folder for the games' transcripts, for `ree judge`.")] = None,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Who is wrong, where, and what a referee needs to see it: exit code 0 if every claim holds, 1 if one does not."""
    import ree
    from ree.referee import dispute as module

    if not 2 <= len(files) <= 3:
        raise InputError("one or two traces and a .ree file are expected")
    program = ree.load(files[-1], device)
    claims = [ree.load_trace(path, program) for path in files[:-1]]
    found = module.dispute(
        program, claims[0], claims[1] if len(claims) > 1 else None, None if at is None else place(at)
    )
    names = [str(path) for path in files[:-1]]
    if games is not None:
        _write(games, found)
    print(json.dumps(to_json(found, names), indent=1) if as_json else "\n".join(lines(found, names)))
    if found.wrong:
        raise typer.Exit(FAILED)


def judge(
    transcript: Annotated[Path, typer.Argument(help="A transcript, as `ree dispute --games` writes it.")],
    file: Annotated[Path, typer.Argument(help="The .ree file that it is about.")],
    root: Annotated[
        str | None, typer.Option(help="Trace root of the claim that it must be about, 64 hex digits.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Play a recorded game again, as a third party: exit code 0 if the claim won it, 1 if it lost."""
    from ree import outline, signing
    from ree.referee import dispute as module
    from ree.referee.game import TRANSCRIPT_BYTES_MAX, Party

    try:
        with transcript.open("rb") as source:
            data = source.read(TRANSCRIPT_BYTES_MAX + 1)
    except OSError as error:
        raise InputError(f"cannot read {transcript}: {error.strerror}") from None
    game = module.judge(data, outline.load(file))
    if game.verdict is None:
        raise InputError(f"{transcript} holds a game that is not over: it is {game.state.value}")
    result = {"trace_root": game.referee.trace_root.hex(), **_verdict(game.verdict)}
    claimed = game.referee.trace_root
    if root is not None and signing.digest(root, "--root") != claimed:
        raise VerificationError(f"the game is about the claim with trace root {claimed.hex()}")
    text = (
        f"claim {claimed.hex()}: the {game.verdict.winner.value} wins: {game.verdict.reason} (messages are not signed: "
        "this counts for who knows that they came from the two parties)"
    )
    print(json.dumps(result, indent=1) if as_json else text)
    if game.verdict.winner is Party.CHALLENGER:
        raise typer.Exit(FAILED)


def place(text: str) -> tuple[int, int]:
    """(stage, element) of STAGE:ELEMENT; InputError if it is none."""
    stage, _, element = text.partition(":")
    digits = "0123456789"
    if not stage or not element or set(stage + element) - set(digits) or len(text) > 40:
        raise InputError(f"--at takes STAGE:ELEMENT, two numbers, not {text!r}")
    return int(stage), int(element)


def _write(folder: Path, found: Dispute) -> None:
    from ree import atomic

    if not found.claims:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for claim in found.claims:
            with atomic.replacing(folder / f"{claim.name}.game") as file:
                file.write(claim.transcript)
    except OSError as error:
        raise InputError(f"cannot write the games to {folder}: {error.strerror}") from None


def to_json(found: Dispute, names: list[str]) -> dict[str, Any]:
    """A dispute as JSON values."""
    claims = []
    for name, claim in zip(names, found.claims, strict=False):
        entry = {"claim": name, "holds": claim.holds, "value": _text(claim.value), "expected": _text(claim.expected)}
        claims.append(entry | _verdict(claim.verdict))
    return {
        "stage": found.stage,
        "element": None if found.element is None else list(found.element),
        "nodes_compared": found.compared,
        "program_bytes": found.program_bytes,
        "claims": claims,
        "wrong": [entry["claim"] for entry in claims if not entry["holds"]],
    }


def _verdict(verdict: Verdict) -> dict[str, Any]:
    judged = verdict.judgement
    return {
        "winner": verdict.winner.value,
        "reason": verdict.reason,
        "moves": verdict.moves,
        "seen_bytes": verdict.seen_bytes,
        "fmas": judged.work.fmas if judged else 0,
        "instructions": judged.work.instructions if judged else 0,
    }


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def lines(found: Dispute, names: list[str]) -> list[str]:
    """A dispute in words."""
    if found.stage is None:
        whole = (
            "the claims agree: they commit to the same results"
            if len(names) > 1
            else "every result of the claim follows from what it read"
        )
        return [whole]
    text = [f"stage {found.stage}, element {list(found.element or ())} ({found.compared} nodes of the trees compared)"]
    for name, claim in zip(names, found.claims, strict=True):
        text += _claim_lines(name, claim, found.program_bytes)
    return text


def _claim_lines(name: str, claim: Claimed, program_bytes: int) -> list[str]:
    if claim.holds:
        return [f"{name} holds here: {_text(claim.value)} follows from its operands"]
    verdict = claim.verdict
    first = f"{name} is wrong: {verdict.reason}"
    if claim.value is not None:
        follows = _text(claim.expected) or "nothing, since an index is out of range"
        first += f"; it claims {_text(claim.value)}, from its own operands follows {follows}"
    work = verdict.judgement.work if verdict.judgement else None
    done = f"{work.fmas} FMAs and {work.instructions} instructions" if work else "no arithmetic"
    seen = f"{verdict.seen_bytes:,} bytes of messages and {program_bytes:,} of the element program"
    return [first, f"a referee sees that in {verdict.moves} moves: {done}, {seen}"]
