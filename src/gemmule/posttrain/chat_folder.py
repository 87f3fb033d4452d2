"""Writes the folder of rendered conversations: splits, shards with masks, records, manifest."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gemmule import files
from gemmule.data.corpus import SPLITS, assign_splits
from gemmule.data.dataset import FORMAT, MANIFEST, WHOLE_DOCUMENTS, Dataset
from gemmule.data.prepare import describe_split, fingerprint_of
from gemmule.data.read_log import ReadLog
from gemmule.data.shards import write_shard
from gemmule.errors import DataError, OutputError
from gemmule.model.tokenizer import Tokenizer
from gemmule.posttrain.rendering import Rendered

CHAT = "chat"  # in the manifest
_SHARD_TOKENS = 8_000_000


@dataclasses.dataclass(frozen=True)
class Entry:
    """A conversation, pair or prompt to write.

    Attributes:
        documents: its documents; the entries of a folder have equally many.
        line: what is written of it to records/SPLIT.jsonl; "key" is where it came from.
        group: entries with the same group are in the same split.
    """

    documents: Sequence[Rendered]
    line: Mapping[str, Any]
    group: str


@dataclasses.dataclass(frozen=True)
class FolderOptions:
    """What a folder is called, and how it is split: fractions for tuning and for final figures."""

    kind: str
    name: str
    licence: str
    validation: float
    heldout: float


def write_folder(
    entries: Sequence[Entry], tokenizer: Tokenizer, out: Path, options: FolderOptions, log: ReadLog
) -> Dataset:
    """Writes a folder, unless it is there already.

    Raises:
        DataError: when the entries do not fill three splits.
        OutputError: when `out` holds something else or cannot be written.
    """
    splits = _split(entries, options, log)
    with files.writing_to(out):
        if out.exists() and not (out.is_dir() and files.holds_only_leftovers(out)):
            return _same(out, splits, tokenizer, options)
    with files.atomic_dir(out) as folder:
        tokenizer.save(folder / "tokenizer")
        (folder / "shards").mkdir()
        (folder / "records").mkdir()
        described = {}
        for name, chosen in splits.items():
            files.write_text(folder / records_file(name), _lines(chosen))
            described[name] = describe_split(_shards(folder, name, chosen, tokenizer))
        files.write_json(folder / MANIFEST, _manifest(splits, described, tokenizer, options, log))
    return Dataset.open(out)


def records_file(split: str) -> str:
    """The file of a split's records, relative to the folder."""
    return f"records/{split}.jsonl"


def _split(
    entries: Sequence[Entry], options: FolderOptions, log: ReadLog
) -> dict[str, list[Entry]]:
    """The entries of each split, groups kept together."""
    if not (0 < options.validation < 1 and 0 < options.heldout < 1) or (
        options.validation + options.heldout >= 1
    ):
        raise DataError(
            f"validation {options.validation} and heldout {options.heldout} are fractions: both "
            "must be above 0 and their sum below 1"
        )
    groups = list(dict.fromkeys(entry.group for entry in entries))
    if len(groups) < len(SPLITS):
        left_out = log.summary()
        raise DataError(
            f"{len(entries)} {options.kind} with {len(groups)} different first messages: each of "
            f"the {len(SPLITS)} splits needs one" + (f" (left out: {left_out})" if left_out else "")
        )
    positions = np.array([_position(group) for group in groups])
    assigned = assign_splits(positions, options.validation, options.heldout)
    split_of = dict(zip(groups, assigned.tolist(), strict=True))
    splits: dict[str, list[Entry]] = {name: [] for name in SPLITS}
    for entry in entries:
        splits[SPLITS[split_of[entry.group]]].append(entry)
    return splits


def _position(group: str) -> float:
    digest = hashlib.sha256(group.encode(errors="surrogatepass")).digest()
    return int.from_bytes(digest[:8]) / 2**64


def _lines(entries: Sequence[Entry]) -> str:
    return "".join(json.dumps(entry.line, sort_keys=True) + "\n" for entry in entries)


def _shards(
    folder: Path, split: str, entries: Sequence[Entry], tokenizer: Tokenizer
) -> list[dict[str, Any]]:
    parts: list[list[Entry]] = [[]]
    tokens = 0
    for entry in entries:
        if tokens >= _SHARD_TOKENS:
            parts.append([])
            tokens = 0
        parts[-1].append(entry)
        tokens += sum(map(len, entry.documents))
    return [
        _shard(folder, f"shards/{split}-{n:05d}.tokens", part, tokenizer)
        for n, part in enumerate(parts)
    ]


