"""What OpenAI's routes answer, as schemas for /openapi.json."""

from typing import Any, Literal

from pydantic import BaseModel


class PromptTokensDetails(BaseModel):
    """What is said of the prompt's tokens."""

    cached_tokens: int


class UsageAnswer(BaseModel):
    """Numbers of tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class Timings(BaseModel):
    """llama.cpp's figures; times in milliseconds."""

    cache_n: int
    prompt_n: int
    prompt_ms: float
    prompt_per_token_ms: float
    prompt_per_second: float
    predicted_n: int
    predicted_ms: float
    predicted_per_token_ms: float
    predicted_per_second: float


class TopLogprob(BaseModel):
    """A token and its log-probability."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    """A token of the answer."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    """Log-probabilities of an answer."""

    content: list[TokenLogprob]
    refusal: None


class AnswerMessage(BaseModel):
    """The model's message."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    tool_calls: list[dict[str, Any]] | None = None


class ChatChoice(BaseModel):
    """One answer."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: str
    token_ids: list[int] | None = None


class Answer(BaseModel):
    """Fields of every answer."""

    id: str
    created: int
    model: str
    system_fingerprint: str


class Energy(BaseModel):
    """Energy of a request; None where it is not known, which `boundary` explains."""

    joules: float | None
    gco2e: float | None
    boundary: str


class ChatCompletion(Answer):
    """Answer of /v1/chat/completions."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    usage: UsageAnswer
    timings: Timings | None
    energy: Energy | None
    prompt_token_ids: list[int] | None = None
    prompt_logprobs: list[dict[str, Any] | None] | None = None


class ChunkChoice(BaseModel):
    """What an answer gained."""

    index: int
    delta: dict[str, Any]
    logprobs: ChatLogprobs | None
    finish_reason: str | None
    token_ids: list[int] | None = None


class ProgressAnswer(BaseModel):
    """How far a prompt is, under llama.cpp's names."""

    total: int
    cache: int
    processed: int
    time_ms: float


class ChatCompletionChunk(Answer):
    """Event of a chat's stream."""

    object: Literal["chat.completion.chunk"]
    choices: list[ChunkChoice]
    usage: UsageAnswer | None = None
    timings: Timings | None = None
    energy: Energy | None = None
    prompt_progress: ProgressAnswer | None = None
    prompt_token_ids: list[int] | None = None


class LogprobLists(BaseModel):
    """Parallel lists, one entry for each token."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(BaseModel):
    """One text, or what it gained."""

    index: int
    text: str
    logprobs: LogprobLists | None
    finish_reason: str | None
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None
    prompt_logprobs: list[dict[str, Any] | None] | None = None


class Completion(Answer):
    """Answer of /v1/completions, and event of its stream."""

    object: Literal["text_completion"]
    choices: list[CompletionChoice]
    usage: UsageAnswer | None = None
    timings: Timings | None = None
    energy: Energy | None = None
    prompt_progress: ProgressAnswer | None = None
