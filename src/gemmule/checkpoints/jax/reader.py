"""Reads parameter trees of Google's JAX implementation (the `gemma` package), as .npz or orbax.

Facts read from google-deepmind/gemma (gm/nn/_modules.py, gm/ckpts/_compat.py): q_einsum [N, D, H],
kv_einsum [2, K, D, H], attn_vec_einsum [N, H, D], gating_einsum [2, D, F] in 2B and [2, F, D] in
9B and 27B, linear [F, D], embedding [V, D] with rows padded to a multiple of 128. Paths are nested,
flat under "transformer/", or under a trainer's "params/"; layers can be stacked.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from gemmule.checkpoints.checkpoint import Checkpoint
from gemmule.checkpoints.jax.arrays import StoredArray
from gemmule.checkpoints.jax.npz import read_npz
from gemmule.checkpoints.jax.orbax import read_orbax
from gemmule.checkpoints.shapes import JAX_ROWS, config_beside, published_config, tokenizer_beside
from gemmule.checkpoints.stored_tensor import FLOATS, StoredTensor, few
from gemmule.checkpoints.zip_archive import opened_zip
from gemmule.errors import CheckpointError, TokenizerError
from gemmule.model.config import PRESETS, GemmaConfig
from gemmule.model.tokenizer import Tokenizer

EMBEDDING = "embedder/input_embedding"
ROW_MULTIPLE = 128
MAX_LAYERS = 1000
_CODES = {dtype: code for code, dtype in FLOATS.items()}
_SEPARATORS = re.compile(r"[/.&'\"\[\]]+")
_LAYER = re.compile(r"layer_(0|[1-9]\d{0,2})/(.+)")
_KIND = "attention_type_"
_STACKED = re.compile(rf"stacked_layers/{_KIND}(\d{{1,3}})/(.+)")
_NORMS = {
    "pre_attention_norm": "input_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "pre_ffw_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}


def open_npz(path: Path) -> Checkpoint:
    """Opens an .npz file with a parameter tree.

    Raises:
        CheckpointError: for a file that is missing, broken, hostile or of another architecture.
    """
    with ExitStack() as stack:
        arrays = read_npz(stack.enter_context(opened_zip(path)), path)
        return _checkpoint(path, "npz", (path,), arrays, stack.pop_all())


def open_orbax(path: Path) -> Checkpoint:
    """Opens a folder that orbax wrote.

    Raises:
        CheckpointError: for a folder that is broken or of another architecture.
        MissingExtraError: when orbax is not installed.
    """
    files = tuple(sorted(file for file in path.rglob("*") if file.is_file()))
    with ExitStack() as stack:
        return _checkpoint(path, "orbax", files, read_orbax(path, stack), stack.pop_all())


def _checkpoint(
    path: Path, form: str, files: tuple[Path, ...], arrays: dict[str, StoredArray], stack: ExitStack
) -> Checkpoint:
    with stack:
        views = _named(arrays, path)
        config = config_beside(path) or _published(views, path)
        tokenizer = partial(tokenizer_beside, path)
        notes: tuple[str, ...] = ()
        embedding = views.get(EMBEDDING)
        if embedding and len(embedding.shape) == 2:
            stored, D = embedding.shape
            rows = _rows_without_padding(stored, config, tokenizer)
            if rows < stored:
                views[EMBEDDING] = _View(embedding.array, 0, (rows, D))
                config = config.model_copy(update={"vocab_size": rows})
                notes = (
                    f"the last {stored - rows} of the embedding's {stored} rows only pad it to a "
                    f"multiple of {ROW_MULTIPLE}: left out",
                )
        tensors: dict[str, StoredTensor] = {}
        for name, view in views.items():
            tensors |= {tensor.name: tensor for tensor in _parameters(name, view, config)}
        return Checkpoint(path, form, config, tensors, tokenizer, files, notes, stack.pop_all())


def _rows_without_padding(
    stored: int, config: GemmaConfig, read_tokenizer: Callable[[], Tokenizer]
) -> int:
    """The number of stored rows that belong to tokens."""
    published = PRESETS["2b"]["vocab_size"]
    wanted = [config.vocab_size]
    if stored == JAX_ROWS:
        wanted.append(published)
    elif stored % ROW_MULTIPLE == 0:
        with suppress(TokenizerError):  # which may be missing
            wanted.append(read_tokenizer().vocab_size)
    padded = [n for n in wanted if n < stored and stored - n < ROW_MULTIPLE]
    return padded[0] if padded else stored


@dataclass(frozen=True)
class _View:
    """An array, or one layer of a stack of arrays, from element `first` on."""

    array: StoredArray
    first: int
    shape: tuple[int, ...]


def _named(arrays: Mapping[str, StoredArray], source: Path) -> dict[str, _View]:
    """The arrays by paths such as "layer_3/attn/q_einsum", from any spelling of the paths."""
    views: dict[str, _View] = {}
    paths = {name: [part for part in _SEPARATORS.split(name) if part] for name in arrays}
    kinds = len({p for parts in paths.values() for p in parts if p.startswith(_KIND)})
    for name, parts in paths.items():
        inner = [part for part in parts if part not in {"params", "transformer"}]
        inner = inner[:-1] if inner[-1:] in (["w"], ["scale"]) else inner
        for path, view in _unstacked("/".join(inner), arrays[name], kinds):
            if path in views:
                raise CheckpointError(f"{source}: {path} is stored twice")
            views[path] = view
    return views


def _unstacked(path: str, array: StoredArray, kinds: int) -> Iterator[tuple[str, _View]]:
    match = _STACKED.fullmatch(path)
    if not match:
        yield path, _View(array, 0, array.shape)
        return
    if not array.shape or array.shape[0] * kinds > MAX_LAYERS:
        raise CheckpointError(f"{array.where} is not a stack of at most {MAX_LAYERS} layers")
    shape = array.shape[1:]
    for i in range(array.shape[0]):
        view = _View(array, i * torch.Size(shape).numel(), shape)
        yield f"layer_{i * kinds + int(match[1])}/{match[2]}", view


def _published(views: Mapping[str, _View], source: Path) -> GemmaConfig:
    wanted = {
        EMBEDDING: ("vocab_size", "hidden_size"),
        "layer_0/attn/q_einsum": ("num_attention_heads", "hidden_size", "head_dim"),
        "layer_0/attn/kv_einsum": ("", "num_key_value_heads", "hidden_size", "head_dim"),
        "layer_0/mlp/linear": ("intermediate_size", "hidden_size"),
    }
    known = {"num_hidden_layers": len({match[1] for p in views if (match := _LAYER.match(p))})}
    for path, fields in wanted.items():
        if path not in views or len(views[path].shape) != len(fields):
            raise CheckpointError(
                f"{source} is not a Gemma 2 parameter tree: it holds {few(list(views))}; expected "
                f"{path} with {len(fields)} dimensions"
            )
        known |= dict(zip(fields, views[path].shape, strict=True))
    known.pop("")
    return published_config(known, str(source))


class _Blocks(StoredTensor):
    """Consecutive matrices of an array as one tensor of their rows, or of their columns."""

    def __init__(
        self,
        name: str,
        view: _View,
        skipped: int,
        blocks: int,
        block: tuple[int, ...],
        transposed: bool,
    ) -> None:
        self._view, self._first = view, view.first + skipped
        self._blocks, self._block, self._transposed = blocks, block, transposed
        rows, *rest = reversed(block) if transposed else block
        dtype = view.array.dtype
        shape = (blocks * rows, *rest)
        super().__init__(name + ".weight", shape, dtype, _CODES[dtype], view.array.where)

    def chunks(self) -> Iterator[Tensor]:
        """Yields consecutive rows; a transposed matrix is held as a whole meanwhile."""
        array, total = self._view.array, self.shape[0]
        if self._transposed:
            size = torch.Size(self._block).numel()
            for flat in array.runs(self._first, [size] * self._blocks):
                yield from flat.view(self._block).T.split(self.rows_at_once)
        else:
            row = self.numel // total
            starts = range(0, total, self.rows_at_once)
            counts = [min(self.rows_at_once, total - start) * row for start in starts]
            for flat in array.runs(self._first, counts):
                yield flat.view(-1, *self.shape[1:])


def _parameters(path: str, view: _View, config: GemmaConfig) -> Iterator[StoredTensor]:
    """Yields our parameters that the array at `path` holds.

    Raises:
        CheckpointError: when its shape is not the config's.
    """
    D, F, H = config.hidden_size, config.intermediate_size, config.head_dim
    N, K, V = config.num_attention_heads, config.num_key_value_heads, config.vocab_size
    layer = _LAYER.fullmatch(path)
    kind, prefix = (layer[2], f"layers.{int(layer[1])}.") if layer else (path, "")

    def expect(*shapes: tuple[int, ...]) -> tuple[int, ...]:
        if view.shape not in shapes:
            raise CheckpointError(
                f"{view.array.where} {list(view.shape)} instead of "
                f"{' or '.join(str(list(shape)) for shape in shapes)}, as in the config"
            )
        return view.shape

    def heads(names: str, count: int) -> Iterator[StoredTensor]:
        for i, name in enumerate(names):
            skipped = i * count * D * H
            yield _Blocks(f"{prefix}self_attn.{name}_proj", view, skipped, count, (D, H), True)

    if path == EMBEDDING:
        yield _Blocks("embed_tokens", view, 0, 1, expect((V, D)), False)
    elif path == "final_norm":
        yield _Blocks("norm", view, 0, 1, expect((D,)), False)
    elif layer and kind in _NORMS:
        yield _Blocks(prefix + _NORMS[kind], view, 0, 1, expect((D,)), False)
    elif layer and kind == "attn/q_einsum":
        expect((N, D, H))
        yield from heads("q", N)
    elif layer and kind == "attn/kv_einsum":
        expect((2, K, D, H))
        yield from heads("kv", K)
    elif layer and kind == "attn/qkv_einsum":  # every query head has its own keys
        expect((3, N, D, H) if N == K else (2, K, D, H))
        yield from heads("qkv", N)
    elif layer and kind == "attn/attn_vec_einsum":
        expect((N, H, D))
        yield _Blocks(prefix + "self_attn.o_proj", view, 0, 1, (N * H, D), True)
    elif layer and kind == "mlp/gating_einsum":
        shape = expect((2, D, F), (2, F, D))
        if D == F:
            raise CheckpointError(
                f"{view.array.where} {list(shape)} can be either of two layouts, since hidden_size "
                "and intermediate_size are equal: convert the model with the program it is from"
            )
        for i, name in enumerate(("gate_proj", "up_proj")):
            transposed = shape[1] == D
            yield _Blocks(f"{prefix}mlp.{name}", view, i * D * F, 1, shape[1:], transposed)
    elif layer and kind == "mlp/linear":
        yield _Blocks(prefix + "mlp.down_proj", view, 0, 1, expect((F, D)), True)
    else:
        raise CheckpointError(f"{view.array.where} is not part of a Gemma 2 parameter tree")
