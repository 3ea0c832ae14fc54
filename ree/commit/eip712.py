"""The claim as EIP-712 typed data: what a wallet signs and a contract recomputes (eips.ethereum.org/EIPS/eip-712)."""

from __future__ import annotations

import re
from typing import Any

from ree.commit.claim import ABSENT, FIELDS, Claim
from ree.errors import InputError

DOMAIN_NAME = "ree"
DOMAIN_VERSION = "1"
STRUCT_NAME = "Receipt"
DOMAIN = (("name", "string"), ("version", "string"), ("chainId", "uint256"), ("verifyingContract", "address"))
STRUCT = tuple((f.json, str(f.kind)) for f in FIELDS)
ADDRESS_BYTES = 20

_ADDRESS = re.compile("0x[0-9a-fA-F]{40}")


def type_string(name: str, members: tuple[tuple[str, str], ...]) -> str:
    """A struct's type as it is hashed: Name(type member,...)."""
    return f"{name}({','.join(f'{kind} {member}' for member, kind in members)})"


def eip712_digest(claim: Claim, chain_id: int, contract: str | bytes) -> bytes:
    """The 32 bytes that are signed for a contract of a chain; absent digests are zero.

    contract: an address, 20 bytes or 0x and 40 hex digits. InputError: it is none, or the chain id has not
    1 to 256 bits, or the package that has Keccak is missing.
    """
    struct = _hash_struct(STRUCT_NAME, STRUCT, [_value(claim, f.name) for f in FIELDS])
    return keccak256(b"\x19\x01" + domain_separator(chain_id, contract) + struct)


def domain_separator(chain_id: int, contract: str | bytes) -> bytes:
    """The hash of the EIP712Domain, 32 bytes, which a contract keeps."""
    values = [DOMAIN_NAME, DOMAIN_VERSION, _chain(chain_id), _address(contract)]
    return _hash_struct("EIP712Domain", DOMAIN, values)


def typed_data(claim: Claim, chain_id: int, contract: str | bytes) -> dict[str, Any]:
    """The same as JSON values for a wallet's eth_signTypedData_v4; byte strings are 0x and hex."""
    address = "0x" + _address(contract).hex()
    message = {f.json: _value(claim, f.name) for f in FIELDS}
    return {
        "types": {
            "EIP712Domain": [{"name": name, "type": kind} for name, kind in DOMAIN],
            STRUCT_NAME: [{"name": name, "type": kind} for name, kind in STRUCT],
        },
        "primaryType": STRUCT_NAME,
        "domain": {
            "name": DOMAIN_NAME,
            "version": DOMAIN_VERSION,
            "chainId": _chain(chain_id),
            "verifyingContract": address,
        },
        "message": {name: "0x" + v.hex() if isinstance(v, bytes) else v for name, v in message.items()},
    }


def keccak256(data: bytes) -> bytes:
    """Ethereum's hash: Keccak with the padding that it had before SHA-3 was standardised."""
    try:
        from Crypto.Hash import keccak
    except ImportError:
        raise InputError("EIP-712 needs Keccak: pip install 'ree[chain]'") from None
    digest: bytes = keccak.new(digest_bits=256, data=data).digest()
    return digest


def _hash_struct(name: str, members: tuple[tuple[str, str], ...], values: list[Any]) -> bytes:
    """Keccak over the type's hash and each member in 32 bytes."""
    words = [_word(kind, value) for (_, kind), value in zip(members, values, strict=True)]
    return keccak256(keccak256(type_string(name, members).encode("ascii")) + b"".join(words))


def _word(kind: str, value: Any) -> bytes:
    if kind == "string":
        return keccak256(value.encode("ascii"))
    if kind == "bytes32":
        return bytes(value)
    if kind == "address":
        return bytes(32 - ADDRESS_BYTES) + bytes(value)
    return int(value).to_bytes(32, "big")


def _value(claim: Claim, name: str) -> Any:
    value = getattr(claim, name)
    return ABSENT if value is None else value


def _chain(chain_id: Any) -> int:
    if type(chain_id) is not int or not 0 < chain_id < 1 << 256:
        raise InputError("a chain id is an integer from 1 to 2^256 - 1")
    return chain_id


def _address(contract: Any) -> bytes:
    if type(contract) is str and _ADDRESS.fullmatch(contract):
        return bytes.fromhex(contract[2:])
    if type(contract) is bytes and len(contract) == ADDRESS_BYTES:
        return contract
    raise InputError(f"a contract's address is {ADDRESS_BYTES} bytes, or 0x and {2 * ADDRESS_BYTES} hex digits")
