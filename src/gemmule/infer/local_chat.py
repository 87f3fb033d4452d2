"""A model in this process to chat with."""

from collections.abc import Iterator

from gemmule.infer.conversation import Answer, Messages, TooLongError
from gemmule.infer.core.sampling import SamplingParams, SamplingSettings
from gemmule.infer.language_model import LanguageModel


class LocalModel:
    """A `ChatModel` that runs in this process.

    Attributes:
        max_tokens: maximum length of the rendered messages. A quarter of the context at most is
            kept free for an answer.
    """

    def __init__(self, lm: LanguageModel, settings: SamplingSettings | None = None) -> None:
        """Checks the settings.

        Args:
            lm: the model.
            settings: settings as for `LanguageModel.chat`.

        Raises:
            ConfigError: for a bad setting.
        """
        self._lm = lm
        self._settings: SamplingSettings = settings or {}
        context = lm.config.max_position_embeddings
        reserved = min(SamplingParams.of(self._settings).max_new_tokens, context // 4)
        self.max_tokens = context - reserved

    def describe(self) -> str:
        """Returns the number of parameters and the context."""
        config = self._lm.config
        return (
            f"{config.parameters / 1e6:.1f}M parameters · context "
            f"{config.max_position_embeddings} tokens"
        )

    def stream(self, messages: Messages) -> Answer:
        """Returns the parts of the model's turn.

        Raises:
            TooLongError: if the messages leave no room for an answer.
        """
        count = len(self._lm.tokenizer.render_chat(messages))
        if count > self.max_tokens:
            raise TooLongError(
                f"that message has {count} tokens; at most {self.max_tokens} fit into "
                "this model's context with room for an answer. It was left out"
            )
        return _parts(self._lm.stream_chat(messages, **self._settings))


def _parts(stream: Iterator[str]) -> Answer:
    yield from stream
