"""Receipts: what is signed can be read back by anyone, and nothing else can."""

from __future__ import annotations

import contextlib
import inspect
import json
import random
import re
import stat
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import blake3
import pytest
import typer
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from eth_account.messages import _hash_eip191_message, encode_typed_data
from securesystemslib.dsse import Envelope
from securesystemslib.signer import SSlibKey
from typer.testing import CliRunner

import ree
from ree import cli_receipt
from ree.commit import claim as claim_module
from ree.commit import dsse, eip712, keys, receipt, salted
from ree.commit.claim import FIELDS, Claim, Kind
from ree.commit.keys import PublicKey, Signer
from ree.errors import InputError, VerificationError
from tests import fuzz_receipt, receipt_vectors
from tests.receipt_vectors import CHAIN_ID, CLAIMS, CONTRACT, FULL, OTHER, SIGNER, SMALL

MUTATIONS = 2500
VERIFY_S_MAX = 0.005
VECTORS = json.loads(receipt_vectors.PATH.read_text(encoding="utf-8"))
TRUSTED = [SIGNER.public]
GOOD = receipt.make(SMALL, SIGNER)


@pytest.fixture(params=list(CLAIMS))
def claim(request: pytest.FixtureRequest) -> Claim:
    return CLAIMS[request.param]


# -- what is good ------------------------------------------------------------------------------------


def test_round_trip(claim: Claim) -> None:
    text = receipt.make(claim, SIGNER)
    assert text == receipt.make(claim, SIGNER) and text.isascii() and b"\n" not in text and b" " not in text
    for form in (text, text.decode(), json.loads(text), json.dumps(json.loads(text), indent=2)):
        assert receipt.verify_envelope(form, TRUSTED) == claim
        found = receipt.read(form)
        assert (found.claim, found.signer) == (claim, SIGNER.public)
        assert found.id == blake3.blake3(found.payload, derive_key_context="ree v1 receipt").digest()
    assert receipt.verify_envelope(receipt.make(claim, OTHER), [OTHER.public, *TRUSTED]) == claim


def test_defaults_are_of_now_and_of_this_release() -> None:
    made = Claim(
        **{f.name: getattr(SMALL, f.name) for f in FIELDS if f.kind is Kind.DIGEST and not f.optional}, device="x"
    )
    assert abs(made.issued_at - time.time()) < 60 and made.ree_version == ree.__version__


def test_pre_authentication_encoding_is_that_of_the_specification() -> None:
    expected = b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"  # the example of DSSE's protocol.md
    assert dsse.pae("http://example.com/HelloWorld", b"hello world") == expected
    assert dsse.pae("é", b"") == b"DSSEv1 2 \xc3\xa9 0 "


def test_securesystemslib_verifies(claim: Claim) -> None:
    envelope = Envelope.from_dict(json.loads(receipt.make(claim, SIGNER)))
    key = SSlibKey(SIGNER.public.id, "ed25519", "ed25519", {"public": SIGNER.public.id})
    assert envelope.verify([key], 1) == {SIGNER.public.id: key}
    from_pem = serialization.load_pem_public_key(SIGNER.public.pem())
    assert isinstance(from_pem, Ed25519PublicKey)
    assert envelope.verify([SSlibKey.from_crypto(from_pem, keyid=SIGNER.public.id)], 1)
    statement = json.loads(envelope.payload)
    assert statement["_type"] == "https://in-toto.io/Statement/v1" and statement["predicate"] == claim.predicate()


def test_every_statement_is_signed_over(claim: Claim) -> None:
    """The envelope holds nothing beside the signed bytes, their type, and the signature with its key."""
    envelope = json.loads(receipt.make(claim, SIGNER))
    assert set(envelope) == {"payload", "payloadType", "signatures"}
    assert [set(s) for s in envelope["signatures"]] == [{"keyid", "sig"}]


def test_verifying_is_quick() -> None:
    times = []
    for _ in range(30):
        start = time.perf_counter()
        receipt.verify_envelope(GOOD, TRUSTED)
        times.append(time.perf_counter() - start)
    assert min(times) < VERIFY_S_MAX


def test_vectors_are_what_is_written() -> None:
    assert receipt_vectors.content() == VECTORS, "python -m tests.receipt_vectors"


