"""State of a request while the engine works on it, updated with the outputs of each step."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from gemmule.errors import GemmuleError
from gemmule.infer.core.constraint import ConstraintError, TokenFilter
from gemmule.infer.core.request import (
    Completion,
    PromptProgress,
    Request,
    RequestOutput,
    RequestTimes,
    TokenCounts,
    TokenLogProb,
)
from gemmule.infer.core.sampler import NotFinite, Sampler
from gemmule.infer.core.scheduler import TokenSequence
from gemmule.infer.core.step_outputs import (
    log_prob,
    logits_request_for,
    prompt_request_for,
    sample,
)
from gemmule.infer.core.text_stream import TextStream
from gemmule.infer.runners.protocol import LogitsRequest, ScheduledChunk, StepOutput
from gemmule.model.tokenizer import Tokenizer


class RequestState(Protocol):
    """A sequence, and what is made of its logits.

    Attributes:
        request_id: id of the request that it is a sample of.
        sequence: what the scheduler knows of it.
        done: whether the request has ended.
        scheduled: when the request first ran, by the engine's clock; None before that.
        error: why the engine ended it, if the engine failed.
    """

    request_id: int
    sequence: TokenSequence
    done: bool
    scheduled: float | None
    error: GemmuleError | None

    def apply(
        self, chunk: ScheduledChunk, outputs: Sequence[StepOutput], now: float
    ) -> tuple[int, RequestOutput | None]:
        """Takes the outputs of a chunk.

        Returns:
            How many of the chunk's tokens are committed (draft tokens may be rejected), and what
            the request's owner is to be told.
        """

    def end(
        self, reason: str, now: float, error: GemmuleError | None = None
    ) -> RequestOutput | None:
        """Ends the request before it has finished."""


class GenerationState:
    """A sample of a request, whose tokens are drawn one after the other.

    Attributes:
        request_id: id of the request.
        sample: number of the sample.
        params: its settings.
        sampler: samples its tokens.
        filter: decides which tokens may come next; None: all may.
        vocab_size: number of ids that may be sampled.
    """

    def __init__(
        self,
        sequence_id: int,
        request: Request,
        tokenizer: Tokenizer | None,
        *,
        remaining: int,
        vocab_size: int,
        num_logits: int,
        token_filter: TokenFilter | None = None,
        request_id: int | None = None,
        sample: int = 0,
        now: float = 0.0,
    ) -> None:
        """Starts without any output.

        Args:
            sequence_id: id of its sequence.
            request: the checked request.
            tokenizer: decodes the output; None: the output is ids only.
            remaining: number of tokens that the context has left for the output.
            vocab_size: number of ids that may be sampled.
            num_logits: number of logits, at least `vocab_size`.
            token_filter: decides which tokens may come next; None: all may.
            request_id: id of the request; None: that of the sequence.
            sample: number of the sample.
            now: time by the engine's clock.
        """
        params, prompt = request.params, request.prompt
        self.request_id = sequence_id if request_id is None else request_id
        self.sample = sample
        self.params = params
        self.sampler = Sampler(params, request.row + sample, prompt)
        self.filter = token_filter
        self.vocab_size = vocab_size
        self._template = logits_request_for(params, vocab_size, num_logits)
        self._masked = logits_request_for(params, vocab_size, num_logits, masked=True)
        scored = params.prompt_logprobs
        self._for_prompt = prompt_request_for(scored or 0, vocab_size, num_logits)
        # The last sampled token never runs; the prompt does, even if nothing is sampled.
        self.sequence = TokenSequence(
            sequence_id,
            prompt,
            first_output_pos=len(prompt) - 1 if scored is None else 0,
            max_len=len(prompt) + max(1, min(params.max_new_tokens, remaining)) - 1,
            logits_request=self._logits_request,
        )
        self.done = False
        self.scheduled: float | None = None
        self.error: GemmuleError | None = None
        self._prompt_length = len(prompt)
        self._reports_progress = request.report_progress
        self._stream = TextStream(
            tokenizer, tuple(params.stop), params.max_new_tokens, remaining, params.min_tokens
        )
        self._texts: list[str] = []
        self._log_probs: list[TokenLogProb] = []
        self._prompt_log_probs: list[TokenLogProb] = []
        self._reason = ""
        self._failure: GemmuleError | None = None
        self._queued = now
        self._first_token: float | None = None
        self._finished: float | None = None

    def apply(
        self, chunk: ScheduledChunk, outputs: Sequence[StepOutput], now: float
    ) -> tuple[int, RequestOutput | None]:
        """Samples tokens; draft tokens count as far as they equal the sampled ones."""
        progress = self._progress(chunk.end) if self._reports_progress else None
        if not outputs:
            told = None if progress is None else self._output(prompt_progress=progress)
            return len(chunk.tokens), told
        sequence, stream, count = self.sequence, self._stream, self.params.logprobs
        of_prompt: tuple[TokenLogProb, ...] = ()
        asked = chunk.logits
        if sequence.first_output_pos < len(sequence.tokens) - 1:
            of_prompt = self._score_prompt(outputs)
            asked, outputs = asked[len(of_prompt) :], outputs[len(of_prompt) :]
        if outputs and not self.params.max_new_tokens:
            self._end("length", now)
        if self.done or not outputs:
            told = self._output(prompt_logprobs=of_prompt, prompt_progress=progress)
            return len(chunk.tokens), told
        first = sequence.first_output_pos - chunk.start
        draft_tokens = chunk.tokens[first + 1 :]
        text = ""
        sampled: list[int] = []
        log_probs: list[TokenLogProb] = []
        try:
            for i, output in enumerate(outputs):
                token = sample(self.sampler, output, self.vocab_size, asked[i].mask)
                sampled.append(token)
                sequence.tokens.append(token)
                if count is not None:
                    log_probs.append(log_prob(output, token, count, self.vocab_size))
                complete = self.filter is not None and self.filter.accept(token)
                text += stream.push(token, complete)
                if stream.reason or i >= len(draft_tokens) or draft_tokens[i] != token:
                    break
            if self.filter is not None and not stream.reason:
                self.filter.mask()  # of the next token: it may fail
        except (NotFinite, ConstraintError) as error:
            self._failure = error
        sequence.first_output_pos = len(sequence.tokens) - 1
        times = None
        if self._first_token is None and sampled:
            self._first_token = now
            times = self._times()
        self._texts.append(text)
        self._log_probs += log_probs
        if self._failure or stream.reason:
            self._end("error" if self._failure else str(stream.reason), now)
        output_so_far = self._output(
            text, tuple(sampled), tuple(log_probs), of_prompt, progress, times
        )  # fmt: skip
        return first + max(1, len(sampled)), output_so_far

    def end(self, reason: str, now: float, error: GemmuleError | None = None) -> RequestOutput:
        """Ends the request before it has finished."""
        self.error = self._failure = error
        self._end(reason, now)
        return self._output()

    def allowed_draft(self, draft_tokens: Sequence[int]) -> Sequence[int]:
        """Returns the longest beginning of draft tokens that the filter allows."""
        return draft_tokens if self.filter is None else self.filter.allowed_draft(draft_tokens)

    def completion(self) -> Completion:
        """Everything generated so far."""
        params, ids = self.params, tuple(self._stream.ids)
        counts = TokenCounts(
            prompt=self._prompt_length,
            cached=self.sequence.num_cached or 0,
            generated=len(self.sequence.tokens) - self._prompt_length,
        )
        stop_id, logprobs = self._stream.stop_id, self._log_probs
        return Completion(
            "".join(self._texts),
            ids,
            self._reason,
            None if params.logprobs is None else tuple(logprobs[: len(ids)]),
            None if params.prompt_logprobs is None else tuple(self._prompt_log_probs),
            stop_id,
            None if params.logprobs is None or stop_id is None else logprobs[len(ids)],
            self._failure,
            counts,
            self._times(),
        )

    def _logits_request(self, index: int, position: int) -> LogitsRequest:
        sequence = self.sequence
        drafted = position + 1 - len(sequence.tokens)
        if drafted < 0:
            target = sequence.tokens[position + 1]
            return replace(self._for_prompt, index=index, target=target)
        mask = None
        if self.filter is not None:
            mask = self.filter.mask(sequence.draft_tokens[:drafted])
        template = self._template if mask is None else self._masked
        if index == 0 and mask is None:
            return template
        return LogitsRequest(index, template.top_k, template.all_logits, template.log_z, mask=mask)

    def _score_prompt(self, outputs: Sequence[StepOutput]) -> tuple[TokenLogProb, ...]:
        """Takes the log-probabilities of the prompt's tokens, the first of the outputs."""
        sequence = self.sequence
        start = sequence.first_output_pos
        targets = sequence.tokens[start + 1 : start + 1 + len(outputs)]
        count = self.params.prompt_logprobs or 0
        log_probs = tuple(
            log_prob(output, token, count, self.vocab_size)
            for output, token in zip(outputs, targets, strict=False)
        )
        sequence.first_output_pos += len(log_probs)
        self._prompt_log_probs += log_probs
        return log_probs

    def _output(
        self,
        text: str = "",
        ids: tuple[int, ...] = (),
        logprobs: tuple[TokenLogProb, ...] = (),
        prompt_logprobs: tuple[TokenLogProb, ...] = (),
        prompt_progress: PromptProgress | None = None,
        times: RequestTimes | None = None,
    ) -> RequestOutput:
        return RequestOutput(
            self.request_id,
            text,
            ids,
            logprobs,
            prompt_logprobs,
            completion=self.completion() if self.done else None,
            error=self.error,
            sample=self.sample,
            prompt_progress=prompt_progress,
            times=times,
        )

    def _times(self) -> RequestTimes:
        return RequestTimes(self._queued, self.scheduled, self._first_token, self._finished)

    def _progress(self, computed: int) -> PromptProgress | None:
        """How far the prompt is if `computed` positions have run; None once it has an output."""
        if self._first_token is not None:
            return None
        total = self._prompt_length
        return PromptProgress(total, self.sequence.num_cached or 0, min(computed, total))

    def _end(self, reason: str, now: float) -> None:
        self._reason, self._finished, self.done = reason, now, True
