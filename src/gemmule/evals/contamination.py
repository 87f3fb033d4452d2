"""Which of a benchmark's documents share text with what a run was trained on.

The rule is common practice: a document counts as contaminated when any 13 words in a row of it are
in the training text. Words are runs of letters and digits in lower case; everything else separates
them. A document of fewer than 13 words cannot be judged, and is counted apart.

The benchmark's 13-grams become a sorted array of 64-bit hashes, and the training text goes by once.
A word's hash is a difference of running sums over its bytes, a gram's one over its words' hashes,
so that all of a piece of text are had at once; what agrees in its hash is compared word by word.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gemmule.data.dataset import Split
from gemmule.evals.training_data import NoTrainingData, open_training_data
from gemmule.model.tokenizer import Tokenizer
from gemmule.stats import proportion

N = 13
RULE = f"{N} words in a row, in lower case, letters and digits alone"

Progress = Callable[[int, int, str], None]
Hashes = npt.NDArray[np.uint64]

_TOKENS_AT_ONCE = 2**18  # about a megabyte of text
_BYTES_AT_ONCE = 2**21
# Odd numbers, of which powers modulo 2^64 have inverses.
_BYTE_BASE, _WORD_BASE = 0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F
_BREAK = b"\x01"  # a word that no benchmark has: no 13-gram spans two documents


@dataclasses.dataclass(frozen=True)
class Overlap:
    """What one task shares with the training text.

    Attributes:
        documents: how many the task has.
        too_short: documents with fewer than 13 words.
        shared: of each contaminated document, by index, how many of its 13-grams are there.
    """

    documents: int
    too_short: int
    shared: dict[int, int]

    @property
    def contaminated(self) -> list[int]:
        """Indexes of the documents that share at least one 13-gram."""
        return sorted(self.shared)

    def json(self) -> dict[str, Any]:
        """As it is kept in results; the share is of the documents that could be judged."""
        judged = self.documents - self.too_short
        return {
            "documents": self.documents,
            "too_short": self.too_short,
            "contaminated": self.contaminated,
            "shared": {str(i): self.shared[i] for i in self.contaminated},
            "share": proportion(len(self.shared), judged).json() if judged else None,
        }


@dataclasses.dataclass(frozen=True)
class Report:
    """What is known of a benchmark's overlap with a model's training text.

    Attributes:
        known: whether the training text was at hand.
        why: why not, or what else a reader should know; None: nothing.
        tasks: by name; empty when it is not known.
        data: name and fingerprint of the training text.
        megabytes: of text that went by.
        seconds: it took.
    """

    known: bool
    why: str | None
    tasks: dict[str, Overlap]
    data: dict[str, str] | None = None
    megabytes: float = 0.0
    seconds: float = 0.0

    def json(self) -> dict[str, Any]:
        """As it is kept in results."""
        return {
            "known": self.known,
            "why": self.why,
            "rule": RULE,
            "data": self.data,
            "tasks": {name: overlap.json() for name, overlap in self.tasks.items()},
        }


def contaminated(
    run: str | Path,
    texts: Mapping[str, Sequence[str]],
    *,
    data: Path | None = None,
    progress: Progress | None = None,
) -> Report:
    """Compares benchmarks with the whole training split of a run, read or not.

    Args:
        run: a run directory; for another model the answer is "unknown", unless `data` is given.
        texts: of each task its documents' texts, as the model is to see them.
        data: the data folder, where the run does not lead to it.
        progress: called as progress(done, total, "tokens").

    Raises:
        DataError: when `data` is not what the run was trained on, or is damaged.
    """
    try:
        training = open_training_data(run, data)
    except NoTrainingData as e:
        return Report(False, f"unknown: training data not at hand: {e}", {})
    began = time.perf_counter()
    dataset = training.dataset
    grams = _Grams(texts)
    size = 0
    if grams.hashes.size:
        split = dataset.split("train")
        for piece, done in _pieces(split, dataset.tokenizer):
            grams.look_for(piece)
            size += len(piece)
            if progress:
                progress(done, split.token_count, "tokens")
    return Report(
        True,
        None if training.reading is not None else "; ".join(training.notes),
        grams.overlaps(),
        {"name": dataset.name, "fingerprint": dataset.fingerprint},
        size / 1e6,
        time.perf_counter() - began,
    )


def words(text: str) -> list[str]:
    """The words that 13-grams are made of."""
    return _cleaned(text.replace("\x01", " ").encode(errors="replace")).decode().split()


class _Grams:
    """The 13-grams of all tasks' documents, and which of them were seen in the training text."""

    def __init__(self, texts: Mapping[str, Sequence[str]]) -> None:
        self._tasks = {name: len(documents) for name, documents in texts.items()}
        cleaned = [
            _cleaned(text.replace("\x01", " ").encode(errors="replace"))
            for documents in texts.values()
            for text in documents
        ]
        self._short = np.zeros(len(cleaned), bool)
        parts = []
        for first, group in _groups(cleaned):
            joined = (b" " + _BREAK + b" ").join(group)
            found = _Text(joined)
            breaks = np.cumsum([0, *(len(text) + 3 for text in group)])
            document = np.searchsorted(breaks, found.starts, side="right") - 1
            counts = np.bincount(document, minlength=len(group))
            counts[:-1] -= 1  # the break counts as a word of the document before it
            self._short[first : first + len(group)] = counts < N
            hashes = found.grams()
            whole = document[N - 1 :] == document[: len(hashes)]
            whole &= found.is_break[N - 1 :] == 0 if len(hashes) else True
            places = np.flatnonzero(whole)
            parts.append((hashes[places], first + document[places], places, found))
        self._texts = [part[3] for part in parts]
        self.hashes = np.concatenate([np.empty(0, np.uint64), *(p[0] for p in parts)])
        self._documents = np.concatenate([np.empty(0, np.int64), *(p[1] for p in parts)])
        self._places = np.concatenate([np.empty(0, np.int64), *(p[2] for p in parts)])
        owners = [np.full(len(p[0]), i) for i, p in enumerate(parts)]
        self._owners = np.concatenate([np.empty(0, np.int64), *owners])
        order = np.argsort(self.hashes, kind="stable")
        for name in ("hashes", "_documents", "_places", "_owners"):
            setattr(self, name, getattr(self, name)[order])
        self._seen = np.zeros(len(order), bool)
        bits = max(20, int(np.ceil(np.log2(16 * max(1, len(order))))))
        self._shift = np.uint64(64 - min(bits, 27))
        self._may_be = np.zeros(2 ** min(bits, 27), bool)
        self._may_be[self.hashes >> self._shift] = True

    def look_for(self, piece: bytes) -> None:
        """Marks those that are in a piece of training text."""
        text = _Text(piece)
        grams = text.grams()
        # Nearly none is left after this, at a byte's look-up each.
        candidates = np.flatnonzero(self._may_be[grams >> self._shift])
        first = np.searchsorted(self.hashes, grams[candidates])
        known = first < len(self.hashes)
        known[known] = self.hashes[first[known]] == grams[candidates[known]]
        for gram, entry in zip(candidates[known].tolist(), first[known].tolist(), strict=True):
            self._compare(text, gram, entry)

    def _compare(self, text: "_Text", gram: int, entry: int) -> None:
        there: list[bytes] | None = None
        wanted = self.hashes[entry]
        while entry < len(self.hashes) and self.hashes[entry] == wanted:
            if not self._seen[entry]:
                there = there or text.words(gram)
                ours = self._texts[self._owners[entry]].words(int(self._places[entry]))
                self._seen[entry] = ours == there
            entry += 1

    def overlaps(self) -> dict[str, Overlap]:
        """What was found, by task."""
        # The same 13 words twice in a document are one gram.
        pairs = np.stack((self._documents[self._seen], self.hashes[self._seen].view(np.int64)))
        documents = np.unique(pairs, axis=1)[0] if pairs.size else pairs[0]
        counts = np.bincount(documents, minlength=len(self._short))
        found, first = {}, 0
        for name, count in self._tasks.items():
            part = counts[first : first + count]
            shared = {int(i): int(part[i]) for i in np.flatnonzero(part)}
            short = int(self._short[first : first + count].sum())
            found[name] = Overlap(count, short, shared)
            first += count
        return found


