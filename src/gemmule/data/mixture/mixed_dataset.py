"""Several data folders, or sources of a recipe's folder, as one dataset."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gemmule.config import nearest
from gemmule.data.dataset import TOKENS_BY, WHOLE_DOCUMENTS, Dataset, Split
from gemmule.data.mixture.settings import MixtureSource
from gemmule.data.mixture.spans import Span, SpannedSplit
from gemmule.errors import DataError


class RecipeSource(Dataset):
    """The documents of one source in a folder that a recipe made.

    Args:
        folder: the folder.
        source: the source's name in the recipe.

    Raises:
        DataError: when the folder has no such source, or a split has nothing of it.
    """

    def __init__(self, folder: Dataset, source: str) -> None:
        about = folder.manifest.get("sources", {})
        if source not in about:
            has = nearest(source, list(about)) if about else "no recipe made it"
            raise DataError(f"{folder.path} has no source {source!r}; {has}")
        self._splits = {
            name: SpannedSplit(name, [Span.of_source(folder.split(name), source)])
            for name in folder.manifest["splits"]
        }
        for name, split in self._splits.items():
            if not split.document_count:
                raise DataError(
                    f"source {source!r} of {folder.path} has no document in {name}: give it more "
                    "text, or mix whole folders"
                )
        manifest = {
            **folder.manifest,
            "name": f"{folder.name}, {source}",
            "licence": about[source].get("license") or folder.licence,
            "fingerprint": hashlib.sha256(f"{folder.fingerprint} {source}".encode()).hexdigest(),
            "splits": {name: _counts(split) for name, split in self._splits.items()},
        }
        super().__init__(folder.path, manifest)

    def split(self, name: str) -> Split:
        """The source's documents in a split."""
        if name not in self._splits:
            raise DataError(f"no split {name!r}: a dataset has {', '.join(self._splits)}")
        return self._splits[name]


class MixedDataset(Dataset):
    """The documents of several sources that were made with the same tokenizer.

    A split is the sources' splits one after the other: their text, whatever weight a run reads it
    with.

    Attributes:
        sources: the data of each source, by name.
    """

    def __init__(self, sources: Mapping[str, Dataset]) -> None:
        self.sources = dict(sources)
        first = next(iter(self.sources.values()))
        super().__init__(first.path, _manifest(list(self.sources.values())))

    @classmethod
    def open_all(cls, sources: Sequence[MixtureSource]) -> "MixedDataset":
        """Opens the folder of each source.

        Raises:
            DataError: when one cannot be opened, was made with another tokenizer than the first,
                holds conversations, or does not have the source.
        """
        folders: dict[str, Dataset] = {}
        tokenizer: tuple[str, Path] | None = None
        for source in sources:
            dataset = Dataset.open(source.path)
            made_with = str(dataset.manifest["tokenizer"])
            if tokenizer is None:
                tokenizer = made_with, source.path
            if made_with != tokenizer[0]:
                raise DataError(
                    f"{source.path} was made with another tokenizer (fingerprint {made_with[:12]}) "
                    f"than {tokenizer[1]} ({tokenizer[0][:12]}): a mixture needs one tokenizer, so "
                    "make it again with that one"
                )
            if dataset.manifest.get(WHOLE_DOCUMENTS):
                raise DataError(
                    f"{source.path} holds conversations, which are not cut into windows: a mixture "
                    "reads text, so leave it out"
                )
            if source.source is not None:
                dataset = RecipeSource(dataset, source.source)
            folders[source.shown_name] = dataset
        return cls(folders)

    def split(self, name: str) -> Split:
        """The split of all sources together.

        Raises:
            DataError: for a name that is not one of a split.
        """
        return SpannedSplit(name, [Span.whole(d.split(name)) for d in self.sources.values()])


def _counts(split: Split) -> dict[str, Any]:
    """A split's entry in a manifest, without shards."""
    lengths = np.diff(split.document_starts(), append=split.token_count).tolist()
    tokens: Counter[str] = Counter()
    for licence, length in zip(split.document_provenance("license"), lengths, strict=True):
        if licence is not None:
            tokens[licence] += length
    return {
        "documents": split.document_count,
        "tokens": split.token_count,
        "bytes": split.byte_count,
        **({TOKENS_BY: {"license": dict(sorted(tokens.items()))}} if tokens else {}),
    }


def _manifest(folders: Sequence[Dataset]) -> dict[str, Any]:
    """What the folders' manifests say together."""
    about = [folder.manifest for folder in folders]
    digest = hashlib.sha256("".join(folder.fingerprint for folder in folders).encode())
    languages = list(dict.fromkeys(str(m["language"]) for m in about if "language" in m))
    return {
        "format": about[0]["format"],
        "name": " + ".join(dict.fromkeys(folder.name for folder in folders)),
        "licence": "; ".join(dict.fromkeys(folder.licence for folder in folders)),
        **({"language": languages} if languages else {}),
        "fingerprint": digest.hexdigest(),
        "tokenizer": about[0]["tokenizer"],
        "vocab_size": about[0]["vocab_size"],
        "splits": {name: _split(name, folders) for name in about[0]["splits"]},
    }


def _split(name: str, folders: Sequence[Dataset]) -> dict[str, Any]:
    entries = [folder.manifest["splits"][name] for folder in folders]
    return {
        **{key: sum(entry[key] for entry in entries) for key in ("documents", "tokens", "bytes")},
        **_by_license(folders, entries),
    }


def _by_license(
    folders: Sequence[Dataset], entries: Sequence[Mapping[str, Any]]
) -> dict[str, dict[str, dict[str, int]]]:
    """Tokens by license, if the documents of any folder say theirs."""
    if not any("license" in entry.get(TOKENS_BY, {}) for entry in entries):
        return {}
    tokens: Counter[str] = Counter()
    for folder, entry in zip(folders, entries, strict=True):
        tokens.update(entry.get(TOKENS_BY, {}).get("license", {folder.licence: entry["tokens"]}))
    return {TOKENS_BY: {"license": dict(sorted(tokens.items()))}}
