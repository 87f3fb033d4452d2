"""Messages of a conversation as clients of OpenAI's API send them."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from gemmule.serve.messages import ChatMessage, ToolCall
from gemmule.serve.request_body import ApiModel, Items


class TextPart(ApiModel):
    """A part of a message's content."""

    type: Literal["text"]
    text: str


def _content(value: Any) -> Any:
    """Content in parts as one text."""
    if not isinstance(value, list):
        return value
    texts = []
    for part in value:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in ("text", "refusal") or not isinstance(part.get(kind), str):
            shown = f"a part of type {kind!r:.40}" if isinstance(kind, str) else "another part"
            raise PydanticCustomError(
                "content", "it must be text, or a list of parts of type 'text', got {shown}: "
                "this model reads text only", {"shown": shown},
            )  # fmt: skip
        texts.append(part[kind])
    return "\n".join(texts)


Content = Annotated[str, BeforeValidator(_content, json_schema_input_type=str | list[TextPart])]


class SystemMessage(ApiModel):
    """Instructions; only the first message may be one."""

    role: Literal["system", "developer"]
    content: Content

    def neutral(self) -> ChatMessage:
        """The message in terms of no protocol."""
        return ChatMessage(role="system", content=self.content)


class UserMessage(ApiModel):
    """What a user says."""

    role: Literal["user"]
    content: Content

    def neutral(self) -> ChatMessage:
        """The message in terms of no protocol."""
        return ChatMessage(role="user", content=self.content)


class FunctionCall(ApiModel):
    """Name and arguments of a call."""

    name: str
    arguments: str = "{}"


class MessageToolCall(ApiModel):
    """A call in an assistant's message."""

    id: str
    type: Literal["function"] = "function"
    function: FunctionCall
    index: int | None = None


class AssistantMessage(ApiModel):
    """What the model said; the fields that its answers have besides may be sent back."""

    role: Literal["assistant"]
    content: Content | None = None
    tool_calls: Items[MessageToolCall] | None = None
    refusal: None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None
    refused: ClassVar[dict[str, str]] = {
        "audio": "this model reads text only",
        "function_call": "calls are in tool_calls",
        "reasoning_content": "this model has no reasoning apart from its text",
    }

    def neutral(self) -> ChatMessage:
        """The message in terms of no protocol."""
        calls = tuple(
            ToolCall(id=call.id, name=call.function.name, arguments=call.function.arguments)
            for call in self.tool_calls or ()
        )
        return ChatMessage(role="assistant", content=self.content or "", tool_calls=calls)


class ToolMessage(ApiModel):
    """The result of a call."""

    role: Literal["tool"]
    content: Content
    tool_call_id: str
    name: str | None = Field(None, description="Not used: the call has the name")

    def neutral(self) -> ChatMessage:
        """The message in terms of no protocol."""
        return ChatMessage(role="tool", content=self.content, tool_call_id=self.tool_call_id)


Message = Annotated[
    SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")
]
