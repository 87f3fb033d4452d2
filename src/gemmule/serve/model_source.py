"""Where a served model comes from, and the names it has."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gemmule.checkpoints.load import open_checkpoint
from gemmule.config import expand_model
from gemmule.errors import ConfigError
from gemmule.infer.language_model import LanguageModel, load


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from.

    Attributes:
        names: its name, and further names it is served under.
        load: loads it; called in a thread.
        path: its path or hub id; None: it was made in this process.
    """

    names: tuple[str, ...]
    load: Callable[[], LanguageModel]
    path: str | None = None


def parse_sources(
    arguments: Sequence[str],
    *,
    draft: str | None = None,
    quantize: str | None = None,
    cache: str | None = None,
) -> list[ModelSource]:
    """Reads the models of a command line.

    Args:
        arguments: each PATH, NAME=PATH, or NAME,NAME=PATH. Without a name, the folder's or file's
            is taken.
        draft: draft model of all of them.
        quantize: format to pack their weights into.
        cache: format of their keys and values.

    Raises:
        ConfigError: for an empty name or path.
        CheckpointError: for a model that cannot be read, before any is loaded.
        TokenizerError: for a model without a tokenizer: a server is for text.
    """

    def source(argument: str) -> ModelSource:
        names, equals, path = argument.partition("=")
        if not equals or Path(expand_model(argument)).exists():
            names, path = "", argument
        path = expand_model(path)
        if not path:
            raise ConfigError(f"{argument!r} names no model: give PATH or NAME=PATH")
        given = tuple(name.strip() for name in names.split(",")) if names or equals else ()
        if "" in given:
            raise ConfigError(f"{argument!r} has an empty name: give PATH or NAME=PATH")
        with open_checkpoint(path) as checkpoint:
            checkpoint.tokenizer  # noqa: B018 (raises if there is none)
        load_it = functools.partial(_load, path, draft, quantize, cache)
        return ModelSource(given or (_name(path),), load_it, path)

    return [source(argument) for argument in arguments]


def _name(path: str) -> str:
    """The name of a file or folder, or a hub id as it is."""
    local = Path(path)
    return (local.resolve().name or path) if local.exists() else path


def _load(path: str, draft: str | None, quantize: str | None, cache: str | None) -> LanguageModel:
    lm = load(path, quantize=quantize)
    assistant = load(draft, quantize=quantize) if draft else None
    return LanguageModel(lm.model, lm.tokenizer, draft=assistant, cache=cache)
