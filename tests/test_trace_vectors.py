"""The vectors of traces: current, right by the letter of docs/SPEC.md, and their corruptions refused."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import blake3
import pytest

import ree
from ree.errors import Error
from tests import trace_vectors

CASES: dict[str, Any] = json.loads(trace_vectors.PATH.read_text(encoding="ascii"))


def derive(context: str, data: bytes) -> bytes:
    return blake3.blake3(data, derive_key_context=context).digest()


def listed(ids: list[bytes]) -> bytes:
    return derive("ree v1 tensor list", struct.pack("<I", len(ids)) + b"".join(ids))


def tree(leaves: list[bytes]) -> bytes:
    while len(leaves) > 1:
        pairs = [derive("ree v1 parent", a + b) for a, b in zip(leaves[::2], leaves[1::2], strict=False)]
        leaves = pairs + leaves[len(leaves) - len(leaves) % 2 :]
    return leaves[0]


def test_the_vectors_are_current() -> None:
    assert trace_vectors.document() == CASES


@pytest.mark.parametrize("name", CASES)
def test_every_digest_follows_by_the_letter_of_the_specification(name: str) -> None:
    case = CASES[name]
    given = [[bytes.fromhex(x) for x in case[key]] for key in ("input_ids", "weight_ids")]
    results = [bytes.fromhex(stage["tensor_id"]) for stage in case["stages"]]
    ids = [*given, results]
    leaves = []
    for index, stage in enumerate(case["stages"]):
        head = bytes.fromhex(stage["header"])
        assert derive("ree v1 tensor", head + bytes.fromhex(stage["data_root"])) == results[index]
        params, ports = stage["params"], stage["ports"]
        parts = [struct.pack("<Q", index), bytes.fromhex(stage["element_program"]), head]
        parts.append(struct.pack(f"<I{len(params)}q", len(params), *params) + struct.pack("<I", len(ports)))
        for port in ports:
            numbers = [*port["extents"], *port["strides"]]
            parts.append(struct.pack("<BQqB", port["kind"], port["number"], port["offset"], len(port["extents"])))
            parts.append(struct.pack(f"<{len(numbers)}q", *numbers))
        leaf = derive("ree v1 stage", b"".join(parts))
        assert leaf.hex() == stage["leaf"]
        read = b"".join(ids[port["kind"]][port["number"]] for port in ports)
        whole = struct.pack("<Q", index) + leaf + struct.pack("<I", len(ports)) + read + results[index]
        leaves.append(derive("ree v1 trace leaf", whole))
        assert leaves[-1].hex() == stage["trace_leaf"]
    outputs = [ids[source["kind"]][source["number"]] for source in case["outputs"]]
    lists = {"inputs": listed(ids[0]), "weights": listed(ids[1]), "outputs": listed(outputs)}
    assert {key: value.hex() for key, value in lists.items()} == case["list_ids"]
    sizes = struct.pack(f"<I{len(case['sizes'])}Q", len(case["sizes"]), *case["sizes"])
    root = b"\1" + bytes.fromhex(case["program_id"]) + sizes + b"".join(lists.values())
    root += struct.pack("<Q", len(leaves)) + tree(leaves)
    assert tree(leaves).hex() == case["tree_root"] and derive("ree v1 trace", root).hex() == case["trace_root"]


@pytest.mark.parametrize("name", CASES)
def test_the_files_are_read_and_their_corruptions_refused(name: str, tmp_path: Path) -> None:
    program, trace, _ = trace_vectors.traces()[name]
    data, path = bytes.fromhex(CASES[name]["file"]), tmp_path / "a.trace"
    path.write_bytes(data)
    assert ree.load_trace(path, program).root == trace.root
    for reason, patch in CASES[name]["refused"].items():
        path.write_bytes(trace_vectors.patched(data, patch))
        with pytest.raises(Error):
            read = ree.load_trace(path, program)
            pytest.fail(f"{reason}: {list(read.inputs)}")  # an input is compared when it is read
