"""A logit store: a teacher's predictions for every token of a corpus (docs/logit-store.md).

manifest.json                  targets, teacher, corpus and settings; written first
shards/000000000-000000128.targets
                               targets of sequences 0 to 127; renamed into place when complete
sessions/*.json                cost of each recording: tokens, seconds, energy

Sequence i holds tokens i * seq_len to (i + 1) * seq_len of the corpus, as PackedText cuts them for
training; the teacher read it at once. (On disk the manifest calls sequences "windows".)

A shard, all numbers little-endian:
    magic "GEMTGT01", 8 bytes
    first half of the store's identity, 16 bytes: tells shards of different stores apart
    first sequence, number of sequences: uint64 each
    ends: uint64 for each sequence, in bytes from the start of the data
    checksums: CRC-32 of each sequence's bytes, uint32
    CRC-32 of all the above, uint32
    data: the bytes of the sequences, one after another (target_codec.py)
"""

import dataclasses
import hashlib
import itertools
import json
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gemmule import files
from gemmule.errors import ConfigError, DataError, UserError
from gemmule.losses.sparse_targets import SparseTargets, renormalized
from gemmule.runs import carbon
from gemmule.runs.carbon import Energy
from gemmule.teachers.bit_packing import Bytes
from gemmule.teachers.target_codec import SequenceTargets, TargetCodec, to_sparse_targets
from gemmule.teachers.target_spec import TargetSpec

FORMAT = 1
KIND = "gemmule logit store"
MANIFEST = "manifest.json"
SHARDS, SESSIONS = "shards", "sessions"
MAGIC = b"GEMTGT01"
_HEADER = np.dtype([("magic", "S8"), ("store", "V16"), ("first", "<u8"), ("count", "<u8")])
_NAME = re.compile(r"(\d{9,})-(\d{9,})\.targets")
# Keys of the manifest that may change without making it another store.
_GROWS = ("windows", "created", "gemmule", "versions", "machine")


def identity(manifest: dict[str, Any]) -> str:
    """SHA-256 of targets, teacher, tokenizer, corpus, packing and seed of a store.

    The number of sequences and the paths of teacher and corpus are not part of it.
    """
    fixed = {k: v for k, v in manifest.items() if k not in _GROWS}
    for part in ("teacher", "corpus"):
        fixed[part] = {k: v for k, v in manifest[part].items() if k != "path"}
    return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()


class Shard:
    """One file with the targets of consecutive sequences, memory-mapped.

    Args:
        path: the file.
        store: identity of the store it must belong to.

    Raises:
        DataError: when it is damaged, or belongs to another store.
    """

    def __init__(self, path: Path, store: str) -> None:
        self.path = path
        again = "delete it, and the same gemmule record command records it again"
        try:
            data = np.memmap(path, np.uint8, mode="r")
        except (OSError, ValueError) as e:
            raise DataError(f"{path} cannot be read ({e}): {again}") from None
        size = _HEADER.itemsize
        header = data[:size].view(_HEADER)[0] if len(data) >= size else None
        if header is None or header["magic"] != MAGIC:
            raise DataError(f"{path} is not a shard of a logit store, or is damaged: {again}")
        count = int(header["count"])
        index = size + 12 * count
        if index + 4 > len(data) or zlib.crc32(data[:index].data) != int(
            data[index : index + 4].view("<u4")[0]
        ):
            raise DataError(f"{path} is damaged (the checksum of its index): {again}")
        if header["store"].tobytes() != bytes.fromhex(store)[:16]:
            raise DataError(f"{path} belongs to another logit store: take it out of the folder")
        self.first = int(header["first"])
        self.stop = self.first + count
        self._ends = np.concatenate([[0], data[size : size + 8 * count].view("<i8")])
        self._checksums = data[size + 8 * count : index].view("<u4")
        self._data = data[index + 4 :]
        if count == 0 or self._ends[-1] != len(self._data) or (np.diff(self._ends) < 0).any():
            raise DataError(f"{path} is damaged (its length): {again}")

    @property
    def byte_count(self) -> int:
        """Size of the targets, bytes."""
        return len(self._data)

    def read(self, index: int) -> Bytes:
        """The bytes of a sequence, after a comparison with their checksum.

        Raises:
            DataError: when they are damaged.
        """
        i = index - self.first
        data = self._data[self._ends[i] : self._ends[i + 1]]
        if zlib.crc32(data.data) != self._checksums[i]:
            raise DataError(
                f"{self.path} is damaged: the checksum of sequence {index} does not match. Delete "
                "the file, and the same gemmule record command records it again"
            )
        return data


