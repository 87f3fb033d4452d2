"""What clients of OpenAI's API send: all fields that are supported, and those that are refused."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from gemmule.infer.core.sampling import MAX_LOGPROBS
from gemmule.serve.api_errors import ApiError
from gemmule.serve.grammar.answer_format import StructuredAnswer, structured_answer
from gemmule.serve.grammar.compiler import GrammarCompiler
from gemmule.serve.grammar.response_format import ResponseFormat, StructuredOutputs, asked_spec
from gemmule.serve.grammar.spec import GrammarSpec
from gemmule.serve.grammar.tools import Tool, ToolChoice, chosen_tools
from gemmule.serve.openai.message_schemas import Message
from gemmule.serve.request_body import ApiModel, Items, Metadata
from gemmule.serve.sampling_fields import SamplingFields


class StreamOptions(ApiModel):
    """What a stream has besides."""

    include_usage: bool | None = Field(None, description="A last chunk with `usage`, no choices")
    continuous_usage_stats: bool | None = Field(None, description="`usage` on each chunk")
    include_obfuscation: Literal[False] | None = None


class CommonFields(SamplingFields):
    """Fields of both routes."""

    model: str | None = Field(None, description="Name of the model; the first one's")
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    return_progress: bool | None = Field(
        None, description="In a stream: chunks that tell how far the prompt is"
    )
    timings_per_token: bool | None = Field(
        None, description="In a stream: the times so far with each part of the text"
    )
    response_format: ResponseFormat | None = Field(
        None, description="Text, a JSON object, or JSON of a schema"
    )
    structured_outputs: StructuredOutputs | None = Field(
        None, description="A schema, regular expression, grammar, or texts, as vLLM has it"
    )
    json_schema: dict[str, Any] | None = Field(None, description="A schema, as llama.cpp has it")
    grammar: str | None = Field(None, description="A grammar, as llama.cpp has it")
    user: str | None = Field(None, description="Accepted and not used")

    def answer_format(self, grammars: GrammarCompiler | None) -> StructuredAnswer | None:
        """What the answer must match; None: any text.

        Args:
            grammars: the model's compiler.

        Raises:
            ApiError: 400 for fields that cannot be used, or not together.
        """
        return structured_answer(grammars, self.asked_spec(), None)

    def asked_spec(self) -> GrammarSpec | None:
        """What text must match; None: any text will do.

        Raises:
            ConfigError: for fields that cannot be used, or not together.
        """
        return asked_spec(
            self.response_format, self.structured_outputs, self.json_schema, self.grammar
        )

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with its usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def continuous_usage(self) -> bool:
        """Whether each chunk has the usage so far."""
        options = self.stream_options
        return bool(options and options.include_usage and options.continuous_usage_stats)

    def check_stream(self) -> None:
        """Checks fields that only mean something with or without a stream.

        Raises:
            ApiError: 400.
        """
        if self.stream and self.prompt_logprobs is not None:
            raise ApiError(
                400, "prompt_logprobs are only in answers without a stream: leave stream out",
                param="prompt_logprobs",
            )  # fmt: skip
        for name in ("stream_options", "return_progress", "timings_per_token"):
            if not self.stream and getattr(self, name):
                raise ApiError(400, f"{name} needs stream: true", param=name)


class ChatCompletionRequest(CommonFields):
    """Body of /v1/chat/completions."""

    messages: Items[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, description="Limit of the answer, in tokens")
    max_tokens: int | None = Field(None, description="The same under its old name")
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, description=f"0 to {MAX_LOGPROBS}; needs logprobs")
    continue_final_message: bool | None = Field(
        None, description="Go on from the last message, the assistant's"
    )
    add_generation_prompt: bool | None = Field(
        None, description="Open the model's turn at the end. True"
    )
    tools: Items[Tool] | None = Field(None, description="Functions that may be called")
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = Field(None, description="Whether several may be. True")
    metadata: Metadata | None = Field(None, description="Accepted and not used")
    safety_identifier: str | None = Field(None, description="Accepted and not used")
    prompt_cache_key: str | None = Field(
        None, description="Accepted and not used: every prompt is looked up in the cache"
    )
    store: Literal[False] | None = Field(None, description="Nothing is stored")
    service_tier: Literal["auto", "default"] | None = None
    modalities: Items[Literal["text"]] | None = None
    reasoning_effort: Literal["none"] | None = None
    refused: ClassVar[dict[str, str]] = {
        "audio": "this model writes text only",
        "functions": "use tools",
        "function_call": "use tool_choice",
        "prediction": "drafts of the answer are made by the server itself",
        "verbosity": "this model has no such setting",
        "web_search_options": "this server uses no other",
        "moderation": "this server moderates nothing",
        "prompt_cache_retention": "pages stay cached until their memory is needed",
        "prompt_cache_options": "pages stay cached until their memory is needed",
    }

    def answer_format(self, grammars: GrammarCompiler | None) -> StructuredAnswer | None:
        """What the answer must match, and the tools that it may call; None: any text.

        The arguments and errors are those of CommonFields.
        """
        tools = chosen_tools(self.tools, self.tool_choice, self.parallel_tool_calls)
        return structured_answer(grammars, self.asked_spec(), tools)

    def check(self) -> None:
        """Checks fields that depend on each other.

        Raises:
            ApiError: 400.
        """
        self.check_stream()
        limits = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(limits) > 1:
            raise ApiError(
                400, "max_tokens and max_completion_tokens are different: give one of them",
                param="max_completion_tokens",
            )  # fmt: skip
        if self.top_logprobs is not None:
            if not self.logprobs:
                raise ApiError(400, "top_logprobs needs logprobs: true", param="top_logprobs")
            if not 0 <= self.top_logprobs <= MAX_LOGPROBS:
                raise ApiError(
                    400,
                    f"top_logprobs is {self.top_logprobs}; it must be from 0 to {MAX_LOGPROBS}",
                    param="top_logprobs",
                )
        if self.continue_final_message and self.add_generation_prompt:
            raise ApiError(
                400,
                "continue_final_message and add_generation_prompt exclude each other: leave "
                "add_generation_prompt out",
                param="add_generation_prompt",
            )

    @property
    def limit(self) -> tuple[int | None, str]:
        """The limit of the answer, and the name it came under."""
        if self.max_completion_tokens is not None:
            return self.max_completion_tokens, "max_completion_tokens"
        return self.max_tokens, "max_tokens"

    @property
    def num_logprobs(self) -> int | None:
        """Number of most likely tokens to return; None: no log-probabilities."""
        return (self.top_logprobs or 0) if self.logprobs else None


def _prompts(value: Any) -> Any:
    """One prompt or several as a tuple of prompts: texts, or tuples of ids."""
    if isinstance(value, str):
        return (value,)
    if isinstance(value, list) and value:
        if all(isinstance(p, str) for p in value):
            return tuple(value)
        if all(map(_is_id, value)):
            return (tuple(value),)
        if all(isinstance(p, list) and p and all(map(_is_id, p)) for p in value):
            return tuple(map(tuple, value))
    raise PydanticCustomError(
        "prompt", "it must be a text, a list of texts, token ids, or a list of lists of token ids"
    )


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


Prompts = Annotated[
    tuple[str | tuple[int, ...], ...],
    BeforeValidator(_prompts, json_schema_input_type=str | list[str] | list[int] | list[list[int]]),
]


class CompletionRequest(CommonFields):
    """Body of /v1/completions."""

    prompt: Prompts
    max_tokens: int | None = Field(None, description="Limit of the answer; 0 only with echo")
    logprobs: int | None = Field(None, description=f"0 to {MAX_LOGPROBS}: most likely tokens")
    echo: bool | None = Field(None, description="The prompt comes before the answer")
    best_of: Literal[1] | None = None
    add_special_tokens: bool | None = Field(
        None, description="Put <bos> before a prompt that is text. True"
    )
    refused: ClassVar[dict[str, str]] = {
        "suffix": "this model was not trained to fill in the middle of a text"
    }

    def check(self) -> None:
        """Checks fields that depend on each other.

        Raises:
            ApiError: 400.
        """
        self.check_stream()
        if self.logprobs is not None and not 0 <= self.logprobs <= MAX_LOGPROBS:
            raise ApiError(
                400, f"logprobs is {self.logprobs}; it must be from 0 to {MAX_LOGPROBS}",
                param="logprobs",
            )  # fmt: skip
        if self.max_tokens == 0 and not self.echo:
            raise ApiError(
                400, "max_tokens is 0; it must be 1 or more, or 0 with echo: true",
                param="max_tokens",
            )  # fmt: skip
