"""Trimmed vocabularies segment as the full one does, and lose no text."""

import random
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

import gemmule.model.vocabulary_trim as trim
from gemmule.errors import ConfigError
from gemmule.model.added_tokens import AddedToken
from gemmule.model.spm_model import NORMAL, UNUSED, Piece
from gemmule.model.spm_train import FIRST_LEARNED_ID
from gemmule.model.tokenizer import Tokenizer, train_tokenizer

MODULES = [Path(__import__(name).__file__ or "") for name in ("ast", "json", "random", "textwrap")]
STRANGERS = [
    "Zażółć gęślą jaźń", "Съешь ещё этих мягких французских булок", "木曾路はすべて山の中である。",
    "\u2581 \u2581\u2581", "\t\t x\r\n\n\n", "👩‍👩‍👧 \U0010ffff\x00", " " * 40, "ﷺ\u0301e\u0301",
    "",
]  # fmt: skip


@pytest.fixture(scope="module")
def documents() -> list[str]:
    return [path.read_text() for path in MODULES]


@pytest.fixture(scope="module")
def full(documents: list[str]) -> Tokenizer:
    return train_tokenizer(documents, 2000)


def counts(tokenizer: Tokenizer, texts: list[str]) -> npt.NDArray[np.int64]:
    ids = [i for text in texts for i in tokenizer.encode(text)]
    return np.bincount(ids, minlength=tokenizer.vocab_size)


def oracle(tokenizer: Tokenizer, text: str) -> set[int]:
    """Every piece that appears while BPE encodes a text without spaces, straight from its rule."""
    ids = {p.text: i for i, p in enumerate(tokenizer.pieces) if p.kind == NORMAL}
    symbols = list(text)
    seen = {ids[symbol] for symbol in symbols if symbol in ids}
    while True:
        merged = [ids.get(a + b) for a, b in pairwise(symbols)]
        possible = [i for i in merged if i is not None]
        if not possible:
            return seen
        best = max(possible, key=lambda i: tokenizer.pieces[i].score)
        at = merged.index(best)
        symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
        seen.add(best)


@pytest.mark.parametrize("chosen", range(len(MODULES)))
def test_a_text_is_segmented_as_by_the_full_tokenizer(
    full: Tokenizer, documents: list[str], chosen: int
) -> None:
    text = documents[chosen]
    result = trim.trim_tokenizer(full, counts(full, [text]))
    assert len(result.kept_K) < full.vocab_size
    assert result.coverage == 1.0
    ids = result.tokenizer.encode(text)
    assert result.kept_K[ids].tolist() == full.encode(text)
    # Any part of it, too: a substring may end within a token.
    pick = random.Random(chosen)
    for line in pick.sample(text.splitlines(), 50):
        assert result.kept_K[result.tokenizer.encode(line)].tolist() == full.encode(line)


def test_every_piece_that_a_word_passes_through_is_kept(full: Tokenizer) -> None:
    longest = sorted(full.pieces, key=lambda piece: -len(piece.text))
    words = [p.text for p in longest if p.kind == NORMAL and p.text.isalpha()][:20]
    for word in words:
        kept = set(trim.trim_tokenizer(full, counts(full, [word])).kept_K.tolist())
        assert oracle(full, word) <= kept


def test_other_text_still_round_trips(full: Tokenizer) -> None:
    result = trim.trim_tokenizer(full, counts(full, ["return None"]))
    pick = random.Random(5)
    alphabet = "aé木\u2581 \n\t0𝒳"
    texts = [*STRANGERS, *("".join(pick.choices(alphabet, k=30)) for _ in range(300))]
    for text in texts:
        assert result.tokenizer.decode(result.tokenizer.encode(text)) == text


def test_fixed_ids_stay_and_the_order_of_the_others_too(full: Tokenizer) -> None:
    result = trim.trim_tokenizer(full, counts(full, ["return None"]))
    kept = result.kept_K.tolist()
    assert kept[:FIRST_LEARNED_ID] == list(range(FIRST_LEARNED_ID))
    assert kept == sorted(set(kept))
    assert [p.text for p in result.tokenizer.pieces] == [full.pieces[i].text for i in kept]


