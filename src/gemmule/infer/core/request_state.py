"""State of a request while the engine works on it, updated with the outputs of each step."""

from collections.abc import Sequence
from typing import Protocol

from gemmule.errors import GemmuleError
from gemmule.infer.core.request import (
    Completion,
    Request,
    RequestOutput,
    RequestTimes,
    Score,
    TokenCounts,
    TokenLogProb,
)
from gemmule.infer.core.sampling import NotFinite, Sampler, SamplingParams, top_logits
from gemmule.infer.core.scheduler import TokenSequence
from gemmule.infer.core.text_stream import TextStream
from gemmule.infer.runners.protocol import (
    MAX_TOP_K,
    LogitsRequest,
    ScheduledChunk,
    StepOutput,
)
from gemmule.model.tokenizer import Tokenizer


class RequestState(Protocol):
    """A sequence, and what is made of its logits.

    Attributes:
        sequence: what the scheduler knows of it.
        done: whether the request has ended.
        scheduled: when the request first ran, by the engine's clock; None before that.
        error: why the engine ended it, if the engine failed.
    """

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
    """A request whose tokens are sampled one after the other.

    Attributes:
        params: its settings.
        sampler: samples its tokens.
        vocab_size: number of ids that may be sampled.
    """

    def __init__(
        self,
        request_id: int,
        request: Request,
        tokenizer: Tokenizer | None,
        *,
        remaining: int,
        vocab_size: int,
        num_logits: int,
        now: float = 0.0,
    ) -> None:
        """Starts without any output.

        Args:
            request_id: id of the request.
            request: the checked request.
            tokenizer: decodes the output; None: the output is ids only.
            remaining: number of tokens that the context has left for the output.
            vocab_size: number of ids that may be sampled.
            num_logits: number of logits, at least `vocab_size`.
            now: time by the engine's clock.
        """
        params, prompt = request.params, request.prompt
        self.params = params
        self.sampler = Sampler(params, request.row, prompt)
        self.vocab_size = vocab_size
        self._template = logits_request_for(params, vocab_size, num_logits)
        # The last sampled token never runs.
        self.sequence = TokenSequence(
            request_id,
            prompt,
            first_output_pos=len(prompt) - 1,
            max_len=len(prompt) + min(params.max_new_tokens, remaining) - 1,
            logits_request=self._logits_request,
        )
        self.done = False
        self.scheduled: float | None = None
        self.error: GemmuleError | None = None
        self._prompt_length = len(prompt)
        self._stream = TextStream(tokenizer, tuple(params.stop), params.max_new_tokens, remaining)
        self._texts: list[str] = []
        self._log_probs: list[TokenLogProb] = []
        self._reason = ""
        self._queued = now
        self._first_token: float | None = None
        self._finished: float | None = None

    def apply(
        self, chunk: ScheduledChunk, outputs: Sequence[StepOutput], now: float
    ) -> tuple[int, RequestOutput | None]:
        """Samples tokens; draft tokens count as far as they equal the sampled ones."""
        if not outputs:
            return len(chunk.tokens), None
        sequence, stream, count = self.sequence, self._stream, self.params.logprobs
        first = sequence.first_output_pos - chunk.start
        draft_tokens = chunk.tokens[first + 1 :]
        text = ""
        sampled: list[int] = []
        log_probs: list[TokenLogProb] = []
        reason = None
        for i, output in enumerate(outputs):
            try:
                token = sample(self.sampler, output, self.vocab_size)
            except NotFinite:
                reason = "error"
                break
            sampled.append(token)
            sequence.tokens.append(token)
            if count is not None:
                log_probs.append(log_prob(output, token, count, self.vocab_size))
            text += stream.push(token)
            if stream.reason or i >= len(draft_tokens) or draft_tokens[i] != token:
                break
        sequence.first_output_pos = len(sequence.tokens) - 1
        if self._first_token is None and sampled:
            self._first_token = now
        self._texts.append(text)
        self._log_probs += log_probs
        reason = reason or stream.reason
        if reason:
            self._end(reason, now)
        output_so_far = RequestOutput(
            sequence.request_id,
            text,
            tuple(sampled),
            tuple(log_probs),
            self.completion() if self.done else None,
        )
        return first + max(1, len(sampled)), output_so_far

    def end(self, reason: str, now: float, error: GemmuleError | None = None) -> RequestOutput:
        """Ends the request before it has finished."""
        self.error = error
        self._end(reason, now)
        completion = self.completion()
        return RequestOutput(
            self.sequence.request_id, "", (), completion=completion, error=error
        )  # fmt: skip

    def completion(self) -> Completion:
        """Everything generated so far."""
        ids = tuple(self._stream.ids)
        log_probs = None if self.params.logprobs is None else tuple(self._log_probs[: len(ids)])
        counts = TokenCounts(
            prompt=self._prompt_length,
            cached=self.sequence.num_cached or 0,
            generated=len(self.sequence.tokens) - self._prompt_length,
        )
        times = RequestTimes(self._queued, self.scheduled, self._first_token, self._finished)
        return Completion("".join(self._texts), ids, self._reason, log_probs, counts, times)

    def _logits_request(self, index: int, position: int) -> LogitsRequest:
        template = self._template
        if index == 0:
            return template
        return LogitsRequest(index, template.top_k, template.all_logits, template.log_z)

    def _end(self, reason: str, now: float) -> None:
        self._reason, self._finished, self.done = reason, now, True