def test_vectors() -> None:
    trusted = [PublicKey.from_hex(VECTORS["public_key"])]
    assert Signer(Ed25519PrivateKey.from_private_bytes(bytes.fromhex(VECTORS["private_key"]))).public in trusted
    for vector in VECTORS["receipts"].values():
        found = receipt.read(vector["envelope"], trusted)
        assert found.claim.predicate() == vector["predicate"] and found.payload.decode() == vector["payload"]
        assert found.id.hex() == vector["receipt_id"]
    for name, context in (("input", salted.INPUT), ("prompt", salted.PROMPT)):
        salt, value, commitment = (bytes.fromhex(VECTORS[name][k]) for k in ("salt", "id", "commitment"))
        assert blake3.blake3(salt + value, derive_key_context=context).digest() == commitment


@pytest.mark.parametrize(("why", "envelope"), VECTORS["refuse"], ids=[why for why, _ in VECTORS["refuse"]])
def test_corrupted_vectors_are_refused(why: str, envelope: str) -> None:
    for form in (envelope, envelope.encode("latin-1")):
        with pytest.raises(VerificationError) as caught:
            receipt.read(form, TRUSTED)
        assert str(caught.value).isprintable()


# -- the schema --------------------------------------------------------------------------------------


def test_receipts_follow_the_schema(claim: Claim) -> None:
    fuzz_receipt.VALIDATOR.check_schema(fuzz_receipt.SCHEMA)
    fuzz_receipt.VALIDATOR.validate(json.loads(receipt.read(receipt.make(claim, SIGNER)).payload)["predicate"])
    assert fuzz_receipt.SCHEMA["$id"] == receipt.PREDICATE_TYPE


def test_the_schema_has_the_fields_of_a_claim() -> None:
    assert set(fuzz_receipt.SCHEMA["properties"]) == {f.json for f in FIELDS}
    assert set(fuzz_receipt.SCHEMA["required"]) == {f.json for f in FIELDS if not f.optional}


def test_the_reader_and_the_schema_agree() -> None:
    """But for dates that no calendar has, and numbers like 1.0, which JSON Schema takes for integers."""
    rng, accepted = random.Random(7), 0
    for _ in range(3000):
        predicate = fuzz_receipt.mutate_tree(rng, rng.choice(list(CLAIMS.values())).predicate())
        valid = fuzz_receipt.VALIDATOR.is_valid(predicate)
        try:
            Claim.from_predicate(predicate)
            assert valid
            accepted += 1
        except VerificationError as error:
            assert not valid or "issuedAt" in str(error) or 1.0 in map(_if_float, predicate.values()), predicate
    assert accepted > 100


def _if_float(value: Any) -> float | None:
    return value if type(value) is float else None


# -- what is wrong -----------------------------------------------------------------------------------


def test_every_changed_byte_is_refused(claim: Claim) -> None:
    good = receipt.make(claim, SIGNER)
    for at, byte in enumerate(good):
        for other in {byte ^ 1 << bit for bit in range(8)} | set(b'\x00 "A0,\\'):
            if other != byte:
                with pytest.raises(VerificationError):
                    receipt.read(good[:at] + bytes([other]) + good[at + 1 :])


def test_every_missing_byte_and_every_truncation_is_refused(claim: Claim) -> None:
    good = receipt.make(claim, SIGNER)
    for at in range(len(good)):
        for altered in (good[:at], good[:at] + good[at + 1 :]):
            with pytest.raises(VerificationError):
                receipt.read(altered)


def test_a_byte_more_is_white_space_or_refused() -> None:
    for at in range(len(GOOD) + 1):
        for byte in (b" ", b"\n", b"A", b"0", b"=", b"\x00", b"{", b'"'):
            with contextlib.suppress(VerificationError):
                assert receipt.verify_envelope(GOOD[:at] + byte + GOOD[at:], TRUSTED) == SMALL and byte.isspace()


def test_fuzzed_receipts_are_refused_or_mean_what_was_signed() -> None:
    outcomes = fuzz_receipt.fuzz(MUTATIONS, seed=3)
    assert outcomes.total() == MUTATIONS and outcomes["refused"] > 0.8 * MUTATIONS
    assert outcomes["restated"] > 20 and outcomes["unchanged"] > 5  # or the mutations are too wild to say anything


