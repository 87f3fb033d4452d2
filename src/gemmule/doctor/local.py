"""The interface of a model that runs in this process, and our implementation of it."""

from collections.abc import Mapping, Sequence
from typing import Protocol, Self

import torch
from torch import Tensor

from gemmule.errors import CheckpointError
from gemmule.infer.core.request import Request
from gemmule.infer.core.sampling import SamplingParams
from gemmule.infer.driver import Engine
from gemmule.infer.language_model import LanguageModel
from gemmule.infer.runners.torch_runner import TorchRunner
from gemmule.model.config import GemmaConfig
from gemmule.model.gemma import Gemma
from gemmule.model.kv_cache import KVCache


class LocalModel(Protocol):
    """A model as the checks use it.

    `mask_BT` is 1 on tokens and 0 on padding; positions then count only a row's tokens.
    """

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the activations."""

    def logits(self, tokens_BT: Tensor, mask_BT: Tensor | None = None, start: int = 0) -> Tensor:
        """Logits [B, T, V] of whole rows without a cache; positions count from `start`."""

    def decode(self, tokens_BT: Tensor, chunks: Sequence[int]) -> Tensor:
        """Logits [B, T, V] through a cache, in chunks of the given lengths."""

    def complete(self, prompts: Sequence[Sequence[int]], count: int) -> list[list[int]]:
        """The next `count` most likely tokens of each prompt, generated in one batch."""

    def sibling(self, config: GemmaConfig, weights: Mapping[str, Tensor]) -> Self:
        """A model of the same code, options and dtype with another shape and other weights."""

    def untied_head(self) -> str | None:
        """A message if the head is visibly not the embedding, else None."""


class Text(Protocol):
    """How an implementation turns text into token ids."""

    def encode(self, text: str) -> list[int]:
        """Ids that it feeds the model for a text."""

    def encode_chat(self, text: str) -> list[int]:
        """Ids that it feeds the model for a conversation of one user message."""

    def encode_plain(self, text: str) -> list[int]:
        """Ids of a text without special tokens."""

    def piece(self, token: int) -> bytes:
        """Bytes of a token; control tokens are spelled out."""

    def turn_markers(self) -> dict[str, int] | None:
        """Control tokens of a chat format of the model's own, with their ids; None: Gemma's."""


def positions(mask_BT: Tensor) -> Tensor:
    """Rotary positions of padded rows: tokens count from 0, wherever the padding is."""
    return (mask_BT.cumsum(-1) - 1).clamp(min=0)


class GemmuleModel:
    """Our forward pass, cache and generation."""

    def __init__(self, model: Gemma) -> None:
        self._model = model

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights, and so of the activations."""
        return self._model.embed_tokens.weight.dtype

    @torch.inference_mode()
    def logits(self, tokens_BT: Tensor, mask_BT: Tensor | None = None, start: int = 0) -> Tensor:
        """Logits [B, T, V] without a cache."""
        if mask_BT is not None:
            places = positions(mask_BT)
        else:
            places = torch.arange(start, start + tokens_BT.shape[1])[None]
        return self._model(tokens_BT, positions_BT=places, doc_ids_BT=mask_BT)

    @torch.inference_mode()
    def decode(self, tokens_BT: Tensor, chunks: Sequence[int]) -> Tensor:
        """Logits [B, T, V] through the cache, in chunks of the given lengths."""
        B, T = tokens_BT.shape
        cache = KVCache.new(self._model.config, B, T, dtype=self.dtype)
        parts = [self._model(part, cache=cache) for part in tokens_BT.split(list(chunks), dim=1)]
        return torch.cat(parts, dim=1)

    def complete(self, prompts: Sequence[Sequence[int]], count: int) -> list[list[int]]:
        """The next `count` most likely tokens, by the engine with the torch runner."""
        greedy = SamplingParams(temperature=0.0, max_new_tokens=count)
        engine = Engine(TorchRunner(self._model))
        done = engine.complete([Request(prompt, greedy) for prompt in prompts])
        return [list(completion.ids) for completion in done]

    def sibling(self, config: GemmaConfig, weights: Mapping[str, Tensor]) -> "GemmuleModel":
        """A Gemma with another shape and other weights."""
        model = Gemma(config).to(weights["embed_tokens.weight"].dtype)
        model.load_state_dict(dict(weights))
        return GemmuleModel(model.eval())

    def untied_head(self) -> str | None:
        """None: our model has no head of its own."""
        return None


class GemmuleText:
    """Our tokenizer, through the calls that generation and chat use."""

    def __init__(self, lm: LanguageModel) -> None:
        self._tokenizer = lm.tokenizer

    def encode(self, text: str) -> list[int]:
        """Ids of a text after <bos>."""
        return self._tokenizer.encode(text, bos=True)

    def encode_chat(self, text: str) -> list[int]:
        """Ids of a conversation, by the chat template."""
        return self._tokenizer.render_chat([{"role": "user", "content": text}])

    def encode_plain(self, text: str) -> list[int]:
        """Ids of a text without special tokens."""
        return self._tokenizer.encode(text)

    def piece(self, token: int) -> bytes:
        """Bytes of a token; control tokens are spelled out."""
        return self._tokenizer.decode_bytes([token], control=True)

    def turn_markers(self) -> dict[str, int] | None:
        """Control tokens of a chat format of the model's own, with their ids; None: Gemma's."""
        tokenizer = self._tokenizer
        if tokenizer.chat_template is None:
            return None
        added = {token.content: token.id for token in tokenizer.added_tokens if token.special}
        return added | {tokenizer.decode([i], control=True): i for i in tokenizer.stop_ids}


def weights_of(lm: LanguageModel) -> dict[str, Tensor]:
    """The model's weights by name, not copied."""
    weights = {name: p.detach() for name, p in lm.model.named_parameters()}
    if not all(p.is_floating_point() for p in weights.values()):
        raise CheckpointError("the doctor examines unquantized models: load one without quantize")
    return weights
