"""Passages planted in training data, of which it is known that they are there, and how often.

A canary is a document of random ids: nothing but reading it can teach a model to continue it. One
that was read often and is found shows that what looks for memorised text works; the rarest one that
is found, how few readings are enough.
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
        first: number of the first document of the training split that is one; those after are, too.
        numbers: of each such document the canary that it is.
        repeats: how many documents each canary is, by number.
    """

    first: int
    numbers: tuple[int, ...]
    repeats: tuple[int, ...]

    @classmethod
    def of(cls, dataset: Dataset) -> "Canaries | None":
        """Those of a folder; None when it has none."""
        found = dataset.manifest.get(KEY)
        if not isinstance(found, dict):
            return None
        repeats = tuple(int(n) for n in found["repeats"])
        return cls(int(found["first_document"]), tuple(map(int, found["order"])), repeats)

    @property
    def documents(self) -> range:
        """Their documents in the training split."""
        return range(self.first, self.first + len(self.numbers))

    def document_of(self, canary: int) -> int:
        """The first document that is this canary."""
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
    """Writes a copy of a data folder whose training split ends with canaries.

    Files that stay as they are are linked, not copied, where the file system allows it. The copy is
    another corpus, with a fingerprint of its own.

    Args:
        dataset: the folder to copy.
        out: the new folder.
        repeats: how often canaries are to be there; one group each.
        each: canaries of each group.
        tokens: of a canary.
        seed: decides their ids, and the order of the documents.

    Raises:
        DataError: for an impossible number, or a folder that has canaries already.
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
            # Nobody who prepares the same text is to be given this folder for it.
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
    """Random learned pieces: control ids and bytes are nothing that text is made of."""
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
