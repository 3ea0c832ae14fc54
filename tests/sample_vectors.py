"""Draws of tokens with fixed logits, and claims of other tokens: tests/vectors/sampling.json.

`python -m tests.sample_vectors` writes the file anew, with tests/sample_reference.py.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ree.lm.sample import Sampling
from tests import sample_reference as reference

PATH = Path(__file__).parent / "vectors" / "sampling.json"
INF = float("inf")
VOCAB = 40
TOP = 5


def numbers(stream: int, count: int = VOCAB, width: float = 8.0) -> np.ndarray:
    """Float32 values in [-width / 2, width / 2) that any language can make: the top 24 bits of Philox words."""
    words = [reference.philox([i, 0, 0, 2], [stream, 0])[0] >> 8 for i in range(count)]
    return np.array([word * 2.0**-24 * width - width / 2 for word in words], np.float32)


def placed(values: np.ndarray, changes: dict[int, float]) -> np.ndarray:
    values = values.copy()
    values[list(changes)] = list(changes.values())
    return values


@dataclass(frozen=True, eq=False)
class Case:
    """What a draw depends on."""

    logits: np.ndarray
    sampling: Sampling
    prompt: Sequence[int] = (1, 2, 3)
    drawn: Sequence[int] = ()

    @property
    def position(self) -> int:
        return len(self.prompt) + len(self.drawn)

    def draw(self) -> reference.Draw:
        found = reference.draw(self.logits, self.sampling, self.prompt, self.drawn, self.position)
        assert found is not None
        return found

    def to_json(self) -> dict[str, Any]:
        inputs = {"logits": hex_of(self.logits), "sampling": self.sampling.to_json()}
        return inputs | {"prompt": list(self.prompt), "drawn": list(self.drawn), "position": self.position}


def hex_of(values: np.ndarray) -> str:
    return values.astype("<f4").tobytes().hex()


def bits_of(value: float) -> str:
    return np.array(value, ">f4").tobytes().hex()


WARM = Sampling(temperature=1.0, seed=21)
TIED = np.round(numbers(3))
CASES = {
    "greedy": Case(numbers(1), Sampling()),
    "greedy, equal logits": Case(placed(TIED, {7: 9.0, 21: 9.0, 30: 9.0}), Sampling()),
    "greedy, zeros of both signs": Case(placed(np.full(VOCAB, -1, np.float32), {5: -0.0, 6: 0.0}), Sampling()),
    "temperature 1": Case(numbers(1), WARM),
    "temperature 0.7": Case(numbers(1), Sampling(temperature=0.7, seed=1)),
    "temperature 100": Case(numbers(1), Sampling(temperature=100.0, seed=1)),
    "the smallest temperature": Case(numbers(1), Sampling(temperature=2.0**-149, seed=1)),
    "top_k 5": Case(numbers(2), replace(WARM, top_k=5)),
    "top_k among equal logits": Case(TIED, replace(WARM, temperature=4.0, top_k=10)),
    "top_p 0.9": Case(numbers(2), replace(WARM, top_p=0.9)),
    "top_p among equal logits": Case(TIED, replace(WARM, temperature=4.0, top_p=0.5)),
    "top_p of exactly half": Case(placed(np.full(VOCAB, -INF, np.float32), {3: 1.0, 9: 1.0}), replace(WARM, top_p=0.5)),
    "top_p of half an odd weight": Case(
        placed(np.full(VOCAB, -INF, np.float32), {3: 1.0, 9: 1.0, 11: -28.8}), replace(WARM, top_p=0.5)
    ),
    "the smallest top_p": Case(numbers(2), replace(WARM, top_p=2.0**-149)),
    "min_p 0.1": Case(numbers(2), replace(WARM, min_p=0.1)),
    "min_p 1": Case(placed(TIED, {7: 9.0, 21: 9.0}), replace(WARM, min_p=1.0)),
    "all limits": Case(numbers(4), Sampling(temperature=0.8, top_k=12, top_p=0.85, min_p=0.02, seed=(1 << 64) - 1)),
    "repetition penalty": Case(numbers(1), replace(WARM, repetition_penalty=1.3), (4, 4, 9), (11, 5)),
    "presence and frequency": Case(
        numbers(1), replace(WARM, presence_penalty=0.5, frequency_penalty=0.25), (4, 9), (11, 5, 11, 11)
    ),
    "negative penalties": Case(
        numbers(1),
        replace(WARM, repetition_penalty=0.5, presence_penalty=-2.0, frequency_penalty=-1.5),
        (4, 9),
        (11, 5, 11),
    ),
    "bias": Case(numbers(1), replace(WARM, logit_bias=((3, -100.0), (8, 5.5), (12, 0.1)))),
    "bias, then penalties": Case(
        numbers(1), replace(WARM, logit_bias=((11, 4.0),), repetition_penalty=2.0, frequency_penalty=0.3), (11,), (11,)
    ),
    "logits of +inf": Case(placed(numbers(1), {13: INF, 31: INF}), WARM),
    "logits of -inf": Case(placed(np.full(VOCAB, -INF, np.float32), {2: 0.5, 17: -0.5}), WARM),
    "all logits -inf": Case(np.full(VOCAB, -INF, np.float32), WARM),
    "all logits -inf, greedy": Case(np.full(VOCAB, -INF, np.float32), Sampling()),
    "huge logits": Case(placed(numbers(1), {0: 3e38, 1: 2.9e38, 2: -3e38}), replace(WARM, temperature=0.5)),
    "subnormal logits": Case(np.ldexp(numbers(5), -140).astype(np.float32), WARM),
    "weights of the last bit": Case(np.linspace(0, -31, VOCAB, dtype=np.float32), WARM),
    "one token": Case(np.array([-3.5], np.float32), WARM, (0,)),
    "no prompt": Case(numbers(6), WARM, ()),
}


def others() -> list[tuple[str, str, Case]]:
    """(what is changed, name of the case, the case with that change): each has another token."""
    names = ("temperature 1", "all limits", "repetition penalty", "presence and frequency")
    warm, limited, repeated, frequent = (CASES[name] for name in names)
    token = warm.draw().token
    changes: list[tuple[str, str, Case]] = [
        ("another seed", "temperature 1", replace(warm, sampling=replace(WARM, seed=22))),
        ("the seed's upper half", "temperature 1", replace(warm, sampling=replace(WARM, seed=21 + (1 << 32)))),
        ("another position", "temperature 1", replace(warm, prompt=(1, 2, 3, 4))),
        ("another temperature", "temperature 1", replace(warm, sampling=replace(WARM, temperature=0.5))),
        ("greedy", "temperature 1", replace(warm, sampling=replace(WARM, temperature=0.0))),
        ("the token's logit", "temperature 1", replace(warm, logits=placed(warm.logits, {token: -INF}))),
        ("another token's logit", "temperature 1", replace(warm, logits=placed(warm.logits, {0: 20.0}))),
        ("a bias", "temperature 1", replace(warm, sampling=replace(WARM, logit_bias=((token, -100.0),)))),
        ("another top_k", "all limits", replace(limited, sampling=replace(limited.sampling, top_k=3))),
        ("another top_p", "all limits", replace(limited, sampling=replace(limited.sampling, top_p=0.4))),
        ("another min_p", "all limits", replace(limited, sampling=replace(limited.sampling, min_p=0.9))),
        ("no penalty", "repetition penalty", replace(repeated, sampling=WARM)),
        ("another prompt", "repetition penalty", replace(repeated, prompt=(21, 22, 23))),
        ("other tokens drawn", "presence and frequency", replace(frequent, drawn=[frequent.draw().token] * 4)),
    ]
    return changes


def refused() -> dict[str, Any]:
    """Values that are the JSON of no `Sampling`, by what is wrong with them."""
    good = CASES["all limits"].sampling.to_json()

    def put(**members: Any) -> dict[str, Any]:
        return {key: value for key, value in (good | members).items() if value is not ...}

    return {
        "no object": [good],
        "a member too many": put(best_of=1),
        "a member too few": put(min_p=...),
        "another version": put(version=2),
        "a version that is true": put(version=True),
        "a number as number": put(temperature=1),
        "a number as text": put(temperature="1.0"),
        "a number in capitals": put(temperature="3F800000"),
        "a number of 7 digits": put(temperature="3f80000"),
        "a number with a blank": put(temperature="3f800000 "),
        "a negative zero": put(temperature="80000000"),
        "a NaN": put(temperature="7fc00000"),
        "an infinity": put(temperature="7f800000"),
        "a negative temperature": put(temperature="bf800000"),
        "a temperature above 100": put(temperature=bits_of(100.5)),
        "a top_p of 0": put(top_p="00000000"),
        "a top_p above 1": put(top_p="3f800001"),
        "a min_p above 1": put(min_p="3f800001"),
        "a repetition penalty of 0": put(repetition_penalty="00000000"),
        "a presence penalty above 2": put(presence_penalty="40000001"),
        "a frequency penalty below -2": put(frequency_penalty="c0000001"),
        "a top_k as text": put(top_k="40"),
        "a top_k that is true": put(top_k=True),
        "a negative top_k": put(top_k=-1),
        "a top_k beyond every vocabulary": put(top_k=1_000_001),
        "a seed as number": put(seed=7),
        "a seed of 15 digits": put(seed="0" * 15),
        "a seed of 17 digits": put(seed="0" * 17),
        "a seed that is null": put(seed=None),
        "biases as list": put(logit_bias=[[1, "3f800000"]]),
        "a bias as number": put(logit_bias={"1": 1}),
        "a bias above 100": put(logit_bias={"1": bits_of(101)}),
        "a token with a zero before it": put(logit_bias={"01": "3f800000"}),
        "a token with a sign": put(logit_bias={"-1": "3f800000"}),
        "a token beyond every vocabulary": put(logit_bias={"1000000": "3f800000"}),
    }


def _logprobs(logits: np.ndarray) -> dict[str, Any]:
    values, top = reference.logprobs(logits, min(TOP, len(logits)))
    return {"logprobs": hex_of(values), "top": [[token, bits_of(value)] for token, value in top]}


def content() -> dict[str, Any]:
    """The vector file's values."""
    cases = {}
    for name, case in CASES.items():
        found = case.draw()
        how = {"random_bits": f"{found.bits:016x}", "kept": found.kept, "weight": f"{found.total:016x}"}
        how |= {"number": f"{found.number:016x}"} | _logprobs(case.logits)
        cases[name] = case.to_json() | how | {"token": found.token}
    changed = []
    for change, name, case in others():
        claimed, token = cases[name]["token"], case.draw().token
        assert token != claimed, (change, name)
        changed.append({"change": change, "of": name, **case.to_json(), "token_claimed": claimed, "token": token})
    return {
        "_comment": "Written by `python -m tests.sample_vectors`. Logits and logprobs: little-endian float32 in hex;"
        " other floats: the hex digits of their bits; kept: in order, without those of weight 0; weight: their sum"
        " (0 for greedy). A verifier refuses token_claimed of `others`, and every value of `refuse` as sampling. Logits"
        " of `no_token` have none.",
        "cases": cases,
        "others": changed,
        "no_token": [hex_of(placed(numbers(1), {place: float("nan")})) for place in (0, 17, VOCAB - 1)],
        "refuse": [[why, value] for why, value in refused().items()],
    }


if __name__ == "__main__":
    PATH.write_text(json.dumps(content(), indent=1) + "\n", encoding="utf-8")
