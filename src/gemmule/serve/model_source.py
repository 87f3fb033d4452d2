"""Where a served model comes from, the names it has, and what is known before it is loaded."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gemmule.checkpoints.checkpoint import Checkpoint
from gemmule.checkpoints.load import open_checkpoint
from gemmule.config import expand_model
from gemmule.errors import ConfigError
from gemmule.infer.language_model import LanguageModel, load
from gemmule.model.config import GemmaConfig
from gemmule.runs.layout import RunLayout
from gemmule.runs.ledger.file import place_of

_BITS = {"int4": 4.5, "int6": 6.5, "int8": 8.5}  # of a weight, with its share of the scales


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from.

    Attributes:
        names: its name, and further names it is served under.
        load: loads it; called in a thread.
        config: its config.
        size: bytes of its weights in memory, about.
        quantization: format of its packed weights; None: they are not packed.
        card: file of its card, in markdown.
        in_process: whether it is in memory anyway.
        place: folder of the run that it is; None: it is something else.
    """

    names: tuple[str, ...]
    load: Callable[[], LanguageModel]
    config: GemmaConfig
    size: int
    quantization: str | None = None
    card: Path | None = None
    in_process: bool = False
    place: Path | None = None

    @property
    def name(self) -> str:
        """The model's name."""
        return self.names[0]


def in_memory(name: str, lm: LanguageModel) -> ModelSource:
    """A model that is loaded already."""
    size = sum(p.numel() * p.element_size() for p in lm.model.parameters())
    return ModelSource((name,), lambda: lm, lm.config, size, in_process=True)


def parse_sources(
    arguments: Sequence[str],
    *,
    draft: str | None = None,
    quantize: str | None = None,
    cache: str | None = None,
) -> list[ModelSource]:
    """Reads the models of a command line, and their headers; weights are read later.

    Args:
        arguments: each PATH, NAME=PATH, or NAME,NAME=PATH. Without a name, the folder's or file's
            is taken.
        draft: draft model of all of them.
        quantize: format to pack their weights into.
        cache: format of their keys and values.

    Raises:
        ConfigError: for an empty name or path.
        CheckpointError: for a model that cannot be read.
        TokenizerError: for a model without a tokenizer: a server is for text.
    """
    return [_source(argument, draft, quantize, cache) for argument in arguments]


def _source(
    argument: str, draft: str | None, quantize: str | None, cache: str | None
) -> ModelSource:
    names, equals, path = argument.partition("=")
    if not equals or Path(expand_model(argument)).exists():
        names, equals, path = "", "", argument
    path = expand_model(path)
    given = tuple(name.strip() for name in names.split(",")) if equals else (_name(path),)
    if not path or not all(given):
        raise ConfigError(f"{argument!r} lacks a name or a path: give PATH or NAME=PATH")
    with open_checkpoint(path) as checkpoint:
        checkpoint.tokenizer  # noqa: B018 (raises if there is none)
        packed = checkpoint.quantized["format"] if checkpoint.quantized else None
        return ModelSource(
            given,
            functools.partial(_load, path, draft, quantize, cache),
            checkpoint.config,
            _size(checkpoint, quantize),
            quantize or packed,
            _card(path),
            place=place_of(path),
        )


def _name(path: str) -> str:
    """The name of a file or folder, or a hub id as it is."""
    local = Path(path)
    return local.resolve().name if local.exists() else path


def _load(path: str, draft: str | None, quantize: str | None, cache: str | None) -> LanguageModel:
    lm = load(path, quantize=quantize)
    assistant = load(draft, quantize=quantize) if draft else None
    return LanguageModel(lm.model, lm.tokenizer, draft=assistant, cache=cache)


def _size(checkpoint: Checkpoint, quantize: str | None) -> int:
    if checkpoint.quantized:
        return sum(file.stat().st_size for file in checkpoint.files)
    weights = sum(tensor.numel for tensor in checkpoint.weights())
    bits = _BITS.get(quantize or "", 8.0 * checkpoint.load_dtype.itemsize)
    return int(weights * bits / 8)


def _card(path: str) -> Path | None:
    """The card of a run, of the run it is a part of, or of a folder in Hugging Face's layout."""
    folder = Path(path)
    candidates = (
        RunLayout(folder).card / "README.md",
        folder / "README.md",
        RunLayout(folder.parent).card / "README.md",
    )
    return next((card for card in candidates if card.is_file()), None)
