"""Which texts share a run of 13 words with a training text.

A word is a run of letters and digits in lower case; everything else separates words. A text of
fewer than 13 words cannot be judged and is counted separately.

The texts' 13-grams become a sorted array of 64-bit hashes, and the training text is read once, in
chunks. Grams whose hashes agree are compared word by word.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gemmule.data.dataset import Split
from gemmule.data.word_hashes import (
    BREAK,
    Hashes,
    JoinedTexts,
    WordHashes,
    encoded,
    groups,
    normalize,
)  # fmt: skip
from gemmule.model.tokenizer import Tokenizer
from gemmule.stats import proportion

N = 13
RULE = f"{N} words in a row, in lower case, letters and digits alone"

_TOKENS_AT_ONCE = 2**18  # about a megabyte of text


@dataclasses.dataclass(frozen=True)
class Overlap:
    """What the documents of one task share with the training text.

    Attributes:
        documents: number of documents of the task.
        too_short: number of documents with fewer than 13 words.
        shared: number of 13-grams that each contaminated document shares, by its index.
    """

    documents: int
    too_short: int
    shared: dict[int, int]

    @property
    def contaminated(self) -> list[int]:
        """Indexes of the documents that share at least one 13-gram."""
        return sorted(self.shared)

    def json(self) -> dict[str, Any]:
        """The form that results keep; "share" is the fraction of the documents long enough."""
        judged = self.documents - self.too_short
        return {
            "documents": self.documents,
            "too_short": self.too_short,
            "contaminated": self.contaminated,
            "shared": {str(i): self.shared[i] for i in self.contaminated},
            "share": proportion(len(self.shared), judged).json() if judged else None,
        }


def words(text: str) -> list[str]:
    """The words that 13-grams are made of."""
    return normalize(encoded(text)).decode().split()


class NgramIndex:
    """The 13-grams of all tasks' documents, and which of them the training text has.

    Args:
        texts: texts of the documents of each task, by the task's name.
        n: words in a row that make a document contaminated.
    """

    def __init__(self, texts: Mapping[str, Sequence[str]], n: int = N) -> None:
        self.n = n
        self._tasks = {name: len(documents) for name, documents in texts.items()}
        normalized = [
            normalize(encoded(text)) for documents in texts.values() for text in documents
        ]
        self._short = np.zeros(len(normalized), bool)
        parts = []
        for first, group in groups(normalized):
            text = JoinedTexts(group)
            self._short[first : first + len(group)] = text.word_counts < n
            hashes, documents, places = text.whole_grams(n)
            parts.append((hashes, first + documents, places, text))
        self._texts = [part[3] for part in parts]
        self._hashes = np.concatenate([np.empty(0, np.uint64), *(p[0] for p in parts)])
        self._documents = np.concatenate([np.empty(0, np.int64), *(p[1] for p in parts)])
        self._places = np.concatenate([np.empty(0, np.int64), *(p[2] for p in parts)])
        owners = [np.full(len(p[0]), i) for i, p in enumerate(parts)]
        self._owners = np.concatenate([np.empty(0, np.int64), *owners])
        order = np.argsort(self._hashes, kind="stable")
        for name in ("_hashes", "_documents", "_places", "_owners"):
            setattr(self, name, getattr(self, name)[order])
        self._matched = np.zeros(len(order), bool)
        bits = max(20, int(np.ceil(np.log2(16 * max(1, len(order))))))
        self._shift = np.uint64(64 - min(bits, 27))
        self._maybe = np.zeros(2 ** min(bits, 27), bool)
        self._maybe[self._hashes >> self._shift] = True

    def __len__(self) -> int:
        """The number of 13-grams."""
        return len(self._hashes)

    def search(self, chunk: bytes) -> None:
        """Marks the 13-grams that a chunk of training text has.

        Args:
            chunk: normalized text, as `training_text` yields it.
        """
        text = WordHashes(chunk)
        for gram, entry in self._candidates(text.grams(self.n)):
            for other in self._alike(entry):
                if not self._matched[other]:
                    self._matched[other] = self._are_equal(text, gram, other)

    def matches(self, texts: JoinedTexts) -> Iterator[tuple[int, int, str]]:
        """The n-grams of some texts that a task's document has, in order.

        Yields:
            The number of the text, the number of the gram's first word in it, and the task; of
            several tasks the first.
        """
        hashes, owners, places = texts.whole_grams(self.n)
        for gram, entry in self._candidates(hashes):
            place = int(places[gram])
            for other in self._alike(entry):
                if self._are_equal(texts, place, other):
                    text = int(owners[gram])
                    yield text, place - texts.first_word(text), self._task_of(other)
                    break

    def short(self) -> dict[str, int]:
        """The number of documents of each task that have fewer than n words."""
        sizes = np.cumsum([0, *self._tasks.values()])
        return {
            name: int(self._short[a:b].sum())
            for name, a, b in zip(self._tasks, sizes[:-1], sizes[1:], strict=True)
        }

    def _candidates(self, grams: Hashes) -> Iterator[tuple[int, int]]:
        """The grams whose hash is among ours: number, and our first entry with that hash."""
        # One byte is looked up for each gram, and this leaves almost none.
        candidates = np.flatnonzero(self._maybe[grams >> self._shift])
        first = np.searchsorted(self._hashes, grams[candidates])
        known = first < len(self._hashes)
        known[known] = self._hashes[first[known]] == grams[candidates[known]]
        return zip(candidates[known].tolist(), first[known].tolist(), strict=True)

    def _alike(self, entry: int) -> Iterator[int]:
        """The entries with the hash of the given one, which is the first of them."""
        wanted = self._hashes[entry]
        while entry < len(self._hashes) and self._hashes[entry] == wanted:
            yield entry
            entry += 1

    def _are_equal(self, text: WordHashes, gram: int, entry: int) -> bool:
        ours = self._texts[self._owners[entry]].words(int(self._places[entry]), self.n)
        return ours == text.words(gram, self.n)

    def _task_of(self, entry: int) -> str:
        ends = np.cumsum([*self._tasks.values()])
        return list(self._tasks)[int(np.searchsorted(ends, self._documents[entry], "right"))]

    def overlaps(self) -> dict[str, Overlap]:
        """The overlap of each task with the training text searched so far."""
        # The same 13 words twice in a document count as one gram.
        matched = self._matched
        pairs = np.stack((self._documents[matched], self._hashes[matched].view(np.int64)))
        documents = np.unique(pairs, axis=1)[0] if pairs.size else pairs[0]
        counts = np.bincount(documents, minlength=len(self._short))
        overlaps, first = {}, 0
        for name, count in self._tasks.items():
            part = counts[first : first + count]
            shared = {int(i): int(part[i]) for i in np.flatnonzero(part)}
            short = int(self._short[first : first + count].sum())
            overlaps[name] = Overlap(count, short, shared)
            first += count
        return overlaps


def training_text(split: Split, tokenizer: Tokenizer) -> Iterator[tuple[bytes, int]]:
    """The normalized text of a split in chunks that end between words.

    Each chunk begins with the last 12 words of the one before.

    Args:
        split: the split to read.
        tokenizer: tokenizer of the split.

    Yields:
        A chunk, and the number of tokens that have been read.
    """
    decode = bulk_decoder(tokenizer)
    rest = before = b""
    for first in range(0, split.token_count, _TOKENS_AT_ONCE):
        done = min(first + _TOKENS_AT_ONCE, split.token_count)
        text = rest + decode(split.read(first, done))
        if done < split.token_count:
            # A space is a whole character and never part of a word, in UTF-8.
            end = max(text.rfind(b" "), text.rfind(b"\n"))
            text, rest = text[: end + 1], text[end + 1 :]
        chunk = before + b" " + normalize(text)
        before = b" ".join(chunk.rsplit(None, N - 1)[1 - N :])
        yield chunk, done


def bulk_decoder(tokenizer: Tokenizer) -> Callable[[npt.NDArray[np.int64]], bytes]:
    """A function that decodes many ids at once; each <bos> becomes a break between documents."""
    tokens = [tokenizer.decode_bytes([i]).replace(BREAK, b" ") for i in range(tokenizer.vocab_size)]
    tokens[tokenizer.bos_id] = b" " + BREAK + b" "
    table = np.frombuffer(b"".join(tokens), np.uint8)
    sizes = np.array([len(token) for token in tokens])
    places = np.cumsum(sizes) - sizes

    def decode(ids: npt.NDArray[np.int64]) -> bytes:
        lengths = sizes[ids]
        shifts = places[ids] - (np.cumsum(lengths) - lengths)
        return table[np.arange(lengths.sum()) + np.repeat(shifts, lengths)].tobytes()

    return decode
