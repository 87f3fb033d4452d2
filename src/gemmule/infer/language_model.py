"""A model with its tokenizer: what `gemmule.load` returns."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack, overload

import torch

from gemmule.checkpoints.load import load_to_run
from gemmule.errors import ConfigError, MissingTokenizerError, TokenizerError
from gemmule.infer.async_driver import (
    MAX_PROMPT_DELAY,
    MAX_RUNNING,
    MAX_WAITING,
    AsyncEngine,
)
from gemmule.infer.core.constraint import TokenConstraint
from gemmule.infer.core.request import Completion, Request, RequestOutput, Score, check_text
from gemmule.infer.core.sampling import SamplingParams, SamplingSettings
from gemmule.infer.core.speculative import (
    ModelDrafter,
    NgramDrafter,
    Speculation,
    check_same_tokenizer,
)
from gemmule.infer.driver import Engine
from gemmule.infer.prefix_scoring import ContinuationGroup, PrefixScorer
from gemmule.infer.runners.choose import make_runner
from gemmule.infer.runners.protocol import Runner
from gemmule.infer.runners.torch_runner import TorchRunner
from gemmule.infer.step_loop import StepReport
from gemmule.model.config import GemmaConfig
from gemmule.model.gemma import Gemma
from gemmule.model.tokenizer import Tokenizer
from gemmule.runtime.forks import in_child


class LanguageModel:
    """Generates, chats and scores.

    Keyword settings of `generate`, `stream`, `chat` and `stream_chat` are the fields of
    `SamplingParams`, such as max_new_tokens, temperature, seed and stop.

    Attributes:
        model: the torch module, tokens_BT to logits_BTV.
        draft: the draft model of speculative decoding, if there is one.
    """

    def __init__(
        self,
        model: Gemma,
        tokenizer: Tokenizer | MissingTokenizerError,
        *,
        draft: "LanguageModel | None" = None,
        cache: str | None = None,
    ) -> None:
        """Puts model and tokenizer together.

        Args:
            model: the torch module.
            tokenizer: its tokenizer, or the error to raise where text needs one.
            draft: a smaller model with the same tokenizer that proposes tokens; it saves time if
                its proposals are often right, and does not change the output.
            cache: format of keys and values: "float32", "float16" or "int8"; the smaller, the more
                tokens fit in memory. None: as suits the weights.

        Raises:
            TokenizerError: if the model has fewer tokens than the tokenizer, or the draft model
                has another tokenizer.
        """
        self._tokenizer = tokenizer if isinstance(tokenizer, Tokenizer) else None
        self._no_tokenizer = "" if isinstance(tokenizer, Tokenizer) else str(tokenizer)
        if self._tokenizer and self._tokenizer.vocab_size > model.config.vocab_size:
            raise TokenizerError(
                f"the tokenizer has {self._tokenizer.vocab_size} tokens, the model only "
                f"{model.config.vocab_size}: they do not belong together"
            )
        self.model = model
        self.draft = draft
        self._cache = cache
        self._engine: Engine | None = None
        self._layout: object = None  # of the engine's weights; see _layout and _version
        self._version: object = None
        if draft is not None:
            check_same_tokenizer(self._tokenizer, draft.tokenizer)
        in_child(self, LanguageModel._after_fork)

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer.

        Raises:
            MissingTokenizerError: when there is none; token ids work without one.
        """
        if self._tokenizer is None:
            raise MissingTokenizerError(self._no_tokenizer)
        return self._tokenizer

    @property
    def has_tokenizer(self) -> bool:
        """Whether text can be used, or token ids only."""
        return self._tokenizer is not None

    def __getstate__(self) -> dict[str, object]:
        """Leaves out the engine: a copy makes one of its own."""
        return {**self.__dict__, "_engine": None}

    def __setstate__(self, state: dict[str, object]) -> None:
        """Makes a copy in this or another process."""
        self.__dict__.update(state)
        in_child(self, LanguageModel._after_fork)

    def _after_fork(self) -> None:
        """In a fork of the process: requests that still run are the parent's."""
        if self._engine is not None and self._engine.busy:
            self._engine = None

    @property
    def config(self) -> GemmaConfig:
        """Shape of the model."""
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

        The output for a prompt does not depend on the other prompts; with a seed, prompt number i
        is sampled with seed + i.

        Args:
            prompt: one text or a sequence of texts.
            **settings: fields of `SamplingParams`.

        Returns:
            The continuation only; a list if `prompt` is one.

        Raises:
            ConfigError: for a bad setting, or a prompt longer than the context.
        """
        params = _one_sample(settings)
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        texts = [done.text for done in self.complete([self._encode(p) for p in prompts], params)]
        return texts[0] if isinstance(prompt, str) else texts

    def stream(self, prompt: str, **settings: Unpack[SamplingSettings]) -> Iterator[str]:
        """Continues one text as `generate` does, and yields the result in parts as they come."""
        params = _one_sample(settings)
        return self._stream(self._encode(prompt), params)

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        strict: bool = False,
        **settings: Unpack[SamplingSettings],
    ) -> str:
        """Returns the model's next turn in a conversation.

        Args:
            messages: {"role": "user" | "assistant" | "model", "content": text}, alternating and
                beginning and ending with the user. A system message may come first; it is put at
                the beginning of the first user turn. A chat template of the model's own decides
                itself what it accepts.
            strict: refuse a system message, as Gemma's own template does.
            **settings: fields of `SamplingParams`.

        Returns:
            The model's turn, up to a stop token.

        Raises:
            ConfigError: for a bad setting, or a conversation longer than the context.
            TokenizerError: for messages in another order.
        """
        params = _one_sample(settings)
        ids = self.tokenizer.render_chat(messages, strict=strict)
        return self.complete([ids], params)[0].text

    def stream_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        strict: bool = False,
        **settings: Unpack[SamplingSettings],
    ) -> Iterator[str]:
        """Returns the model's next turn as `chat` does, in parts as they come."""
        params = _one_sample(settings)
        ids = self.tokenizer.render_chat(messages, strict=strict)
        return self._stream(ids, params)

    def score(self, text: str) -> list[float]:
        """Returns the log-probability of each token of `text` given all before it, in nats.

        The first token is conditioned on <bos>. The tokens are `tokenizer.encode(text)`.

        Raises:
            ConfigError: if the text does not fit into the context.
        """
        ids = self._encode(text)
        check_text(self.config.max_position_embeddings, len(ids) - 1)
        (score,) = self.engine().score([(ids[:1], ids[1:])])
        return list(score.log_probs)

    def score_continuations(
        self, groups: Sequence[ContinuationGroup]
    ) -> Iterator[tuple[list[int], list[list[Score]]]]:
        """Computes log-probabilities of continuations of contexts, a few contexts at a time.

        A score depends on its own context and continuation alone, to the last bit.

        Args:
            groups: contexts with their continuations.

        Yields:
            Indices into `groups`, and for each the scores of its continuations.

        Raises:
            ConfigError: for ids that the model does not have, or a text longer than the context.
        """
        return PrefixScorer(self.model).stream(groups)

    def complete(
        self,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams,
        constraint: TokenConstraint | None = None,
    ) -> list[Completion]:
        """Continues token ids; returns tokens, finish reasons, log-probabilities and counts too.

        With a seed, sample j of prompt number i is sampled with seed + i * n + j.

        Args:
            prompts: token ids, at least one each.
            params: settings of all of them.
            constraint: decides which tokens may come next; each sample has a copy.

        Returns:
            `params.n` completions for each prompt, in the order of the prompts.

        Raises:
            ConfigError: for ids that the model does not have, a prompt longer than the context, or
                a constraint for another vocabulary.
            GemmuleError: if the model's logits are not finite, or the constraint fails.
        """
        requests = [
            Request(prompt, params, number * params.n, constraint)
            for number, prompt in enumerate(prompts)
        ]
        return [_checked(completion) for completion in self.engine().complete(requests)]

    def _stream(self, ids: list[int], params: SamplingParams) -> Iterator[str]:
        outputs = self.engine().iterate(Request(ids, params))  # a bad prompt is refused at once
        return _texts(outputs)

    def engine(self) -> Engine:
        """Returns the engine that runs this model, and tells it if weights have changed."""
        models = [self.model] if self.draft is None else [self.model, self.draft.model]
        layout, version = [_layout(m) for m in models], [_version(m) for m in models]
        if self._engine is None or self._engine.dead or layout != self._layout:
            self._engine = None  # the old pool is freed before there is a new one
            self._engine = self._new_engine()
        elif version != self._version:
            self._engine.weights_changed()
        self._layout, self._version = layout, version
        return self._engine

    def async_engine(
        self,
        *,
        max_waiting: int = MAX_WAITING,
        max_running: int = MAX_RUNNING,
        max_prompt_delay: float | None = MAX_PROMPT_DELAY,
        after_step: Callable[[StepReport], None] | None = None,
    ) -> AsyncEngine:
        """Starts an engine with a thread and a pool of its own, for a server.

        Args:
            max_waiting: number of requests that may wait, besides those that can start at once.
            max_running: number of requests that run at once.
            max_prompt_delay: seconds by which a step may be lengthened by prompts while others
                decode; None: any.
            after_step: called in the engine's thread after all callbacks of a step.
        """
        runner = make_runner(self.model, self._cache)
        return AsyncEngine(
            runner,
            self._tokenizer,
            speculation=self._speculation(runner),
            max_waiting=max_waiting,
            max_running=max_running,
            max_prompt_delay=max_prompt_delay,
            after_step=after_step,
        )

    def _new_engine(self) -> Engine:
        runner = make_runner(self.model, self._cache)
        return Engine(runner, self._tokenizer, speculation=self._speculation(runner))

    def _speculation(self, runner: Runner) -> Speculation | None:
        if self.draft is not None:
            return Speculation(ModelDrafter(make_runner(self.draft.model), self.draft.tokenizer))
        # With the plain runner, draft tokens may change the last bits of the logits.
        return None if isinstance(runner, TorchRunner) else Speculation(NgramDrafter())

    def _encode(self, text: str) -> list[int]:
        if not isinstance(text, str):
            raise ConfigError(f"expected text, got {type(text).__name__}")
        return self.tokenizer.encode(text, bos=True)