def write_shard(folder: Path, store: str, first: int, sequences: Sequence[bytes]) -> Path:
    """Writes encoded sequences from `first` on as one shard, atomically; returns its path."""
    header = np.zeros(1, _HEADER)
    header["magic"], header["first"], header["count"] = MAGIC, first, len(sequences)
    header["store"] = np.void(bytes.fromhex(store)[:16])
    ends = np.cumsum([len(data) for data in sequences]).astype("<u8")
    checksums = np.array([zlib.crc32(data) for data in sequences], "<u4")
    index = header.tobytes() + ends.tobytes() + checksums.tobytes()
    path = folder / SHARDS / f"{first:09d}-{first + len(sequences):09d}.targets"
    with files.atomic_path(path) as tmp, tmp.open("wb") as f:
        f.write(index + zlib.crc32(index).to_bytes(4, "little"))
        f.writelines(sequences)
    return path


@dataclass(frozen=True)
class Store:
    """An opened logit store; `Store.open` opens and checks one.

    Attributes:
        path: the folder.
        manifest: content of manifest.json.
        shards: shards in the order of their sequences.
    """

    path: Path
    manifest: dict[str, Any]
    shards: tuple[Shard, ...]

    @classmethod
    def open(cls, path: Path) -> "Store":
        """Reads the manifest and the index of every shard.

        Raises:
            DataError: when there is no store, or an index is damaged.
        """
        path = Path(path)
        manifest = read_manifest(path)
        store = identity(manifest)
        paths = sorted(p for p in (path / SHARDS).glob("*.targets") if _NAME.fullmatch(p.name))
        shards = sorted((Shard(p, store) for p in paths), key=lambda s: s.first)
        for before, after in itertools.pairwise(shards):
            if after.first < before.stop:
                raise DataError(
                    f"{before.path.name} and {after.path.name} in {path} hold the same sequences: "
                    "delete one of them"
                )
        return cls(path, manifest, tuple(shards))

    @cached_property
    def identity(self) -> str:
        """Identity of the store: the function `identity` of its manifest."""
        return identity(self.manifest)

    @cached_property
    def spec(self) -> TargetSpec:
        """Settings of what is kept of each distribution."""
        return TargetSpec.parse(self.manifest["targets"], str(self.path / MANIFEST))

    @cached_property
    def codec(self) -> TargetCodec:
        """Encoding of the targets."""
        return self.spec.codec(self.vocab_size)

    @property
    def vocab_size(self) -> int:
        """Size of the teacher's vocabulary."""
        return int(self.manifest["vocab_size"])

    @property
    def seq_len(self) -> int:
        """Tokens per sequence."""
        return int(self.manifest["packing"]["seq_len"])

    @property
    def sequences(self) -> int:
        """Number of sequences that the store is to hold."""
        return int(self.manifest["windows"])

    @property
    def recorded(self) -> int:
        """Number of sequences that it holds."""
        return sum(s.stop - s.first for s in self.shards)

    @property
    def bytes_per_token(self) -> float:
        """Size of what is recorded, without the indices of shards."""
        tokens = self.recorded * self.seq_len
        return sum(s.byte_count for s in self.shards) / tokens if tokens else 0.0

    def summary(self) -> dict[str, Any]:
        """Entry of the store in the manifest of a run that learns from it."""
        return {
            "path": str(self.path),
            "identity": self.identity,
            "label": self.spec.label,
            **self.spec.settings(),
            "biased": self.spec.biased,
            "bytes_per_token": round(self.bytes_per_token, 2),
            "tokens": self.sequences * self.seq_len,
            "recording": self.recording(),
        }

    def gaps(self) -> list[tuple[int, int]]:
        """Ranges of sequences that are still to be recorded, the second number excluded."""
        ends = [0, *(s.stop for s in self.shards)]
        starts = [*(s.first for s in self.shards), self.sequences]
        return [(end, start) for end, start in zip(ends, starts, strict=True) if end < start]

    def check_complete(self) -> None:
        """Refuses a store that lacks sequences, which a training run would need.

        Raises:
            DataError: when not all sequences are recorded.
        """
        missing = sum(stop - first for first, stop in self.gaps())
        if missing:
            raise DataError(
                f"{self.path} is not finished: {missing:,} of {self.sequences:,} sequences are "
                "missing; the same gemmule record command continues where it stopped"
            )

    def read(self, index: int) -> SequenceTargets:
        """One sequence, decoded; its checksum is compared at every read.

        Raises:
            DataError: when it is not in the store, or damaged.
        """
        i = int(np.searchsorted(self._firsts, index, side="right")) - 1
        if i < 0 or not self.shards[i].first <= index < self.shards[i].stop:
            raise DataError(f"{self.path} does not hold sequence {index}")
        return self.codec.decode(self.shards[i].read(index), self.seq_len)

    def targets(self, indices: Iterable[int]) -> SparseTargets:
        """Targets of whole sequences, token by token, in the order of `indices`."""
        return to_sparse_targets([self.read(i) for i in indices], self.spec.temperature)

    @cached_property
    def _firsts(self) -> npt.NDArray[np.int64]:
        return np.array([s.first for s in self.shards], np.int64)

    def sessions(self) -> list[dict[str, Any]]:
        """Cost of each recording."""
        return [files.read_json(p) for p in sorted((self.path / SESSIONS).glob("*.json"))]

    def recording(self) -> dict[str, Any]:
        """Cost of all recordings together: seconds, energy_wh, gco2e; None where unknown.

        Seconds are those of all processes, energy is that of their machines.
        And dropped_probability, of a teacher with more tokens than the data: mean, maximum and
        number of the tokens that were measured; else None.
        """
        sessions = self.sessions()
        metered = [s["carbon"] for s in sessions if s["carbon"] is not None]  # once per machine
        energy = carbon.total(Energy.parse(value, str(self.path)) for value in metered)
        return {
            "seconds": round(sum(s["seconds"] for s in sessions), 3),
            "energy_wh": None if energy is None else energy.energy_wh,
            "gco2e": None if energy is None else energy.gco2e,
            "dropped_probability": _dropped(sessions),
        }


