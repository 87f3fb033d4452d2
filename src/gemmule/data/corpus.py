"""The first pass over a corpus: drops duplicates and assigns documents to splits.

Only hashes are kept in memory (about 300 bytes per document), never the text.
"""

import dataclasses
import hashlib
import itertools
import re
from collections.abc import Iterator
from typing import Literal

import numpy as np
import numpy.typing as npt

from gemmule.console import Progress
from gemmule.data.minhash import BandKeys
from gemmule.data.near_duplicates import clusters
from gemmule.data.read_log import ReadLog
from gemmule.data.records import no_field
from gemmule.data.sections import SECTION_BYTES
from gemmule.data.sources import Document, Source
from gemmule.errors import DataError

SPLITS = ("train", "validation", "heldout")
# What becomes of near-duplicates: all stay, on one side of the split; one of them stays; or they
# are not looked for, and a near copy of what is trained on may be held out.
NearDuplicates = Literal["group", "drop", "ignore"]

_SURROGATE = "holds a lone surrogate"
_NEAR_DUPLICATE = "near-duplicate"
_FEW = 20  # fewer documents than this do not split well
_DROPPED = 255
_UNDECODED = re.compile("[\udc80-\udcff]")  # what decoding makes of bytes that are not UTF-8


@dataclasses.dataclass(frozen=True)
class Corpus:
    """The result of the first pass over a source.

    Attributes:
        source: the files that hold the documents.
        in_sections: whether documents are cut into sections of about 64 kB.
        split_of: index of the split of each document that the source streams; 255: dropped.
        digests: first 8 bytes of the hash of each document's content, to detect later changes.
        byte_counts: UTF-8 bytes of the kept documents, by split.
        documents: kept documents, by split.
        log: what was left out or decoded, in the search and in the first pass.
        near_duplicates: kept documents that are near-duplicates of another kept one, before any
            of them was dropped; None: they were not looked for.
        fingerprint: SHA-256 over every kept document's key, content and split.
    """

    source: Source
    in_sections: bool
    split_of: npt.NDArray[np.uint8]
    digests: npt.NDArray[np.uint64]
    byte_counts: dict[str, int]
    documents: dict[str, int]
    log: ReadLog
    near_duplicates: int | None
    fingerprint: str

    @property
    def notes(self) -> list[str]:
        """Remarks for the user about how the text was used."""
        cut = (
            f"fewer than {_FEW} documents: each was cut into sections of about "
            f"{SECTION_BYTES // 1024} kB, and the sections were split as documents"
        )
        near = (
            f"{self.near_duplicates or 0:,} documents are near-duplicates of others: of each group "
            + ("one was kept" if _NEAR_DUPLICATE in self.log.left_out else "all are in one split")
        )
        return [
            *([cut] if self.in_sections else []),
            *([near] if self.near_duplicates else []),
            *self.log.notes,
        ]

    def texts(self) -> Iterator[tuple[str, str]]:
        """Streams every kept document as (split, text), like `kept`."""
        return ((split, document.text) for split, document in self.kept())

    def kept(self) -> Iterator[tuple[str, Document]]:
        """Streams every kept document with its split, in the source's order.

        Raises:
            DataError: when the source has changed since the first pass.
        """
        n = -1
        for n, document in enumerate(self.source.documents(ReadLog(), self.in_sections)):
            if n >= len(self.split_of) or _short(digest_of(document.text)) != self.digests[n]:
                raise self._changed()
            split = self.split_of[n]
            if split != _DROPPED:
                yield SPLITS[split], document
        if n + 1 != len(self.split_of):
            raise self._changed()

    def _changed(self) -> DataError:
        return DataError(f"{self.source.location} changed while it was being read: start again")


