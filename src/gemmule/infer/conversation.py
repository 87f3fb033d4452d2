"""The turns of a chat, kept short enough for the model's context."""

from collections.abc import Callable, Generator
from typing import Protocol

from gemmule.errors import UserError

Messages = list[dict[str, str]]
Answer = Generator[str, None, None]


class TooLongError(UserError):
    """The messages do not fit into the model's context with room for an answer."""


class ChatModel(Protocol):
    """A model that answers messages, in this process or on a server."""

    def describe(self) -> str:
        """Returns facts for the greeting, such as the number of parameters."""
        ...

    def stream(self, messages: Messages) -> Answer:
        """Returns the parts of an answer as they come; closing it stops the answer.

        Raises:
            TooLongError: if the messages do not fit; at once, before the first part.
        """
        ...


class Conversation:
    """The turns so far; the oldest are dropped when they no longer fit.

    Attributes:
        messages: user and assistant turns, oldest first.
        system: text before the first user turn; empty for none.
    """

    def __init__(self, system: str = "") -> None:
        self.messages: Messages = []
        self.system = system

    def with_system(self) -> Messages:
        """Returns the messages as `ChatModel.stream` takes them."""
        first = [{"role": "system", "content": self.system}] if self.system else []
        return first + self.messages

    def ask(self, text: str, stream: Callable[[Messages], Answer]) -> tuple[Answer, int]:
        """Adds a user turn and starts its answer, without the oldest turns if they do not fit.

        Args:
            text: the user's message.
            stream: as `ChatModel.stream`.

        Returns:
            The answer, and how many earlier messages were dropped.

        Raises:
            TooLongError: if the message alone is too long. As with any exception, the conversation
                is then as before.
        """
        before = self.messages
        self.messages = [*before, {"role": "user", "content": text}]
        try:
            while True:
                try:
                    return stream(self.with_system()), len(before) + 1 - len(self.messages)
                except TooLongError:
                    if len(self.messages) == 1:
                        raise
                    self.messages = self.messages[2:]
        except BaseException:
            self.messages = before
            raise

    def answer(self, text: str) -> None:
        """Adds the model's turn; if it is empty, its question is removed instead."""
        if text.strip():
            self.messages.append({"role": "assistant", "content": text})
        else:
            self.messages.pop()
