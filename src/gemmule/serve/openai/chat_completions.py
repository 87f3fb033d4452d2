"""/v1/chat/completions."""

from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from gemmule.infer.core.request import Completion
from gemmule.model.tokenizer import Tokenizer
from gemmule.serve.chat_job import ChatJob, prepare_chat
from gemmule.serve.events import (
    Event,
    SampleFinished,
    TextDelta,
    ToolCallDelta,
    finish_reason,
    timings,
)
from gemmule.serve.generation import Generation
from gemmule.serve.grammar.answer_format import ToolCallEvents
from gemmule.serve.off_loop import json_response
from gemmule.serve.openai.answers import ChatCompletion, ChatCompletionChunk
from gemmule.serve.openai.chunks import ChunkStream, answer_fields, answer_size, energy_answer
from gemmule.serve.openai.logprobs import chat_logprobs, prompt_logprobs
from gemmule.serve.openai.schemas import ChatCompletionRequest
from gemmule.serve.request_body import read_body
from gemmule.serve.route import ApiRoute
from gemmule.serve.sse import EventStream
from gemmule.serve.starting import start
from gemmule.serve.state import state_of, use_model

_ROLE = {"role": "assistant", "content": None}


async def chat_completions(request: Request) -> Response:
    """Answers a conversation."""
    body = await read_body(request, ChatCompletionRequest)
    body.check()
    settings = state_of(request).settings
    served = await use_model(request, body.model)
    max_tokens, param = body.limit
    job = await prepare_chat(
        served,
        settings,
        [message.neutral() for message in body.messages],
        body,
        max_tokens=max_tokens,
        max_tokens_param=param,
        logprobs=body.num_logprobs,
        continue_final=bool(body.continue_final_message),
        generation_prompt=body.add_generation_prompt is not False,
        answer_format=body.answer_format(served.grammars),
    )
    generation = await start(
        request, served, [job.request], stream=body.stream, report_progress=body.return_progress
    )
    model, tokenizer = body.model or served.name, served.lm.tokenizer
    if body.stream:
        return EventStream(generation, ChatStream(body, job, generation, tokenizer, model))
    completions = await generation.result(request.receive)

    def answer() -> dict[str, Any]:
        more: dict[str, Any] = {}
        if body.return_token_ids:
            more["prompt_token_ids"] = [*job.request.prompt]
        if body.prompt_logprobs is not None:
            entries = completions[0].prompt_logprobs or ()
            more["prompt_logprobs"] = prompt_logprobs(tokenizer, entries, body.prompt_logprobs)
        return {
            **answer_fields("chat.completion", "chatcmpl", model),
            "choices": [
                _choice(index, completion, body, job, tokenizer)
                for index, completion in enumerate(completions)
            ],
            "usage": usage.openai(),
            "timings": timings(completions),
            "energy": energy,
            **more,
        }

    usage, energy = generation.usage(), energy_answer(generation)
    size = usage.generated * answer_size(body.num_logprobs)
    size += usage.prompt * answer_size(body.prompt_logprobs)
    return await json_response(size, answer)


def _choice(
    index: int,
    completion: Completion,
    body: ChatCompletionRequest,
    job: ChatJob,
    tokenizer: Tokenizer,
) -> dict[str, Any]:
    content, calls, reason = parsed(job, completion)
    message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
    if calls:
        message["tool_calls"] = calls
    choice: dict[str, Any] = {
        "index": index,
        "message": message,
        "logprobs": None,
        "finish_reason": reason,
    }
    if body.logprobs:
        entries = chat_logprobs(tokenizer, completion.logprobs or ())
        choice["logprobs"] = {"content": entries, "refusal": None}
    if body.return_token_ids:
        choice["token_ids"] = [*completion.ids]
    return choice