def read_corpus(
    source: Source,
    validation: float = 0.05,
    heldout: float = 0.05,
    near_duplicates: NearDuplicates = "group",
    progress: Progress | None = None,
) -> Corpus:
    """Reads the source once: drops exact duplicates and assigns each document to a split.

    A hash of the content (of the module's name in the embedded corpus) selects the split, so that a
    document stays in its split when others are added, renamed or reordered. Of near-duplicates (see
    minhash.py) the one whose content has the smallest hash decides for all.

    Args:
        source: from `find_source`.
        validation: fraction of documents for tuning.
        heldout: fraction of documents for the final evaluation.
        near_duplicates: "group" keeps them in one split, "drop" keeps that one alone, "ignore"
            does not look for them.
        progress: called with (documents read so far, 0, "documents"); the total is unknown.

    Raises:
        DataError: when there is no usable text, or too little for three splits.
    """
    if not (0 < validation < 1 and 0 < heldout < 1 and validation + heldout < 1):
        raise DataError(
            f"validation {validation} and heldout {heldout} are fractions of the documents: both "
            "must be above 0 and their sum below 1"
        )
    scan = _Scan(source, False, near_duplicates, progress)
    if len(scan.kept) < _FEW and source.can_be_cut:
        scan = _Scan(source, True, near_duplicates, progress)
    log = ReadLog()
    log.update(source.log)
    log.update(scan.log)
    left_out = log.summary()
    if log.fields and not log.records and (source.field_given or not scan.kept):
        raise DataError(no_field(source.location, source.field, log.fields))
    if source.license_field is not None and not log.licensed:
        raise DataError(
            f"no record of {source.location} has a license in {source.license_field!r}: name the "
            "field or column that holds it, or leave out --license-field"
        )
    grouped = None if near_duplicates == "ignore" else scan.group_near_duplicates(log)
    if not scan.kept:
        raise DataError(f"no usable text in {source.location}: {left_out or 'it is empty'}")
    if len(scan.kept) < len(SPLITS):
        raise DataError(
            f"{source.location} holds {sum(scan.sizes)} bytes of text, {len(scan.kept)} document(s)"
            f" after cutting: each of the {len(SPLITS)} splits needs one, so give at least "
            f"{len(SPLITS)} files or about {len(SPLITS) * SECTION_BYTES // 1024} kB"
            + (f" (left out: {left_out})" if left_out else "")
        )
    assigned = assign_splits(np.array(scan.positions), validation, heldout)
    split_of = np.full(len(scan.digests), _DROPPED, np.uint8)
    split_of[scan.kept] = assigned
    sizes = np.array(scan.sizes, np.int64)
    digest = hashlib.sha256()
    for key, content, split in zip(scan.keys, scan.contents, assigned, strict=True):
        digest.update(key + content + bytes([split]))
    return Corpus(
        source=source,
        in_sections=scan.in_sections,
        split_of=split_of,
        digests=np.array(scan.digests, np.uint64),
        byte_counts={name: int(sizes[assigned == i].sum()) for i, name in enumerate(SPLITS)},
        documents={name: int((assigned == i).sum()) for i, name in enumerate(SPLITS)},
        log=log,
        near_duplicates=grouped,
        fingerprint=digest.hexdigest(),
    )