def test_the_fuzzer_finds_what_a_careless_reader_accepts(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(PublicKey, "verifies", lambda *_: True)
        with pytest.raises(AssertionError):
            fuzz_receipt.fuzz(MUTATIONS, seed=3)
    monkeypatch.setattr(dsse.strict_json, "_object", dict)
    monkeypatch.setattr(claim_module.strict_json, "members", lambda value, *_: value)
    with pytest.raises((AssertionError, KeyError, TypeError)):
        fuzz_receipt.fuzz(MUTATIONS, seed=3)


@pytest.mark.parametrize(
    "value", [None, 1, 1.5, [], (), "", b"", {}, [GOOD], object(), bytearray(GOOD), {1: 2}, {None: 1}]
)
def test_what_is_no_receipt_is_refused(value: Any) -> None:
    with pytest.raises(VerificationError):
        receipt.read(value, TRUSTED)


def test_a_long_receipt_is_refused_before_it_is_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json, "loads", lambda *_, **__: pytest.fail("parsed"))
    for text in (b"[" * (1 << 24), GOOD.decode() + " " * (1 << 24)):
        with pytest.raises(VerificationError, match="longer than 16384"):
            receipt.read(text)


def test_nesting_is_bounded_whatever_the_recursion_limit_is() -> None:
    """Other libraries raise Python's limit; a stack that is deep already leaves less of it."""
    limit = sys.getrecursionlimit()
    for depth, new_limit, reason in (
        (16000, 10**6, "too many brackets"),
        (500, len(inspect.stack()) + 200, "not JSON"),
    ):
        sys.setrecursionlimit(new_limit)
        try:
            with pytest.raises(VerificationError, match=reason):
                receipt.read("[" * depth)
        finally:
            sys.setrecursionlimit(limit)


def test_nothing_is_parsed_before_the_signature_is_known_to_be_good(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receipt, "_claim", lambda _: pytest.fail("parsed"))
    for envelope in (
        receipt.make(SMALL, OTHER),
        receipt_vectors.corruptions()["another key's signature under this key"],
    ):
        with pytest.raises(VerificationError):
            receipt.read(envelope, TRUSTED)


def test_wrong_keys() -> None:
    with pytest.raises(VerificationError, match="not trusted"):
        receipt.read(GOOD, [OTHER.public])
    with pytest.raises(VerificationError, match="not trusted"):
        receipt.read(GOOD, [])
    for trusted in (SIGNER.public, SIGNER.public.id, [SIGNER.public.id], [SIGNER]):
        with pytest.raises(InputError, match="trusted keys"):
            receipt.read(GOOD, trusted)  # type: ignore[arg-type]


def test_a_signer_that_signs_wrong_gives_no_receipt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Signer, "sign", lambda *_: bytes(64))
    with pytest.raises(InputError, match="does not fit"):
        receipt.make(SMALL, SIGNER)


# -- claims ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("f", FIELDS, ids=lambda f: f.name)
def test_a_claim_holds_only_what_can_be_stated(f: claim_module.Field) -> None:
    wrong: dict[Kind, list[Any]] = {
        Kind.DIGEST: [bytes(32), b"x" * 31, b"x" * 33, "x" * 32, bytearray(b"x" * 32), 1],
        Kind.VERSION: [0, 2, True, "1", 1.0, None, 10**5000],
        Kind.TIME: [-1, 253402300800, 1.0, True, "2026-11-22T10:00:00Z", None, 10**5000],
        Kind.TEXT: ["", "x" * 129, "a\n", "é", " a", "a ", b"x", None, "\ud800"],
    }
    for value in wrong[f.kind] + ([] if f.optional else [None]):
        with pytest.raises(InputError, match=f"a claim's {f.name} "):
            replace(FULL, **{f.name: value})


def test_times() -> None:
    for seconds, text in (
        (0, "1970-01-01T00:00:00Z"),
        (951827696, "2000-02-29T12:34:56Z"),
        (253402300799, "9999-12-31T23:59:59Z"),
    ):
        made = replace(SMALL, issued_at=seconds)
        assert made.predicate()["issuedAt"] == text
        assert receipt.verify_envelope(receipt.make(made, SIGNER)) == made


def test_the_longest_claim_fits() -> None:
    for device, release in (("\\", '"'), ("[", "{")):
        longest = replace(FULL, device=device * 128, ree_version=release * 128)
        assert receipt.verify_envelope(receipt.make(longest, SIGNER), TRUSTED) == longest


