"""Puts an adapter's tensors and its base's together."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from gemmule.checkpoints.adapters.config import AdapterConfig
from gemmule.checkpoints.adapters.merged import (
    LowRank,
    MergedTensor,
    RowsTensor,
    TiedTensor,
    WholeTensor,
)
from gemmule.checkpoints.adapters.weights import BASE, MAGNITUDE, ROWS, WHOLE, A, B, Parts
from gemmule.checkpoints.checkpoint import HEAD, Checkpoint
from gemmule.checkpoints.safetensors_file import PREFIX
from gemmule.checkpoints.stored_tensor import FLOATS, StoredTensor, few
from gemmule.errors import CheckpointError

EMBEDDING_MODULE, HEAD_MODULE = "model.embed_tokens", "lm_head"
_EMBEDDING = "embed_tokens.weight"
_DIFFERENT = "gives lm_head and embed_tokens different weights"
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Merge:
    """An adapter and its base.

    Attributes:
        file: the adapter's weights, for messages.
        config: the adapter's config.
        modules: its tensors by module and part.
        base: the open base.
    """

    file: Path
    config: AdapterConfig
    modules: Mapping[str, Parts]
    base: Checkpoint

    def tensors(self) -> dict[str, StoredTensor]:
        """All weights of the merged model by our names, without a separate head.

        Raises:
            CheckpointError: when the adapter does not fit its config or its base.
        """
        tensors = {name: t for name, t in self.base.tensors.items() if name != HEAD}
        tensors[_EMBEDDING] = self._embedding()
        for module, parts in self.modules.items():
            if module in {EMBEDDING_MODULE, HEAD_MODULE}:
                continue
            name = f"{module.removeprefix(PREFIX)}.weight"
            if name not in tensors or not module.startswith(PREFIX):
                raise CheckpointError(
                    f"{self.file} changes {module[:100]}, which {self._base()} does not have: "
                    f"{self._other_base()}"
                )
            if ROWS in parts:
                raise CheckpointError(f"{self.file} has trained tokens in {module}: no embedding")
            tensors[name] = self._changed(tensors[name], module, parts)
            self._check_shape(module, tensors[name], tensors[name].shape, self.base.tensors[name])
        return tensors

    def notes(self) -> Iterator[str]:
        """Remarks on what was merged and what was not."""
        if self.config.unknown:
            names = few(sorted(ascii(name)[:60] for name in self.config.unknown))
            yield f"settings of the adapter that gemmule does not know and ignores: {names}"
        matrices = (n for n, t in self.base.tensors.items() if len(t.shape) == 2 and n != HEAD)
        modules = {PREFIX + name.removesuffix(".weight") for name in matrices}
        adapted = {module for module, parts in self.modules.items() if A in parts}
        missing = sorted(m for m in modules - set(self.modules) if self.config.adapts(m))
        if missing:
            yield (
                f"the adapter's config names {len(missing)} modules that its file has no weights "
                f"for, which stay as in the base: {few(missing)}"
            )
        if EMBEDDING_MODULE in adapted and HEAD_MODULE not in adapted:
            yield (
                "the adapter was trained for embed_tokens without the head; merged, as in peft's "
                "merge_and_unload, it changes both, which are one matrix"
            )
        quantized = sorted({t.stored_as for t in self.base.tensors.values()} - set(FLOATS))
        if quantized or self.base.quantized:
            yield "the adapter is merged into the dequantized weights of a quantized base"

    # --- one module -----------------------------------------------------------------------------

    def _changed(self, base: StoredTensor, module: str, parts: Parts) -> StoredTensor:
        """The weight of a module; `base` is the base's."""
        kinds = set(parts) - {BASE}
        if BASE in parts:
            base = WholeTensor(base.name, parts[BASE], base.dtype)
        if kinds == {WHOLE}:
            return WholeTensor(base.name, parts[WHOLE], base.dtype)
        if kinds == {ROWS}:
            return self._with_rows(base, module, parts[ROWS])
        if kinds and kinds <= {A, B, MAGNITUDE}:
            return MergedTensor(base, self._low_rank(base, module, parts))
        if kinds:
            raise CheckpointError(
                f"{self.file} has {' and '.join(sorted(kinds))} of {module}, which exclude each "
                "other"
            )
        return base

    def _low_rank(self, base: StoredTensor, module: str, parts: Parts) -> LowRank:
        config, embeds = self.config, module == EMBEDDING_MODULE
        needed = {A, B} | ({MAGNITUDE} if config.dora else set())
        if set(parts) - {BASE} != needed:
            lacking, extra = sorted(needed - set(parts)), sorted(set(parts) - {BASE} - needed)
            raise CheckpointError(
                f"{self.file} {'lacks' if lacking else 'has'} the {(lacking or extra)[0]} of "
                f"{module}, and its config says {config.method}: download or save it again"
            )
        if config.adapts(module) is False and not (config.tied and embeds):
            raise CheckpointError(
                f"{self.file} has weights for {module}, which is not among the target_modules of "
                f"{config.source.name}: the two belong to different adapters"
            )
        a, b, rank = parts[A], parts[B], config.rank(module)
        if len(a.shape) != 2 or a.shape[0] != rank:
            raise CheckpointError(
                f"{self.file}: the lora_A of {module} is {list(a.shape)}, and {config.source.name} "
                f"says rank {rank}: the two belong to different adapters, or one was cut short"
            )
        made = (a.shape[1], *b.shape[:1]) if embeds else (*b.shape[:1], a.shape[1])
        if b.shape[1:] != (rank,) or len(base.shape) != 2:
            raise CheckpointError(
                f"{self.file}: the lora_B of {module} is {list(b.shape)} and its lora_A "
                f"{list(a.shape)}: no product of rank {rank}"
            )
        self._check_shape(module, b, made, base)
        magnitudes = parts.get(MAGNITUDE)
        count = base.shape[1 if embeds else 0]
        if magnitudes and magnitudes.shape != (count,):
            raise CheckpointError(
                f"{self.file}: DoRA's magnitudes of {module} are {list(magnitudes.shape)}; "
                f"expected [{count}]"
            )
        rounded = config.rounded or (embeds and not magnitudes)
        return LowRank(a, b, config.scale(module), embeds, rounded, magnitudes)

    def _with_rows(self, base: StoredTensor, module: str, rows: StoredTensor) -> StoredTensor:
        indices = self.config.token_indices.get(module.rpartition(".")[2], ())
        if rows.shape != (len(indices), *base.shape[1:]) or len(set(indices)) != len(indices):
            raise CheckpointError(
                f"{self.file}: the trained tokens of {module} are {list(rows.shape)}; "
                f"{self.config.source.name} names {len(set(indices))} token ids, and a row of "
                f"{self._base()} has {base.shape[-1]} numbers"
            )
        if max(indices) >= base.shape[0]:
            raise CheckpointError(
                f"{self.file} has a trained token {max(indices)}; {self._base()} has "
                f"{base.shape[0]} tokens: {self._other_base()}"
            )
        return RowsTensor(base, rows, indices)

    # --- the embedding, which is also the head ---------------------------------------------------

    def _embedding(self) -> StoredTensor:
        base = self.base.tensors[_EMBEDDING]
        if HEAD in self.base.tensors:
            problem = f"{self._base()}: lm_head.weight differs from the embedding (untied head)"
            base = self._tied(base, self.base.tensors[HEAD], problem)
        of_embedding = dict(self.modules.get(EMBEDDING_MODULE, {}))
        of_head = self.modules.get(HEAD_MODULE, {})
        if BASE in of_embedding and BASE in of_head:
            of_embedding[BASE] = self._tied(
                of_embedding[BASE], of_head[BASE], str(self._untied(_DIFFERENT))
            )
        changed = self._changed(base, EMBEDDING_MODULE, of_embedding)
        if changed.shape[1:] != base.shape[1:]:
            self._check_shape(EMBEDDING_MODULE, changed, changed.shape, base)
        head_tokens = self.config.token_indices.get("lm_head")
        if head_tokens not in {None, self.config.token_indices.get("embed_tokens")}:
            raise self._untied("trains other tokens of lm_head than of embed_tokens")
        kinds, head_kinds = set(of_embedding) - {BASE}, set(of_head) - {BASE}
        if not head_kinds:
            if kinds == {WHOLE}:
                raise self._untied("replaces embed_tokens and keeps the base's lm_head")
            return changed
        if kinds != head_kinds or MAGNITUDE in kinds:
            raise self._untied("changes lm_head otherwise than embed_tokens")
        if kinds == {WHOLE}:
            return self._tied(changed, of_head[WHOLE], str(self._untied(_DIFFERENT)))
        pairs = ((A, B), (B, A)) if A in kinds else ((ROWS, ROWS),)
        if A in kinds and not self.config.tied:
            raise self._untied("has weights of their own for lm_head and embed_tokens")
        for part, other in pairs:
            ours = of_embedding[part].copy(torch.float64, _CPU)
            theirs = of_head[other].copy(torch.float64, _CPU)
            if not torch.equal(ours, theirs if part == other else theirs.T):
                raise self._untied(_DIFFERENT)
        return changed

    def _tied(self, embedding: StoredTensor, head: StoredTensor, problem: str) -> StoredTensor:
        if head.shape != embedding.shape:
            raise CheckpointError(problem)
        return TiedTensor(embedding, head, problem)

    def _untied(self, how: str) -> CheckpointError:
        return CheckpointError(
            f"{self.file}: untied head: the adapter {how}. In Gemma 2 they are one matrix, and "
            "gemmule keeps them one: train the adapter with ensure_weight_tying=True, or without "
            "lm_head and embed_tokens"
        )

    # --- messages -------------------------------------------------------------------------------

    def _check_shape(
        self, module: str, tensor: StoredTensor, shape: tuple[int, ...], base: StoredTensor
    ) -> None:
        if shape != base.shape:
            raise CheckpointError(
                f"{tensor.where}: the adapter is for a {module} of {list(shape)}, and that of "
                f"{self._base()} is {list(base.shape)}: {self._other_base()}"
            )

    def _base(self) -> str:
        return f"its base {self.base.path}"

    def _other_base(self) -> str:
        name = self.config.base
        return f"give the base that it was trained on{f', {name[:200]}' if name else ''}"
