"""The response object, whole or as it is while the answer is made, and its stream."""

import time
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from gemmule.model.tokenizer import Tokenizer
from gemmule.serve.api_errors import ApiError
from gemmule.serve.chat_job import ChatJob
from gemmule.serve.events import (
    Event,
    PromptProgress,
    Usage,
    timings,
)
from gemmule.serve.generation import Generation
from gemmule.serve.openai.chunks import energy_answer
from gemmule.serve.pace import Pace
from gemmule.serve.responses.output import Fields, OutputItems, new_id
from gemmule.serve.responses.schemas import ResponsesRequest
from gemmule.serve.sse import json_bytes


class ResponseAnswer(BaseModel):
    """Answer of /v1/responses; it also has the request's settings."""

    model_config = ConfigDict(extra="allow")
    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    error: dict[str, Any] | None
    incomplete_details: dict[str, str] | None
    model: str
    output: list[dict[str, Any]]
    usage: dict[str, Any] | None


class ResponseEvent(BaseModel):
    """Event of a response's stream; its further fields follow from its type."""

    model_config = ConfigDict(extra="allow")
    type: str
    sequence_number: int


class ResponseBuilder:
    """The response object of one request."""

    def __init__(
        self, body: ResponsesRequest, job: ChatJob, tokenizer: Tokenizer, model: str
    ) -> None:
        """Prepares the fields that do not change."""
        self.output = OutputItems(tokenizer, logprobs=body.num_logprobs is not None)
        self._parser = job.format.parser() if job.format else None
        params = job.request.params
        self._fields: Fields = {
            "id": new_id("resp"),
            "object": "response",
            "created_at": int(time.time()),
            "background": False,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata or {},
            "model": model,
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": None,
            "prompt_cache_key": body.prompt_cache_key,
            "reasoning": {"effort": None, "summary": None},
            "safety_identifier": body.safety_identifier,
            "service_tier": "default",
            "store": False,
            "temperature": params.temperature,
            "text": _text_config(body),
            "tool_choice": _plain(body.tool_choice) or "auto",
            "tools": [_plain(tool) for tool in body.tools or ()],
            "top_logprobs": params.logprobs or 0,
            "top_p": params.top_p,
            "truncation": "disabled",
            "user": body.user,
        }

    def feed(self, events: Sequence[Event]) -> list[Fields]:
        """Takes events; returns the protocol's."""
        if self._parser is not None:
            events = [new for event in events for new in self._parser.feed(event)]
        return [fields for event in events for fields in self.output.feed(event)]

    def response(self, usage: Usage | None = None, error: ApiError | None = None) -> Fields:
        """The object as it is now.

        Args:
            usage: numbers of tokens, once the answer is complete.
            error: why there will be no answer.
        """
        finished = self.output.finished
        status, details = "in_progress", None
        if error is not None:
            status = "failed"
        elif finished is not None and finished.finish_reason == "length":
            status, details = "incomplete", {"reason": "max_output_tokens"}
        elif finished is not None:
            status = "completed"
        return {
            **self._fields,
            "status": status,
            "completed_at": int(time.time()) if status == "completed" else None,
            "error": None if error is None else _error(error),
            "incomplete_details": details,
            "output": self.output.items,
            "usage": None if usage is None else _usage(usage),
        }


class ResponseStream:
    """Writes a response's stream."""

    def __init__(
        self, builder: ResponseBuilder, generation: Generation, *, timings_per_token: bool
    ) -> None:
        """Prepares one stream.

        Args:
            builder: makes the response.
            generation: what the stream tells of.
            timings_per_token: whether each text has the times so far.
        """
        self._builder, self._generation = builder, generation
        self._pace = Pace(generation) if timings_per_token else None
        self._count = 0

    def start(self) -> bytes:
        """The response without output, twice: made, and begun."""
        response = self._builder.response()
        return self._event("response.created", response=response) + self._event(
            "response.in_progress", response=response
        )

    def write(self, events: Sequence[Event]) -> bytes:
        """The events of a batch."""
        data = []
        for event in events:
            if isinstance(event, PromptProgress):
                data.append(self._progress(event))
            for fields in self._builder.feed([event]):
                if self._pace is not None and fields["type"] == "response.output_text.delta":
                    fields["timings"] = self._pace.timings(0)
                data.append(self._event(**fields))
        return b"".join(data)

    def end(self) -> bytes:
        """The whole response, and its times."""
        response = self._builder.response(self._generation.usage())
        return self._event(
            f"response.{response['status']}",
            response=response,
            **figures(self._builder, self._generation),
        )

    def fail(self, error: ApiError) -> bytes:
        """The response as far as it came, and the error."""
        response = self._builder.response(self._generation.usage(), error)
        return self._event("response.failed", response=response)

    def _progress(self, progress: PromptProgress) -> bytes:
        return self._event(
            "response.in_progress",
            response=self._builder.response(),
            prompt_progress={
                "total": progress.total,
                "cache": progress.cached,
                "processed": progress.processed,
                "time_ms": round(progress.seconds * 1e3, 3),
            },
        )

    def _event(self, type: str, **fields: Any) -> bytes:
        data = json_bytes({"type": type, "sequence_number": self._count, **fields})
        self._count += 1
        return b"event: %b\ndata: %b\n\n" % (type.encode(), data)


def figures(builder: ResponseBuilder, generation: Generation) -> Fields:
    """Times and energy of the whole answer, which come next to the response in a stream."""
    finished = builder.output.finished
    return {
        "timings": timings([finished.completion]) if finished else None,
        "energy": energy_answer(generation),
    }


def _usage(usage: Usage) -> Fields:
    return {
        "input_tokens": usage.prompt,
        "input_tokens_details": {
            "cached_tokens": usage.cached,
            "cache_write_tokens": usage.prompt - usage.cached,
        },
        "output_tokens": usage.generated,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt + usage.generated,
    }


def _error(error: ApiError) -> Fields:
    code = "rate_limit_exceeded" if error.status == 429 else "server_error"
    return {"code": code, "message": error.message}


def _text_config(body: ResponsesRequest) -> Fields:
    given = body.text.format if body.text else None
    return {"format": _plain(given) or {"type": "text"}, "verbosity": "medium"}


def _plain(value: Any) -> Any:
    """A part of the request as it came."""
    if isinstance(value, BaseModel):
        return value.model_dump(by_alias=True)
    return value
