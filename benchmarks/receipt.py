"""Receipts: time to sign one, and to verify one without running the program again."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace

from common import arguments, table, write

LIMIT_MS = 5.0  # of verifying: signature, form, digests
DIGESTS = ("tokenizer_id", "prompt_commitment", "nonce", "program_sha256", "output_sha256")


def main() -> None:
    options = arguments(__doc__).parse_args()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from ree.commit import eip712, receipt
    from ree.commit.claim import Claim
    from ree.commit.keys import Signer

    signer = Signer(Ed25519PrivateKey.from_private_bytes(bytes(range(32))))
    filled = bytes([1] * 32)
    small = Claim(
        program_id=filled,
        weights_id=filled,
        input_commitment=filled,
        output_id=filled,
        trace_root=filled,
        device="cpu x86_64 avx512",
    )
    trusted, runs, rows = [signer.public], 50 if options.quick else 2000, {}
    for name, claim in (("required fields", small), ("all fields", replace(small, **dict.fromkeys(DIGESTS, filled)))):
        envelope = receipt.make(claim, signer)
        rows[name] = {
            "bytes": len(envelope),
            "sign_ms": _median_ms(lambda claim=claim: receipt.make(claim, signer), runs),
            "verify_ms": _median_ms(lambda envelope=envelope: receipt.verify_envelope(envelope, trusted), runs),
            "eip712_ms": _median_ms(lambda claim=claim: eip712.eip712_digest(claim, 1, bytes(20)), runs),
        }
    cells = [[name, *row.values()] for name, row in rows.items()]
    print(table(["receipt", "bytes", "sign ms", "verify ms", "EIP-712 digest ms"], cells))
    write("receipt", {"verify_limit_ms": LIMIT_MS, "receipts": rows}, options)


def _median_ms(run: Callable[[], object], runs: int) -> float:
    """Median of `runs` runs, after one that loads what is imported late."""
    run()
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return round(statistics.median(times) * 1e3, 4)


if __name__ == "__main__":
    main()
