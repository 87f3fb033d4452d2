"""A model with its tokenizer: what `gemmule.load` returns."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Unpack, overload

import torch

from gemmule.checkpoints.load import load_to_run
from gemmule.errors import ConfigError, TokenizerError
from gemmule.infer.core.request import Completion, Event, Request, Score, check_text
from gemmule.infer.core.sampling import NotFinite, SamplingParams, SamplingSettings
from gemmule.infer.core.speculative import (
    DraftModel,
    PromptLookup,
    Speculation,
    check_same_tokenizer,
)
from gemmule.infer.engine import Engine
from gemmule.infer.prefix_scoring import Branches, TreeScorer
from gemmule.infer.runners.choose import make_runner
from gemmule.infer.runners.torch_runner import TorchRunner
from gemmule.model.config import GemmaConfig
from gemmule.model.gemma import Gemma
from gemmule.model.tokenizer import Tokenizer


class LanguageModel:
    """Generates, chats and scores.

    Keyword settings of `generate`, `stream`, `chat` and `stream_chat` are the fields of
    `SamplingParams`: max_new_tokens, temperature, top_k, top_p, min_p, seed, stop,
    repetition_penalty, logprobs.

    Attributes:
        model: the torch module, tokens_BT to logits_BTV.
        tokenizer: its partner.
        draft: a model that guesses ahead, if there is one.
    """

    def __init__(
        self,
        model: Gemma,
        tokenizer: Tokenizer,
        *,
        draft: "LanguageModel | None" = None,
        cache: str | None = None,
    ) -> None:
        """Puts the two together.

        Args:
            model: the weights.
            tokenizer: its partner.
            draft: a smaller model with the same tokenizer, whose guesses save time where they are
                often right; what comes out is the same.
            cache: what keys and values are kept as: "float32", "float16" or "int8", the smaller
                the more fit into memory; None: as fits the weights.

        Raises:
            TokenizerError: when the model has fewer tokens, or the draft others.
        """
        if tokenizer.vocab_size > model.config.vocab_size:
            raise TokenizerError(
                f"the tokenizer has {tokenizer.vocab_size} tokens, the model only "
                f"{model.config.vocab_size}: they do not belong together"
            )
        self.model = model
        self.tokenizer = tokenizer
        self.draft = draft
        self._cache = cache
        self._made: tuple[Engine, object] | None = None
        if draft is not None:
            check_same_tokenizer(tokenizer, draft.tokenizer)

    def __getstate__(self) -> dict[str, object]:
        """For copies: each makes an engine of its own."""
        return {**self.__dict__, "_made": None}

    @property
    def config(self) -> GemmaConfig:
        """The model's shape."""
        return self.model.config

    @overload
    def generate(self, prompt: str, **settings: Unpack[SamplingSettings]) -> str: ...

    @overload
    def generate(
        self, prompt: list[str] | tuple[str, ...], **settings: Unpack[SamplingSettings]
    ) -> list[str]: ...

    def generate(
        self, prompt: str | list[str] | tuple[str, ...], **settings: Unpack[SamplingSettings]
    ) -> str | list[str]:
        """Continues a text, or each of several.

        In a batch, each prompt gets what it would get alone; with a seed, prompt
        number i draws from seed + i.

        Args:
            prompt: one text or a sequence of texts.
            **settings: see the class.

        Returns:
            The continuation only; a list when `prompt` is one.

        Raises:
            ConfigError: for a bad setting, or a prompt longer than the context.
        """
        params = SamplingParams.of(settings)
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        texts = [done.text for done in self.complete([self._encode(p) for p in prompts], params)]
        return texts[0] if isinstance(prompt, str) else texts

    def stream(self, prompt: str, **settings: Unpack[SamplingSettings]) -> Iterator[str]:
        """Like `generate` for one text, piece by piece; the pieces joined are its result."""
        params = SamplingParams.of(settings)
        return self._stream(self._encode(prompt), params)

    def chat(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        strict: bool = False,
        **settings: Unpack[SamplingSettings],
    ) -> str:
        """Answers a conversation.

        Args:
            messages: {"role": "user" | "assistant" | "model", "content": text}, alternating and
                beginning and ending with the user. A system message may come first; it opens the
                first user turn.
            strict: refuse a system message, as Gemma's own template does.
            **settings: see the class.

        Returns:
            The model's turn, up to <end_of_turn>.
        """
        params = SamplingParams.of(settings)
        ids = self.tokenizer.render_chat(messages, strict=strict)
        return self.complete([ids], params)[0].text

    def stream_chat(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        strict: bool = False,
        **settings: Unpack[SamplingSettings],
    ) -> Iterator[str]:
        """Like `chat`, piece by piece."""
        params = SamplingParams.of(settings)
        ids = self.tokenizer.render_chat(messages, strict=strict)
        return self._stream(ids, params)

    def score(self, text: str) -> list[float]:
        """Log-probability of each token of `text` given all before it, in nats.

        The first is conditioned on <bos>. The tokens are `tokenizer.encode(text)`.

        Raises:
            ConfigError: when the text does not fit into the context.
        """
        ids = self._encode(text)
        check_text(self.config.max_position_embeddings, len(ids) - 1)
        (score,) = self.engine().score([(ids[:1], ids[1:])])
        return list(score.log_probs)

    def score_branches(
        self, texts: Sequence[Branches]
    ) -> Iterator[tuple[list[int], list[list[Score]]]]:
        """How likely continuations of contexts are, some texts at a time.

        On the CPU a score depends on its own context and continuation alone, to the last bit.

        Args:
            texts: contexts with their continuations.

        Yields:
            Places in `texts`, and for each the scores of its continuations.

        Raises:
            ConfigError: for ids that the model does not have, or a text longer than the context.
        """
        return TreeScorer(self.model).stream(texts)

    def complete(
        self, prompts: Sequence[Sequence[int]], params: SamplingParams
    ) -> list[Completion]:
        """Continues token ids; says also which tokens were drawn and why each row ended.

        Raises:
            ConfigError: for ids that the model does not have, or a prompt longer than the context.
            GemmuleError: when the model's logits are not finite.
        """
        requests = [Request(prompt, params, row) for row, prompt in enumerate(prompts)]
        return [_finite(completion) for completion in self.engine().complete(requests)]

    def _stream(self, ids: list[int], params: SamplingParams) -> Iterator[str]:
        events = self.engine().iterate(Request(ids, params))  # a bad prompt is refused at once
        return _texts(events)

    def engine(self) -> Engine:
        """The engine over the weights as they are: trained further, they need a new one."""
        state = (_state(self.model), None if self.draft is None else _state(self.draft.model))
        if self._made is None or self._made[1] != state:
            self._made = None  # the old pool goes before there is a new one
            self._made = (self._new_engine(), state)
        return self._made[0]

    def _new_engine(self) -> Engine:
        runner = make_runner(self.model, self._cache)
        speculation = None
        if self.draft is not None:
            drafter = DraftModel(make_runner(self.draft.model), self.draft.tokenizer)
            speculation = Speculation(drafter)
        elif not isinstance(runner, TorchRunner):
            # With the plain runner, guesses may change the last bits of what they are checked with.
            speculation = Speculation(PromptLookup())
        return Engine(runner, self.tokenizer, speculation=speculation)

    def _encode(self, text: str) -> list[int]:
        if not isinstance(text, str):
            raise ConfigError(f"expected text, got {type(text).__name__}")
        return self.tokenizer.encode(text, bos=True)


