"""The turns of a chat, kept short enough for the model's context."""

from gemmule.errors import UserError
from gemmule.model.tokenizer import Tokenizer


class Conversation:
    """The turns so far; the oldest are dropped when they no longer fit.

    Attributes:
        messages: user and assistant turns, oldest first.
        system: text before the first user turn; empty for none.
        max_tokens: maximum length of the rendered conversation.
    """

    def __init__(self, tokenizer: Tokenizer, context: int, reserve: int, system: str = "") -> None:
        """Starts empty.

        Args:
            tokenizer: renders the conversation.
            context: context length of the model.
            reserve: tokens to keep free for an answer; at most a quarter of the context.
            system: text before the first user turn; empty for none.
        """
        self._tokenizer = tokenizer
        self.messages: list[dict[str, str]] = []
        self.system = system
        self.max_tokens = context - min(reserve, context // 4)

    def with_system(self) -> list[dict[str, str]]:
        """Returns the messages as `LanguageModel.chat` takes them."""
        first = [{"role": "system", "content": self.system}] if self.system else []
        return first + self.messages

    def ask(self, text: str) -> int:
        """Adds a user turn and drops the oldest turns that no longer fit.

        Returns:
            How many earlier messages were dropped.

        Raises:
            UserError: if the message alone is too long; nothing is changed.
        """
        before = self.messages
        self.messages = [*before, {"role": "user", "content": text}]
        try:
            while (count := self._count()) > self.max_tokens:
                if len(self.messages) == 1:
                    raise UserError(
                        f"that message has {count} tokens; at most {self.max_tokens} fit into "
                        "this model's context with room for an answer. It was left out"
                    )
                self.messages = self.messages[2:]
        except UserError:
            self.messages = before
            raise
        return len(before) + 1 - len(self.messages)

    def answer(self, text: str) -> None:
        """Adds the model's turn; if it is empty, its question is removed instead."""
        if text.strip():
            self.messages.append({"role": "assistant", "content": text})
        else:
            self.messages.pop()

    def _count(self) -> int:
        return len(self._tokenizer.render_chat(self.with_system()))
