"""What clients of Anthropic's API send."""

import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from gemmule.errors import ConfigError
from gemmule.serve.grammar.answer_format import StructuredAnswer, structured_answer
from gemmule.serve.grammar.compiler import GrammarCompiler
from gemmule.serve.grammar.spec import GrammarSpec
from gemmule.serve.grammar.tools import (
    FunctionDefinition,
    FunctionName,
    ToolName,
    chosen_functions,
)
from gemmule.serve.messages import ChatMessage, ToolCall, check_results
from gemmule.serve.request_body import ApiModel, Items, not_supported
from gemmule.serve.sampling_fields import SamplingFields, Stops
from gemmule.serve.turn_items import NO_REASONING, TEXT_ONLY, combined, text_of_parts

_CACHED = "Accepted and not used: every prompt is looked up in the cache"


class CacheControl(ApiModel):
    """Where a client would like a prompt to be cached."""

    type: Literal["ephemeral"]
    ttl: str | None = None


class TextBlock(ApiModel):
    """Text."""

    type: Literal["text"]
    text: str
    cache_control: CacheControl | None = Field(None, description=_CACHED)
    citations: Annotated[list[Any], Field(max_length=0)] | None = None


class ToolUseBlock(ApiModel):
    """A call that the model made."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]
    cache_control: CacheControl | None = Field(None, description=_CACHED)
    caller: dict[str, Any] | None = Field(None, description="Accepted and not used")

    def call(self) -> ToolCall:
        """The call in terms of no protocol."""
        arguments = json.dumps(self.input, ensure_ascii=False)
        return ToolCall(id=self.id, name=self.name, arguments=arguments)


Text = Annotated[
    str,
    BeforeValidator(
        lambda value: text_of_parts(value, {"text": "text"}, ["cache_control"]),
        json_schema_input_type=str | list[TextBlock],
    ),
]


class ToolResultBlock(ApiModel):
    """The result of a call."""

    type: Literal["tool_result"]
    tool_use_id: str
    content: Text = ""
    is_error: bool | None = None
    cache_control: CacheControl | None = Field(None, description=_CACHED)

    def neutral(self) -> ChatMessage:
        """The result in terms of no protocol."""
        text = f"Error: {self.content}" if self.is_error else self.content
        return ChatMessage(role="tool", content=text, tool_call_id=self.tool_use_id)


def _known_blocks(*kinds: str) -> BeforeValidator:
    def check(value: Any) -> Any:
        for block in value if isinstance(value, list) else ():
            kind = block.get("type") if isinstance(block, dict) else None
            if isinstance(kind, str) and kind not in kinds:
                reason = NO_REASONING if "thinking" in kind else TEXT_ONLY
                raise not_supported(f"a block of type {kind!r:.60}", reason)
        return value

    return BeforeValidator(check)


UserBlock = Annotated[TextBlock | ToolResultBlock, Field(discriminator="type")]
AssistantBlock = Annotated[TextBlock | ToolUseBlock, Field(discriminator="type")]


class UserMessage(ApiModel):
    """What a user says, and results of tools."""

    role: Literal["user"]
    content: Annotated[str | Items[UserBlock], _known_blocks("text", "tool_result")]

    def neutral(self) -> Iterator[ChatMessage]:
        """The message in terms of no protocol: results first, then the text."""
        blocks = self.content if isinstance(self.content, list) else []
        results = [block.neutral() for block in blocks if isinstance(block, ToolResultBlock)]
        yield from results
        texts = [block.text for block in blocks if isinstance(block, TextBlock)]
        text = self.content if isinstance(self.content, str) else "\n".join(texts)
        if text or not results:
            yield ChatMessage(role="user", content=text)


class AssistantMessage(ApiModel):
    """What the model said; the last message may be one, to go on from."""

    role: Literal["assistant"]
    content: Annotated[str | Items[AssistantBlock], _known_blocks("text", "tool_use")]

    def neutral(self) -> Iterator[ChatMessage]:
        """The message in terms of no protocol."""
        if isinstance(self.content, str):
            yield ChatMessage(role="assistant", content=self.content)
            return
        texts = [block.text for block in self.content if isinstance(block, TextBlock)]
        calls = [block.call() for block in self.content if isinstance(block, ToolUseBlock)]
        yield ChatMessage(role="assistant", content="\n".join(texts), tool_calls=tuple(calls))


Message = Annotated[UserMessage | AssistantMessage, Field(discriminator="role")]


class Tool(ApiModel):
    """A tool that the model may call."""

    type: Literal["custom"] | None = None
    name: ToolName
    description: str | None = None
    input_schema: dict[str, Any]
    strict: bool | None = Field(None, description="The schema is kept to in any case")
    cache_control: CacheControl | None = Field(None, description=_CACHED)

    def neutral(self) -> FunctionDefinition:
        """The function in terms of no protocol."""
        return FunctionDefinition(
            name=self.name,
            description=self.description,
            parameters=self.input_schema,
            strict=self.strict,
        )


def _client_tool(value: Any) -> Any:
    kind = value.get("type") if isinstance(value, dict) else None
    if isinstance(kind, str) and kind != "custom":
        raise not_supported(f"a tool of type {kind!r:.60}", "this server runs no tools itself")
    return value


_CHOICES: Mapping[str, Literal["none", "auto", "required"]] = {
    "none": "none",
    "auto": "auto",
    "any": "required",
}


class ToolChoice(ApiModel):
    """Whether and which tools are called."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = Field(None, description="With type tool: its name")
    disable_parallel_tool_use: bool | None = None

    def neutral(self) -> Literal["none", "auto", "required"] | FunctionName:
        """The choice in terms of no protocol.

        Raises:
            ConfigError: for a tool without a name, or a name without a tool.
        """
        if (self.type == "tool") != (self.name is not None):
            raise ConfigError('tool_choice has a name with type "tool", and only then')
        if self.name is not None:
            return FunctionName(name=self.name)
        return _CHOICES[self.type]


