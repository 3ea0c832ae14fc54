"""Receipts of runs: made from a trace, and verified by running the program again.

The same program on the same input gives the same bits on any machine, so a receipt holds if a run of one's own has its
trace root and its output, and is refuted if it has not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from ree.commit import receipt, salted
from ree.commit.claim import Claim
from ree.commit.trace import Manifest, Trace, list_id
from ree.device.backend import CPU, backend_of
from ree.errors import RunError, VerificationError

if TYPE_CHECKING:
    from ree.commit.keys import PublicKey, Signer
    from ree.program import Program


def claim_of(manifest: Manifest, salt: bytes, nonce: bytes | None = None, device: str | None = None) -> Claim:
    """What a run's receipt states; salt: of the commitment to its input; device: where it ran (None: here)."""
    return Claim(
        program_id=manifest.program_id,
        weights_id=list_id(manifest.weights),
        input_commitment=salted.commit(salted.INPUT, salt, list_id(manifest.inputs)),
        output_id=list_id(manifest.outputs),
        trace_root=manifest.root,
        device=backend_of(CPU).text if device is None else device,
        nonce=nonce,
    )


def sign(trace: Trace, signer: Signer, salt: bytes | None = None, nonce: bytes | None = None) -> tuple[bytes, bytes]:
    """(receipt, salt) of a trace; salt: 32 bytes that open its commitment to the input (None: drawn now)."""
    salt = salted.fresh_salt() if salt is None else salt
    return receipt.make(claim_of(trace.manifest, salt, nonce, trace.program.device_text), signer), salt


def verify(
    envelope: bytes | str | dict[str, Any],
    program: Program,
    tensors: Sequence[Any],
    salt: bytes | None = None,
    trusted_keys: Collection[PublicKey] | None = None,
    nonce: bytes | None = None,
) -> receipt.Receipt:
    """The receipt, if its signature is good and a run on these inputs gives what it states; else VerificationError.

    tensors: the inputs in order; salt: opens the receipt's commitment to the input, which else is checked only
    through the trace root; trusted_keys: None takes any key, and the caller must look at `signer`; nonce: the one
    that the receipt must carry.
    """
    found = receipt.read(envelope, trusted_keys)
    # cheapest first: a receipt of another program needs no run
    found.claim.expect(program_id=program.program_id, **({} if nonce is None else {"nonce": nonce}))
    try:
        outputs, trace = program.run_committed(tensors)
    except RunError as error:
        raise VerificationError(f"the program cannot have been run on this input: {error}") from None
    manifest = trace.manifest
    if salt is not None:
        found.claim.open_input(salt, list_id(manifest.inputs))
    found.claim.expect(weights_id=list_id(manifest.weights), output_id=list_id(manifest.outputs))
    found.claim.expect(trace_root=manifest.root)
    _check_twins(found.claim, program, outputs)
    return found


def _check_twins(claim: Claim, program: Program, outputs: Sequence[Any]) -> None:
    """VerificationError: a SHA-256 that the receipt states, too, is not that of the program or of the outputs."""
    if claim.program_sha256 is not None:
        claim.expect(program_sha256=hashlib.sha256(program.description).digest())
    if claim.output_sha256 is not None:
        data = b"".join(program.output_bytes(outputs))
        claim.expect(output_sha256=hashlib.sha256(data).digest())
