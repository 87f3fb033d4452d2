"""The corpus of `data_effects.py`: real text in which it is known what the stages should find.

Documents are pieces of real text, in four files:

    plain.jsonl       as they are
    copied.jsonl      each with six near-copies, in which one word in fifty is another
    personal.jsonl    with lines of invented personal data, each value in 1, 4 or 12 documents
    benchmark.jsonl   with an item of a benchmark each, every item in two documents

With them are texts that no model is trained on: pieces of other documents of the same kind, as
many items that are not planted, and for each planted value another one of its kind.
"""

import argparse
import inspect
import json
import pydoc
import random
import typing
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from gemmule import files
from gemmule.data import benchmark_texts
from gemmule.data.ngrams import words
from gemmule.data.planted_personal_data import plant
from gemmule.data.read_log import ReadLog
from gemmule.data.sources import find_source
from gemmule.errors import DataError

TIMES = (1, 4, 12)  # documents that hold a value
COPIES = 6
PAGES = 2  # documents that hold an item
_CHANGED = 0.02  # of the words of a near-copy
_CLEAN = 4  # every fourth document is for the clean text
_ITEM_WORDS = (20, 90)  # shorter ones decontamination cannot find, longer ones need more context
_STRANGERS = 17 * 1000  # a multiple of the number of kinds: the same kind with other values


@dataclass(frozen=True)
class Sizes:
    """How much of everything.

    Attributes:
        piece: characters of a document, about.
        plain: documents as they are.
        copied: documents that have near-copies.
        personal: documents with personal data.
        values: different values of personal data.
        items: planted items of benchmarks, and as many that are not.
        clean: documents of the clean text.
    """

    piece: int
    plain: int
    copied: int
    personal: int
    values: int
    items: int
    clean: int


@dataclass(frozen=True)
class Value:
    """A piece of personal data.

    Attributes:
        kind: its kind, see personal_data.py.
        severity: its severity.
        value: itself.
        stranger: another one of its kind, which is nowhere in the corpus.
        times: number of documents that hold it.
    """

    kind: str
    severity: str
    value: str
    stranger: str
    times: int


