"""Compares a tokenizer of transformers with the data's tokenizer, by trying both on texts."""

from collections.abc import Callable, Iterator, Mapping
from difflib import SequenceMatcher
from typing import Any

from gemmule.data.dataset import Dataset
from gemmule.errors import TokenizerError
from gemmule.model.spm_train import FIRST_BYTE_ID
from gemmule.teachers.vocabulary_map import VocabularyMap, map_vocabulary

DOCUMENTS, MAX_CHARACTERS = 24, 2000  # documents of the data, and the length of each
_MOST_OTHERS = 0.05  # of a teacher's tokens may be others where the data's vocabulary lacks them
TEXTS = (
    "Hello, world! It's 3.14159 and 1,234,567 of 2024-02-29.",
    "def add(a, b):\n    return a + b  # tab\there\n\n\n\tif x == 'y':\n        pass\n",
    "  leading, double  and trailing spaces   ",
    "\n\n \n\t\t \r\n",
    "Grüße, naïve façade; Ελληνικά, русский, עברית, हिन्दी, 日本語, 한국어",
    "🙂👍🏽 e\u0301 \u00a0\u200b",
    '{"key": [1, -2.5e10, null], "url": "https://example.org/?a=b&c=%20d"}',
    "x² ≤ ∑∞ √2 \\frac{a}{b} $100 <b>bold</b> [INST] </s> @user #tag",
)


def probe_texts(dataset: Dataset) -> Iterator[str]:
    """Documents of the data, spread evenly, and texts on which tokenizers tend to differ."""
    yield from _documents(dataset)
    yield from TEXTS


def _documents(dataset: Dataset) -> Iterator[str]:
    split = dataset.split("train")
    count = min(DOCUMENTS, split.document_count)
    for i in range(count):
        ids = split.document(i * split.document_count // count)
        # A literal U+2581 is a space to a tokenizer.json (model/hf_tokenizer.py).
        yield dataset.tokenizer.decode(ids)[:MAX_CHARACTERS].replace("\u2581", "_")


def part_of(
    dataset: Dataset, theirs: Mapping[str, int], encode: Callable[[str], list[int]]
) -> VocabularyMap | None:
    """The data's tokens among a teacher's, if it splits the data's text into them.

    Args:
        dataset: the data.
        theirs: the teacher's id of each piece.
        encode: its ids of a text, without <bos>.

    Returns:
        The map; None when the teacher lacks a token, or splits documents of the data into more than
        a few tokens that are others.
    """
    ours = dataset.tokenizer
    vocabulary = map_vocabulary(ours, theirs)
    if vocabulary is None or theirs.get("<bos>") != int(vocabulary.ids_V[ours.bos_id]):
        return None
    same = count = 0
    for text in _documents(dataset):
        expected = encode(text)
        ids = vocabulary.ids_V[ours.encode(text)].tolist() if text else []
        matches = SequenceMatcher(None, expected, ids, autojunk=False).get_matching_blocks()
        same += sum(block.size for block in matches)
        count += len(expected)
    return vocabulary if same >= (1 - _MOST_OTHERS) * count else None


def differing(dataset: Dataset, theirs: Any) -> str | None:
    """The first difference between a transformers tokenizer and the data's; None: there is none."""
    ours = dataset.tokenizer
    for text in probe_texts(dataset):
        expected = ours.encode(text)
        ids = [int(i) for i in theirs(text, add_special_tokens=False).input_ids]
        if ids != expected:
            at = next(
                (i for i, (a, b) in enumerate(zip(ids, expected, strict=False)) if a != b),
                min(len(ids), len(expected)),
            )
            around = slice(max(0, at - 2), at + 6)
            shown = ours.decode(expected[around])
            return (
                f"it encodes {shown!r} (in {text[:30]!r}…) as {ids[around]}, and the data's as "
                f"{expected[around]}"
            )
    if theirs.bos_token_id != ours.bos_id:
        return f"its <bos> is {theirs.bos_token_id}, and the data's {ours.bos_id}"
    compared = range(FIRST_BYTE_ID, ours.vocab_size)
    pieces = ours.pieces
    for i, piece in zip(compared, theirs.convert_ids_to_tokens(list(compared)), strict=True):
        if piece != pieces[i].text:
            return f"id {i} is {piece!r} in it, and {pieces[i].text!r} in the data's"
    return None


def other_tokenizer(name: str, dataset: Dataset, difference: str) -> TokenizerError:
    """The error for a teacher whose ids stand for other tokens than the data's."""
    return TokenizerError(
        f"the teacher, {name}, has another tokenizer than the data in {dataset.path}: "
        f"{difference}. {OTHERWISE}"
    )


OTHERWISE = (
    "Prepare the data with the teacher's tokenizer if it is one of Gemma's, trimmed to the text "
    "(gemmule tokenizer trim), or learn across tokenizers: gemmule distill --cross-tokenizer"
)
