"""A data set of the Hugging Face hub as a local folder: its card, configurations and splits.

The card is README.md with YAML at its top. `configs` there names the files of each configuration
and split; without it they follow from the names of files and folders, as the datasets library
takes them.
"""

import dataclasses
import fnmatch
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gemmule.data.file_kinds import TEXT, CorpusFile
from gemmule.data.read_log import ReadLog, printable
from gemmule.errors import DataError

CARD = "README.md"
_LARGEST_CARD = 4 * 1024 * 1024
_ABOUT_DATA = {
    "configs", "dataset_info", "task_categories", "size_categories", "annotations_creators",
}  # fmt: skip
_TRAIN, DEFAULT = "train", "default"
# What splits are called in the names of files and folders.
_SPLITS = {
    **dict.fromkeys(("train", "training"), _TRAIN),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
_PARTS = re.compile(r"[^A-Za-z0-9]+")
OTHER_CONFIG = "files of another configuration of the data set"
OTHER_SPLIT = "files of another split of the data set"


@dataclasses.dataclass(frozen=True)
class HubDataset:
    """What a card says.

    Attributes:
        licence: its license; None if it says none.
        configs: the `configs` of its YAML.
    """

    licence: str | None
    configs: tuple[Mapping[str, Any], ...]


def read_card(folder: Path) -> HubDataset | None:
    """The card of a data set; None for a folder that has none.

    Raises:
        DataError: when its YAML is broken.
    """
    path = folder / CARD
    try:
        if not path.is_file() or path.stat().st_size > _LARGEST_CARD:
            return None
        with path.open("rb") as f:
            if not f.read(8).lstrip(b"\xef\xbb\xbf").startswith((b"---\n", b"---\r\n")):
                return None
    except OSError:
        return None
    from huggingface_hub.repocard import metadata_load

    try:
        about = metadata_load(path)
    except Exception as e:  # of the YAML library, which is not ours to import
        line = " ".join(str(e).split())[:200]
        raise DataError(f"the YAML at the top of {path} cannot be read ({line})") from None
    if not isinstance(about, dict) or not _ABOUT_DATA & about.keys():
        return None
    licence = about.get("license")
    names = [name for name in (licence if isinstance(licence, list) else [licence]) if name]
    configs = about.get("configs")
    usable = [c for c in configs if isinstance(c, dict)] if isinstance(configs, list) else []
    return HubDataset(", ".join(map(str, names)) or None, tuple(usable))


def select(
    dataset: HubDataset, files: Sequence[CorpusFile], subset: str | None, log: ReadLog
) -> list[CorpusFile]:
    """The files of one configuration and split.

    Args:
        dataset: the card.
        files: all files of the folder that can be read.
        subset: "CONFIGURATION" or "CONFIGURATION/SPLIT"; None: the default one, and "train".
        log: receives the others, and the card.

    Raises:
        DataError: when there is no such configuration or split, or none is the default.
    """
    places: dict[tuple[str, str], list[CorpusFile]] = {}
    for file in files:
        if file.kind == TEXT and "/" not in file.key and file.key.lower().endswith((".md", ".txt")):
            log.leave_out("cards of data sets, and notes next to them", file.key)
            continue
        place = _by_card(dataset, file.key) if dataset.configs else _by_name(file.key)
        if place is None:
            log.leave_out("files that the data set's card does not name", file.key)
        else:
            places.setdefault(place, []).append(file)
    configs = sorted({config for config, _ in places})
    config, _, split = (subset or "").partition("/")
    config = config or _default(dataset, configs)
    splits = [s for c, s in places if c == config]
    if not splits:
        raise DataError(
            f"the data set has no configuration {config!r}: name one of "
            f"{_listed(configs)} with --subset"
        )
    split = split or (_TRAIN if _TRAIN in splits or len(splits) > 1 else splits[0])
    if split not in splits:
        raise DataError(
            f"configuration {config!r} of the data set has no split {split!r}: name one of "
            f"{_listed([f'{config}/{s}' for s in splits])} with --subset"
        )
    for (other, other_split), left_out in places.items():
        if (other, other_split) != (config, split):
            for file in left_out:
                log.leave_out(OTHER_SPLIT if other == config else OTHER_CONFIG, file.key)
    return places[config, split]


def _default(dataset: HubDataset, configs: Sequence[str]) -> str:
    marked = [str(c.get("config_name", DEFAULT)) for c in dataset.configs if c.get("default")]
    for name in (*marked, DEFAULT):
        if name in configs:
            return name
    if len(configs) == 1:
        return configs[0]
    raise DataError(
        f"the data set has several configurations, {_listed(configs)}: name one with --subset, "
        "or give the path of its files"
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(printable, names[:20])) + (", …" if len(names) > 20 else "")


def _by_card(dataset: HubDataset, key: str) -> tuple[str, str] | None:
    """The configuration and split whose pattern matches a file; None if none does."""
    for config in dataset.configs:
        data_files = config.get("data_files", [])
        entries = data_files if isinstance(data_files, list) else [data_files]
        folder = str(config.get("data_dir", "")).strip("/")
        for entry in entries:
            split, paths = _TRAIN, entry
            if isinstance(entry, dict):
                split, paths = str(entry.get("split", _TRAIN)), entry.get("path", [])
            for pattern in paths if isinstance(paths, list) else [paths]:
                whole = f"{folder}/{pattern}" if folder else str(pattern)
                if fnmatch.fnmatchcase(key, whole.replace("**/", "*").removeprefix("./")):
                    return str(config.get("config_name", DEFAULT)), split
    return None


def _by_name(key: str) -> tuple[str, str]:
    """The configuration and split that a file's path says: en/train-00000-of-00002.parquet."""
    *folders, name = key.split("/")
    split = _TRAIN
    for part in (*folders, name):
        words = [_SPLITS[word] for word in _PARTS.split(part.lower()) if word in _SPLITS]
        split = words[0] if words else split
    named = [folder for folder in folders if folder.lower() not in {"data", *_SPLITS}]
    return named[0] if named else DEFAULT, split
