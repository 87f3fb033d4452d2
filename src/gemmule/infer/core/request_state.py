"""What the engine is busy with: one job a request, fed with predictions step by step."""

from collections import deque
from collections.abc import Sequence
from typing import Protocol

from gemmule.infer.core.request import Completion, Event, Request, Score, TokenLogProb
from gemmule.infer.core.sampling import NotFinite, Sampler, SamplingParams, likeliest
from gemmule.infer.core.scheduler import Part, TokenSequence
from gemmule.infer.core.text_stream import TextStream
from gemmule.infer.runners.protocol import MOST_CANDIDATES, Output, Prediction
from gemmule.model.tokenizer import Tokenizer


class Job(Protocol):
    """A sequence and what becomes of its predictions.

    Attributes:
        sequence: what the scheduler knows of it.
        done: whether it has ended.
        inbox: where its events go; None: nowhere.
    """

    sequence: TokenSequence
    done: bool
    inbox: deque[Event] | None

    def output(self, index: int, position: int) -> Output:
        """What is wanted at a position, the span's token number `index`."""

    def take(self, part: Part, predictions: Sequence[Prediction]) -> tuple[int, Event | None]:
        """Takes a part's predictions in; how many of the part's tokens are settled, and news."""

    def cancel(self) -> Event | None:
        """Ends it."""


class Generation:
    """A request whose tokens are drawn one after the other.

    Attributes:
        params: its settings.
        sampler: draws its tokens.
        words: ids that may be drawn.
    """

    def __init__(
        self,
        number: int,
        request: Request,
        tokenizer: Tokenizer | None,
        room: int,
        vocab_sizes: tuple[int, int],
    ) -> None:
        """Starts a job.

        Args:
            number: the request's id.
            request: checked.
            tokenizer: None: ids only.
            room: tokens that the context has for the answer.
            vocab_sizes: ids that may be drawn, and rows of the head.
        """
        params = request.params
        limit = min(params.max_new_tokens, room)
        prompt = request.prompt
        # The last token drawn is never run.
        self.sequence = TokenSequence(
            number, prompt, wanted=len(prompt) - 1, most=len(prompt) + limit - 1
        )
        self.params = params
        self.sampler = Sampler(params, request.row, prompt)
        self.done = False
        self.inbox: deque[Event] | None = None
        self.words = vocab_sizes[0]
        self._template = output_for(params, *vocab_sizes)
        self._stream = TextStream(tokenizer, tuple(params.stop), params.max_new_tokens, room)
        self._pieces: list[str] = []
        self._log_probs: list[TokenLogProb] = []
        self._reason = ""

    def output(self, index: int, position: int) -> Output:
        """See `Job`."""
        return Output(index, self._template.kind, self._template.top_k)

    def take(self, part: Part, predictions: Sequence[Prediction]) -> tuple[int, Event | None]:
        """See `Job`. The draft's tokens are settled as far as they are what is drawn anyway."""
        if not predictions:
            return len(part.tokens), None
        sequence, stream = self.sequence, self._stream
        first = sequence.wanted - part.start
        draft = part.tokens[first + 1 :]
        text, drawn, log_probs = "", [], []
        for i, prediction in enumerate(predictions):
            try:
                token = draw(self.sampler, prediction, self.words)
            except NotFinite:
                self._end("error")
                break
            drawn.append(token)
            sequence.tokens.append(token)
            if self.params.logprobs is not None:
                log_probs.append(log_prob(prediction, token, self.params.logprobs, self.words))
            text += stream.push(token)
            if stream.reason or i >= len(draft) or draft[i] != token:
                break
        sequence.wanted = len(sequence.tokens) - 1
        self._pieces.append(text)
        self._log_probs += log_probs
        if stream.reason:
            self._end(stream.reason)
        event = Event(
            sequence.number, text, tuple(drawn), tuple(log_probs),
            self.completion() if self.done else None,
        )  # fmt: skip
        return first + max(1, len(drawn)), event

    def cancel(self) -> Event:
        """See `Job`."""
        self._end("cancelled")
        return Event(self.sequence.number, "", (), completion=self.completion())

    def completion(self) -> Completion:
        """Everything so far."""
        ids = tuple(self._stream.ids)
        given = None if self.params.logprobs is None else tuple(self._log_probs[: len(ids)])
        return Completion("".join(self._pieces), ids, self._reason, given)

    def _end(self, reason: str) -> None:
        self._reason, self.done = reason, True


class Scoring:
    """A text whose tokens are not drawn but given."""

    def __init__(self, number: int, ids: Sequence[int], start: int) -> None:
        """Starts a job; tokens from `ids[start]` on are scored."""
        self.sequence = TokenSequence(number, ids[:-1], wanted=start - 1, most=len(ids) - 1)
        self.done = False
        self.inbox: deque[Event] | None = None
        self._ids = ids
        self._log_probs: list[float] = []
        self._greedy: list[bool] = []

    def output(self, index: int, position: int) -> Output:
        """See `Job`."""
        return Output(index, "score", target=self._ids[position + 1])

    def take(self, part: Part, predictions: Sequence[Prediction]) -> tuple[int, Event | None]:
        """See `Job`."""
        for position, found in zip(part.positions, predictions, strict=True):
            assert found.ids is not None and found.log_z is not None
            assert found.target_logit is not None
            self._log_probs.append(found.target_logit - found.log_z)
            self._greedy.append(int(found.ids[0]) == self._ids[position + 1])
        self.sequence.wanted += len(predictions)
        self.done = self.sequence.wanted == len(self.sequence.tokens)
        return len(part.tokens), None

    def cancel(self) -> None:
        """See `Job`."""
        self.done = True

    def score(self) -> Score:
        """The result."""
        return Score(tuple(self._log_probs), tuple(self._greedy))


def output_for(params: SamplingParams, words: int, rows: int) -> Output:
    """The least that a runner must find for a draw that is the same as from whole logits.

    Args:
        params: settings.
        words: ids that may be drawn.
        rows: of the head; those beyond `words` may be among the likeliest, too.
    """
    count = 1 if params.greedy else params.top_k
    whole = params.repetition_penalty != 1 or params.logprobs is not None
    if whole or count is None or count >= words or count + rows - words > MOST_CANDIDATES:
        return Output(0, "logits")
    count += rows - words
    return Output(0, "greedy") if count == 1 else Output(0, "top_k", count)


def draw(sampler: Sampler, prediction: Prediction, words: int) -> int:
    """The next token, below `words`."""
    assert prediction.logits is not None
    if prediction.ids is None:
        return sampler(prediction.logits[:words])
    count = 1 if sampler.params.greedy else sampler.params.top_k
    if len(prediction.ids) == count:  # every row of the head is a word
        return sampler.among(prediction.logits, prediction.ids)
    allowed = prediction.ids < words
    return sampler.among(prediction.logits[allowed][:count], prediction.ids[allowed][:count])


def log_prob(prediction: Prediction, token: int, count: int, words: int) -> TokenLogProb:
    """A token's log-probability, and the likeliest ids' with it."""
    assert prediction.logits is not None
    row = prediction.logits.float()
    log_z = float(row.logsumexp(-1))
    top: tuple[tuple[int, float], ...] = ()
    if count:
        logits, ids = likeliest(row[:words], count)
        values = [logit - log_z for logit in logits.tolist()]
        top = tuple(zip(ids.tolist(), values, strict=True))
    return TokenLogProb(token, float(row[token]) - log_z, top)
