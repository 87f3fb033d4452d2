"""What clients of the Responses API send."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag

from gemmule.infer.core.sampling import MAX_LOGPROBS
from gemmule.serve.api_errors import ApiError
from gemmule.serve.grammar.answer_format import StructuredAnswer, structured_answer
from gemmule.serve.grammar.compiler import GrammarCompiler
from gemmule.serve.grammar.response_format import TextFormat
from gemmule.serve.grammar.spec import GrammarSpec
from gemmule.serve.grammar.tools import (
    FunctionDefinition,
    FunctionName,
    chosen_functions,
)
from gemmule.serve.messages import ChatMessage, ToolCall, check_results
from gemmule.serve.request_body import ApiModel, Items, Metadata, not_supported
from gemmule.serve.sampling_fields import SamplingFields
from gemmule.serve.turn_items import NO_REASONING, TEXT_ONLY, combined, text_of_parts

_TEXT_PARTS = {"input_text": "text", "output_text": "text", "refusal": "refusal"}
# An answer that is sent back has these.
_ANSWER_FIELDS = ("annotations", "logprobs")
LOGPROBS = "message.output_text.logprobs"
_STATELESS = "this server stores nothing: send the whole conversation as input"


class TextPart(ApiModel):
    """A part of an item's content."""

    type: Literal["input_text", "output_text"]
    text: str


Content = Annotated[
    str,
    BeforeValidator(
        lambda value: text_of_parts(value, _TEXT_PARTS, _ANSWER_FIELDS),
        json_schema_input_type=str | list[TextPart],
    ),
]


class MessageItem(ApiModel):
    """A message; one of an answer may be sent back as it came."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: Content
    id: str | None = None
    status: str | None = None
    phase: str | None = None

    def neutral(self) -> ChatMessage:
        """The item in terms of no protocol."""
        role = "system" if self.role == "developer" else self.role
        return ChatMessage(role=role, content=self.content)


class FunctionCallItem(ApiModel):
    """A call that the model made."""

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str
    id: str | None = None
    status: str | None = None

    def neutral(self) -> ChatMessage:
        """The item in terms of no protocol."""
        call = ToolCall(id=self.call_id, name=self.name, arguments=self.arguments)
        return ChatMessage(role="assistant", tool_calls=(call,))


class FunctionOutputItem(ApiModel):
    """The result of a call."""

    type: Literal["function_call_output"]
    call_id: str
    output: Content
    id: str | None = None
    status: str | None = None

    def neutral(self) -> ChatMessage:
        """The item in terms of no protocol."""
        return ChatMessage(role="tool", content=self.output, tool_call_id=self.call_id)


_REASONS = {"item_reference": _STATELESS, "reasoning": NO_REASONING}


def _kind(value: Any) -> Any:
    if isinstance(value, ApiModel):
        return getattr(value, "type", None)
    return value.get("type") or "message" if isinstance(value, dict) else None


def _known(value: Any) -> Any:
    kind = _kind(value)
    if isinstance(kind, str) and kind not in ("message", "function_call", "function_call_output"):
        raise not_supported(f"an item of type {kind!r:.60}", _REASONS.get(kind, TEXT_ONLY))
    return value


Item = Annotated[
    Annotated[MessageItem, Tag("message")]
    | Annotated[FunctionCallItem, Tag("function_call")]
    | Annotated[FunctionOutputItem, Tag("function_call_output")],
    Discriminator(
        _kind,
        custom_error_type="item",
        custom_error_message="it must be an object with a type, or a role",
    ),
    BeforeValidator(_known),
]


class JsonObjectFormat(ApiModel):
    """Any JSON object."""

    type: Literal["json_object"]

    def spec(self) -> GrammarSpec | None:
        """What the answer must match."""
        return GrammarSpec.json_object()


class JsonSchemaFormat(ApiModel):
    """JSON of a schema."""

    type: Literal["json_schema"]
    name: str
    json_schema: dict[str, Any] = Field(alias="schema")
    strict: bool | None = Field(None, description="The schema is kept to in any case")
    description: str | None = None

    def spec(self) -> GrammarSpec | None:
        """What the answer must match."""
        return GrammarSpec.json_schema(self.json_schema)


class TextConfig(ApiModel):
    """What the answer's text is like."""

    format: (
        Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]
        | None
    ) = None
    verbosity: Literal["medium"] | None = None


class FunctionTool(FunctionDefinition):
    """A function that the model may call."""

    type: Literal["function"]


def _function_tool(value: Any) -> Any:
    kind = value.get("type") if isinstance(value, dict) else None
    if isinstance(kind, str) and kind != "function":
        raise not_supported(f"a tool of type {kind!r:.60}", "this server has functions only")
    return value


class NamedFunction(ApiModel):
    """The function that must be called."""

    type: Literal["function"]
    name: str