class ScoringState:
    """A text whose tokens are given and get log-probabilities."""

    def __init__(self, request_id: int, ids: Sequence[int], start: int) -> None:
        """Starts without any score; tokens from `ids[start]` on are scored."""
        self.sequence = TokenSequence(
            request_id,
            ids[:-1],
            first_output_pos=start - 1,
            max_len=len(ids) - 1,
            logits_request=self._logits_request,
        )
        self.done = start == len(ids)
        self.scheduled: float | None = None
        self.error: GemmuleError | None = None
        self._ids = ids
        self._log_probs: list[float] = []
        self._greedy: list[bool] = []

    def apply(
        self, chunk: ScheduledChunk, outputs: Sequence[StepOutput], now: float
    ) -> tuple[int, RequestOutput | None]:
        """Takes the scores of a chunk's tokens."""
        for request, output in zip(chunk.logits, outputs, strict=True):
            assert output.target_logit is not None
            assert output.log_z is not None
            assert output.top_ids is not None
            self._log_probs.append(output.target_logit - output.log_z)
            self._greedy.append(int(output.top_ids[0]) == request.target)
        self.sequence.first_output_pos += len(outputs)
        self.done = self.sequence.first_output_pos == len(self.sequence.tokens)
        if not self.done:
            return len(chunk.tokens), None
        output_so_far = RequestOutput(self.sequence.request_id, "", (), score=self.score())
        return len(chunk.tokens), output_so_far

    def end(self, reason: str, now: float, error: GemmuleError | None = None) -> RequestOutput:
        """Ends the request before it has finished: its score lacks tokens."""
        self.error, self.done = error, True
        return RequestOutput(self.sequence.request_id, "", (), score=self.score(), error=error)

    def score(self) -> Score:
        """Scores of all tokens so far."""
        return Score(tuple(self._log_probs), tuple(self._greedy))

    def _logits_request(self, index: int, position: int) -> LogitsRequest:
        return LogitsRequest(index, top_k=1, log_z=True, target=self._ids[position + 1])


def logits_request_for(params: SamplingParams, vocab_size: int, num_logits: int) -> LogitsRequest:
    """Returns the smallest request that gives the same token as the whole row does.

    Args:
        params: settings of the request.
        vocab_size: number of ids that may be sampled.
        num_logits: number of logits; ids from `vocab_size` on may be among the largest, too.
    """
    count = 1 if params.greedy else params.top_k
    log_z = params.logprobs is not None
    if count is not None and params.repetition_penalty == 1:
        needed = max(count, params.logprobs or 0)
        top_k = needed + num_logits - vocab_size
        if needed < vocab_size and top_k <= MAX_TOP_K:
            return LogitsRequest(0, top_k=top_k, log_z=log_z)
    return LogitsRequest(0, all_logits=True, log_z=log_z)


def sample(sampler: Sampler, output: StepOutput, vocab_size: int) -> int:
    """Returns the next token, an id below `vocab_size`."""
    if output.logits is not None:
        return sampler(output.logits[:vocab_size])
    assert output.top_ids is not None
    assert output.top_logits is not None
    count = 1 if sampler.params.greedy else sampler.params.top_k
    if len(output.top_ids) == count:  # every logit belongs to an id that may be sampled
        return sampler.among(output.top_logits, output.top_ids)
    allowed = output.top_ids < vocab_size
    return sampler.among(output.top_logits[allowed][:count], output.top_ids[allowed][:count])


def log_prob(output: StepOutput, token: int, count: int, vocab_size: int) -> TokenLogProb:
    """Returns a token's log-probability, and those of the `count` most likely ids."""
    assert output.log_z is not None
    if output.logits is not None:
        logit = float(output.logits[token])
        logits, ids = (
            (x.tolist() for x in top_logits(output.logits[:vocab_size], count))
            if count
            else ([], [])
        )
    else:
        assert output.top_ids is not None
        assert output.top_logits is not None
        pairs = [
            (i, value)
            for i, value in zip(output.top_ids.tolist(), output.top_logits.tolist(), strict=True)
            if i < vocab_size
        ]
        logit = next(value for i, value in pairs if i == token)
        ids, logits = [i for i, _ in pairs[:count]], [value for _, value in pairs[:count]]
    top = tuple((i, value - output.log_z) for i, value in zip(ids, logits, strict=True))
    return TokenLogProb(token, logit - output.log_z, top)
