"""Tokens to text one at a time, against `decode` of all of them; stop strings, against a search of the whole text."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence

import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers

from ree.errors import FormatError, InputError, LimitError
from ree.lm.decoders import byte_characters, stages
from ree.lm.text import STOP_CHARACTERS_MAX, STOPS_MAX, Detokeniser, StopStrings
from ree.lm.tokenizer import Settings, Tokenizer
from tests import lm_folders

CHARACTERS = byte_characters()
BYTES = {byte: character for character, byte in CHARACTERS.items()}
# bytes at which the rules of UTF-8 change (RFC 3629, section 4)
EDGES = bytes.fromhex("00 41 7f 80 8f 90 9f a0 bf c0 c1 c2 df e0 e1 ec ed ee ef f0 f1 f3 f4 f5 ff")
PIECES = ("▁", "▁the", "▁▁a", "h", "é", "▁�", "", "日", "\n", "<0x4>", "<0xZZ>", " b ", "##ing", "</w>", "n't", ".")
SPECIAL = ("<s>", "</s>", "▁special", "<0x41>x")


def build(model: models.Model, decoder: decoders.Decoder | None) -> Tokenizer:
    made = Backend(model)
    if decoder is not None:
        made.decoder = decoder
    made.add_special_tokens([tokenizers.AddedToken(s, special=True, normalized=False) for s in SPECIAL])
    made.add_tokens(["an added one", "Ġadded", "日本"])
    return Tokenizer(made.to_str().encode(), Settings())


def byte_level() -> Tokenizer:
    """All single bytes, some pairs, and tokens that no byte-level model learns."""
    pairs = [BYTES[0xE6] + BYTES[0x97], BYTES[0x20] + "a", BYTES[0xA5] + BYTES[0xE6], BYTES[0xF0] + BYTES[0x9F], "x y"]
    vocab = {text: n for n, text in enumerate([*map(BYTES.__getitem__, range(256)), *pairs])}
    return build(models.BPE(vocab=vocab, merges=[]), decoders.ByteLevel())


def fallback(decoder: decoders.Decoder) -> Tokenizer:
    names = [f"<0x{byte:02X}>" for byte in range(256)]
    return build(models.WordLevel({text: n for n, text in enumerate([*names, *PIECES])}, "h"), decoder)


def pieces(decoder: decoders.Decoder | None) -> Tokenizer:
    return build(models.WordLevel({text: n for n, text in enumerate(PIECES)}, "h"), decoder)


SPACES = decoders.Replace("▁", " ")
KINDS = {
    "byte level": byte_level,
    "llama 2": lambda: fallback(
        decoders.Sequence([SPACES, decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    ),
    "gemma": lambda: fallback(decoders.Sequence([SPACES, decoders.ByteFallback(), decoders.Fuse()])),
    "two spaces": lambda: pieces(decoders.Sequence([SPACES, decoders.Fuse(), decoders.Strip(" ", 2, 0)])),
    "fallback alone": lambda: fallback(decoders.ByteFallback()),
    "metaspace": lambda: pieces(decoders.Metaspace()),
    "metaspace first": lambda: pieces(decoders.Metaspace(prepend_scheme="first")),
    "metaspace never": lambda: pieces(decoders.Metaspace(prepend_scheme="never")),
    "nested": lambda: pieces(decoders.Sequence([decoders.Replace("h", "▁"), decoders.Metaspace(), decoders.Fuse()])),
    "none": lambda: pieces(None),
}
AT_THE_END = {  # what can only be decoded as a whole
    "word piece": lambda: pieces(decoders.WordPiece()),
    "ends of words": lambda: pieces(decoders.BPEDecoder()),
    "pattern": lambda: pieces(decoders.Replace(tokenizers.Regex("[a-h]+"), "x")),
    "replace the fused": lambda: pieces(decoders.Sequence([decoders.Fuse(), decoders.Replace("▁a", "b")])),
}
ALL = KINDS | AT_THE_END


@functools.cache
def tokenizer(kind: str) -> Tokenizer:
    return ALL[kind]()


def pushed(made: Tokenizer, ids: Sequence[int], skip_special: bool = True) -> list[str]:
    """What each token gives, then what the end gives."""
    detokeniser = Detokeniser(made, skip_special)
    return [*map(detokeniser.push, ids), detokeniser.finish()]


@pytest.mark.parametrize("kind", ALL)
@settings(max_examples=300, deadline=None)
@given(data=st.data(), skip_special=st.booleans())
def test_the_pieces_are_the_text(kind: str, data: st.DataObject, skip_special: bool) -> None:
    made = tokenizer(kind)
    numbers = st.integers(0, made.ids_end + 3)  # the last ones are no tokens
    late = st.integers(max(0, made.ids_end - 30), made.ids_end + 3)
    ids = data.draw(st.lists(numbers | late, max_size=40))
    assert "".join(pushed(made, ids, skip_special)) == made.decode(ids, skip_special)


@pytest.mark.parametrize("kind", ["byte level", "llama 2"])
@settings(max_examples=300, deadline=None)
@given(data=st.data(), text=st.text(max_size=12))
def test_text_among_stray_bytes(kind: str, data: st.DataObject, text: str) -> None:
    """Sequences that are nearly UTF-8: characters, cut off or with a byte put in, and special tokens between."""
    made = tokenizer(kind)
    raw = list(text.encode())
    for _ in range(data.draw(st.integers(0, 4))):
        raw.insert(data.draw(st.integers(0, len(raw))), data.draw(st.sampled_from(list(EDGES))))
    special = sorted(made.special_ids)
    ids = [n for byte in raw for n in ([byte, data.draw(st.sampled_from(special))] if byte % 7 == 0 else [byte])]
    assert "".join(pushed(made, ids)) == made.decode(ids)


@pytest.mark.parametrize("length", [1, 2, 3])
def test_broken_utf8_exhaustively(length: int) -> None:
    made = tokenizer("byte level")
    for raw in itertools.product(EDGES, repeat=length):
        assert "".join(pushed(made, raw)) == made.decode(raw), bytes(raw).hex()


def test_broken_utf8_of_four_bytes() -> None:
    made = tokenizer("byte level")
    for raw in itertools.product(bytes.fromhex("ed f0 f4"), EDGES, bytes.fromhex("41 80 bf f0"), EDGES):
        assert "".join(pushed(made, raw)) == made.decode(raw), bytes(raw).hex()


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=40))
@example("Grüße, 日本語 🏔️!")
def test_a_character_comes_with_the_token_that_completes_it(text: str) -> None:
    made = Tokenizer(lm_folders.tokenizer_text(400, False).encode(), Settings())
    ids = made.encode(text)
    detokeniser = Detokeniser(made)
    given_out = ""
    for count, token in enumerate(ids, start=1):
        given_out += detokeniser.push(token)
        whole = b"".join(bytes(CHARACTERS[c] for c in str(made.piece(n))) for n in ids[:count])
        assert given_out == whole.decode("utf-8", "ignore")
    assert detokeniser.finish() == ""
    assert given_out == text


def test_bytes_in_a_run_come_with_the_token_after_it() -> None:
    """Whether a run of byte tokens is text is known at its end; text around it does not wait."""
    made = tokenizer("llama 2")
    h, e3, bad = 256 + PIECES.index("h"), list("日".encode()), 0xFF
    assert pushed(made, [h, *e3, h, h]) == ["h", "", "", "", "日h", "h", ""]
    assert pushed(made, [*e3, bad, h]) == ["", "", "", "", "����h", ""]
    assert pushed(made, e3) == ["", "", "", "日"]


@pytest.mark.parametrize("kind", KINDS)
def test_work_per_token_does_not_grow(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is decoded twice: no list of tokens is ever decoded."""
    made = tokenizer(kind)
    ids = [n % made.ids_end for n in range(3 * made.ids_end)]
    expected = made.decode(ids)
    monkeypatch.setattr(Tokenizer, "decode", lambda *_: pytest.fail("decoded a list"))
    assert "".join(pushed(made, ids)) == expected


