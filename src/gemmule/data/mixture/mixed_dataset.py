"""Several data folders as one dataset."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gemmule.data.dataset import TOKENS_BY, WHOLE_DOCUMENTS, Dataset
from gemmule.data.mixture.settings import MixtureSource
from gemmule.errors import DataError


class MixedDataset(Dataset):
    """The documents of several folders that were made with the same tokenizer.

    A split is the folders' splits one after the other, in the order of the sources: their text,
    whatever weight a run reads it with.

    Attributes:
        sources: the folder of each source, by name.
    """

    def __init__(self, sources: Mapping[str, Dataset]) -> None:
        self.sources = dict(sources)
        first = next(iter(self.sources.values()))
        super().__init__(first.path, _manifest(list(self.sources.values())))

    @classmethod
    def open_all(cls, sources: Sequence[MixtureSource]) -> "MixedDataset":
        """Opens the folder of each source.

        Raises:
            DataError: when one cannot be opened, was made with another tokenizer than the first, or
                holds conversations.
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
            folders[source.shown_name] = dataset
        return cls(folders)


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


def _split(name: str, folders: Sequence[Dataset]) -> dict[str, Any]:
    entries = [folder.manifest["splits"][name] for folder in folders]
    return {
        **{key: sum(entry[key] for entry in entries) for key in ("documents", "tokens", "bytes")},
        **_by_license(folders, entries),
        "shards": [
            {**shard, "file": str((folder.path / shard["file"]).absolute())}
            for folder, entry in zip(folders, entries, strict=True)
            for shard in entry["shards"]
        ],
    }
