"""State of a text that is scored, updated with the outputs of each step."""

from collections.abc import Sequence

from gemmule.errors import GemmuleError
from gemmule.infer.core.request import RequestOutput, Score
from gemmule.infer.core.scheduler import TokenSequence
from gemmule.infer.runners.protocol import LogitsRequest, ScheduledChunk, StepOutput


class ScoringState:
    """A text whose tokens are given and get log-probabilities."""

    def __init__(self, sequence_id: int, ids: Sequence[int], start: int) -> None:
        """Starts without any score; tokens from `ids[start]` on are scored."""
        self.request_id = sequence_id
        self.sequence = TokenSequence(
            sequence_id,
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
        output_so_far = RequestOutput(self.request_id, "", (), score=self.score())
        return len(chunk.tokens), output_so_far

    def end(self, reason: str, now: float, error: GemmuleError | None = None) -> RequestOutput:
        """Ends the request before it has finished: its score lacks tokens."""
        self.error, self.done = error, True
        return RequestOutput(self.request_id, "", (), score=self.score(), error=error)

    def score(self) -> Score:
        """Scores of all tokens so far."""
        return Score(tuple(self._log_probs), tuple(self._greedy))

    def _logits_request(self, index: int, position: int) -> LogitsRequest:
        return LogitsRequest(index, top_k=1, log_z=True, target=self._ids[position + 1])