class _Text:
    """A cleaned text: words of letters and digits between spaces.

    Attributes:
        starts: where each word begins.
        ends: where it ends.
        is_break: whether it stands for the end of a document.
    """

    def __init__(self, cleaned: bytes) -> None:
        self._cleaned = cleaned
        self._bytes = np.frombuffer(b" " + cleaned + b" ", np.uint8)
        word = self._bytes != 32
        self.starts = np.flatnonzero(word[1:] & ~word[:-1])
        self.ends = np.flatnonzero(word[:-1] & ~word[1:])
        self.is_break = self._bytes[self.starts + 1] == _BREAK[0]

    def grams(self) -> Hashes:
        """The hash of the 13 words from each word on."""
        count = len(self.starts)
        if count < N:
            return np.empty(0, np.uint64)
        sums = _running(self._bytes[1:-1].astype(np.uint64), _BYTE_BASE)
        back = _powers(_BYTE_BASE, len(sums), True)[self.starts]
        own = (sums[self.ends] - sums[self.starts]) * back
        sums = _running(_mixed(own), _WORD_BASE)
        last = count - N + 1
        return _mixed((sums[N:] - sums[:last]) * _powers(_WORD_BASE, last, True)[:last])

    def words(self, first: int) -> list[bytes]:
        """13 words themselves."""
        return self._cleaned[self.starts[first] : self.ends[first + N - 1]].split()


