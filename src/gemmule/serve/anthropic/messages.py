"""/v1/messages and /v1/messages/count_tokens."""

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from gemmule.serve.anthropic.answer import (
    CountTokensAnswer,
    MessageAnswer,
    MessageBuilder,
    MessageEvent,
    MessageStream,
)
from gemmule.serve.anthropic.schemas import CountTokensRequest, MessagesRequest
from gemmule.serve.api_errors import ApiError
from gemmule.serve.chat_job import chat_prompt, prepare_chat
from gemmule.serve.events import SampleFinished, TextDelta, finish_reason
from gemmule.serve.grammar.answer_format import instructions_of
from gemmule.serve.messages import ChatMessage, turns
from gemmule.serve.request_body import read_body
from gemmule.serve.route import ApiRoute
from gemmule.serve.sse import EventStream, json_bytes
from gemmule.serve.starting import start
from gemmule.serve.state import state_of, use_model

# Of the API, the oldest first; what is served here is the same in both.
VERSIONS = ("2023-06-01", "2026-10-21")


async def messages(request: Request) -> Response:
    """Answers a conversation."""
    _check_version(request)
    body = await read_body(request, MessagesRequest)
    settings = state_of(request).settings
    served = await use_model(request, body.model)
    conversation = body.neutral()
    job = await prepare_chat(
        served,
        settings,
        conversation,
        body.sampling(),
        max_tokens=body.max_tokens,
        continue_final=_continues(conversation),
        answer_format=body.answer_format(served.grammars),
    )
    generation = await start(request, served, [job.request], stream=body.stream)
    builder = MessageBuilder(job, served.lm.tokenizer, body.model or served.name)
    if body.stream:
        return EventStream(generation, MessageStream(builder, generation))
    (completion,) = await generation.result(request.receive)
    end = SampleFinished(0, finish_reason(completion), completion)
    for _ in builder.feed([TextDelta(0, completion.text, completion.ids), end]):
        pass
    return Response(json_bytes(builder.message(generation.usage())), media_type="application/json")


async def count_tokens(request: Request) -> Response:
    """Counts the tokens of a conversation, tools included."""
    _check_version(request)
    body = await read_body(request, CountTokensRequest)
    served = await use_model(request, body.model)
    conversation = body.neutral()
    continues = _continues(conversation)
    instructions = instructions_of(body.answer_format(served.grammars))
    prompt = await chat_prompt(
        served.lm, turns(conversation, instructions), continue_final=continues
    )
    return JSONResponse({"input_tokens": len(prompt)})


def _continues(conversation: list[ChatMessage]) -> bool:
    """Whether the answer goes on from the last message."""
    return conversation[-1].role == "assistant" and not conversation[-1].tool_calls


def _check_version(request: Request) -> None:
    version = request.headers.get("anthropic-version", VERSIONS[0])
    if version not in VERSIONS:
        known = " and ".join(VERSIONS)
        raise ApiError(400, f"anthropic-version is {version!r:.40}; this server has {known}")


def routes() -> list[ApiRoute]:
    """Routes of this module."""
    return [
        ApiRoute(
            method="POST", path="/v1/messages", handler=messages, body=MessagesRequest,
            answer=MessageAnswer, event=MessageEvent, errors="anthropic",
            summary="The model's next turn, in Anthropic's form",
        ),
        ApiRoute(
            method="POST", path="/v1/messages/count_tokens", handler=count_tokens,
            body=CountTokensRequest, answer=CountTokensAnswer, errors="anthropic",
            summary="The number of tokens of a conversation",
        ),
    ]  # fmt: skip
