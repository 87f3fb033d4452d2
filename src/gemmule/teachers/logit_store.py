"""A logit store: what a teacher said about every token of a corpus, on disk (docs/logit-store.md).

manifest.json                  what was recorded, of whom, on what; written first
shards/000000000-000000128.targets
                               the targets of windows 0 to 127; renamed into place when whole
sessions/*.json                what each recording took: tokens, seconds, energy

A window is `seq_len` tokens that the teacher saw together, the first window the corpus's first
tokens, and so on, as the training loader cuts them.

A shard, all numbers little-endian:
    magic "GEMTGT01", 8 bytes
    the store's identity, 16 bytes: a shard of another store is not taken for one of this
    first window, number of windows: uint64 each
    ends: uint64 for each window, in bytes from the start of the data
    checksums: CRC-32 of each window's bytes, uint32
    CRC-32 of all the above, uint32
    data: the windows' bytes, one after another (codec.py)
"""

import dataclasses
import hashlib
import itertools
import json
import re
import zlib
from collections.abc import Iterable, Sequence
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
from gemmule.teachers.target_codec import TargetCodec, Window, to_sparse_targets
from gemmule.teachers.target_spec import TargetSpec

FORMAT = 1
KIND = "gemmule logit store"
MANIFEST = "manifest.json"
SHARDS, SESSIONS = "shards", "sessions"
MAGIC = b"GEMTGT01"
_HEADER = np.dtype([("magic", "S8"), ("store", "V16"), ("first", "<u8"), ("count", "<u8")])
_NAME = re.compile(r"(\d{9,})-(\d{9,})\.targets")
# What may change without making it another store.
_GROWS = ("windows", "created", "gemmule", "versions", "machine")


def identity(manifest: dict[str, Any]) -> str:
    """SHA-256 of what a store is of: targets, teacher, tokenizer, corpus, packing, seed.

    How much of the corpus is recorded, and where teacher and corpus were found, do not count.
    """
    fixed = {k: v for k, v in manifest.items() if k not in _GROWS}
    for part in ("teacher", "corpus"):
        fixed[part] = {k: v for k, v in manifest[part].items() if k != "path"}
    return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()


class Shard:
    """One file of consecutive windows, memory-mapped.

    Raises:
        DataError: when it is damaged, or of another store.
    """

    def __init__(self, path: Path, store: str) -> None:
        self.path = path
        again = "delete it, and the same gemmule record command makes it again"
        try:
            data = np.memmap(path, np.uint8, mode="r")
        except (OSError, ValueError) as e:
            raise DataError(f"{path} cannot be read ({e}): {again}") from None
        size = _HEADER.itemsize
        header = data[:size].view(_HEADER)[0] if len(data) >= size else None
        if header is None or header["magic"] != MAGIC:
            raise DataError(f"{path} is no shard of a logit store, or damaged: {again}")
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
        """Bytes of the windows."""
        return len(self._data)

    def read(self, window: int) -> Bytes:
        """A window's bytes, compared with their checksum.

        Raises:
            DataError: when they are damaged.
        """
        i = window - self.first
        found = self._data[self._ends[i] : self._ends[i + 1]]
        if zlib.crc32(found.data) != self._checksums[i]:
            raise DataError(
                f"{self.path} is damaged: the checksum of window {window} does not fit. Delete "
                "the file, and the same gemmule record command makes it again"
            )
        return found


def write_shard(folder: Path, store: str, first: int, windows: Sequence[bytes]) -> Path:
    """Writes windows from `first` on as one shard, atomically; returns its path."""
    header = np.zeros(1, _HEADER)
    header["magic"], header["first"], header["count"] = MAGIC, first, len(windows)
    header["store"] = np.void(bytes.fromhex(store)[:16])
    ends = np.cumsum([len(w) for w in windows]).astype("<u8")
    checksums = np.array([zlib.crc32(w) for w in windows], "<u4")
    index = header.tobytes() + ends.tobytes() + checksums.tobytes()
    path = folder / SHARDS / f"{first:09d}-{first + len(windows):09d}.targets"
    with files.atomic_path(path) as tmp, tmp.open("wb") as f:
        f.write(index + zlib.crc32(index).to_bytes(4, "little"))
        f.writelines(windows)
    return path


