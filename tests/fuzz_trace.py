"""Mutates trace files: nothing but a `ree.Error` may come out, and nothing altered may pass for the same trace.

`python -m tests.fuzz_trace COUNT [SEED]` runs COUNT mutations; the seed is printed.
"""

from __future__ import annotations

import contextlib
import copy
import json
import random
import struct
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import blake3
import numpy as np

import ree
from ree import dims, file
from ree.commit.stages import Kind
from ree.commit.trace import Manifest, Trace, tensor_ids
from ree.commit.trace_file import Form
from tests.fuzz_file import mutate_tree, seeds, split


@dataclass(frozen=True)
class Original:
    """A trace and its two files: with results and without."""

    trace: Trace
    files: dict[bool, bytes]


def original(program: ree.Program, folder: Path) -> Original:
    binding = {name: max(low, min(3, high)) for name, (low, high) in program.graph.symbols.items()}
    inputs = []
    for declared in program.graph.inputs:
        shape = tuple(dims.evaluate(n, binding) for n in declared.type.shape)
        values = np.arange(np.prod(shape)).reshape(shape) % 5
        inputs.append(values.astype(declared.type.dtype.numpy))
    _, trace = program.run_committed(inputs, keep=True)
    files = {}
    for stored in (True, False):
        trace.save(folder / "a.trace", stored)
        files[stored] = (folder / "a.trace").read_bytes()
    return Original(trace, files)


def join(header: Any, body: bytes, described: Any = None) -> bytes:
    """A file of these parts; described: the manifest's new JSON value, with a correct digest."""
    if described is not None:
        text = file.canonical(described)
        metadata = {"ree.trace": text.decode(), "ree.digest": blake3.blake3(text).hexdigest()}
        header = {**header, "__metadata__": metadata}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-(8 + len(encoded)) % 64)
    return struct.pack("<Q", len(encoded)) + encoded + body


def repaired(program: ree.Program, described: Any, stored: bool, body: bytes) -> bytes:
    """A file in which all but what the manifest lists was made to fit it: its root, its digest, the header."""
    sizes = tuple(described["sizes"])
    stages = program.stages(sizes)
    inputs, roots = (tuple(bytes.fromhex(x) for x in described[key]) for key in ("inputs", "roots"))
    weights = tensor_ids(stages, program.weight_roots, Kind.CONSTANT)
    return Form(Manifest(program.program_id, sizes, stages, inputs, weights, roots), stored).header + body


def relabelled(program: ree.Program, described: Any, header: Any, body: bytes) -> bytes:
    """A file whose manifest lists what its tensors really are: another trace, which nobody ran."""
    stages = program.stages(tuple(described["sizes"]))
    parts = {name: body[slice(*entry["data_offsets"])] for name, entry in header.items() if name != "__metadata__"}
    given = [blake3.blake3(parts[f"i{n}"]).digest() for n in range(len(described["inputs"]))]
    described["inputs"] = [x.hex() for x in tensor_ids(stages, given, Kind.INPUT)]
    stored = "r0" in parts
    if stored:
        described["roots"] = [blake3.blake3(parts[f"r{n}"]).hexdigest() for n in range(len(stages))]
    return repaired(program, described, stored, body)


def altered_bytes(rng: random.Random, data: bytes) -> bytes:
    if not data:
        return b"x"
    altered = bytearray(data)
    for _ in range(rng.choice([1, 2, 20])):
        altered[rng.randrange(len(altered))] ^= rng.randrange(1, 256)
    return bytes(altered)


def swapped(rng: random.Random, header: Any, body: bytes) -> bytes:
    """The bytes of two tensors in each other's place, as far as they go."""
    places = [entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"]
    (a, b), (c, d) = rng.choice(places), rng.choice(places)
    size = min(b - a, d - c)
    changed = bytearray(body)
    changed[a : a + size], changed[c : c + size] = body[c : c + size], body[a : a + size]
    return bytes(changed)


def mutate(rng: random.Random, chosen: Original) -> bytes:
    stored = rng.random() < 0.6
    data, program = chosen.files[stored], chosen.trace.program
    header, body = split(data)
    described = json.loads(header["__metadata__"]["ree.trace"])
    kind = rng.random()
    if kind < 0.4:
        for _ in range(rng.choice([1, 1, 2, 4])):
            described = mutate_tree(rng, copy.deepcopy(described))
        repair: Callable[[], bytes] = lambda: repaired(program, described, rng.random() < 0.8, body)  # noqa: E731
    elif kind < 0.6:
        body = altered_bytes(rng, body) if rng.random() < 0.7 else swapped(rng, header, body)
        repair = lambda: relabelled(program, described, header, body)  # noqa: E731
    elif kind < 0.75:
        entry = rng.choice(sorted(header))
        header[entry] = mutate_tree(rng, copy.deepcopy(header[entry]))
        return join(header, body)
    elif kind < 0.85:
        return data[: rng.randrange(len(data))] if rng.random() < 0.7 else data + bytes(rng.randrange(1, 99))
    else:
        return altered_bytes(rng, data)
    if rng.random() < 0.6:
        with contextlib.suppress(*file.MALFORMED, struct.error, ree.Error):  # what fits no header stays unrepaired
            return repair()
    return join(header, body, described)


def attempt(path: Path, data: bytes, chosen: Original) -> str:
    """Read one file; "refused", "unreadable", "same" or "other". Anything but a `ree.Error` passes through."""
    try:
        found = ree.load_trace(path, chosen.trace.program)
    except ree.Error:
        return "refused"
    try:
        inputs, tensors = list(found.inputs), list(found.tensors.values())
    except ree.Error:
        return "unreadable"
    if found.root != chosen.trace.root:
        return "other"
    assert data in chosen.files.values(), "an altered file passes for the same trace"
    kept = [*chosen.trace.inputs, *chosen.trace.tensors.values()]
    for array, expected in zip([*inputs, *tensors], kept, strict=True):
        assert array.tobytes() == expected.tobytes() and array.shape == expected.shape
    return "same"


def fuzz(count: int, seed: int) -> dict[str, int]:
    rng = random.Random(seed)
    outcome = {"refused": 0, "unreadable": 0, "other": 0, "same": 0}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        originals = [original(ree.load(path), folder) for path in seeds(folder)]
        target = folder / "mutated.trace"
        for number in range(count):
            chosen = rng.choice(originals)
            data = mutate(rng, chosen)
            target.write_bytes(data)
            try:
                outcome[attempt(target, data, chosen)] += 1
            except BaseException:
                Path("fuzz_reproducer.trace").write_bytes(data)
                program = originals.index(chosen)
                print(f"seed {seed}, mutation {number} of program {program}: fuzz_reproducer.trace", file=sys.stderr)
                raise
    return outcome


if __name__ == "__main__":
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}:", fuzz(int(sys.argv[1]), seed))