def _one_sample(settings: SamplingSettings) -> SamplingParams:
    """Checks the settings of a method that returns one text for each prompt."""
    params = SamplingParams.of(settings)
    if params.n > 1:
        raise ConfigError(
            f"n is {params.n}; this returns one text for each prompt: use `complete`, or "
            "`generate` with a list that has the prompt several times"
        )
    return params


def _checked(completion: Completion) -> Completion:
    if completion.error is not None:
        raise completion.error
    return completion


def _texts(outputs: Iterator[RequestOutput]) -> Iterator[str]:
    for output in outputs:
        if output.text:
            yield output.text
        if output.completion is not None:
            _checked(output.completion)


def _layout(model: Gemma) -> object:
    """What an engine cannot survive a change of: dtypes and devices of the weights."""
    return [(t.dtype, t.device) for t in (*model.parameters(), *model.buffers())]


def _version(model: Gemma) -> object:
    """Differs after weights were changed or replaced, as far as torch can tell."""
    tensors = [*model.parameters(), *model.buffers()]
    return [(t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors]


def load(
    path: str | Path,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str = "cpu",
    quantize: str | None = None,
) -> LanguageModel:
    """Loads a model and its tokenizer.

    Args:
        path: a run directory, a folder in Hugging Face's layout or with an adapter of peft, a
            .gguf, .ckpt or .npz file, an orbax checkpoint, or a hub id (downloaded once).
        dtype: dtype of the weights; None: as stored (float16 and GGUF's quantized weights become
            float32).
        device: a device such as "cpu" or "cuda".
        quantize: "int4", "int6" or "int8" packs the weights while they are read, without
            calibration (`gemmule quantize` does better); None: as stored.

    Raises:
        CheckpointError: if there is no readable model at `path`.
        TokenizerError: if its tokenizer is broken or that of another model. Without any, only text
            is refused, when it is used.
        ConfigError: for an impossible dtype, device or quantization.
    """
    return LanguageModel(*load_to_run(path, dtype=dtype, device=device, quantize=quantize))