def test_expectations() -> None:
    FULL.expect(program_id=FULL.program_id, nonce=FULL.nonce, issued_at=FULL.issued_at)
    SMALL.expect(nonce=None)
    with pytest.raises(VerificationError, match=r"the nonce is .*, the receipt says None"):
        SMALL.expect(nonce=FULL.nonce)
    with pytest.raises(
        VerificationError, match=f"the outputId is {'11' * 32}, the receipt says {SMALL.output_id.hex()}"
    ):
        SMALL.expect(trace_root=b"x", output_id=b"\x11" * 32)
    with pytest.raises(VerificationError, match="version"):
        SMALL.expect(version=True)
    with pytest.raises(InputError, match="no job"):
        SMALL.expect(job=1)


def test_salted_commitments_open_for_their_salt_and_value_only() -> None:
    FULL.open_input(receipt_vectors.SALT, receipt_vectors.INPUT_ID)
    FULL.open_prompt(receipt_vectors.PROMPT_SALT, receipt_vectors.PROMPT_ID)
    salt, value = receipt_vectors.SALT, receipt_vectors.INPUT_ID
    for other in ((value, salt), (bytes(32), value), (salt, bytes(32)), (receipt_vectors.PROMPT_SALT, value)):
        with pytest.raises(VerificationError, match="the salt does not open the input commitment"):
            FULL.open_input(*other)
    with pytest.raises(VerificationError, match="prompt commitment"):
        FULL.open_prompt(salt, value)
    with pytest.raises(VerificationError, match="no prompt"):
        SMALL.open_prompt(salt, value)
    assert salted.commit(salted.INPUT, salt, value) != salted.commit(salted.PROMPT, salt, value)
    assert len({salted.fresh_salt() for _ in range(100)}) == 100
    for other in ((salt[:31], value + b"x"), (salt, value[:31]), (salt.hex(), value), (None, value)):
        with pytest.raises(InputError, match="has 32 bytes"):
            salted.commit(salted.INPUT, *other)  # type: ignore[arg-type]


# -- keys --------------------------------------------------------------------------------------------


def test_a_new_key_signs_and_is_private(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    public = keys.generate(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and [p.name for p in tmp_path.iterdir()] == ["key.pem"]
    signer = Signer.load(path)
    assert signer.public == public
    assert receipt.verify_envelope(receipt.make(SMALL, signer), [public]) == SMALL
    (tmp_path / "pub.pem").write_bytes(public.pem())
    assert PublicKey.load(tmp_path / "pub.pem") == PublicKey.load(public.id.upper()) == public


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    taken, folder, dangling = tmp_path / "key.pem", tmp_path / "folder", tmp_path / "link.pem"
    taken.write_text("mine")
    folder.mkdir()
    dangling.symlink_to(tmp_path / "nowhere")
    for path in (taken, folder, dangling):
        with pytest.raises(InputError, match="exists already"):
            keys.generate(path)
    assert taken.read_text() == "mine" and dangling.is_symlink() and not (tmp_path / "nowhere").exists()
    for path in (
        tmp_path / "no" / "key.pem",
        taken / "key.pem",
        Path("a\0b"),
        tmp_path / ("x" * 300),
        Path("/dev/full/k"),
    ):
        with pytest.raises(InputError, match="cannot write"):
            keys.generate(path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "key.pem", "link.pem"]


def _pem(key: Any, password: bytes | None = None) -> bytes:
    encryption = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption))


def _public_pem(key: Any) -> bytes:
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return bytes(key.public_key().public_bytes(serialization.Encoding.PEM, form))


def test_private_key_files_that_are_none(tmp_path: Path) -> None:
    ours, path = Ed25519PrivateKey.generate(), tmp_path / "key.pem"
    cases = {
        b"": "not a private key",
        b"hello": "not a private key",
        b"\xff" * 100: "not a private key",
        _pem(ours)[:60]: "not a private key",
        _pem(ours).replace(b"M", b"N", 1): "not a private key",
        _public_pem(ours): "not a private key",
        _pem(X25519PrivateKey.generate()): "not an Ed25519 key",
        _pem(rsa.generate_private_key(65537, 2048)): "not an Ed25519 key",
        _pem(ours, b"secret"): "the key is encrypted",
        b"x" * (1 << 20): "too large",
    }
    for text, message in cases.items():
        path.write_bytes(text)
        with pytest.raises(InputError, match=message):
            Signer.load(path)
    path.write_bytes(_pem(ours, b"secret"))
    assert Signer.load(path, b"secret").public.raw == ours.public_key().public_bytes_raw()
    with pytest.raises(InputError, match="password is wrong"):
        Signer.load(path, b"other")
    path.write_bytes(_pem(ours))
    with pytest.raises(InputError, match="not encrypted"):
        Signer.load(path, b"secret")