def _shard(
    folder: Path, file: str, entries: Sequence[Entry], tokenizer: Tokenizer
) -> dict[str, Any]:
    documents = [document for entry in entries for document in entry.documents]
    texts = [tokenizer.decode_bytes(document.ids) for document in documents]
    return write_shard(
        folder,
        file,
        [document.ids for document in documents],
        [str(entry.line["key"]) for entry in entries for _ in entry.documents],
        {
            "bytes": sum(map(len, texts)),
            "text_sha256": hashlib.sha256(b"\0".join(texts)).hexdigest(),
        },
        tokenizer.vocab_size,
        [document.trained for document in documents],
    )


def _manifest(
    splits: Mapping[str, Sequence[Entry]],
    described: Mapping[str, dict[str, Any]],
    tokenizer: Tokenizer,
    options: FolderOptions,
    log: ReadLog,
) -> dict[str, Any]:
    records = {name: hashlib.sha256(_lines(part).encode()) for name, part in splits.items()}
    digests = "".join(digest.hexdigest() for digest in records.values())
    whole = fingerprint_of(described, tokenizer) + digests
    return {
        "format": FORMAT,
        "name": options.name,
        "licence": options.licence,
        "source": options.name,
        "field": None,
        "source_fingerprint": _source_fingerprint(splits, tokenizer, options),
        "tokenizer": tokenizer.fingerprint,
        "fingerprint": hashlib.sha256(whole.encode()).hexdigest(),
        "vocab_size": tokenizer.vocab_size,
        "in_sections": False,
        WHOLE_DOCUMENTS: True,
        CHAT: {
            "kind": options.kind,
            "entries": {name: len(part) for name, part in splits.items()},
            "trained_tokens": {
                name: sum(d.trained_tokens for entry in part for d in entry.documents)
                for name, part in splits.items()
            },
            "records_sha256": {name: digest.hexdigest() for name, digest in records.items()},
        },
        "splits": dict(described),
        "dropped": dict(log.left_out),
        "dropped_examples": log.examples,
        "notes": log.notes,
    }


def _source_fingerprint(
    splits: Mapping[str, Sequence[Entry]], tokenizer: Tokenizer, options: FolderOptions
) -> str:
    """SHA-256 of everything that the tokens and records of a folder depend on."""
    digest = hashlib.sha256(json.dumps([options.kind, tokenizer.fingerprint]).encode())
    for name, part in splits.items():
        for entry in part:
            tokens = [[d.ids, d.trained] for d in entry.documents]
            digest.update(json.dumps([name, tokens, entry.line], sort_keys=True).encode())
    return digest.hexdigest()


def _same(
    out: Path, splits: Mapping[str, Sequence[Entry]], tokenizer: Tokenizer, options: FolderOptions
) -> Dataset:
    """The folder that is there, if it holds the same.

    Raises:
        OutputError: when it does not.
    """
    try:
        dataset = Dataset.open(out)
    except DataError:
        raise OutputError(
            f"{out} is in use (it holds other files): choose an empty or new folder"
        ) from None
    expected = _source_fingerprint(splits, tokenizer, options)
    if dataset.manifest["source_fingerprint"] != expected:
        raise OutputError(
            f"{out} already holds data made from something else ({dataset.name}), or with another "
            "tokenizer or other settings: choose another folder or delete it"
        )
    return dataset


def read_lines(dataset: Dataset, split: str, fields: Sequence[str]) -> list[dict[str, Any]]:
    """The records of a split, each of which has these fields.

    Raises:
        DataError: when they are missing, damaged, or lack a field.
    """
    path = dataset.path / records_file(split)
    expected = dataset.manifest[CHAT]["records_sha256"][split]
    try:
        data = path.read_bytes()
    except OSError as e:
        raise DataError(f"cannot read {path} ({e.strerror}): make the folder again") from None
    if hashlib.sha256(data).hexdigest() != expected:
        raise DataError(f"the checksum of {path} does not match: make the folder again")
    lines: list[dict[str, Any]] = [json.loads(line) for line in data.splitlines()]
    for field in fields:
        if not all(field in line for line in lines):
            raise DataError(
                f"{path} has records without {field!r}, as earlier versions wrote them: make the "
                "folder again"
            )
    return lines
