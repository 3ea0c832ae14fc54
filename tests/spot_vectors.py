"""Spot-check proofs of small fixed runs, and proofs that must be refused: tests/vectors/spot.json.

`python -m tests.spot_vectors` writes the file anew. Draw and format here follow docs/SPEC.md and use nothing of
`ree.spot` but the count of work, so that each is held against the text and not against the other.
"""

from __future__ import annotations

import dataclasses
import json
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import blake3
import torch
from torch import nn

import ree
from ree.commit import receipt
from ree.commit.rerun import claim_of
from ree.commit.stages import Stages
from ree.commit.trace import Trace
from ree.spot.draw import works
from tests.receipt_vectors import OTHER, SALT, SEED, SIGNER, filled

PATH = Path(__file__).parent / "vectors" / "spot.json"
CHALLENGE = filled(13)
DRAWS = ((1, None), (5, None), (5, CHALLENGE), (40, CHALLENGE))


def steps(*shape: int) -> torch.Tensor:
    """Values that no generator of random numbers has a say in."""
    count = int(torch.tensor(shape).prod())
    return ((torch.arange(count) * 37 % 101).float() / 64 - 0.75).reshape(shape)


class Small(nn.Module):
    """A product whose operands have several chunks, a softmax, and counts (bool and i64)."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(steps(60, 9))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = torch.relu(x @ self.w)
        return torch.softmax(y, -1), (y > 1).sum(0)


@dataclass(frozen=True)
class Vector:
    name: str
    trace: Trace
    samples: int
    seed: bytes | None
    self_contained: bool

    @property
    def proof(self) -> bytes:
        return self.trace.prove(self.samples, self.seed, self.self_contained)

    @property
    def receipt(self) -> bytes:
        """The same at any time, on any machine and of any release."""
        claim = claim_of(self.trace.manifest, SALT)
        fixed = dataclasses.replace(claim, device="cpu", ree_version="0.1.0", issued_at=1_795_341_600)
        return receipt.make(fixed, SIGNER)


def vectors() -> Iterator[Vector]:
    model, x = Small().eval(), steps(20, 60)
    fixed = ree.compile(model, (x,))
    batch = {0: torch.export.Dim("batch", min=1, max=64)}
    dynamic = ree.compile(model, (x,), dynamic_shapes={"x": batch})
    for name, program, given, samples, seed, inside in (
        ("self-contained", fixed, x, 2, None, True),
        ("seeded", fixed, x, 3, CHALLENGE, False),
        ("dynamic", dynamic, x[:11], 1, CHALLENGE, True),
    ):
        _, trace = program.run(given, commit=True, keep=True)
        assert trace is not None
        yield Vector(name, trace, samples, seed, inside)


def drawn(root: bytes, samples: int, seed: bytes | None, stages: Stages, work: Sequence[int]) -> list[list[int]]:
    """[stage, element] of every sample, by the text of docs/SPEC.md."""
    hasher = blake3.blake3(derive_key_context="ree v1 spot check")
    hasher.update(root + (seed or bytes(32)))
    output = hasher.digest(32 * (2 * samples + len(stages)))
    numbers = (int.from_bytes(output[i : i + 32], "little") for i in range(0, len(output), 32))
    found = []
    for _ in range(samples):
        at = next(numbers) % sum(work)
        stage = next(n for n in range(len(work)) if at < sum(work[: n + 1]))
        found.append([stage, next(numbers) % stages[stage].type.numel()])
    seen = {stages[stage].digest for stage, _ in found}
    for stage in range(len(stages)):
        if work[stage] and stages[stage].digest not in seen:
            seen.add(stages[stage].digest)
            found.append([stage, next(numbers) % stages[stage].type.numel()])
    return found


# -- proofs to refuse --------------------------------------------------------------------------------


def places(vector: Vector) -> dict[str, int]:
    """Where fields of a proof start, by the table of docs/SPEC.md."""
    proof, found, at = vector.proof, {"flags": 8, "samples": 9}, 13

    def field(name: str, size: int) -> None:
        nonlocal at
        found[name] = at
        at += size

    def count() -> int:
        return int.from_bytes(proof[at : at + 4], "little")

    if vector.seed:
        field("seed", 32)
    field("trace root", 32)
    if vector.self_contained:
        field("program", 4 + count())
    for name, size in (("sizes", 8), ("inputs", 32), ("results", 32)):
        field(name, 4 + size * count())
    field("tensors", 4)
    field("first tensor", 5)
    field("runs", 4)
    return found


def corruptions(vector: Vector) -> dict[str, bytes]:
    """Proofs that differ from the right one in what their name says."""
    proof, at = vector.proof, places(vector)

    def put(place: int, data: bytes, cut: int | None = None) -> bytes:
        return proof[:place] + data + proof[place + (len(data) if cut is None else cut) :]

    def flipped(place: int) -> bytes:
        return put(place, bytes([proof[place] ^ 1]))

    def number(field: str) -> int:
        return int.from_bytes(proof[at[field] :][:4], "little")

    first_run, results = at["runs"] + 4, proof[at["results"] + 4 :][:64]
    found = {
        "nothing": b"",
        "another magic": b"reespit" + proof[7:],
        "another version": put(7, b"\x02"),
        "an unknown flag": put(at["flags"], bytes([proof[8] | 4])),
        "no samples": put(at["samples"], bytes(4)),
        "samples beyond the limit": put(at["samples"], struct.pack("<I", (1 << 20) + 1)),
        "another trace root": flipped(at["trace root"]),
        "a dynamic dimension too many": put(at["sizes"], struct.pack("<IQ", number("sizes") + 1, 3), 4),
        "another root of an input": flipped(at["inputs"] + 4),
        "another root of a result": flipped(at["results"] + 4),
        "a count of results that is too large": put(at["results"], b"\xff\xff\xff\x7f"),
        "the first two results change places": put(at["results"] + 4, results[32:] + results[:32]),
        "a tensor too few": put(at["tensors"], struct.pack("<I", number("tensors") - 1)),
        "a tensor of an unknown kind": put(at["first tensor"], b"\x03"),
        "a tensor that the program does not have": put(at["first tensor"] + 1, b"\x07"),
        "no runs of chunks": put(at["runs"], bytes(4)),
        "a chunk that is not there": put(first_run, b"\x7f"),
        "an empty run": put(first_run + 1, b"\x00"),
        "a number in a longer form": put(first_run, bytes([proof[first_run] | 128, 0]), 1),
        "a number of more than 63 bits": put(first_run, b"\x80" * 9 + b"\x01", 1),
        "a bit of an opened chunk": flipped(first_run + 2),
        "the last byte flipped": flipped(len(proof) - 1),
        "cut off": proof[:-1],
        "a byte too many": proof + b"\0",
    }  # fmt: skip
    if vector.seed:
        found["another seed"] = flipped(at["seed"])
        found["no seed"] = put(8, bytes([proof[8] ^ 2]) + proof[9:13], 5 + 32)
    else:
        found["a seed of zeros"] = put(8, bytes([proof[8] ^ 2]) + proof[9:13] + bytes(32), 5)
        found["a seed that nobody gave"] = put(8, bytes([proof[8] ^ 2]) + proof[9:13] + CHALLENGE, 5)
    if vector.self_contained:
        length = number("program")
        text = proof[at["program"] + 4 :][:length]
        for why, other in (
            ("the program with a blank", text.replace(b":", b": ", 1)),
            ("the program of another shape", text.replace(b"[60,9]", b"[9,60]")),
            ("no program", b""),
        ):
            found[why] = put(at["program"], struct.pack("<I", len(other)) + other, 4 + length)
    return found


def splice(whole: bytes, changed: bytes) -> dict[str, Any]:
    """How one becomes the other: `cut` bytes at `at` are replaced by `put`."""
    both = min(len(whole), len(changed))
    at = next((i for i in range(both) if whole[i] != changed[i]), both)
    same = next((i for i in range(both - at) if whole[-1 - i] != changed[-1 - i]), both - at)
    return {"at": at, "cut": len(whole) - same - at, "put": changed[at : len(changed) - same].hex()}


def spliced(whole: bytes, change: dict[str, Any]) -> bytes:
    return whole[: change["at"]] + bytes.fromhex(change["put"]) + whole[change["at"] + change["cut"] :]


def content() -> dict[str, Any]:
    """The vector file's values."""
    found = {}
    for vector in vectors():
        stages, root = vector.trace.manifest.stages, vector.trace.root
        work = works(stages)
        found[vector.name] = {
            "receipt": vector.receipt.decode("ascii"),
            "program": vector.trace.program.description.decode("ascii"),
            "trace_root": root.hex(),
            "work": work,
            "draws": [
                {"samples": n, "seed": seed and seed.hex(), "drawn": drawn(root, n, seed, stages, work)}
                for n, seed in DRAWS
            ],
            "seed": vector.seed and vector.seed.hex(),
            "samples": vector.samples,
            "proof": vector.proof.hex(),
            "refuse": [[why, splice(vector.proof, bad)] for why, bad in corruptions(vector).items()],
        }
    return {
        "_comment": "Written by `python -m tests.spot_vectors`. A checker who trusts public_key accepts each proof for"
        " its receipt and seed, and refuses it after each change of `refuse` (`cut` bytes at `at` are replaced by"
        " `put`), and if he trusts other_key alone. work: of each stage; drawn: [stage, element].",
        "private_key": SEED.hex(),
        "public_key": SIGNER.public.id,
        "other_key": OTHER.public.id,
        "proofs": found,
    }


if __name__ == "__main__":
    PATH.write_text(json.dumps(content(), indent=1) + "\n", encoding="utf-8")