def test_public_key_files_that_are_none(tmp_path: Path) -> None:
    ours, path = Ed25519PrivateKey.generate(), tmp_path / "pub.pem"
    cases = {
        b"": "not a public key",
        b"-----BEGIN PUBLIC KEY-----\n": "not a public key",
        _pem(ours): "this is a private key",
        _public_pem(X25519PrivateKey.generate()): "not an Ed25519 key",
        _public_pem(rsa.generate_private_key(65537, 2048)): "not an Ed25519 key",
    }
    for text, message in cases.items():
        path.write_bytes(text)
        with pytest.raises(InputError, match=message):
            PublicKey.load(path)


def test_unreadable_key_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for load in (Signer.load, PublicKey.load, receipt.load):
        for path in (tmp_path, tmp_path / "missing", "a\0b", "", 0.5):
            with pytest.raises(InputError, match="cannot read"):
                load(path)  # type: ignore[operator]

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)  # the superuser may read every file
    for load in (Signer.load, PublicKey.load, receipt.load):
        with pytest.raises(InputError, match=r"cannot read .*: Permission denied"):
            load(tmp_path / "key.pem")  # type: ignore[operator]


def _double(point: tuple[int, int]) -> tuple[int, int]:
    """Twice a point of edwards25519 (RFC 8032, section 5.1)."""
    p = 2**255 - 19
    d = -121665 * pow(121666, -1, p) % p
    x, y = point
    k = d * x * x * y * y
    return 2 * x * y * pow(1 + k, -1, p) % p, (y * y + x * x) * pow(1 - k, -1, p) % p


