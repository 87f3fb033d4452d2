"""What a folder's own files say about the activity that writes it: sources, tokens, fingerprint.

A training run, a data folder and a logit store each have a manifest.json; that of a training run is
written before its first step, so that a run that fails or is killed is known as well.
"""

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gemmule import files
from gemmule.errors import CheckpointError
from gemmule.runs.layout import MANIFEST, RunLayout
from gemmule.runs.ledger.file import ledger_of, own_lines, run_of
from gemmule.runs.ledger.line import Source

_TAIL = 65536  # bytes at the end of metrics.jsonl that surely hold a whole line


@dataclasses.dataclass(frozen=True)
class Facts:
    """What is known of a folder.

    Attributes:
        sources: what was used to make it.
        product: its fingerprint; None while it is not finished, or is a model.
        tokens_in: tokens trained on so far, over all sessions.
        tokens_out: tokens of a data folder.
        flop: operations of training, of a finished run.
        parameters: number of parameters of the model.
        places: folders of the sources that have a ledger.
    """

    sources: tuple[Source, ...] = ()
    product: str | None = None
    tokens_in: int | None = None
    tokens_out: int | None = None
    flop: float | None = None
    parameters: int | None = None
    places: tuple[Path, ...] = ()


def facts_of(place: Path) -> Facts:
    """Facts of a folder; none of one that has no manifest, or whose files cannot be read."""
    manifest = _mapping(place / MANIFEST)
    settings = _settings(place)
    places = tuple(_places(place, manifest, settings))
    if isinstance(manifest.get("splits"), Mapping):
        return _data_folder(manifest, places)
    if isinstance(manifest.get("model"), Mapping):
        return _training_run(RunLayout(place), manifest, settings, places)
    sources = []
    for role, key in (("teacher", "teacher"), ("data", "corpus")):
        about = manifest.get(key)
        if isinstance(about, Mapping):
            sources.append(_source(role, about, about.get("path")))
    return Facts(tuple(sources), places=places)


def _data_folder(manifest: Mapping[str, Any], places: tuple[Path, ...]) -> Facts:
    counts = [s.get("tokens") for s in manifest["splits"].values() if isinstance(s, Mapping)]
    tokenizer = manifest.get("tokenizer")
    sources = (Source(role="tokenizer", fingerprint=tokenizer),) if tokenizer else ()
    return Facts(
        sources,
        product=manifest.get("fingerprint"),
        tokens_out=sum(count for count in counts if isinstance(count, int)),
        places=places,
    )


def _training_run(
    run: RunLayout,
    manifest: Mapping[str, Any],
    settings: Mapping[str, Any],
    places: tuple[Path, ...],
) -> Facts:
    result = _mapping(run.result)
    tokens = result.get("train_tokens", _tokens_so_far(run.metrics))
    init = _group(settings, "model").get("init")
    sources = []
    data = _group(manifest, "data")
    if data.get("fingerprint"):
        sources.append(_source("data", data, _group(settings, "data").get("path")))
    if manifest.get("tokenizer"):
        sources.append(Source(role="tokenizer", fingerprint=manifest["tokenizer"]))
    for parent in manifest.get("parents") or [manifest.get("parent")]:
        if isinstance(parent, Mapping):
            merged = parent.get("role") is not None
            start = parent.get("path") == init or parent.get("role") == "base"
            role = "start" if start else "model" if merged else "teacher"
            sources.append(_source(role, parent, parent.get("path")))
    targets = _group(manifest, "targets")
    if targets.get("identity"):
        about = {"fingerprint": targets["identity"], "name": targets.get("label")}
        sources.append(_source("targets", about, _group(settings, "objective").get("targets")))
    return Facts(
        tuple(sources),
        tokens_in=tokens if isinstance(tokens, int) else None,
        flop=result.get("train_flops"),
        parameters=manifest.get("parameters"),
        places=places,
    )


def _source(role: str, about: Mapping[str, Any], path: object) -> Source:
    name = about.get("name") or (Path(path).name if isinstance(path, str) else None)
    place = _place(path)
    return Source(
        role=role,
        name=str(name) if name else None,
        fingerprint=about.get("fingerprint"),
        run=None if place is None else _run(place),
    )


def source_at(role: str, place: Path) -> Source:
    """A source with the fingerprint that its ledger has of it, if any."""
    try:
        lines = own_lines(place)
    except CheckpointError:
        lines = []
    products = [line.product for line in lines if line.product is not None]
    return Source(
        role=role,
        name=place.name,
        fingerprint=products[-1] if products else None,
        run=lines[0].run if lines else None,
    )


def _run(place: Path) -> str | None:
    try:
        return run_of(place)
    except CheckpointError:
        return None


def _places(place: Path, *groups: Mapping[str, Any]) -> Iterator[Path]:
    """Each folder that a folder's settings or manifest name and that has a ledger."""
    seen = {place.resolve()}
    for text in (text for group in groups for text in _texts(group)):
        source = _place(text)
        if source is not None and source.resolve() not in seen:
            seen.add(source.resolve())
            yield source


def _place(path: object) -> Path | None:
    """The folder, or file, of a path if it has a ledger."""
    if not isinstance(path, str) or not path or len(path) > 4096 or "\0" in path:
        return None
    if os.sep not in path and not Path(path).exists():
        return None
    try:
        place = Path(path).absolute()
        return place if ledger_of(place).is_file() else None
    except OSError:
        return None


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _texts(each)
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each)


def _group(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    group = values.get(name)
    return group if isinstance(group, Mapping) else {}


def _mapping(path: Path) -> Mapping[str, Any]:
    try:
        value = files.read_json(path)
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, Mapping) else {}


def _settings(place: Path) -> Mapping[str, Any]:
    try:
        return files.read_toml(RunLayout(place).config)
    except (OSError, ValueError):
        return {}


def _tokens_so_far(metrics: Path) -> int | None:
    """The tokens of the last whole line of metrics.jsonl."""
    try:
        with metrics.open("rb") as f:
            f.seek(max(0, os.fstat(f.fileno()).st_size - _TAIL))
            lines = f.read().split(b"\n")[:-1]
    except OSError:
        return None
    for line in reversed(lines):
        try:
            tokens = json.loads(line)["tokens"]
        except (ValueError, LookupError, TypeError):
            continue
        return int(tokens)
    return None