class JsonFormat(ApiModel):
    """JSON of a schema."""

    type: Literal["json_schema"]
    json_schema: dict[str, Any] = Field(alias="schema")


class OutputConfig(ApiModel):
    """What the answer's text is like."""

    format: JsonFormat | None = None
    refused: ClassVar[dict[str, str]] = {"effort": "this model has no such setting"}


class Thinking(ApiModel):
    """There is none to be set."""

    type: Literal["disabled"]


class InputFields(ApiModel):
    """Fields that the tokens of the input follow from."""

    model: str | None = Field(None, description="Name of the model; default: the first one")
    messages: Items[Message] = Field(min_length=1)
    system: Text | None = Field(None, description="Text before the conversation")
    tools: Items[Annotated[Tool, BeforeValidator(_client_tool)]] | None = None
    tool_choice: ToolChoice | None = None
    output_config: OutputConfig | None = None
    thinking: Thinking | None = None
    cache_control: CacheControl | None = Field(None, description=_CACHED)
    speed: Literal["standard"] | None = None
    refused: ClassVar[dict[str, str]] = {
        "context_management": "this server edits no conversation",
        "mcp_servers": "this server uses no other",
    }

    def neutral(self) -> list[ChatMessage]:
        """The conversation in terms of no protocol.

        Raises:
            ApiError: 400 for results of calls that were not made.
        """
        first = [ChatMessage(role="system", content=self.system)] if self.system else []
        messages = [*first, *(part for m in self.messages for part in m.neutral())]
        check_results(messages, "messages")
        return combined(messages)

    def answer_format(self, grammars: GrammarCompiler | None) -> StructuredAnswer | None:
        """What the answer must match, and the tools that it may call; None: any text.

        Args:
            grammars: the model's compiler.

        Raises:
            ConfigError: for fields that cannot be used, or not together.
        """
        schema = self.output_config.format if self.output_config else None
        choice = self.tool_choice
        tools = chosen_functions(
            [tool.neutral() for tool in self.tools or ()],
            choice.neutral() if choice else None,
            not (choice and choice.disable_parallel_tool_use),
        )
        spec = GrammarSpec.json_schema(schema.json_schema) if schema else None
        return structured_answer(grammars, spec, tools)


class CountTokensRequest(InputFields):
    """Body of /v1/messages/count_tokens."""


class Metadata(ApiModel):
    """Accepted and not used."""

    user_id: str | None = None


class MessagesRequest(InputFields):
    """Body of /v1/messages."""

    max_tokens: int = Field(description="Limit of the answer, in tokens")
    stop_sequences: Stops = Field((), description="Texts that end the answer")
    stream: bool | None = None
    temperature: float | None = Field(None, description="Divides the logits; 0 is greedy. 1")
    top_p: float | None = Field(None, description="Above 0 and at most 1, which keeps all. 1")
    top_k: int | None = Field(None, description="Most likely tokens to keep. All")
    seed: int | None = Field(None, description="gemmule's own: the same seed, the same answer")
    metadata: Metadata | None = None
    service_tier: Literal["auto", "standard_only"] | None = None
    refused: ClassVar[dict[str, str]] = {
        **InputFields.refused,
        "container": "this server has none",
        "inference_geo": "this server is where it is",
        "diagnostics": "this server stores nothing of earlier requests",
    }

    def sampling(self) -> SamplingFields:
        """How the answer is sampled."""
        return SamplingFields.model_validate(
            {
                "temperature": self.temperature,
                "top_p": self.top_p,
                "top_k": self.top_k,
                "seed": self.seed,
                "stop": self.stop_sequences,
            }
        )