def _dropped(sessions: Sequence[Mapping[str, Any]]) -> dict[str, float] | None:
    measured = [s["dropped_probability"] for s in sessions if s.get("dropped_probability")]
    tokens = sum(m["tokens"] for m in measured)
    if not tokens:
        return None
    mean = sum(m["total"] for m in measured) / tokens
    return {"mean": mean, "maximum": max(m["maximum"] for m in measured), "tokens": tokens}


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a logit store.

    Raises:
        DataError: when there is none, or it has another format.
    """
    if not path.is_dir():
        raise DataError(f"no logit store at {path}: make one with gemmule record")
    try:
        manifest = files.read_json(path / MANIFEST)
        if not isinstance(manifest, dict):
            raise TypeError("not a JSON object")
    except FileNotFoundError:
        raise DataError(f"{path} is not a logit store (it has no {MANIFEST})") from None
    except (ValueError, OSError, TypeError) as e:
        raise DataError(f"{path / MANIFEST} cannot be read ({e}): record again") from None
    if manifest.get("kind") != KIND:
        raise DataError(
            f"{path} is not a logit store: its manifest describes something else; give a folder "
            "made by gemmule record"
        )
    if manifest.get("format") != FORMAT:
        raise DataError(
            f"{path} is a logit store of format {manifest.get('format')}, this version reads "
            f"{FORMAT}: record again"
        )
    try:
        TargetSpec.parse(manifest["targets"], "targets")
        numbers = manifest["vocab_size"], manifest["packing"]["seq_len"], manifest["windows"]
        parts = manifest["teacher"], manifest["corpus"]["fingerprint"], manifest["tokenizer"]
    except (KeyError, TypeError, UserError) as e:
        raise DataError(f"{path / MANIFEST} is damaged ({e}): record again") from None
    if not (all(isinstance(n, int) and n > 0 for n in numbers) and isinstance(parts[0], dict)):
        raise DataError(f"{path / MANIFEST} is damaged (its numbers): record again")
    return dict(manifest)


def at_temperature(targets: SparseTargets, temperature: float, spec: TargetSpec) -> SparseTargets:
    """The same targets at another temperature, where that is possible.

    The weights of top-k and top-p ids are rescaled and renormalized among themselves.

    Raises:
        ConfigError: for samples, which were drawn at one temperature, and for a tail, whose
            distribution is unknown.
    """
    if temperature == targets.temperature:
        return targets
    check_temperature(spec, temperature)
    rescaled_NK = targets.weight_NK ** (targets.temperature / temperature)
    rescaled = renormalized(targets.ids_NK, rescaled_NK)
    return dataclasses.replace(rescaled, temperature=temperature)


def check_temperature(spec: TargetSpec, temperature: float) -> None:
    """Refuses a temperature that `at_temperature` cannot convert stored targets to.

    Raises:
        ConfigError: as `at_temperature` does.
    """
    if temperature == spec.temperature or spec.kind in ("top_k", "top_p"):
        return
    raise ConfigError(
        f"temperature = {temperature:g}: the store holds {spec.label} targets at temperature "
        f"{spec.temperature:g}, and only top_k and top_p ones can be converted to another: train "
        f"with temperature = {spec.temperature:g}, or record again with --temperature "
        f"{temperature:g}"
    )
