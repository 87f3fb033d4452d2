"""What post-training learns from: conversations, preference pairs and prompts, as text."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

Role = Literal["system", "user", "assistant"]


@dataclasses.dataclass(frozen=True)
class Message:
    """One message of a conversation.

    Attributes:
        role: who wrote it.
        content: the text.
        trained: whether the model learns it, where the role is "assistant".
    """

    role: Role
    content: str
    trained: bool = True

    def to_dict(self) -> dict[str, str]:
        """The message as `Tokenizer.render_chat` takes it."""
        return {"role": self.role, "content": self.content}


def messages_of(values: Sequence[Mapping[str, str]]) -> tuple[Message, ...]:
    """Messages from dictionaries such as {"role": "user", "content": "Hello"}."""
    return tuple(Message(value["role"], value["content"]) for value in values)  # type: ignore[arg-type]


@dataclasses.dataclass(frozen=True)
class Conversation:
    """A conversation that ends with the model's answer.

    Attributes:
        messages: a system message if there is one, then user and assistant in turns.
        key: where it came from: file and record.
        record: further fields of its record, such as "label" of unpaired feedback.
    """

    messages: tuple[Message, ...]
    key: str = ""
    record: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class PreferencePair:
    """Two answers to one prompt, one of them preferred.

    Attributes:
        prompt: messages before the answers; the last one is the user's.
        chosen: the preferred answer: one assistant message, or further turns.
        rejected: the other answer.
        margin: how much better the chosen one is; None: unknown.
        key: where the pair came from: file and record.
        record: further fields of its record.
    """

    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]
    margin: float | None = None
    key: str = ""
    record: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A conversation that ends with the user's message, for the model to answer.

    Attributes:
        messages: the messages.
        key: where it came from: file and record.
        record: further fields of its record, such as a reference answer or the name of a task.
    """

    messages: tuple[Message, ...]
    key: str = ""
    record: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def first_user_message(messages: Sequence[Message]) -> str:
    """Content of the first message of the user, which decides the split of its conversation."""
    return next((m.content for m in messages if m.role == "user"), "")


def messages_before(item: Conversation | PreferencePair | Prompt) -> tuple[Message, ...]:
    """The messages of a conversation or prompt; of a pair, those that both answers follow."""
    return item.prompt if isinstance(item, PreferencePair) else item.messages