def _finite(completion: Completion) -> Completion:
    if completion.finish_reason == "error":
        raise NotFinite
    return completion


def _texts(events: Iterator[Event]) -> Iterator[str]:
    for event in events:
        if event.text:
            yield event.text
        if event.completion is not None:
            _finite(event.completion)


def _state(model: Gemma) -> object:
    """Differs after weights were changed or replaced, by whatever torch can notice."""
    tensors = [*model.parameters(), *model.buffers()]
    return [(t.data_ptr(), t.dtype, 0 if t.is_inference() else t._version) for t in tensors]


def load(
    path: str | Path,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str = "cpu",
    quantize: str | None = None,
) -> LanguageModel:
    """Loads a model and its tokenizer.

    Args:
        path: a run directory, a folder in Hugging Face's layout, a .gguf, .ckpt or .npz file, an
            orbax checkpoint, or a hub id (downloaded once).
        dtype: of the weights; None: as stored (float16 and GGUF's quantized become float32).
        device: such as "cpu" or "cuda".
        quantize: "int4", "int6" or "int8" packs the weights while they are read, without
            calibration (`gemmule quantize` does better); None: as stored.

    Raises:
        CheckpointError: when there is no readable model at `path`.
        TokenizerError: when its tokenizer is missing, broken or another model's.
        ConfigError: for an impossible dtype, device or quantization.
    """
    return LanguageModel(*load_to_run(path, dtype=dtype, device=device, quantize=quantize))
