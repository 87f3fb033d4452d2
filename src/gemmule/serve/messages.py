"""Conversations in terms of no protocol, and their turns as the model reads them.

Gemma 2 knows turns of a user and of a model, with a system message before the first. A tool's
result is a part of the user's turn, and a call of a tool is text of the model's turn.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from gemmule.serve.api_errors import ApiError
from gemmule.serve.grammar.tool_format import answer_text, result_text

Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True, kw_only=True)
class ToolCall:
    """A call that the model made.

    Attributes:
        id: name that its result refers to.
        name: name of the tool.
        arguments: its arguments, as JSON.
    """

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, kw_only=True)
class ChatMessage:
    """One message.

    Attributes:
        role: who wrote it.
        content: its text.
        tool_calls: calls that the assistant made.
        tool_call_id: id of the call that a tool's message has the result of.
    """

    role: Role
    content: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None


def turns(messages: Sequence[ChatMessage], instructions: str = "") -> list[dict[str, str]]:
    """Returns messages as `Tokenizer.render_chat` takes them; all text stays text there.

    Args:
        messages: the conversation.
        instructions: text for the system message, such as the tools that may be called.

    Raises:
        ApiError: 400 for results of calls that were not made before them.
    """
    check_results(messages, "messages")
    names: dict[str, str] = {}
    result: list[dict[str, str]] = []
    previous: Role | None = None
    for message in _with_instructions(messages, instructions):
        if message.role == "tool":
            text = result_text(names[message.tool_call_id or ""], message.content)
            role: Role = "user"
        else:
            names |= {call.id: call.name for call in message.tool_calls}
            calls = [(call.name, call.arguments) for call in message.tool_calls]
            text, role = answer_text(message.content, calls), message.role
        # All results of a turn's calls, and what the user says to them, are one turn.
        if previous == "tool" and role == "user":
            result[-1]["content"] += f"\n{text}"
        else:
            result.append({"role": role, "content": text})
        previous = message.role
    if len(result) == 1 and result[0]["role"] == "system":  # it opens the user's turn, and is all
        result.append({"role": "user", "content": ""})
    return result


def check_results(messages: Iterable[ChatMessage], param: str) -> None:
    """Refuses results of calls that were not made before them.

    Args:
        messages: the conversation.
        param: name of the field that it came in.

    Raises:
        ApiError: 400.
    """
    calls: set[str] = set()
    for message in messages:
        calls.update(call.id for call in message.tool_calls)
        if message.role == "tool" and message.tool_call_id not in calls:
            raise ApiError(
                400,
                f"{param} has a result of the call {message.tool_call_id!r:.100}, and no such call "
                "before it: send the assistant's turn with the call too",
                param=param,
            )


def _with_instructions(messages: Sequence[ChatMessage], instructions: str) -> Iterator[ChatMessage]:
    if instructions and messages and messages[0].role == "system":
        text = f"{messages[0].content}\n\n{instructions}"
        yield ChatMessage(role="system", content=text)
        yield from messages[1:]
        return
    if instructions:
        yield ChatMessage(role="system", content=instructions)
    yield from messages