class _Scan:
    """One pass over a source's documents."""

    def __init__(
        self,
        source: Source,
        in_sections: bool,
        near_duplicates: NearDuplicates,
        progress: Progress | None,
    ) -> None:
        self.in_sections = in_sections
        self.log = ReadLog()
        self.digests: list[int] = []  # of every document streamed
        # For each kept document: its index in the stream, hashes, size, and position in [0, 1).
        self.kept: list[int] = []
        self.keys: list[bytes] = []
        self.contents: list[bytes] = []
        self.sizes: list[int] = []
        self.positions: list[float] = []
        self._near_duplicates = near_duplicates
        self._band_keys = BandKeys()
        self._names: list[str] = []  # of the kept documents, where some may be dropped
        seen: set[bytes] = set()
        for n, document in enumerate(source.documents(self.log, in_sections)):
            content = digest_of(document.text)
            self.digests.append(_short(content))
            if progress and n % 64 == 63:
                progress(n + 1, 0, "documents")
            reason = "duplicate" if content in seen else why_unusable(document.text)
            if reason:
                self.log.leave_out(reason, document.key)
                continue
            seen.add(content)
            split_hash = content if document.split_key is None else digest_of(document.split_key)
            self.kept.append(n)
            self.keys.append(digest_of(document.key))
            self.contents.append(content)
            self.sizes.append(len(document.text.encode()))
            self.positions.append(_short(split_hash) / 2**64)
            if near_duplicates != "ignore":
                self._band_keys.add(document.text)
            if near_duplicates == "drop":
                self._names.append(document.key)

    def group_near_duplicates(self, log: ReadLog) -> int:
        """Gives near-duplicates one position, or drops all but one of them into the log.

        Returns:
            How many documents are near-duplicates of another one.
        """
        drop = self._near_duplicates == "drop"
        groups = _several(clusters(self._band_keys.keys()))
        stays = np.ones(len(self.kept), bool)
        for group in groups:
            first = min(group, key=self.contents.__getitem__)
            for n in group:
                self.positions[n] = self.positions[first]
                stays[n] = n == first
        if drop:
            for n in np.flatnonzero(~stays).tolist():
                log.leave_out(_NEAR_DUPLICATE, self._names[n])
            self.kept = list(itertools.compress(self.kept, stays))
            self.keys = list(itertools.compress(self.keys, stays))
            self.contents = list(itertools.compress(self.contents, stays))
            self.sizes = list(itertools.compress(self.sizes, stays))
            self.positions = list(itertools.compress(self.positions, stays))
        return sum(map(len, groups))


def _several(cluster_of: npt.NDArray[np.int64]) -> list[list[int]]:
    """The clusters of more than one document."""
    order = np.argsort(cluster_of, kind="stable")
    starts = np.flatnonzero(np.diff(cluster_of[order], prepend=-1))
    groups = np.split(order, starts[1:]) if len(order) else []
    return [group.tolist() for group in groups if len(group) > 1]


def why_unusable(text: str) -> str | None:
    """Why a document cannot be used whatever a recipe says, or None."""
    if not text.strip():
        return "empty"
    try:
        text.encode()
    except UnicodeEncodeError:
        # A JSON escape can write such a half of a surrogate pair as well, but seldom does.
        return "holds bytes that are not UTF-8" if _UNDECODED.search(text) else _SURROGATE
    return None


def digest_of(text: str) -> bytes:
    """The first 16 bytes of the SHA-256 of a text."""
    return hashlib.sha256(text.encode(errors="surrogatepass")).digest()[:16]


def _short(digest: bytes) -> int:
    return int.from_bytes(digest[:8])


def assign_splits(
    positions: npt.NDArray[np.float64], validation: float, heldout: float
) -> npt.NDArray[np.uint8]:
    """Assigns split indices: positions [0, heldout) are held out, then come validation and train.

    An empty split takes the documents whose position is nearest to its interval: all that share
    it, unless no split has anything else.
    """
    train, valid, held = range(3)
    split = np.full(len(positions), train, np.uint8)
    split[positions < heldout + validation] = valid
    split[positions < heldout] = held
    intervals = {
        held: (0.0, heldout),
        valid: (heldout, heldout + validation),
        train: (heldout + validation, 1.0),
    }
    for index, (low, high) in intervals.items():
        if not (split == index).any():
            distance = np.maximum(np.maximum(low - positions, positions - high), 0)
            # Never empty one split to fill another.
            distinct = np.array([len(np.unique(positions[split == i])) for i in range(3)])
            if (distinct > 1).any():
                distance[distinct[split] < 2] = np.inf
                split[positions == positions[distance.argmin()]] = index
            else:  # near-duplicates of each other alone
                distance[np.bincount(split, minlength=3)[split] < 2] = np.inf
                split[distance.argmin()] = index
    return split
