"""Decodes token ids as they arrive, up to a stop string. Free of torch."""

from collections.abc import Sequence

from gemmule.model.tokenizer import StreamDecoder, Tokenizer


class StopMatcher:
    """Passes text on up to the first stop string.

    Text that may be the beginning of a stop string is held back until more text decides it.

    Attributes:
        stopped: whether a stop string has occurred.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """Takes more text; returns the text that certainly comes before a stop string."""
        if self.stopped:
            return ""
        if not self._stops:
            return text
        text = self._held + text
        matches = [at for at in map(text.find, self._stops) if at >= 0]
        if matches:
            self.stopped, self._held = True, ""
            return text[: min(matches)]
        held = max(_overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def flush(self) -> str:
        """Returns the text that was held back, at the end of the text."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Returns the length of the longest suffix of `text` that is a prefix of `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0


class TextStream:
    """Decodes the ids of one request and decides where its text ends.

    Attributes:
        ids: tokens of the text, without a stop token.
        reason: finish reason ("stop", "length" or "context"); None while generation continues.
    """

    def __init__(
        self, tokenizer: Tokenizer | None, stops: Sequence[str], limit: int, context_limit: int
    ) -> None:
        """Starts with an empty text.

        Args:
            tokenizer: decodes ids; None: there is no text and there are no stop tokens.
            stops: stop strings.
            limit: maximum number of tokens.
            context_limit: number of tokens that the context has left.
        """
        self.ids: list[int] = []
        self.reason: str | None = None
        self._decoder = None if tokenizer is None else StreamDecoder(tokenizer)
        self._matcher = StopMatcher(stops)
        self._stop_ids = frozenset(() if tokenizer is None else tokenizer.stop_ids)
        self._limit = min(limit, context_limit)
        self._at_limit = "length" if limit <= context_limit else "context"

    def push(self, token: int) -> str:
        """Takes the next id; returns the text it completes. After the end it is ignored."""
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
