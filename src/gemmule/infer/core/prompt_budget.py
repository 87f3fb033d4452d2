"""How many tokens of prompts run in a step while other requests decode. Free of torch.

A step is as long as its slowest part, so a long prompt would hold up every token of the others. Its
chunks are made as small as the time of earlier steps demands. Without others they stay as large as
a step can be. Results do not depend on how a prompt is cut.
"""

from gemmule.errors import ConfigError

_FIRST = 16  # tokens, before anything is known
_FEWEST = 8  # on however slow a machine: prompts must get on
_CLEAR = 8  # tokens by which two steps must differ to say what a token costs
_ALONE = 64  # tokens from which a step without decoding says what a token costs
_TRIAL = 32  # steps with prompts after which one without shows what decoding alone takes
_WEIGHT = 0.25  # of the newest measurement


class PromptBudget:
    """Bounds what prompts add to the time of a step.

    Attributes:
        max_delay: seconds that they may add.
        token_seconds: what one more token adds to a step; None: not known yet.
    """

    def __init__(self, max_delay: float) -> None:
        """Starts without measurements.

        Raises:
            ConfigError: if `max_delay` is not positive.
        """
        if not max_delay > 0:
            raise ConfigError(f"max_prompt_delay is {max_delay}; it must be above 0 (seconds)")
        self.max_delay = max_delay
        self.token_seconds: float | None = None
        self._decoding: tuple[float, float] | None = None  # tokens and seconds of such steps
        self._mixed = 0  # steps with prompts since the last one that only decoded

    def tokens(self) -> int:
        """Number of tokens of prompts in the next step, if something decodes in it.

        It is 0 now and then, so that there are steps to compare with.
        """
        if self._decoding is None or self._mixed >= _TRIAL:
            return 0
        if self.token_seconds is None:
            return _FIRST
        return max(_FEWEST, int(self.max_delay / self.token_seconds))

    def measure(self, decoded: int, prompt: int, seconds: float) -> None:
        """Takes the time of a step.

        Args:
            decoded: tokens of sequences that decode, with draft tokens.
            prompt: tokens of prompts.
            seconds: how long it took.
        """
        if decoded and prompt:
            self._mixed += 1
            if self._decoding is not None:
                alone, alone_seconds = self._decoding
                more = decoded + prompt - alone
                if more >= _CLEAR:
                    self._note((seconds - alone_seconds) / more)
        elif decoded:
            self._mixed = 0
            alone, alone_seconds = self._decoding or (decoded, seconds)
            self._decoding = _mean(alone, decoded), _mean(alone_seconds, seconds)
        elif prompt >= _ALONE:
            self._note(seconds / prompt)

    def _note(self, seconds: float) -> None:
        """Takes a measurement; one that is far off counts less."""
        seconds = max(seconds, 1e-9)
        if self.token_seconds is not None:
            known = self.token_seconds
            seconds = _mean(known, min(max(seconds, known / 2), known * 2))
        self.token_seconds = seconds


def _mean(known: float, measured: float) -> float:
    return known + _WEIGHT * (measured - known)
