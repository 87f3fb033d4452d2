"""Conversations of protocols in which one turn can be several messages, and text in parts."""

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic_core import PydanticCustomError

from gemmule.serve.messages import ChatMessage
from gemmule.serve.request_body import not_supported

TEXT_ONLY = "this model reads text only"
NO_REASONING = "this model has no reasoning of its own"


def combined(messages: Iterable[ChatMessage]) -> list[ChatMessage]:
    """Joins neighbors of one role into one message; results of tools stay apart."""
    result: list[ChatMessage] = []
    for message in messages:
        if result and result[-1].role == message.role != "tool":
            texts = (result[-1].content, message.content)
            result[-1] = ChatMessage(
                role=message.role,
                content="\n\n".join(text for text in texts if text),
                tool_calls=result[-1].tool_calls + message.tool_calls,
            )
        else:
            result.append(message)
    return result


def text_of_parts(value: Any, kinds: Mapping[str, str], ignored: Iterable[str] = ()) -> Any:
    """Text of content that is a list of parts; anything else stays as it is.

    Args:
        value: content, before it is validated.
        kinds: types of parts that are text, each with the name of its field of text.
        ignored: names of fields that say nothing about the text.

    Raises:
        PydanticCustomError: for another type of part, or an unknown field.
    """
    if not isinstance(value, list):
        return value
    texts = []
    for n, part in enumerate(value):
        kind = part.get("type") if isinstance(part, dict) else None
        if not isinstance(kind, str):
            raise PydanticCustomError("part", f"it must be text, or a list of {_listed(kinds)}")
        if kind not in kinds:
            raise not_supported(f"a part of type {kind!r:.60}", TEXT_ONLY)
        text = part.get(kinds[kind])
        if not isinstance(text, str):
            raise PydanticCustomError("part", f"it must have text in its field {kinds[kind]}")
        unknown = [k for k, v in part.items() if k not in {"type", kinds[kind], *ignored} and v]
        if unknown:
            raise not_supported(f"{unknown[0]!r:.60} of part {n}", TEXT_ONLY)
        texts.append(text)
    return "\n".join(texts)


def _listed(kinds: Mapping[str, str]) -> str:
    return "parts of type " + " or ".join(kinds)
