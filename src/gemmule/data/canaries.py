"""Canaries: random documents planted in training data a known number of times.

A canary is a document of random ids, which a model can only continue if it was trained on it. If
the extraction test detects canaries that were repeated often, the test works; the least repeated
canary that it detects shows how few repetitions suffice for memorization.
"""

import dataclasses
import hashlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gemmule import files
from gemmule.data.dataset import MANIFEST, Dataset
from gemmule.data.prepare import PLAN, describe_split, fingerprint_of
from gemmule.data.shards import write_shard
from gemmule.errors import DataError, OutputError
from gemmule.model.spm_train import FIRST_LEARNED_ID
from gemmule.model.tokenizer import Tokenizer

KEY = "canaries"  # in the manifest
REPEATS = (1, 2, 4, 8, 16, 32, 64)


@dataclasses.dataclass(frozen=True)
class Canaries:
    """The canaries of a data folder.

    Attributes:
        first: index in the training split of the first canary document; all later ones are
            canaries too.
        numbers: number of the canary in each of these documents.
        repeats: number of documents that hold each canary, by canary number.
    """

    first: int
    numbers: tuple[int, ...]
    repeats: tuple[int, ...]

    @classmethod
    def of(cls, dataset: Dataset) -> "Canaries | None":
        """The canaries of a data folder, or None if it has none."""
        entry = dataset.manifest.get(KEY)
        if not isinstance(entry, dict):
            return None
        repeats = tuple(int(n) for n in entry["repeats"])
        return cls(int(entry["first_document"]), tuple(map(int, entry["order"])), repeats)

    @property
    def documents(self) -> range:
        """The indices of the canary documents in the training split."""
        return range(self.first, self.first + len(self.numbers))

    def document_of(self, canary: int) -> int:
        """The index of the first document that holds a canary, given by number."""
        return self.first + self.numbers.index(canary)


def add_canaries(
    dataset: Dataset,
    out: Path,
    *,
    repeats: Sequence[int] = REPEATS,
    each: int = 4,
    tokens: int = 100,
    seed: int = 0,
) -> Dataset:
    """Writes a copy of a data folder with canaries appended to its training split.

    Unchanged files are hard-linked rather than copied if the file system allows it. The copy counts
    as a different corpus, with its own fingerprint.

    Args:
        dataset: the folder to copy.
        out: the new folder.
        repeats: number of repetitions of each group of canaries.
        each: number of canaries in a group.
        tokens: length of a canary.
        seed: seed for the ids and for the order of the documents.

    Raises:
        DataError: for a number out of range, or a folder that already has canaries.
        OutputError: when `out` is in use or cannot be written.
    """
    if not repeats or min(repeats) < 1 or each < 1 or tokens < 2 or seed < 0:
        raise DataError(
            f"repeats {list(repeats)}, each {each} and tokens {tokens} must be at least 1, 1 and 2 "
            f"and seed {seed} at least 0"
        )
    if KEY in dataset.manifest:
        raise DataError(f"{dataset.path} has canaries already: give the folder without them")
    with files.writing_to(out):
        if out.exists() and not (out.is_dir() and files.holds_only_leftovers(out)):
            raise OutputError(f"{out} is in use: choose an empty or new folder")
    times = [count for count in repeats for _ in range(each)]
    made = _ids(dataset.tokenizer, len(times), tokens, seed)
    order = np.repeat(np.arange(len(times)), times)
    np.random.default_rng([seed, 1]).shuffle(order)
    train = dataset.manifest["splits"]["train"]
    about = {
        "seed": seed,
        "tokens": tokens,
        "repeats": times,
        "first_document": train["documents"],
        "order": order.tolist(),
        "added_to": dataset.fingerprint,
    }
    with files.atomic_dir(out) as folder:
        _copy(dataset, folder)
        entry = _write(folder, dataset, [made[n] for n in order], order.tolist())
        splits = {
            **dataset.manifest["splits"],
            "train": describe_split([*train["shards"], entry]),
        }
        if (dataset.path / PLAN).is_file():
            # `prepare` with the same text must not take this folder for its own result.
            files.write_json(folder / PLAN, {**files.read_json(dataset.path / PLAN), KEY: about})
        manifest = {
            **dataset.manifest,
            "fingerprint": fingerprint_of(splits, dataset.tokenizer),
            "splits": splits,
            KEY: about,
        }
        files.write_json(folder / MANIFEST, manifest)
    return Dataset.open(out)


def _ids(tokenizer: Tokenizer, count: int, tokens: int, seed: int) -> list[list[int]]:
    """Random learned tokens: control ids and bytes do not occur in ordinary text."""
    random = np.random.default_rng([seed, 0])
    drawn = random.integers(FIRST_LEARNED_ID, tokenizer.vocab_size, (count, tokens))
    return [[tokenizer.bos_id, *ids, tokenizer.eos_id] for ids in drawn.tolist()]


def _write(
    folder: Path, dataset: Dataset, documents: list[list[int]], numbers: list[int]
) -> dict[str, Any]:
    shards = dataset.manifest["splits"]["train"]["shards"]
    text = [dataset.tokenizer.decode_bytes(ids) for ids in documents]
    facts = {
        "bytes": sum(map(len, text)),
        "text_sha256": hashlib.sha256(b"\0".join(text)).hexdigest(),
    }
    names = [f"canary-{number:04d}" for number in numbers]
    file = f"shards/train-{len(shards):05d}.tokens"
    return write_shard(folder, file, documents, names, facts, dataset.manifest["vocab_size"])


def _copy(dataset: Dataset, folder: Path) -> None:
    shutil.copytree(dataset.path / "tokenizer", folder / "tokenizer")
    (folder / "shards").mkdir()
    for split in dataset.manifest["splits"].values():
        for shard in split["shards"]:
            for suffix in (".tokens", ".offsets", ".mask", ".json"):
                file = (dataset.path / shard["file"]).with_suffix(suffix)
                if file.is_file():
                    _link((folder / shard["file"]).with_suffix(suffix), file)


def _link(new: Path, old: Path) -> None:
    try:
        os.link(old, new)
    except OSError:
        shutil.copy2(old, new)
