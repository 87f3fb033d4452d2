"""Token ids to text as they arrive, up to a stop string. Free of torch."""

from collections.abc import Sequence

from gemmule.model.tokenizer import StreamDecoder, Tokenizer


class StopMatcher:
    """Passes text on, but nothing of a stop string or after it.

    What may still become a stop string is held back until that is decided.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """Takes more text; returns what is certain to be wanted."""
        if self.stopped:
            return ""
        if not self._stops:
            return text
        text = self._held + text
        found = [at for at in map(text.find, self._stops) if at >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = max(_overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """The text ended: what was held back was no stop string."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that `stop` begins with."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0


class TextStream:
    """One row's generated ids as text.

    Attributes:
        ids: everything pushed that is part of the text, stop tokens left out.
        reason: why it ended ("stop", "length" or "context"), None while it goes on.
    """

    def __init__(
        self, tokenizer: Tokenizer | None, stops: Sequence[str], limit: int, context_limit: int
    ) -> None:
        """Starts a row; without a tokenizer there are ids only, and no stop tokens."""
        self.ids: list[int] = []
        self.reason: str | None = None
        self._decoder = None if tokenizer is None else StreamDecoder(tokenizer)
        self._matcher = StopMatcher(stops)
        self._stop_ids = frozenset(() if tokenizer is None else tokenizer.stop_ids)
        self._limit = min(limit, context_limit)
        self._at_limit = "length" if limit <= context_limit else "context"

    def push(self, token: int) -> str:
        """Takes the next id; returns the text it settles. After the end it is ignored."""
        if self.reason is not None:
            return ""
        if token in self._stop_ids:
            return self._end("stop", self._matcher.push(self._flushed()))
        self.ids.append(token)
        text = "" if self._decoder is None else self._matcher.push(self._decoder.push(token))
        if self._matcher.stopped:
            self.reason = "stop"
        elif len(self.ids) >= self._limit:
            return self._end(self._at_limit, text + self._matcher.push(self._flushed()))
        return text

    def _flushed(self) -> str:
        return "" if self._decoder is None else self._decoder.flush()

    def _end(self, reason: str, text: str) -> str:
        self.reason = reason
        return text + self._matcher.flush()
