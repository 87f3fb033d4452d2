"""Decodes token ids as they arrive, up to a stop string. Free of torch."""

from collections.abc import Sequence

from gemmule.model.stream_decoder import StreamDecoder
from gemmule.model.tokenizer import Tokenizer


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

    def push(self, text: str, ignore: bool = False) -> str:
        """Takes more text; returns the text that certainly comes before a stop string.

        Args:
            text: text that follows.
            ignore: a stop string that ends in this text does not count; one that begins in it does.
        """
        if self.stopped:
            return ""
        if not self._stops:
            return text
        before = len(self._held)
        text = self._held + text
        # A stop string within the held text was ignored before.
        matches = [
            at
            for stop in self._stops
            if (at := text.find(stop, max(0, before - len(stop) + 1))) >= 0
        ]
        if matches and not ignore:
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
        stop_id: the stop token that ended the text; None: none has.
    """

    def __init__(
        self,
        tokenizer: Tokenizer | None,
        stops: Sequence[str],
        limit: int,
        context_limit: int,
        min_tokens: int = 0,
    ) -> None:
        """Starts with an empty text.

        Args:
            tokenizer: decodes ids; None: there is no text and there are no stop tokens.
            stops: stop strings.
            limit: maximum number of tokens.
            context_limit: number of tokens that the context has left.
            min_tokens: number of tokens until which no stop string ends the text.
        """
        self.ids: list[int] = []
        self.reason: str | None = None
        self.stop_id: int | None = None
        self._decoder = None if tokenizer is None else StreamDecoder(tokenizer)
        self._matcher = StopMatcher(stops)
        self._stop_ids = frozenset(() if tokenizer is None else tokenizer.stop_ids)
        self._limit = min(limit, context_limit)
        self._min_tokens = min_tokens
        self._at_limit = "length" if limit <= context_limit else "context"

    def push(self, token: int, complete: bool = False) -> str:
        """Takes the next id; returns the text it completes. After the end it is ignored.

        Args:
            token: the id.
            complete: whether it is the last one, because nothing may follow.
        """
        if self.reason is not None:
            return ""
        if token in self._stop_ids:
            self.stop_id = token
            return self._end("stop", self._matcher.push(self._flushed()))
        self.ids.append(token)
        early = len(self.ids) < self._min_tokens
        decoded = "" if self._decoder is None else self._decoder.push(token)
        text = self._matcher.push(decoded, early)
        if self._matcher.stopped:
            self.reason = "stop"
        elif complete:
            return self._end("stop", text + self._matcher.push(self._flushed()))
        elif len(self.ids) >= self._limit:
            return self._end(self._at_limit, text + self._matcher.push(self._flushed()))
        return text

    def _flushed(self) -> str:
        return "" if self._decoder is None else self._decoder.flush()

    def _end(self, reason: str, text: str) -> str:
        self.reason = reason
        return text + self._matcher.flush()