@dataclass(frozen=True)
class Store:
    """An opened logit store; `Store.open` checks it.

    Attributes:
        path: the folder.
        manifest: the content of manifest.json.
        shards: in order of their windows.
    """

    path: Path
    manifest: dict[str, Any]
    shards: tuple[Shard, ...]

    @classmethod
    def open(cls, path: Path) -> "Store":
        """Reads the manifest and every shard's index.

        Raises:
            DataError: when there is no store, or a part of it is damaged.
        """
        path = Path(path)
        manifest = read_manifest(path)
        store = identity(manifest)
        found = sorted(p for p in (path / SHARDS).glob("*.targets") if _NAME.fullmatch(p.name))
        shards = sorted((Shard(p, store) for p in found), key=lambda s: s.first)
        for before, after in itertools.pairwise(shards):
            if after.first < before.stop:
                raise DataError(
                    f"{before.path.name} and {after.path.name} in {path} hold the same windows: "
                    "delete one of them"
                )
        return cls(path, manifest, tuple(shards))

    @cached_property
    def identity(self) -> str:
        """See `identity`."""
        return identity(self.manifest)

    @cached_property
    def spec(self) -> TargetSpec:
        """What was kept of the teacher."""
        return TargetSpec.parse(self.manifest["targets"], str(self.path / MANIFEST))

    @cached_property
    def codec(self) -> TargetCodec:
        """How it is written."""
        return self.spec.codec(self.vocab_size)

    @property
    def vocab_size(self) -> int:
        """Pieces that the teacher chose among."""
        return int(self.manifest["vocab_size"])

    @property
    def seq_len(self) -> int:
        """Tokens of a window."""
        return int(self.manifest["packing"]["seq_len"])

    @property
    def windows(self) -> int:
        """Windows that are to be recorded."""
        return int(self.manifest["windows"])

    @property
    def recorded(self) -> int:
        """Windows that are."""
        return sum(s.stop - s.first for s in self.shards)

    @property
    def bytes_per_token(self) -> float:
        """Of what is recorded, without indices."""
        tokens = self.recorded * self.seq_len
        return sum(s.byte_count for s in self.shards) / tokens if tokens else 0.0

    def summary(self) -> dict[str, Any]:
        """What the manifest of a run that learns from it says."""
        return {
            "path": str(self.path),
            "identity": self.identity,
            "label": self.spec.label,
            **self.spec.settings(),
            "biased": self.spec.biased,
            "bytes_per_token": round(self.bytes_per_token, 2),
            "tokens": self.windows * self.seq_len,
            "recording": self.recording(),
        }

    def gaps(self) -> list[tuple[int, int]]:
        """Ranges of windows that are still to be recorded."""
        ends = [0, *(s.stop for s in self.shards)]
        starts = [*(s.first for s in self.shards), self.windows]
        return [(end, start) for end, start in zip(ends, starts, strict=True) if end < start]

    def check_whole(self) -> None:
        """Refuses a store that a training run would find holes in.

        Raises:
            DataError: when not all of its windows are recorded.
        """
        missing = sum(stop - first for first, stop in self.gaps())
        if missing:
            raise DataError(
                f"{self.path} is not finished: {missing:,} of {self.windows:,} windows are "
                "missing; the gemmule record command that makes it goes on where it stopped"
            )

    def read(self, window: int) -> Window:
        """One window, decoded; its checksum is compared each time.

        Raises:
            DataError: when it is not there, or damaged.
        """
        i = int(np.searchsorted(self._firsts, window, side="right")) - 1
        if i < 0 or not self.shards[i].first <= window < self.shards[i].stop:
            raise DataError(f"{self.path} holds no window {window}")
        return self.codec.decode(self.shards[i].read(window), self.seq_len)

    def targets(self, windows: Iterable[int]) -> SparseTargets:
        """Targets of whole windows, token after token, in the order asked for."""
        return to_sparse_targets([self.read(w) for w in windows], self.spec.temperature)

    def token_range(self, start: int, stop: int) -> SparseTargets:
        """Targets of the corpus's tokens start to stop (exclusive)."""
        if not 0 <= start < stop:
            raise DataError(f"no tokens {start} to {stop}")
        first, last = start // self.seq_len, (stop - 1) // self.seq_len
        found = self.targets(range(first, last + 1))
        rows = slice(start - first * self.seq_len, stop - first * self.seq_len)
        return found.part(rows)

    @cached_property
    def _firsts(self) -> npt.NDArray[np.int64]:
        return np.array([s.first for s in self.shards], np.int64)

    def sessions(self) -> list[dict[str, Any]]:
        """What each recording took."""
        return [files.read_json(p) for p in sorted((self.path / SESSIONS).glob("*.json"))]

    def recording(self) -> dict[str, float | None]:
        """Seconds, energy_wh and gco2e of all recordings together; None where not known."""
        sessions = self.sessions()
        energy = carbon.total(Energy.parse(s["carbon"], str(self.path)) for s in sessions)
        return {
            "seconds": round(sum(s["seconds"] for s in sessions), 3),
            "energy_wh": None if energy is None else energy.energy_wh,
            "gco2e": None if energy is None else energy.gco2e,
        }


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a logit store.

    Raises:
        DataError: when there is none, or it is of another format.
    """
    if not path.is_dir():
        raise DataError(f"no logit store at {path}: make one with gemmule record")
    try:
        manifest = files.read_json(path / MANIFEST)
        known = manifest["kind"] == KIND
    except FileNotFoundError:
        raise DataError(f"{path} is no logit store (it has no {MANIFEST})") from None
    except (ValueError, OSError, KeyError, TypeError) as e:
        raise DataError(f"{path / MANIFEST} cannot be read ({e}): record anew") from None
    if not known:
        raise DataError(f"{path} is no logit store: its manifest is of something else")
    if manifest.get("format") != FORMAT:
        raise DataError(
            f"{path} is a logit store of format {manifest.get('format')}, this version reads "
            f"{FORMAT}: record anew"
        )
    try:
        TargetSpec.parse(manifest["targets"], "targets")
        numbers = manifest["vocab_size"], manifest["packing"]["seq_len"], manifest["windows"]
        parts = manifest["teacher"], manifest["corpus"]["fingerprint"], manifest["tokenizer"]
    except (KeyError, TypeError, UserError) as e:
        raise DataError(f"{path / MANIFEST} is damaged ({e}): record anew") from None
    if not (all(isinstance(n, int) and n > 0 for n in numbers) and isinstance(parts[0], dict)):
        raise DataError(f"{path / MANIFEST} is damaged (its numbers): record anew")
    return dict(manifest)


def at_temperature(targets: SparseTargets, temperature: float, spec: TargetSpec) -> SparseTargets:
    """The same targets at another temperature, where that can be known.

    Ids kept by rank are rescaled and renormalised among themselves.

    Raises:
        ConfigError: for samples, which were drawn at one temperature, and for a tail, whose
            distribution is not known.
    """
    if temperature == targets.temperature:
        return targets
    check_temperature(spec, temperature)
    rescaled_NK = targets.weight_NK ** (targets.temperature / temperature)
    found = renormalized(targets.ids_NK, rescaled_NK)
    return dataclasses.replace(found, temperature=temperature)


def check_temperature(spec: TargetSpec, temperature: float) -> None:
    """Refuses a temperature that stored targets cannot be brought to (see `at_temperature`)."""
    if temperature == spec.temperature or spec.kind in ("top_k", "top_p"):
        return
    raise ConfigError(
        f"temperature = {temperature:g}: the store holds {spec.label} targets at temperature "
        f"{spec.temperature:g}, and only top_k and top_p ones can be brought to another: train "
        f"with temperature = {spec.temperature:g}, or record anew with --temperature "
        f"{temperature:g}"
    )
