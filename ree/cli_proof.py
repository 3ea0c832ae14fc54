"""`ree prove` and `ree check`: a spot-check proof of a signed run, made by running it again, checked without a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ree import cli_freivalds, cli_generate
from ree.cli_options import Device
from ree.errors import InputError, VerificationError

if TYPE_CHECKING:
    import numpy as np

    from ree.outline import Outline
    from ree.spot.check import Check

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Seed = Annotated[str | None, typer.Option(help="64 hex digits that the checker chose after he saw the receipt.")]


def add_to(root: typer.Typer) -> None:
    """Hang the commands into the command line."""
    root.command("prove")(prove)
    root.command("check")(check)


def prove(
    file: Annotated[Path, typer.Argument(help="A .ree file.")],
    inputs: Annotated[Path, typer.Option("--input", "-i", help="safetensors file; keys are the input names.")],
    receipt: Annotated[Path, typer.Option(help="The receipt of the run.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The proof to write.")],
    samples: Annotated[int, typer.Option(min=1, help="Elements to open, drawn in proportion to work.")] = 459,
    seed: Seed = None,
    self_contained: Annotated[bool, typer.Option("--self-contained", help="Put the program into the proof.")] = False,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Run a .ree file again and open what chance asks for; exit code 1 if the run is not the receipt's."""
    import ree
    from ree import atomic, signing, tensors
    from ree.commit import receipt as receipts

    found = receipts.read(receipts.load(receipt))
    chosen = None if seed is None else signing.digest(seed, "--seed")
    program = ree.load(file, device)
    found.claim.expect(program_id=program.program_id)
    given = tensors.program_inputs(program, tensors.read(inputs))
    _, trace = program.run_committed(given, keep=True)
    if trace.root != found.claim.trace_root:
        raise VerificationError("this run is not the receipt's: it has another trace root")
    proof = trace.prove(samples, chosen, self_contained)
    try:
        with atomic.replacing(output) as target:
            target.write(proof)
    except OSError as error:
        raise InputError(f"cannot write {output}: {error.strerror}") from None
    result = {"file": str(output), "bytes": len(proof), "samples": samples}
    print(json.dumps(result, indent=1) if as_json else f"{output}: {len(proof):,} bytes, {samples} samples")


def check(
    proof: Annotated[Path, typer.Argument(help="A proof, as `ree prove` writes it; with --freivalds a trace file.")],
    receipt: Annotated[Path, typer.Argument(help="The receipt that it is about.")],
    file: Annotated[Path | None, typer.Argument(help="The .ree file, unless the proof is self-contained.")] = None,
    key: Annotated[list[str] | None, typer.Option(help="Public key (hex or PEM) whose receipts count.")] = None,
    seed: Seed = None,
    samples: Annotated[int | None, typer.Option(min=1, help="The proof must have at least so many.")] = None,
    inputs: Annotated[Path | None, typer.Option("--input", "-i", help="The input that the run must be on.")] = None,
    salt: Annotated[Path | None, typer.Option(help="File with the salt of the commitment to the input.")] = None,
    nonce: Annotated[str | None, typer.Option(help="The nonce that the receipt must carry, 64 hex digits.")] = None,
    freivalds: Annotated[
        bool, typer.Option("--freivalds", help="Check a trace of an int8 program without computing its products.")
    ] = False,
    model: Annotated[Path | None, typer.Option("--model", "-m", help="The model folder of a generation.")] = None,
    prompt: cli_generate.Prompt = None,
    prompt_file: cli_generate.PromptFile = None,
    dtype: cli_generate.Dtype = None,
    as_json: Json = False,
) -> None:
    """Check a proof without running anything or reading weights: exit code 0 if it holds, 1 if it does not.

    With --freivalds: a trace with all its tensors, of an int8 program. Products are checked by random projections, all
    else is computed again from what the trace says that it read.
    """
    if freivalds:
        if (seed, samples, inputs) != (None,) * 3:
            raise InputError("--seed, --samples and --input go with proofs, not with --freivalds")
        if (file is None) == (model is None) or (file is not None and (prompt, prompt_file, dtype) != (None,) * 3):
            raise InputError("--freivalds needs the .ree file of a run, or --model FOLDER and a prompt")
        of: cli_freivalds.Run | cli_generate.Asked
        if model is not None:
            of = cli_generate.Asked(receipt, model, prompt, prompt_file, key, salt, nonce, dtype)
        else:
            assert file is not None
            of = cli_freivalds.Run(receipt, file, key, salt, nonce)
        result, line = cli_freivalds.check(proof, of)
        print(json.dumps(result, indent=1) if as_json else line)
        return
    if (model, prompt, prompt_file, dtype) != (None,) * 4:
        raise InputError("--model, a prompt and --dtype go with --freivalds")
    _check_proof(proof, receipt, file, key, seed, samples, inputs, salt, nonce, as_json)