def test_after_a_prompt_the_space_stays() -> None:
    made = tokenizer("llama 2")
    the, h = 256 + PIECES.index("▁the"), 256 + PIECES.index("h")
    detokeniser = Detokeniser(made)
    assert [detokeniser.push(n) for n in (h, the)] == ["h", " the"]
    assert made.decode([the]) == "the"


def test_a_finished_text_stays_finished() -> None:
    detokeniser = Detokeniser(tokenizer("byte level"))
    detokeniser.push(0xE6)
    assert detokeniser.finish() == "�"
    assert detokeniser.finish() == ""
    with pytest.raises(InputError, match="finished"):
        detokeniser.push(0x41)


@pytest.mark.parametrize("token", [-1, 1 << 32, "a", 1.5, None])
def test_what_is_no_token_is_refused(token: object) -> None:
    with pytest.raises(InputError):
        Detokeniser(tokenizer("byte level")).push(token)  # type: ignore[arg-type]
    with pytest.raises(InputError):
        tokenizer("byte level").decode([token])  # type: ignore[list-item]


def test_published_decoders_are_streamed() -> None:
    assert all(stages(tokenizer(kind).decoder_state) is not None for kind in KINDS)
    assert all(stages(tokenizer(kind).decoder_state) is None for kind in AT_THE_END)


