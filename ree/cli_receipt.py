"""`ree key` and `ree receipt`: keys that sign, and receipts looked at and verified without running anything again."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ree.commit.keys import PublicKey
    from ree.commit.receipt import Receipt
    from ree.lm.generation import Receipt as Generated

app = typer.Typer(help="Show and verify receipts; nothing is run again.", add_completion=False)

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
ReceiptFile = Annotated[Path, typer.Argument(help="A receipt.")]


def add_to(root: typer.Typer) -> None:
    """Hang the commands into the command line."""
    root.command("key")(key)
    root.add_typer(app, name="receipt")


@app.callback(invoke_without_command=True)
def _receipt(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit(2)


def key(
    file: Annotated[Path, typer.Argument(help="The PEM file to write; it must not exist.")], as_json: Json = False
) -> None:
    """Make an Ed25519 key that signs receipts; its public half is printed."""
    from ree.commit import keys

    public = keys.generate(file)
    _print({"file": str(file), "public_key": public.id, "public_pem": public.pem().decode("ascii")}, as_json, public.id)


@app.command()
def show(file: ReceiptFile, as_json: Json = False) -> None:
    """What a receipt states and who signed it; the signature must be good."""
    from ree import signing

    found = signing.describe(_read(file, None))
    _print(found, as_json, _lines(found))


@app.command()
def verify(
    file: ReceiptFile,
    trusted: Annotated[
        list[str] | None,
        typer.Option("--key", help="Public key that is trusted, 64 hex digits or a PEM file; may be repeated."),
    ] = None,
    nonce: Annotated[str | None, typer.Option(help="The nonce that the receipt must carry, 64 hex digits.")] = None,
    as_json: Json = False,
) -> None:
    """Check a receipt's signature and form; exit code 1 if anything about it is wrong."""
    from ree import signing

    public = signing.trusted(trusted)
    expected = {} if nonce is None else {"nonce": signing.digest(nonce, "--nonce")}
    found = _read(file, public)
    found.claim.expect(**expected)
    doubt = "; no --key was given, so anyone may hold that one" if public is None else ""
    result = signing.describe(found) | {"trusted": public is not None}
    _print(result, as_json, f"good, signed by {found.signer.id}{doubt}")


def _read(file: Path, trusted: Collection[PublicKey] | None) -> Receipt | Generated:
    """A receipt of a run or of a generation, whose signature and form are good."""
    from ree.commit import dsse, receipt, strict_json
    from ree.limits import GENERATION_RECEIPT_BYTES_MAX
    from ree.lm import generation

    envelope = receipt.load(file, GENERATION_RECEIPT_BYTES_MAX)
    signed, _ = dsse.unseal(envelope, receipt.PAYLOAD_TYPE, trusted, GENERATION_RECEIPT_BYTES_MAX)
    statement = strict_json.parse(signed, "the statement")
    kind = statement.get("predicateType") if isinstance(statement, dict) else None
    if kind == generation.PREDICATE_TYPE:
        return generation.read(envelope, trusted)
    return receipt.read(envelope, trusted)


def _lines(found: dict[str, Any]) -> str:
    flat = {"signer": found["signer"], "receiptId": found["receipt_id"], **found["claim"]}
    return "\n".join(f"{name}: {value}" for name, value in flat.items())


def _print(result: dict[str, Any], as_json: bool, text: str) -> None:
    print(json.dumps(result, indent=1) if as_json else text)
