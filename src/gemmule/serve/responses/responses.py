"""/v1/responses and /v1/responses/input_tokens."""

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from gemmule.serve.chat_job import chat_prompt, prepare_chat
from gemmule.serve.events import SampleFinished, TextDelta, finish_reason
from gemmule.serve.grammar.answer_format import instructions_of
from gemmule.serve.messages import turns
from gemmule.serve.openai.input_tokens import InputTokensAnswer
from gemmule.serve.request_body import read_body
from gemmule.serve.responses.answer import (
    ResponseAnswer,
    ResponseBuilder,
    ResponseEvent,
    ResponseStream,
    figures,
)
from gemmule.serve.responses.schemas import InputTokensRequest, ResponsesRequest
from gemmule.serve.route import ApiRoute
from gemmule.serve.sse import EventStream, json_bytes
from gemmule.serve.starting import start
from gemmule.serve.state import state_of, use_model


async def responses(request: Request) -> Response:
    """Answers a conversation."""
    body = await read_body(request, ResponsesRequest)
    body.check()
    settings = state_of(request).settings
    served = await use_model(request, body.model)
    job = await prepare_chat(
        served,
        settings,
        body.messages(),
        body,
        max_tokens=body.max_output_tokens,
        max_tokens_param="max_output_tokens",
        logprobs=body.num_logprobs,
        answer_format=body.answer_format(served.grammars),
    )
    generation = await start(
        request, served, [job.request], stream=body.stream, report_progress=body.return_progress
    )
    builder = ResponseBuilder(body, job, served.lm.tokenizer, body.model or served.name)
    if body.stream:
        timed = bool(body.timings_per_token)
        return EventStream(generation, ResponseStream(builder, generation, timings_per_token=timed))
    (completion,) = await generation.result(request.receive)
    logprobs = completion.logprobs or ()
    builder.feed(
        [
            TextDelta(0, completion.text, completion.ids, logprobs),
            SampleFinished(0, finish_reason(completion), completion),
        ]
    )
    answer = {**builder.response(generation.usage()), **figures(builder, generation)}
    return Response(json_bytes(answer), media_type="application/json")


async def input_tokens(request: Request) -> Response:
    """Counts the tokens of a conversation, tools included."""
    body = await read_body(request, InputTokensRequest)
    served = await use_model(request, body.model)
    instructions = instructions_of(body.answer_format(served.grammars))
    prompt = await chat_prompt(served.lm, turns(body.messages(), instructions))
    return JSONResponse({"object": "response.input_tokens", "input_tokens": len(prompt)})


def routes() -> list[ApiRoute]:
    """Routes of this module."""
    return [
        ApiRoute(
            method="POST", path="/v1/responses", handler=responses, body=ResponsesRequest,
            answer=ResponseAnswer, event=ResponseEvent,
            summary="The model's next turn, in items",
        ),
        ApiRoute(
            method="POST", path="/v1/responses/input_tokens", handler=input_tokens,
            body=InputTokensRequest, answer=InputTokensAnswer,
            summary="The number of tokens of a conversation",
        ),
    ]  # fmt: skip