def parsed(job: ChatJob, completion: Completion) -> tuple[str | None, list[dict[str, Any]], str]:
    """Text, tool calls and finish reason of a completion, in OpenAI's form."""
    parser = job.format.parser() if job.format else None
    reason = finish_reason(completion)
    if parser is None:
        return completion.text, [], reason
    events = [
        *parser.feed(TextDelta(0, completion.text, completion.ids)),
        *parser.feed(SampleFinished(0, reason, completion)),
    ]
    text, calls = "", dict[int, dict[str, Any]]()
    for event in events:
        if isinstance(event, TextDelta):
            text += event.text
        elif isinstance(event, SampleFinished):
            reason = event.finish_reason
        elif isinstance(event, ToolCallDelta):
            new = {
                "id": event.id, "type": "function",
                "function": {"name": event.name, "arguments": ""},
            }  # fmt: skip
            call = calls.setdefault(event.index, new)
            call["function"]["arguments"] += event.arguments
    return text or (None if calls else ""), [*calls.values()], reason


class ChatStream(ChunkStream):
    """Writes a chat's stream."""

    def __init__(
        self,
        body: ChatCompletionRequest,
        job: ChatJob,
        generation: Generation,
        tokenizer: Tokenizer,
        model: str,
    ) -> None:
        """Prepares one stream, with one id and time."""
        super().__init__(
            answer_fields("chat.completion.chunk", "chatcmpl", model),
            generation,
            body,
            '"delta":{"content":',
            '},"logprobs":null,"finish_reason":null}',
            plain=not (body.logprobs or body.return_token_ids),
        )
        self._asked, self._job, self._tokenizer = body, job, tokenizer
        self._parsers: list[ToolCallEvents] = []
        if job.format is not None:
            parsers = [job.format.parser() for _ in range(job.request.params.n)]
            self._parsers = [parser for parser in parsers if parser is not None]

    def start(self) -> bytes:
        """The role of each choice."""
        more: dict[str, Any] = {}
        if self._asked.return_token_ids:
            more["prompt_token_ids"] = [*self._job.request.prompt]
        return b"".join(
            self.chunk([_delta(sample, _ROLE)], **more)
            for sample in range(self._job.request.params.n)
        )

    def write(self, events: Sequence[Event]) -> bytes:
        """Chunks of a batch."""
        if self._parsers:
            events = [new for event in events for new in self._parsers[event.sample].feed(event)]
        return super().write(events)

    def event(self, event: Event) -> bytes:
        """The chunk of one event."""
        if not isinstance(event, ToolCallDelta):
            return super().event(event)
        call: dict[str, Any] = {"index": event.index}
        function = {"arguments": event.arguments}
        if event.id is not None:
            call |= {"id": event.id, "type": "function"}
            function = {"name": event.name or "", **function}
        call["function"] = function
        return self.chunk([_delta(event.sample, {"tool_calls": [call]})])

    def end(self, **more: Any) -> bytes:
        """The usage, if asked for, with the times, and the end."""
        return super().end(timings=timings(self.generation.completions.values()), **more)

    def choice(
        self, sample: int, text: str | None = None, reason: str | None = None
    ) -> dict[str, Any]:
        """A choice with a part of its text."""
        return _delta(sample, {} if text is None else {"content": text}, reason)

    def add_tokens(self, choice: dict[str, Any], event: TextDelta) -> None:
        """Adds log-probabilities and ids."""
        if self._asked.logprobs:
            entries = chat_logprobs(self._tokenizer, event.logprobs)
            choice["logprobs"] = {"content": entries, "refusal": None}
        if self._asked.return_token_ids:
            choice["token_ids"] = [*event.ids]


def _delta(sample: int, delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
    return {"index": sample, "delta": delta, "logprobs": None, "finish_reason": reason}


def routes() -> list[ApiRoute]:
    """Routes of this module."""
    return [
        ApiRoute(
            method="POST", path="/v1/chat/completions", handler=chat_completions,
            body=ChatCompletionRequest, answer=ChatCompletion, event=ChatCompletionChunk,
            summary="The model's next turn in a conversation",
        )
    ]  # fmt: skip
