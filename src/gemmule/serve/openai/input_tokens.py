"""/v1/chat/completions/input_tokens, as llama.cpp has it: a chat's tokens, without an answer."""

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from gemmule.serve.chat_job import chat_prompt
from gemmule.serve.grammar.answer_format import instructions_of
from gemmule.serve.messages import turns
from gemmule.serve.openai.schemas import ChatCompletionRequest
from gemmule.serve.request_body import read_body
from gemmule.serve.route import ApiRoute
from gemmule.serve.state import use_model


class InputTokensAnswer(BaseModel):
    """The number of tokens."""

    object: str
    input_tokens: int


async def input_tokens(request: Request) -> Response:
    """Counts the tokens of a chat."""
    body = await read_body(request, ChatCompletionRequest)
    body.check()
    served = await use_model(request, body.model)
    prompt = await chat_prompt(
        served.lm,
        turns(
            [message.neutral() for message in body.messages],
            instructions_of(body.answer_format(served.grammars)),
        ),
        continue_final=bool(body.continue_final_message),
        generation_prompt=body.add_generation_prompt is not False,
    )
    return JSONResponse({"object": "response.input_tokens", "input_tokens": len(prompt)})


def routes() -> list[ApiRoute]:
    """Routes of this module."""
    return [
        ApiRoute(
            method="POST", path="/v1/chat/completions/input_tokens", handler=input_tokens,
            body=ChatCompletionRequest, answer=InputTokensAnswer,
            summary="The number of tokens of a conversation",
        )
    ]  # fmt: skip
