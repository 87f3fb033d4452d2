"""Describes checkpoints from their headers, for `gemmule` commands and reports."""

import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from gemmule.checkpoints.adapters.reader import describe_adapter
from gemmule.checkpoints.checkpoint import Checkpoint
from gemmule.checkpoints.load import open_checkpoint
from gemmule.checkpoints.shapes import PUBLISHED
from gemmule.checkpoints.stored_tensor import dtype_name
from gemmule.errors import TokenizerError
from gemmule.model.config import PRESETS, GemmaConfig

# Report, table 2: parameters without the embedding, and of the embedding with 256,128 rows.
REPORTED = {
    "2b": {"non_embedding": 2_024_517_888, "embedding": 590_118_912},
    "9b": {"non_embedding": 8_324_201_984, "embedding": 917_962_752},
    "27b": {"non_embedding": 26_047_480_320, "embedding": 1_180_237_824},
}
_SIZE_FIELDS = set(PRESETS["2b"]) - {"vocab_size"}


def describe(path: str | Path) -> dict[str, Any]:
    """Describes a checkpoint from its headers and its tokenizer, without reading weights.

    Args:
        path: as for open_checkpoint.

    Returns:
        A JSON object: path; loads (True); format; files (sizes in bytes); config; published (the
        published size with this shape, or None); parameters (non_embedding, embedding and total,
        counted from the tensors; reported: the report's numbers for that size); stored_as (weights
        by encoding); dtype (that of loading); bytes (of the weights in memory, and of the cache at
        full context); tokenizer; quantized (formats, bits_per_weight and measured loss of a model
        packed by gemmule, else None); adapter (method, ranks, base, parameters and modules of an
        adapter that is merged into its base, else None); notes.

    Raises:
        CheckpointError: when there is no readable checkpoint, tensors are missing or of another
            shape than in the config, or the head is not the embedding.
    """
    with open_checkpoint(path) as checkpoint:
        checkpoint.check_head(whole=False)
        sizes = {tensor.name: tensor.numel for tensor in checkpoint.weights()}
        embedding = sizes["embed_tokens.weight"]
        total, published = sum(sizes.values()), _published(checkpoint.config)
        return {
            "path": str(checkpoint.path),
            "loads": True,
            "format": checkpoint.format,
            "files": {file.name: file.stat().st_size for file in checkpoint.files},
            "config": checkpoint.config.model_dump(),
            "published": published,
            "parameters": {
                "non_embedding": total - embedding,
                "embedding": embedding,
                "total": total,
                "reported": REPORTED.get(published or ""),
            },
            "stored_as": checkpoint.stored_as,
            "dtype": dtype_name(checkpoint.load_dtype),
            "bytes": {
                "weights": total * checkpoint.load_dtype.itemsize,
                "cache": _cache_values(checkpoint.config) * checkpoint.load_dtype.itemsize,
            },
            "tokenizer": _tokenizer(checkpoint),
            "quantized": checkpoint.quantized,
            "adapter": checkpoint.adapter,
            "notes": list(checkpoint.notes),
        }


def provenance(source: Checkpoint, path: str | Path, **about_source: object) -> dict[str, Any]:
    """The first entries of a report on a model that was made from `source`.

    Args:
        source: the checkpoint.
        path: its path as the user gave it.
        about_source: more to tell of the source.

    Returns:
        created (UTC, ISO 8601), gemmule (version), and source (path, format, `about_source`).
    """
    return {
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "gemmule": metadata.version("gemmule"),
        "source": {"path": str(path), "format": source.format, **about_source},
    }


def _published(config: GemmaConfig) -> str | None:
    values = config.model_dump()
    for name in PUBLISHED:
        if all(values[field] == PRESETS[name][field] for field in _SIZE_FIELDS):
            return name
    return None


def _cache_values(config: GemmaConfig) -> int:
    """Numbers in a KV cache at full context; local layers keep no more than their window."""
    context = config.max_position_embeddings
    tokens = sum(
        min(config.sliding_window, context) if config.is_local(i) else context
        for i in range(config.num_hidden_layers)
    )
    return tokens * 2 * config.num_key_value_heads * config.head_dim


def _tokenizer(checkpoint: Checkpoint) -> dict[str, Any]:
    try:
        tokenizer = checkpoint.tokenizer
    except TokenizerError as e:
        return {"problem": str(e)}
    return {
        "pieces": tokenizer.vocab_size,
        "fingerprint": tokenizer.fingerprint,
        "added_tokens": [token.content for token in tokenizer.added_tokens],
        "chat_template": tokenizer.chat_template,
        "stop_tokens": {i: tokenizer.decode([i], control=True) for i in tokenizer.stop_ids},
    }