def _check_proof(
    proof: Path,
    receipt: Path,
    file: Path | None,
    key: list[str] | None,
    seed: str | None,
    samples: int | None,
    inputs: Path | None,
    salt: Path | None,
    nonce: str | None,
    as_json: bool,
) -> None:
    from ree import outline, signing
    from ree.commit import receipt as receipts
    from ree.spot import check as module

    chosen = None if seed is None else signing.digest(seed, "--seed")
    keys = signing.trusted(key)
    program = None if file is None else outline.load(file)
    data, envelope = read(proof), receipts.load(receipt)
    given = None if inputs is None else _inputs(inputs, program or module.program_of(data))
    expected = None if nonce is None else signing.digest(nonce, "--nonce")
    opening = signing.read_salt(salt)
    found = module.check(data, envelope, program, keys, chosen, samples, given, opening, expected)
    doubt = "" if keys else "; anyone may have signed it: name the key that you trust with --key"
    if inputs is None and salt is None and nonce is None:
        doubt += "; the run may be on any input: --input, --salt or --nonce say which you mean"
    own = "" if file else "; the proof brought it along: compare it with the one that you mean"
    text = "\n".join(
        [
            *lines(found),
            f"program {found.receipt.claim.program_id.hex()}{own}",
            f"signed by {found.receipt.signer.id}{doubt}",
        ]
    )
    print(json.dumps(to_json(found), indent=1) if as_json else text)


def _inputs(path: Path, program: Outline) -> list[np.ndarray]:
    from ree import tensors

    return tensors.program_inputs(program, tensors.read(path))


def read(path: Path) -> bytes:
    """The bytes of a proof; InputError if the file cannot be read."""
    from ree.limits import PROOF_BYTES_MAX

    try:
        with path.open("rb") as source:
            return source.read(PROOF_BYTES_MAX + 1)  # one byte too many, and the check refuses it
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None


def to_json(found: Check) -> dict[str, Any]:
    """What a proof shows, as JSON values."""
    return {
        "receipt_id": found.receipt.id.hex(),
        "program_id": found.receipt.claim.program_id.hex(),
        "signer": found.receipt.signer.id,
        "samples": found.samples,
        "extra_samples": found.extra,
        "stages_touched": found.stages,
        "found_fraction_99": found.found_fraction,
        "single_element": found.single,
        "work_share": found.work_share,
        "bytes": found.size_bytes,
        "seeded": found.is_seeded,
    }


def lines(found: Check) -> list[str]:
    """What a proof shows, and what it does not."""
    grinding = (
        "drawn with your seed, so the claim was fixed before"
        if found.is_seeded
        else "drawn from the claim alone: whoever can try 2^g claims has 2^g chances to get away; --seed rules that out"
    )
    return [
        f"the proof holds: {found.samples} samples and {found.extra} more, in {found.stages} stages, "
        f"{found.size_bytes:,} bytes, {found.work_share:.2g} of the run's work",
        f"found with 99 % probability: errors in {found.found_fraction:.2%} or more of the run, by work",
        f"a single wrong element: found with probability {found.single:.1g}, so not ruled out",
        grinding,
    ]
