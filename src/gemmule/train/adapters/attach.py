"""Puts an adapter on a run's model, and takes it off again to save it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from gemmule import files, shell
from gemmule.checkpoints.adapters.weights import MAGNITUDE, ROWS, A, B
from gemmule.checkpoints.adapters.writer import TrainedAdapter, save_adapter
from gemmule.checkpoints.locate import locate
from gemmule.errors import ConfigError
from gemmule.model.gemma import Gemma
from gemmule.model.tokenizer import Tokenizer
from gemmule.train.adapters.layers import AdaptedEmbedding, AdaptedLinear
from gemmule.train.adapters.settings import AdapterSettings


@dataclass(frozen=True)
class Adapter:
    """An adapter on the model of a run.

    Attributes:
        settings: kind, rank and what is adapted.
        base: model that it changes, as peft names it: the folder with its weights, or a hub id.
        token_ids: trained rows of the embedding.
    """

    settings: AdapterSettings
    base: str
    token_ids: tuple[int, ...]

    @classmethod
    def of_run(cls, settings: AdapterSettings, init: str | None, tokenizer: Tokenizer) -> Self:
        """The adapter of a run.

        Args:
            settings: group `adapter` of the run's settings.
            init: model that the run starts from.
            tokenizer: tokenizer of the model.

        Raises:
            ConfigError: when there is no model to adapt, or it has no such tokens.
            CheckpointError: when there is no readable model.
        """
        if init is None:
            raise ConfigError(
                "adapter: there is no model to adapt: set model.init (a run, a folder or a hub id)"
            )
        ids = tuple(_token_id(tokenizer, name) for name in settings.tokens)
        return cls(settings, _base(init), ids)

    def attach(self, model: Gemma, seed: int, *, half: bool = False) -> None:
        """Freezes the model's own weights and puts the adapter's modules in place, untrained.

        The model computes what it did before, bit for bit. What a recipe added to a Gemma's own
        modules, such as another head, stays trained.

        Args:
            model: model of the run; its weights are shared.
            seed: seed of the initial weights.
            half: whether the run computes in bfloat16: matrices that have no more precision than
                that are kept in it, which halves their memory.
        """
        settings, generator = self.settings, torch.Generator().manual_seed(seed)
        for part in (model.embed_tokens, model.layers, model.norm):
            part.requires_grad_(False)
        for block in model.layers:
            for owner in (block.get_submodule("self_attn"), block.get_submodule("mlp")):
                for name, linear in list(owner.named_children()):
                    assert isinstance(linear, nn.Linear)
                    if half:
                        linear.weight.data = _narrowed(linear.weight.data)
                    if name in settings.targets:
                        dora = settings.kind == "dora"
                        adapted = AdaptedLinear(
                            linear, settings.rank, settings.alpha, dora, generator
                        )
                        setattr(owner, name, adapted)
        if self.token_ids:
            adapted_embedding = AdaptedEmbedding(model.embed_tokens, self.token_ids)
            model.add_module("embed_tokens", adapted_embedding)

    def save(self, model: Gemma, tokenizer: Tokenizer, folder: Path) -> None:
        """Writes the adapter of a model that it was attached to, as `save_adapter` does."""
        settings = self.settings
        trained = TrainedAdapter(
            base=self.base,
            rank=settings.rank,
            alpha=settings.alpha,
            dora=settings.kind == "dora",
            targets=settings.targets,
            token_ids=self.token_ids,
            modules=dict(_parts(model)),
        )
        save_adapter(trained, tokenizer, folder)

    def describe(self, model: Gemma) -> dict[str, Any]:
        """The entry `adapter` of manifest.json."""
        settings = self.settings
        return {
            "method": settings.kind,
            "rank": settings.rank,
            "alpha": settings.alpha,
            "targets": list(settings.targets),
            "token_ids": list(self.token_ids),
            "base": self.base,
            "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        }


def merge(model: Gemma) -> None:
    """Puts Gemma's own modules back in place, with the merged weights."""
    for name, module in list(model.named_modules()):
        if isinstance(module, AdaptedLinear | AdaptedEmbedding):
            model.set_submodule(name, module.plain())


def merged_weights(model: Gemma) -> Iterator[tuple[str, Tensor]]:
    """The weights under the names of a model without adapters, merged one at a time."""
    for name, module in model.named_modules():
        if isinstance(module, AdaptedLinear | AdaptedEmbedding):
            yield f"{name}.weight", module.weight
        else:
            yield from module.named_parameters(prefix=name, recurse=False)


def flops_saved_per_token(model: Gemma) -> float:
    """Operations that a training step saves per token: frozen matrices get no gradient.

    What the adapters' own products cost is taken off. Without an adapter, 0.
    """
    adapted = [module for module in model.modules() if isinstance(module, AdaptedLinear)]
    low_rank = sum(m.lora_A.numel() + m.lora_B.numel() for m in adapted)
    linear = [m.weight for m in model.layers.modules() if isinstance(m, nn.Linear)]
    frozen = [w for w in (*linear, *(m.frozen for m in adapted)) if not w.requires_grad]
    if not model.embed_tokens.weight.requires_grad:
        frozen.append(model.embed_tokens.weight)
    return 2.0 * sum(w.numel() for w in frozen) - 6.0 * low_rank


def _parts(model: Gemma) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
    """The trained tensors by module and by what they are to it."""
    for name, module in model.named_modules():
        if isinstance(module, AdaptedLinear):
            magnitude = {} if module.magnitude is None else {MAGNITUDE: module.magnitude}
            yield name, {A: module.lora_A, B: module.lora_B, **magnitude}
        elif isinstance(module, AdaptedEmbedding):
            yield name, {ROWS: module.rows}


def _token_id(tokenizer: Tokenizer, name: str) -> int:
    ids = tokenizer.encode(name, control=True)
    if len(ids) != 1:
        raise ConfigError(
            f"adapter.tokens names {name!r}, which is {len(ids)} tokens of the model's tokenizer: "
            "name single tokens, such as <end_of_turn>, or leave it out"
        )
    return ids[0]


def _base(init: str) -> str:
    """The base as peft finds it: a local folder with the weights themselves, or a hub id."""
    located = locate(init)
    if located.format == "adapter":
        merged = shell.command("convert", init, "MERGED", "--to", "hf")
        raise ConfigError(
            f"model.init is an adapter, {init}, and an adapter of an adapter cannot be loaded: "
            f"merge it first ({merged}) and set model.init = MERGED, or train without [adapter]"
        )
    return str(located.path) if files.expand(init).exists() else init


def _narrowed(weight: Tensor) -> Tensor:
    """The weight in bfloat16, if that loses nothing."""
    half = weight.bfloat16()
    return half if torch.equal(half.to(weight.dtype), weight) else weight