def test_keys_of_small_order_are_refused() -> None:
    """The table holds the y of every point whose eightfold is the identity, and the forms that are not reduced."""
    p = 2**255 - 19
    d = -121665 * pow(121666, -1, p) % p
    root = pow(2, (p - 1) // 4, p)
    for y in keys._SMALL_ORDER:
        square = (y * y - 1) * pow(d * y * y + 1, -1, p) % p
        x = pow(square, (p + 3) // 8, p)
        x = x if x * x % p == square else x * root % p
        assert x * x % p == square
        assert _double(_double(_double((x, y % p)))) == (0, 1)
        for sign in (0, 1 << 255):
            with pytest.raises(InputError, match="small order"):
                PublicKey((y | sign).to_bytes(32, "little"))
    assert {y % p for y in keys._SMALL_ORDER} == {0, 1, p - 1, keys._Y8, p - keys._Y8}  # 8 points: y of +x and -x


@pytest.mark.parametrize("raw", [b"", b"x" * 31, "x" * 32, None, b"x" * 33])
def test_public_keys_have_32_bytes(raw: Any) -> None:
    with pytest.raises(InputError, match="32 bytes"):
        PublicKey(raw)


# -- EIP-712 -----------------------------------------------------------------------------------------


def test_eip712_digest_is_that_of_eth_account(claim: Claim) -> None:
    for chain_id, contract in ((CHAIN_ID, CONTRACT), (1, b"\xab" * 20), (2**256 - 1, "0x" + "F" * 40)):
        data = eip712.typed_data(claim, chain_id, contract)
        expected = _hash_eip191_message(encode_typed_data(full_message=json.loads(json.dumps(data))))
        assert eip712.eip712_digest(claim, chain_id, contract) == expected
    vector = next(v for v in VECTORS["receipts"].values() if v["predicate"] == claim.predicate())
    assert eip712.eip712_digest(claim, CHAIN_ID, CONTRACT).hex() == vector["eip712_digest"]


def test_eip712_digest_depends_on_every_field() -> None:
    changed = {f.name: b"\x77" * 32 for f in FIELDS if f.kind is Kind.DIGEST}
    changed |= {"issued_at": 1, "device": "y", "ree_version": "y"}
    claims = [FULL, *(replace(FULL, **{name: value}) for name, value in changed.items())]
    digests = {eip712.eip712_digest(c, CHAIN_ID, CONTRACT) for c in claims}
    digests |= {eip712.eip712_digest(FULL, 1, CONTRACT), eip712.eip712_digest(FULL, CHAIN_ID, bytes(20))}
    assert len(digests) == len(claims) + 2 == len(FIELDS) - 2 + 3
    assert eip712.keccak256(b"").hex() == "c5d2460186f7233c927e7db2dcc703c0e500b653ca82273b7bfad8045d85a470"


def test_eip712_type_never_changes() -> None:
    assert VECTORS["eip712"]["type"] == eip712.type_string(eip712.STRUCT_NAME, eip712.STRUCT)
    spec = (receipt_vectors.PATH.parents[2] / "docs" / "SPEC.md").read_text(encoding="utf-8")
    assert re.sub(r"\s", "", VECTORS["eip712"]["type"]) in re.sub(r"\s", "", spec)


@pytest.mark.parametrize("chain_id", [0, -1, 1 << 256, True, "1", 1.0, None])
def test_eip712_chain_ids_that_are_none(chain_id: Any) -> None:
    with pytest.raises(InputError, match="chain id"):
        eip712.eip712_digest(SMALL, chain_id, CONTRACT)


@pytest.mark.parametrize("contract", ["", "0x", CONTRACT[2:], CONTRACT + "0", b"x" * 19, None, 1, "0x" + "g" * 40])
def test_eip712_addresses_that_are_none(contract: Any) -> None:
    with pytest.raises(InputError, match="address"):
        eip712.eip712_digest(SMALL, 1, contract)


def test_without_keccak_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "Crypto.Hash", None)
    with pytest.raises(InputError, match=r"pip install 'ree\[chain\]'"):
        eip712.eip712_digest(SMALL, 1, CONTRACT)


# -- the command line --------------------------------------------------------------------------------


def _run(*arguments: object) -> Any:
    app = typer.Typer()
    cli_receipt.add_to(app)
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_commands(tmp_path: Path) -> None:
    key, file, public_file = tmp_path / "key.pem", tmp_path / "r.json", tmp_path / "pub.pem"
    made = json.loads(_run("key", key, "--json").stdout)
    signer = Signer.load(key)
    assert made["public_key"] == signer.public.id and made["public_pem"].startswith("-----BEGIN PUBLIC KEY-----")
    file.write_bytes(receipt.make(FULL, signer))
    public_file.write_text(made["public_pem"])
    shown = _run("receipt", "show", file)
    assert shown.exit_code == 0 and f"traceRoot: {FULL.trace_root.hex()}" in shown.stdout
    assert json.loads(_run("receipt", "show", file, "--json").stdout)["claim"] == FULL.predicate()
    for public in (signer.public.id, public_file):
        found = _run("receipt", "verify", file, "--key", OTHER.public.id, "--key", public, "--nonce", FULL.nonce.hex())
        assert found.exit_code == 0 and found.stdout.strip() == f"good, signed by {signer.public.id}"
    assert "no --key was given" in _run("receipt", "verify", file).stdout
    assert json.loads(_run("receipt", "verify", file, "--json").stdout)["trusted"] is False
    assert _run("receipt").exit_code == 2


def test_commands_refuse(tmp_path: Path) -> None:
    file = tmp_path / "r.json"
    file.write_bytes(GOOD)
    cases: list[tuple[tuple[object, ...], type[Exception]]] = [
        (("receipt", "verify", file, "--key", OTHER.public.id), VerificationError),
        (("receipt", "verify", file, "--nonce", "11" * 32), VerificationError),
        (("receipt", "verify", file, "--nonce", "11"), InputError),
        (("receipt", "verify", file, "--nonce", " " + "1" * 63), InputError),
        (("receipt", "verify", file, "--key", "nothing"), InputError),
        (("receipt", "verify", tmp_path / "none.json"), InputError),
        (("receipt", "show", tmp_path), InputError),
        (("key", file), InputError),
    ]
    for arguments, expected in cases:
        assert type(_run(*arguments).exception) is expected
    file.write_bytes(GOOD.replace(b"A", b"B", 1))
    assert type(_run("receipt", "show", file).exception) is VerificationError