class Reasoning(ApiModel):
    """There is none to be set."""

    effort: Literal["none"] | None = None
    summary: None = None


class ResponseStreamOptions(ApiModel):
    """What a stream has besides."""

    include_obfuscation: Literal[False] | None = None


class InputFields(ApiModel):
    """Fields that the tokens of the input follow from."""

    model: str | None = Field(None, description="Name of the model; the first one's")
    input: str | Annotated[Items[Item], Field(min_length=1)]
    instructions: str | None = Field(None, description="Text before the conversation")
    text: TextConfig | None = None
    tools: Items[Annotated[FunctionTool, BeforeValidator(_function_tool)]] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedFunction | None = None
    parallel_tool_calls: bool | None = Field(None, description="Whether several calls may be made")
    reasoning: Reasoning | None = None
    truncation: Literal["disabled"] | None = Field(None, description="A long input is refused")

    def messages(self) -> list[ChatMessage]:
        """The conversation in terms of no protocol.

        Raises:
            ApiError: 400 for results of calls that were not made.
        """
        first = [ChatMessage(role="system", content=self.instructions)] if self.instructions else []
        if isinstance(self.input, str):
            return [*first, ChatMessage(role="user", content=self.input)]
        messages = [*first, *(item.neutral() for item in self.input)]
        check_results(messages, "input")
        return combined(messages)

    def answer_format(self, grammars: GrammarCompiler | None) -> StructuredAnswer | None:
        """What the answer must match, and the tools that it may call; None: any text.

        Args:
            grammars: the model's compiler.

        Raises:
            ConfigError: for fields that cannot be used, or not together.
        """
        text = self.text.format if self.text else None
        choice = self.tool_choice
        tools = chosen_functions(
            self.tools or (),
            FunctionName(name=choice.name) if isinstance(choice, NamedFunction) else choice,
            self.parallel_tool_calls,
        )
        return structured_answer(grammars, text.spec() if text else None, tools)


class InputTokensRequest(InputFields):
    """Body of /v1/responses/input_tokens."""

    refused: ClassVar[dict[str, str]] = {
        "previous_response_id": _STATELESS,
        "conversation": _STATELESS,
        "personality": "this model has no such setting",
    }


class ResponsesRequest(InputFields, SamplingFields):
    """Body of /v1/responses."""

    max_output_tokens: int | None = Field(None, description="Limit of the answer, in tokens")
    stream: bool | None = None
    stream_options: ResponseStreamOptions | None = None
    return_progress: bool | None = Field(
        None, description="In a stream: events that tell how far the prompt is"
    )
    timings_per_token: bool | None = Field(None, description="In a stream: times with each delta")
    include: Items[str] | None = Field(
        None, description=f"{LOGPROBS!r}; what others name is never in an answer of this server"
    )
    top_logprobs: int | None = Field(None, description=f"0 to {MAX_LOGPROBS}")
    store: Literal[False] | None = Field(None, description="Nothing is stored")
    background: Literal[False] | None = Field(None, description="An answer is waited for")
    service_tier: Literal["auto", "default"] | None = None
    metadata: Metadata | None = Field(None, description="Comes back with the answer")
    user: str | None = Field(None, description="Comes back with the answer")
    safety_identifier: str | None = Field(None, description="Comes back with the answer")
    prompt_cache_key: str | None = Field(
        None, description="Comes back with the answer; every prompt is looked up in the cache"
    )
    refused: ClassVar[dict[str, str]] = {
        **InputTokensRequest.refused,
        "prompt": "prompts are not stored here: send the text",
        "max_tool_calls": "this server runs no tools of its own",
        "context_management": "this server compacts nothing",
        "moderation": "this server moderates nothing",
        "background_options": "an answer is waited for",
        "access_programs": "this server has none",
        "image": TEXT_ONLY,
        "prompt_cache_options": "pages stay cached until their memory is needed",
        "prompt_cache_retention": "pages stay cached until their memory is needed",
        "n": "a response is one answer",
        "prompt_logprobs": "/v1/completions has them",
        "return_token_ids": "/v1/chat/completions has them",
    }

    def check(self) -> None:
        """Checks fields that depend on each other.

        Raises:
            ApiError: 400.
        """
        for name in ("stream_options", "return_progress", "timings_per_token"):
            if not self.stream and getattr(self, name):
                raise ApiError(400, f"{name} needs stream: true", param=name)
        if self.top_logprobs is not None and not 0 <= self.top_logprobs <= MAX_LOGPROBS:
            raise ApiError(
                400,
                f"top_logprobs is {self.top_logprobs}; it must be from 0 to {MAX_LOGPROBS}",
                param="top_logprobs",
            )

    @property
    def num_logprobs(self) -> int | None:
        """Number of most likely tokens to return; None: no log-probabilities."""
        wanted = LOGPROBS in (self.include or ()) or self.top_logprobs
        return (self.top_logprobs or 0) if wanted else None
