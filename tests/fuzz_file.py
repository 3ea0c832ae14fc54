"""Mutates program files: loading and running must give a result or a `ree.Error`, never anything else.

`python -m tests.fuzz_file COUNT [SEED]` runs COUNT mutations; the seed is printed.
"""

from __future__ import annotations

import copy
import json
import random
import struct
import sys
import tempfile
from pathlib import Path
from typing import Any

import blake3
import numpy as np
import torch
from torch import nn

import ree
from ree import dims, inspection

INTEGERS = (0, 1, 2, 3, 5, 7, -1, -2, 16, 255, 1 << 31, (1 << 31) - 1, 1 << 40, 1 << 61, 1 << 63, 1 << 70, -(1 << 63))
ELEMENTS_MAX = 1 << 16  # larger inputs are not worth making


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(8, 24)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.project(x).view(x.shape[0], -1, 3, 2, 4).permute(2, 0, 3, 1, 4)
        return nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)


class Indexing(nn.Module):
    def forward(self, x: torch.Tensor, i: torch.Tensor) -> tuple[torch.Tensor, ...]:
        base = torch.zeros(3, 9).scatter_add(1, i, x[:3, :4])
        return base.gather(1, i), torch.cat([x, x.flip(1)])[1:], x.sort(-1)[1], x.cumsum(1), x.roll(2, 1)


def seeds(folder: Path) -> list[Path]:
    """Program files that the mutations start from: together they use most schedules."""
    torch.manual_seed(0)
    convolution = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, groups=2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 5)
    )
    batch = torch.export.Dim("batch", min=1, max=32)
    models: list[tuple[nn.Module, tuple[torch.Tensor, ...], Any]] = [
        (nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Softmax(-1)), (torch.randn(3, 6),), ({0: batch},)),
        (convolution, (torch.randn(2, 2, 6, 6),), None),
        (Attention(), (torch.randn(2, 5, 8),), None),
        (Indexing(), (torch.randn(4, 6), torch.randint(0, 6, (3, 4))), None),
        (nn.Sequential(nn.Embedding(10, 8), nn.LayerNorm(8)), (torch.randint(0, 10, (2, 3)),), None),
    ]
    paths = []
    for number, (model, inputs, shapes) in enumerate(models):
        paths.append(folder / f"seed_{number}.ree")
        ree.compile(model.eval(), inputs, dynamic_shapes=shapes).save(paths[-1])
    return paths


def split(data: bytes) -> tuple[dict[str, Any], bytes]:
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def join(header: dict[str, Any], program: Any, body: bytes) -> bytes:
    """A file of these parts with a correct digest, so that mutations reach the parser."""
    text = json.dumps(program, sort_keys=True, separators=(",", ":"))
    digest = blake3.blake3(text.encode()).hexdigest()
    header = {**header, "__metadata__": {"ree": text, "ree.digest": digest}}
    encoded = json.dumps(header).encode()
    return struct.pack("<Q", len(encoded)) + encoded + body


def mutate_value(rng: random.Random, value: Any) -> Any:
    if isinstance(value, bool):
        return rng.choice([not value, 1, "x", None])
    if isinstance(value, int):
        return rng.choice([*INTEGERS, value + 1, value - 1, -value, "1", 1.5, None, [value]])
    if isinstance(value, str):
        return rng.choice(["", value[:-1], value + "x", "f32", "i64", "bool", "u8", "add", "reshape", "conv", 3, None])
    if isinstance(value, list):
        copied = list(value)
        if copied and rng.random() < 0.6:
            n = rng.randrange(len(copied))
            return copied[:n] + copied[n + 1 :] if rng.random() < 0.5 else [*copied, copied[n]]
        return rng.choice([[], [[]], {}, 0, None, list(reversed(copied))])
    if isinstance(value, dict):
        copied_dict = dict(value)
        if copied_dict and rng.random() < 0.7:
            copied_dict.pop(rng.choice(sorted(copied_dict)))
        return rng.choice([copied_dict, {}, [], 0, {**value, "x": 1}])
    return rng.choice([0, 1, "x", [], True])


def mutate_tree(rng: random.Random, tree: Any) -> Any:
    """One random place of a JSON value changed; leaves more often than branches."""
    node, path = tree, []
    while isinstance(node, dict | list) and node and rng.random() < 0.95:
        key = rng.choice(sorted(node)) if isinstance(node, dict) else rng.randrange(len(node))
        path.append((node, key))
        node = node[key]
    if not path:
        return mutate_value(rng, tree)
    parent, key = path[-1]
    parent[key] = mutate_value(rng, node)
    return tree


def mutate(rng: random.Random, data: bytes) -> bytes:
    header, body = split(data)
    program = json.loads(header["__metadata__"]["ree"])
    kind = rng.random()
    if kind < 0.75:
        for _ in range(rng.choice([1, 1, 1, 2, 4])):
            program = mutate_tree(rng, copy.deepcopy(program))
        return join(header, program, body)
    if kind < 0.85:
        entry = rng.choice([k for k in header if k != "__metadata__"] or ["__metadata__"])
        header[entry] = mutate_tree(rng, copy.deepcopy(header[entry]))
        return join(header, program, body)
    if kind < 0.93:
        return data[: rng.randrange(len(data))]
    altered = bytearray(data)
    for _ in range(rng.choice([1, 2, 20])):
        altered[rng.randrange(len(altered))] = rng.randrange(256)
    return bytes(altered)


def attempt(path: Path, rng: random.Random) -> str:
    """Load and run one file; "refused" or "ran". Anything but a `ree.Error` passes through."""
    try:
        program = ree.load(path)
        _ = program.program_id
        binding = {name: max(low, min(3, high)) for name, (low, high) in program.graph.symbols.items()}
        arrays = []
        for declared in program.graph.inputs:
            shape = tuple(dims.evaluate(n, binding) for n in declared.type.shape)
            if np.prod([float(n) for n in shape]) > ELEMENTS_MAX:
                return "refused"
            raw = np.array([rng.randrange(5) for _ in range(int(np.prod(shape)))])
            arrays.append(raw.reshape(shape).astype(declared.type.dtype.numpy))
        inspection.describe(program)
        plain = program.run_flat(arrays)
        committed, _ = program.run_committed(arrays)
        assert [a.tobytes() for a in plain] == [a.tobytes() for a in committed]
    except ree.Error:
        return "refused"
    return "ran"


def fuzz(count: int, seed: int) -> dict[str, int]:
    rng = random.Random(seed)
    outcome = {"refused": 0, "ran": 0}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        originals = [path.read_bytes() for path in seeds(folder)]
        target = folder / "mutated.ree"
        for number in range(count):
            target.write_bytes(mutate(rng, rng.choice(originals)))
            try:
                outcome[attempt(target, rng)] += 1
            except BaseException:
                Path("fuzz_reproducer.ree").write_bytes(target.read_bytes())
                print(f"seed {seed}, mutation {number}: reproducer in fuzz_reproducer.ree", file=sys.stderr)
                raise
    return outcome


if __name__ == "__main__":
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}:", fuzz(int(sys.argv[1]), seed))