def lines(about: dict[str, Any]) -> list[list[str]]:
    """The result of `describe` as rows of a table: label and value."""
    config, parameters = about["config"], about["parameters"]
    layers, window = config["num_hidden_layers"], config["sliding_window"]
    counts = [f"{name} {count:,}" for name, count in about["stored_as"].items()]
    size = sum(about["files"].values())
    tokenizer = about["tokenizer"]
    return [
        ["format", about["format"]],
        *([["adapter", describe_adapter(about["adapter"])]] if about["adapter"] else []),
        ["on disk", f"{bytes_of(size)} in {len(about['files'])} file(s)"],
        ["stored as", ", ".join(counts)],
        *_quantized(about["quantized"]),
        ["loads as", f"{about['dtype']}, {bytes_of(about['bytes']['weights'])}"],
        ["size", f"Gemma 2 {about['published'].upper()}" if about["published"] else "its own"],
        ["parameters", f"{parameters['total']:,}"],
        ["  without embedding", _counted(parameters, "non_embedding", "")],
        ["  embedding", _counted(parameters, "embedding", " for 256,128 rows")],
        ["layers", f"{layers}, of which {(layers + 1) // 2} local (window {window:,})"],
        ["width, ffn", f"{config['hidden_size']:,}, {config['intermediate_size']:,}"],
        [
            "heads / kv, width",
            f"{config['num_attention_heads']} / {config['num_key_value_heads']}, "
            f"{config['head_dim']}",
        ],
        ["scores divided by", f"sqrt({config['query_pre_attn_scalar'] or config['head_dim']})"],
        [
            "caps",
            f"attention {config['attn_logit_softcapping']}, final "
            f"{config['final_logit_softcapping']}",
        ],
        ["context", f"{config['max_position_embeddings']:,}"],
        ["cache, full context", bytes_of(about["bytes"]["cache"])],
        ["vocabulary", f"{config['vocab_size']:,} rows"],
        [
            "tokenizer",
            tokenizer.get("problem")
            or f"{tokenizer['pieces']:,} pieces, {tokenizer['fingerprint'][:12]}",
        ],
        *([] if "problem" in tokenizer else [["chat", _chat_format(tokenizer)]]),
        *(["note", note] for note in about["notes"]),
    ]


def _chat_format(tokenizer: dict[str, Any]) -> str:
    turns = "Gemma's turns" if tokenizer["chat_template"] is None else "a template of its own"
    stops = ", ".join(f"{text} ({i})" for i, text in tokenizer["stop_tokens"].items())
    count = len(tokenizer["added_tokens"])
    return f"{turns}, stops at {stops}" + (f"; {count} added tokens" if count else "")


def _quantized(about: dict[str, Any] | None) -> list[list[str]]:
    if about is None:
        return []
    formats = f"{about['format']}, head {about['head']}"
    return [
        ["quantized", f"{formats}, {about['bits_per_weight']:.3f} bits per weight"],
        *measured_lines(about["measured"]),
    ]


def measured_lines(report: dict[str, Any]) -> list[list[str]]:
    """The measured loss of a quantized model as rows of a table: label and value."""
    loss = report.get("measured")
    if not loss:
        reason = report.get("not_measured")
        return [["loss", "not measured" + (f": {reason}" if reason else "")]]
    return [
        ["KL to the original", f"{loss['kl_nats']:.5f} nats per token (± {loss['kl_stderr']:.5f})"],
        ["top-1 agreement", f"{loss['top1_agreement']:.2%}"],
        [
            "perplexity",
            f"{loss['perplexity']:.3f}, the original's {loss['parent_perplexity']:.3f}",
        ],
        ["measured on", f"{loss['tokens']:,} tokens of {loss['text']}"],
    ]


def _counted(parameters: dict[str, Any], kind: str, of: str) -> str:
    counted, reported = parameters[kind], parameters["reported"]
    if reported is None:
        return f"{counted:,}"
    comparison = "the same" if counted == reported[kind] else f"{reported[kind]:,}{of}"
    return f"{counted:,} (the report: {comparison})"


def bytes_of(count: int) -> str:
    """A size in MB or GB, for people."""
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.2f} MB"