def _running(values: Hashes, base: int) -> Hashes:
    """Sums of value i times the i-th power of the base, before each place; one more than values."""
    sums = np.zeros(len(values) + 1, np.uint64)
    np.cumsum(values * _powers(base, len(values), False)[: len(values)], out=sums[1:])
    return sums


_POWERS: dict[tuple[int, bool], Hashes] = {}


def _powers(base: int, count: int, inverse: bool) -> Hashes:
    """The first powers of the base, or of its inverse, modulo 2^64; at least `count`."""
    found = _POWERS.get((base, inverse))
    if found is None or len(found) < count:
        found = np.full(
            max(count, _BYTES_AT_ONCE), pow(base, -1, 2**64) if inverse else base, np.uint64
        )
        found[0] = 1
        np.cumprod(found, out=found)
        _POWERS[base, inverse] = found
    return found


def _mixed(values: Hashes) -> Hashes:
    """Every bit of a sum spread over all bits (SplitMix64's last steps)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


# Bytes of ASCII: letters in lower case, and digits; of other characters they stay.
_TABLE = bytes(
    b if b > 127 or b == _BREAK[0] else ord(chr(b).lower()) if chr(b).isalnum() else 32
    for b in range(256)
)


def _cleaned(text: bytes) -> bytes:
    """A text in lower case with a space for everything that is no letter or digit."""
    if text.isascii():
        return text.translate(_TABLE)
    lowered = text.decode(errors="replace").lower()
    cleaned = lowered.encode().translate(_TABLE)
    for character in set(lowered):  # a few dozen, each quickly found
        if not character.isascii() and not character.isalnum():
            cleaned = cleaned.replace(character.encode(), b" ")
    return cleaned


def _groups(texts: list[bytes]) -> Iterator[tuple[int, list[bytes]]]:
    """Texts some at a time, with the number of the first."""
    group: list[bytes] = []
    first = size = 0
    for i, text in enumerate(texts):
        group.append(text)
        size += len(text) + 3
        if size >= _BYTES_AT_ONCE:
            yield first, group
            group, first, size = [], i + 1, 0
    if group:
        yield first, group


def _pieces(split: Split, tokenizer: Tokenizer) -> Iterator[tuple[bytes, int]]:
    """A split's text, cleaned, in pieces that end between words, and how many tokens are done.

    Each piece begins with the last 12 words of the one before.
    """
    decode = _decoder(tokenizer)
    rest = before = b""
    for first in range(0, split.token_count, _TOKENS_AT_ONCE):
        done = min(first + _TOKENS_AT_ONCE, split.token_count)
        text = rest + decode(split.read(first, done))
        if done < split.token_count:
            # A space is a whole character and no part of a word, in any encoding of these.
            end = max(text.rfind(b" "), text.rfind(b"\n"))
            text, rest = text[: end + 1], text[end + 1 :]
        piece = before + b" " + _cleaned(text)
        before = b" ".join(piece.rsplit(None, N - 1)[1 - N :])
        yield piece, done


def _decoder(tokenizer: Tokenizer) -> Callable[[npt.NDArray[np.int64]], bytes]:
    """Ids to the bytes of their text, where a document begins with a break; many ids at once."""
    pieces = [
        tokenizer.decode_bytes([i]).replace(_BREAK, b" ") for i in range(tokenizer.vocab_size)
    ]
    pieces[tokenizer.bos_id] = b" " + _BREAK + b" "
    table = np.frombuffer(b"".join(pieces), np.uint8)
    sizes = np.array([len(piece) for piece in pieces])
    places = np.cumsum(sizes) - sizes

    def decode(ids: npt.NDArray[np.int64]) -> bytes:
        lengths = sizes[ids]
        shifts = places[ids] - (np.cumsum(lengths) - lengths)
        return table[np.arange(lengths.sum()) + np.repeat(shifts, lengths)].tobytes()

    return decode