@dataclass(frozen=True)
class Corpus:
    """A corpus on disk, in a folder of its own.

    Attributes:
        folder: the folder.
        values: the personal data in it.
        planted: the items of benchmarks in it.
        fresh: items that are not.
        clean: text that is not.
    """

    folder: Path
    values: tuple[Value, ...]
    planted: tuple[str, ...]
    fresh: tuple[str, ...]
    clean: tuple[str, ...]

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Reads what `make` wrote."""
        about = files.read_json(folder / "about.json")
        values = tuple(Value(**value) for value in about.pop("values"))
        return cls(folder, values, **{name: tuple(texts) for name, texts in about.items()})

    @property
    def documents(self) -> Path:
        """The folder of the documents."""
        return self.folder / "documents"


@dataclass(frozen=True)
class Pool:
    """What corpora are drawn from.

    Attributes:
        pieces: pieces of documents for corpora.
        clean: pieces of other documents.
        items: texts of benchmarks.
    """

    pieces: tuple[str, ...]
    clean: tuple[str, ...]
    items: tuple[str, ...]

    @classmethod
    def of(cls, texts: Sequence[Path], benchmarks: Sequence[Path], piece: int) -> Self:
        """Reads texts and benchmarks.

        Args:
            texts: files, folders or patterns; none: Python's library.
            benchmarks: files of benchmarks.
            piece: characters of a document, about.
        """
        own: dict[str, None] = {}
        clean: dict[str, None] = {}
        for path in texts or (None,):
            for number, document in enumerate(find_source(path).documents(ReadLog())):
                target = clean if number % _CLEAN == 0 else own
                target |= dict.fromkeys(pieces_of(document.text, piece))
        given = [
            text for path in benchmarks for b in benchmark_texts.read(path) for text in b.texts
        ]
        least, most = _ITEM_WORDS
        items = tuple(text for text in dict.fromkeys(given) if least <= len(words(text)) <= most)
        return cls(tuple(own), tuple(text for text in clean if text not in own), items)


def pieces_of(text: str, size: int) -> Iterable[str]:
    """Whole lines of about `size` characters together; what is left over is dropped."""
    piece = ""
    for line in text.split("\n"):
        piece += line + "\n"
        if len(piece) >= size:
            if len(piece) < 2 * size:
                yield piece
            piece = ""


def make(pool: Pool, sizes: Sizes, seed: int, out: Path) -> Corpus:
    """Draws a corpus and writes it; one that is there is left as it is.

    Args:
        pool: what it is drawn from.
        sizes: how much of everything.
        seed: seed of the draw.
        out: the folder.

    Raises:
        DataError: when the pool has too little.
    """
    if out.is_dir():
        return Corpus.open(out)
    draw = random.Random(seed)
    count = sizes.plain + sizes.copied + sizes.personal + PAGES * sizes.items
    needed = {"pieces": count, "clean": sizes.clean, "items": 2 * sizes.items}
    for name, least in needed.items():
        if len(getattr(pool, name)) < least:
            raise DataError(
                f"the texts give {len(getattr(pool, name)):,} {name} and {least:,} are needed: "
                "name more with --text or --benchmark"
            )
    pieces = iter(draw.sample(pool.pieces, count))
    items = draw.sample(pool.items, 2 * sizes.items)
    values = _values(seed, sizes.values)
    documents = {
        "plain": [next(pieces) for _ in range(sizes.plain)],
        "copied": _copied(draw, [next(pieces) for _ in range(sizes.copied)]),
        "personal": _personal(draw, [next(pieces) for _ in range(sizes.personal)], values),
        "benchmark": [
            _inserted(draw, next(pieces), item)
            for item in items[: sizes.items]
            for _ in range(PAGES)
        ],
    }
    about = {
        "values": [asdict(value) for value, _ in values],
        "planted": items[: sizes.items],
        "fresh": items[sizes.items :],
        "clean": draw.sample(pool.clean, sizes.clean),
    }
    with files.atomic_dir(out) as folder:
        (folder / "documents").mkdir()
        for name, texts in documents.items():
            rows = "".join(json.dumps({"text": text}) + "\n" for text in texts)
            files.write_text(folder / "documents" / f"{name}.jsonl", rows)
        files.write_json(folder / "about.json", about)
    return Corpus.open(out)


def _copied(draw: random.Random, originals: Sequence[str]) -> list[str]:
    """Each text and its near-copies."""
    return [
        text for original in originals
        for text in (original, *(_changed(draw, original) for _ in range(COPIES)))
    ]  # fmt: skip


def _changed(draw: random.Random, text: str) -> str:
    own = text.split(" ")
    places = [n for n, word in enumerate(own) if word.strip()]
    for n in draw.sample(places, max(1, round(_CHANGED * len(places)))):
        own[n] = own[draw.choice(places)]
    return " ".join(own)


def _values(seed: int, count: int) -> list[tuple[Value, str]]:
    """Values, each with the line that it stands on."""
    made = []
    for n in range(count):
        value, line, kind, severity = _line(seed * 1000 + n)
        stranger = _line(seed * 1000 + n + _STRANGERS)[0]
        made.append((Value(kind, severity, value, stranger, TIMES[n % len(TIMES)]), line))
    return made


def _line(number: int) -> tuple[str, str, str, str]:
    """A value, its line, its kind and its severity."""
    text, planted = plant("", number, 1)
    (data,) = (each for each in planted if each.severity)  # the other is a decoy
    start = text.rfind("\n", 0, data.start) + 1
    end = text.index("\n", data.end) + 1
    return text[data.start : data.end], text[start:end], data.kind, data.severity


def _personal(
    draw: random.Random, texts: list[str], values: Sequence[tuple[Value, str]]
) -> list[str]:
    for value, line in values:
        for n in draw.sample(range(len(texts)), min(value.times, len(texts))):
            texts[n] = _inserted(draw, texts[n], line)
    return texts


def _inserted(draw: random.Random, text: str, inserted: str) -> str:
    """The text with lines between two of its own."""
    lines = text.splitlines(keepends=True)
    place = draw.randrange(len(lines) + 1)
    return "".join((*lines[:place], inserted.rstrip("\n") + "\n", *lines[place:]))


def toy(folder: Path) -> tuple[list[Path], list[Path]]:
    """Texts and benchmarks of a small pool: modules of Python's library, and words of others."""
    items = []
    for module in (argparse, random):
        own = words(inspect.getsource(module))
        items += [" ".join(own[n : n + 30]) for n in range(0, 1200, 30)]
    rows = "".join(json.dumps({"question": item}) + "\n" for item in items)
    files.write_text(folder / "items.jsonl", rows)
    for number, module in enumerate((pydoc, typing)):
        files.write_text(folder / "text" / f"{number}.txt", inspect.getsource(module))
    return [folder / "text"], [folder / "items.jsonl"]