def test_a_decoder_that_panics_is_an_error_of_the_file() -> None:
    """This one looks at the last character of an empty text; its package panics, which is no Exception of Python."""
    made = pieces(decoders.Sequence([decoders.Fuse(), decoders.Strip(" ", 0, 1)]))
    assert "".join(pushed(made, [3, 0])) == made.decode([3, 0]) == "h▁"
    with pytest.raises(FormatError, match="out of bounds"):
        made.decode([])
    with pytest.raises(FormatError, match="out of bounds"):
        Detokeniser(made).finish()


@settings(max_examples=50, deadline=None)
@given(text=st.text(alphabet="the house, 日本 é", max_size=30))
def test_a_unigram_model_with_metaspace(text: str) -> None:
    """Encoded as sentencepiece models are, then decoded as it comes."""
    vocab = [
        ("<unk>", 0.0),
        *((piece, -1.0 - n / 10) for n, piece in enumerate(["▁", "▁the", "▁house", *"housetu, é"])),
    ]
    backend = Backend(models.Unigram(vocab, unk_id=0))
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    made = Tokenizer(backend.to_str().encode(), Settings())
    ids = made.encode(text)
    assert "".join(pushed(made, ids)) == made.decode(ids)


# -- stop strings ---------------------------------------------------------------------------


def searched(text: str, stops: Sequence[str]) -> tuple[str, str | None]:
    """The text before the stop that ends first, the longest of those; and which it is."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            longest = max(found, key=len)
            return text[: end - len(longest)], longest
    return text, None


def cut(text: str, places: Sequence[int]) -> list[str]:
    borders = [0, *sorted(p % (len(text) + 1) for p in places), len(text)]
    return [text[a:b] for a, b in itertools.pairwise(borders)]


STOPS = st.lists(st.text(alphabet="ab\n", min_size=1, max_size=5), max_size=4)
TEXTS = st.text(alphabet="ab\nc", max_size=30)


@settings(max_examples=500, deadline=None)
@given(text=TEXTS, stops=STOPS, places=st.lists(st.integers(0, 40), max_size=6))
@example(text="xabcd", stops=["abcd", "bc"], places=[])
@example(text="aaab", stops=["aab"], places=[1, 2, 3])
def test_however_the_text_is_cut(text: str, stops: list[str], places: list[int]) -> None:
    watcher = StopStrings(stops)
    given_out, seen = "", ""
    for piece in cut(text, places):
        safe, stopped = watcher.push(piece)
        given_out += safe
        seen += piece
        before, found = searched(seen, stops)
        assert stopped == (found is not None)
        assert watcher.found == found
        if stopped:
            assert given_out == before
        else:  # held back is the longest end that could become a stop, and nothing more
            ends = (seen[start:] for start in range(len(seen) + 1))
            held = next(end for end in ends if not end or any(stop.startswith(end) for stop in stops))
            assert given_out + held == seen
    before, found = searched(text, stops)
    assert given_out + watcher.finish() == before
    assert watcher.push("a") == (("", True) if found else ("a", False)) or any(s.startswith("a") for s in stops)


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=30), start=st.integers(0, 30), length=st.integers(1, 6))
def test_stops_across_the_borders_of_tokens(text: str, start: int, length: int) -> None:
    """A part of the text is the stop; the tokens cut it anywhere, also within a character."""
    stop = text[start : start + length]
    made = tokenizer("byte level")
    detokeniser, watcher = Detokeniser(made), StopStrings([stop] if stop else [])
    parts, stopped = [], False
    for token in text.encode():
        safe, stopped = watcher.push(detokeniser.push(token))
        parts.append(safe)
        if stopped:
            break
    if not stopped:
        safe, stopped = watcher.push(detokeniser.finish())
        parts.append(safe)
    expected, found = searched(text, [stop] if stop else [])
    assert "".join(parts) + watcher.finish() == expected
    assert stopped == (found is not None)


def test_long_repetitive_stops() -> None:
    stop = "a" * (STOP_CHARACTERS_MAX - 1) + "b"
    watcher = StopStrings([stop] * STOPS_MAX)
    assert watcher.push("a" * 3000) == ("a" * (3000 - len(stop) + 1), False)
    assert watcher.push("bc") == ("", True)
    assert watcher.finish() == ""


@pytest.mark.parametrize("stops", [[""], ["a", ""], [1], "ab", [None]])
def test_what_is_no_stop_is_refused(stops: list[str]) -> None:
    with pytest.raises(InputError):
        StopStrings(stops)


def test_bounds_of_stops() -> None:
    StopStrings(["a"] * STOPS_MAX)
    StopStrings(["a" * STOP_CHARACTERS_MAX])
    with pytest.raises(LimitError):
        StopStrings(["a"] * (STOPS_MAX + 1))
    with pytest.raises(LimitError):
        StopStrings(["a" * (STOP_CHARACTERS_MAX + 1)])
