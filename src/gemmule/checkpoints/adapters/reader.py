"""Opens a LoRA or DoRA adapter as the model that it makes of its base.

The result equals peft's merge_and_unload: an adapted weight is the base's plus scale * B @ A, with
DoRA's norms, in the base's dtype. Gemma 2's head is its embedding, one matrix; an adapter that
makes two of it is refused.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from gemmule.checkpoints.adapters.base import OpenLocated, open_base
from gemmule.checkpoints.adapters.config import AdapterConfig, read_config
from gemmule.checkpoints.adapters.merge import Merge
from gemmule.checkpoints.adapters.weights import BASE, A, Parts, open_weights
from gemmule.checkpoints.checkpoint import Checkpoint
from gemmule.checkpoints.shapes import tokenizer_in
from gemmule.errors import CheckpointError, ConfigError, MissingTokenizerError, TokenizerError
from gemmule.model.config import GemmaConfig
from gemmule.model.tokenizer import Tokenizer
from gemmule.model.tokenizer_files import (
    GENERATION_CONFIG,
    TOKENIZER_CONFIG,
    read_chat_templates,
    read_object,
    read_stop_ids,
)


def open_adapter(folder: Path, base: str | None, open_located: OpenLocated) -> Checkpoint:
    """Opens a folder with adapter_config.json and the adapter's weights, merged.

    Args:
        folder: the adapter's folder.
        base: the model to merge it into; None: see open_base.
        open_located: opens the base.

    Raises:
        CheckpointError: when the adapter or its base is missing or broken, cannot be merged here,
            or they do not fit each other.
        MissingExtraError: when the base's format needs a package that is not installed.
    """
    config = read_config(folder)
    with ExitStack() as stack:
        file, modules = open_weights(folder, stack)
        about = _about(config, modules)
        source, notes = open_base(folder, config, base, describe_adapter(about), open_located)
        stack.enter_context(source)
        list(source.weights())  # fits its own config
        merge = Merge(file, config, modules, source)
        tensors = merge.tensors()
        return Checkpoint(
            folder,
            "adapter",
            _resized(source.config, tensors["embed_tokens.weight"].shape[0], file),
            tensors,
            partial(_tokenizer, folder, source, tensors["embed_tokens.weight"].shape[0]),
            (config.source, file, *source.files),
            (*notes, *source.notes, *merge.notes()),
            stack.pop_all(),
            adapter={**about, "merged_into": str(source.path)},
        )


def _about(config: AdapterConfig, modules: Mapping[str, Parts]) -> dict[str, Any]:
    return {
        "method": config.method,
        "ranks": sorted({parts[A].shape[0] for parts in modules.values() if parts.get(A)}),
        "base": config.base,
        "parameters": sum(
            tensor.numel
            for parts in modules.values()
            for part, tensor in parts.items()
            if part != BASE
        ),
        "modules": sorted({module.rpartition(".")[2] for module in modules}),
    }


def describe_adapter(about: Mapping[str, Any]) -> str:
    """An adapter in words: method, rank, base, size and adapted modules."""
    ranks, modules = about["ranks"], about["modules"]
    names = ", ".join(name[:40] for name in modules[:9]) + (", …" if len(modules) > 9 else "")
    return (
        f"a {about['method']} adapter"
        + (f" of rank {ranks[0]}" if ranks else "")
        + (f" to {ranks[-1]}" if len(ranks) > 1 else "")
        + (f" for {about['base'][:200]}" if about["base"] else "")
        + f" ({about['parameters']:,} parameters in {names})"
    )


def _resized(config: GemmaConfig, rows: int, file: Path) -> GemmaConfig:
    """The base's config with as many tokens as the merged embedding has rows."""
    try:
        return GemmaConfig.parse({**config.model_dump(), "vocab_size": rows}, source=str(file))
    except ConfigError as e:
        raise CheckpointError(str(e)) from None


def _tokenizer(folder: Path, base: Checkpoint, rows: int) -> Tokenizer:
    """The adapter's own tokenizer, or else the base's."""
    try:
        tokenizer, owner = tokenizer_in(folder), folder
    except MissingTokenizerError:
        tokenizer, owner = base.tokenizer, base.path
    if tokenizer.vocab_size > rows:
        raise TokenizerError(
            f"the tokenizer of {owner} has {tokenizer.vocab_size} tokens, and the embedding that "
            f"the adapter {folder} makes has {rows} rows: it was saved without its resized "
            "embedding (save_embedding_layers=True in peft), or the base is another one"
        )
    return _with_chat_format(tokenizer, folder, base)


def _with_chat_format(tokenizer: Tokenizer, folder: Path, base: Checkpoint) -> Tokenizer:
    """The tokenizer with the adapter's template and stop ids, and what only the base's files say.

    The token that the adapter's tokenizer_config.json calls eos_token is a stop id, too.
    """
    try:
        template, base_stop_ids = base.tokenizer.chat_format
    except TokenizerError:  # the base has none
        template, base_stop_ids = None, ()
    templates = read_chat_templates(folder)
    template = templates.pop("default", template)
    declared = (read_object(folder / name) for name in (GENERATION_CONFIG, "config.json"))
    if any(values.get("eos_token_id") is not None for values in declared):
        stop_ids = read_stop_ids(folder, tokenizer.vocab_size)
        return tokenizer.with_chat_format(template, stop_ids, templates or None)
    eos = read_object(folder / TOKENIZER_CONFIG).get("eos_token")
    eos = eos.get("content") if isinstance(eos, dict) else eos
    ids = tokenizer.encode(eos, control=True) if isinstance(eos, str) else []
    own_stop_ids = ids if len(ids) == 1 else tokenizer.stop_ids
    stop_ids = tuple(dict.fromkeys((*base_stop_ids, *own_stop_ids)))
    return tokenizer.with_chat_format(template, stop_ids, templates or None)