@pytest.mark.parametrize("size", [700, 1000, 1999, 2000])
def test_a_size_is_met_exactly(full: Tokenizer, documents: list[str], size: int) -> None:
    result = trim.trim_tokenizer(full, counts(full, documents[:1]), size=size)
    assert result.tokenizer.vocab_size == len(result.kept_K) == size
    for text in [*documents, *STRANGERS]:
        assert result.tokenizer.decode(result.tokenizer.encode(text)) == text


def test_room_is_filled_with_what_merges_first(full: Tokenizer) -> None:
    few = trim.trim_tokenizer(full, counts(full, ["return None"]))
    more = trim.trim_tokenizer(full, counts(full, ["return None"]), size=len(few.kept_K) + 100)
    added = set(more.kept_K.tolist()) - set(few.kept_K.tolist())
    ordinary = [
        i for i in trim.Merges(full.pieces, []).first() if i not in set(few.kept_K.tolist())
    ]
    assert len(added) == 100
    assert added == set(ordinary[:100])  # whose parts merge even earlier


def test_coverage_keeps_the_most_frequent_pieces(full: Tokenizer, documents: list[str]) -> None:
    count = counts(full, documents)
    sizes = []
    for coverage in (0.5, 0.9, 0.99, 1.0):
        result = trim.trim_tokenizer(full, count, coverage=coverage)
        assert result.coverage >= coverage
        assert result.coverage == count[result.kept_K].sum() / count.sum()
        sizes.append(len(result.kept_K))
    assert sizes == sorted(set(sizes))


def test_added_tokens_stop_ids_and_template_come_along(full: Tokenizer) -> None:
    pieces = full.pieces
    end = len(pieces)
    pieces += [Piece("<tool>", 0.0, 4), Piece("<done>", 0.0, 4)]
    added = [AddedToken("<tool>", end, special=True), AddedToken("<done>", end + 1, special=True)]
    fine_tune = Tokenizer.from_pieces(
        pieces, "a fine-tune", added_tokens=added, chat_template="{{ messages }}",
        stop_ids=[1, end + 1],
    )  # fmt: skip
    result = trim.trim_tokenizer(fine_tune, counts(fine_tune, ["return None"]))
    size = result.tokenizer.vocab_size
    assert result.tokenizer.added_tokens == (
        replace(added[0], id=size - 2),
        replace(added[1], id=size - 1),
    )
    assert result.tokenizer.chat_format == ("{{ messages }}", (1, size - 1))
    assert result.tokenizer.encode("a<tool>b", control=True).count(size - 2) == 1


def test_pieces_that_no_text_gives_are_dropped(full: Tokenizer) -> None:
    pieces = [*full.pieces, Piece("returnreturn", -1e9, UNUSED)]
    unused = Tokenizer.from_pieces(pieces, "unreached")
    result = trim.trim_tokenizer(unused, counts(unused, ["returnreturn"]))
    assert len(pieces) - 1 not in result.kept_K
    ids = result.tokenizer.encode("returnreturn")
    assert result.kept_K[ids].tolist() == unused.encode("returnreturn")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 100}, "size 100 is too small: the fixed tokens"),
        ({"size": 9999}, "size 9,999 is more than the tokenizer has: 2,000 tokens"),
        ({"coverage": 0.0}, "coverage 0 is not a fraction above 0 and at most 1"),
        ({"coverage": 1.5}, "coverage 1.5 is not a fraction"),
        ({"coverage": float("nan")}, "coverage nan is not a fraction"),
        ({"coverage": 0.999, "size": 700}, r"takes 1,\d+ tokens, more than the size of 700"),
    ],
)
def test_impossible_settings(
    full: Tokenizer, documents: list[str], settings: dict[str, float], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        trim.trim_tokenizer(full, counts(full, documents), **settings)  # type: ignore[arg-type]


def test_a_script_that_the_tokenizer_only_has_as_bytes(full: Tokenizer) -> None:
    with pytest.raises(ConfigError, match=r"9\d% of the text's tokens are single bytes"):
        trim.trim_tokenizer(full, counts(full, ["ᏣᎳᎩ ᎦᏬᏂᎯᏍᏗ"]))


def test_no_text(full: Tokenizer) -> None:
    with pytest.raises(ConfigError, match="the text has no tokens"):
        trim.trim_tokenizer(full, counts(full, []))
