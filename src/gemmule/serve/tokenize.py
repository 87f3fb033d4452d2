"""/tokenize, /detokenize and /apply-template, in llama.cpp's form and in vLLM's."""

from typing import Annotated, Any

from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import Response

from gemmule.model.tokenizer import Tokenizer
from gemmule.serve.api_errors import ApiError
from gemmule.serve.chat_job import chat_prompt
from gemmule.serve.messages import turns
from gemmule.serve.off_loop import json_response
from gemmule.serve.openai.logprobs import token_text
from gemmule.serve.openai.message_schemas import Message
from gemmule.serve.request_body import ApiModel, Items, read_body
from gemmule.serve.route import ApiRoute
from gemmule.serve.state import use_model


class TokenizeRequest(ApiModel):
    """A text as llama.cpp's clients send it (content), or as vLLM's do (prompt, messages)."""

    model: str | None = None
    content: str | None = Field(None, description="Text; <bos> is added if add_special is true")
    add_special: bool | None = Field(None, description="With content: put <bos> first. False")
    with_pieces: bool | None = Field(None, description="With content: each token's text too")
    prompt: str | None = Field(None, description="Text, after <bos>")
    messages: Items[Message] | None = None
    add_special_tokens: bool | None = Field(None, description="With prompt: put <bos> first. True")
    add_generation_prompt: bool | None = Field(None, description="With messages. True")
    continue_final_message: bool | None = Field(None, description="With messages")
    return_token_strs: bool | None = Field(None, description="With prompt or messages")


class TokenizeAnswer(BaseModel):
    """The tokens; `count` and `max_model_len` in vLLM's form."""

    tokens: list[Any]
    count: int | None = None
    max_model_len: int | None = None
    token_strs: list[str] | None = None


class DetokenizeRequest(ApiModel):
    """Tokens to be decoded."""

    model: str | None = None
    tokens: Annotated[list[int], Field(max_length=1_000_000, fail_fast=True)]


class DetokenizeAnswer(BaseModel):
    """The text, under llama.cpp's name and under vLLM's."""

    content: str
    prompt: str


class TemplateRequest(ApiModel):
    """A conversation to be rendered."""

    model: str | None = None
    messages: Items[Message] = Field(min_length=1)
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None


class TemplateAnswer(BaseModel):
    """The conversation as text, control tokens spelled out; for reading, not for sending back."""

    prompt: str


async def tokenize(request: Request) -> Response:
    """Encodes a text or a conversation."""
    body = await read_body(request, TokenizeRequest)
    given = [name for name in ("content", "prompt", "messages") if getattr(body, name) is not None]
    if len(given) != 1:
        raise ApiError(400, f"give one of content, prompt and messages; got {given or 'none'}")
    served = await use_model(request, body.model)
    tokenizer = served.lm.tokenizer
    context = served.lm.config.max_position_embeddings
    if body.content is not None:
        _check_others(body, ("content", "add_special", "with_pieces"))
        text, bos = body.content, bool(body.add_special)
        show = _with_pieces if body.with_pieces else _plain
        return await json_response(
            len(text), lambda: show(tokenizer, tokenizer.encode(text, bos=bos))
        )
    strings = bool(body.return_token_strs)
    if body.prompt is not None:
        _check_others(body, ("prompt", "add_special_tokens", "return_token_strs"))
        text, bos = body.prompt, body.add_special_tokens is not False
        return await json_response(
            len(text),
            lambda: _vllm(tokenizer, tokenizer.encode(text, bos=bos), context, strings),
        )
    names = ("messages", "add_generation_prompt", "continue_final_message", "return_token_strs")
    _check_others(body, names)
    ids = await chat_prompt(
        served.lm,
        turns([message.neutral() for message in body.messages or ()]),
        continue_final=bool(body.continue_final_message),
        generation_prompt=body.add_generation_prompt is not False,
    )
    return await json_response(len(ids), lambda: _vllm(tokenizer, ids, context, strings))


async def detokenize(request: Request) -> Response:
    """Decodes tokens; control tokens have no text."""
    body = await read_body(request, DetokenizeRequest)
    served = await use_model(request, body.model)
    tokenizer = served.lm.tokenizer

    def answer() -> dict[str, Any]:
        text = tokenizer.decode(body.tokens)
        return {"content": text, "prompt": text}

    return await json_response(len(body.tokens), answer)


async def apply_template(request: Request) -> Response:
    """Renders a conversation as text."""
    body = await read_body(request, TemplateRequest)
    served = await use_model(request, body.model)
    tokenizer = served.lm.tokenizer
    ids = await chat_prompt(
        served.lm,
        turns([message.neutral() for message in body.messages]),
        continue_final=bool(body.continue_final_message),
        generation_prompt=body.add_generation_prompt is not False,
    )
    return await json_response(len(ids), lambda: {"prompt": tokenizer.decode(ids, control=True)})


def _check_others(body: TokenizeRequest, names: tuple[str, ...]) -> None:
    """Refuses fields that belong to another form."""
    for name in type(body).model_fields:
        if name not in ("model", *names) and getattr(body, name) is not None:
            raise ApiError(400, f"{name} does not go with {names[0]}: leave it out", param=name)


def _plain(tokenizer: Tokenizer, ids: list[int]) -> dict[str, Any]:
    return {"tokens": ids}


def _with_pieces(tokenizer: Tokenizer, ids: list[int]) -> dict[str, Any]:
    return {"tokens": [{"id": i, "piece": _piece(tokenizer, i)} for i in ids]}


def _piece(tokenizer: Tokenizer, token: int) -> str | list[int]:
    """A token's text; its bytes if they are not whole characters, as llama.cpp has it."""
    data = tokenizer.decode_bytes((token,), control=True)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return [*data]


def _vllm(tokenizer: Tokenizer, ids: list[int], context: int, strings: bool) -> dict[str, Any]:
    shown = [token_text(tokenizer, i) for i in ids] if strings else None
    return {"tokens": ids, "count": len(ids), "max_model_len": context, "token_strs": shown}


def routes() -> list[ApiRoute]:
    """Routes of this module."""
    return [
        ApiRoute(
            method="POST", path="/v1/tokenize", handler=tokenize, body=TokenizeRequest,
            answer=TokenizeAnswer, summary="Token ids of a text or a conversation",
        ),
        ApiRoute(
            method="POST", path="/v1/detokenize", handler=detokenize, body=DetokenizeRequest,
            answer=DetokenizeAnswer, summary="Text of token ids",
        ),
        ApiRoute(
            method="POST", path="/v1/apply-template", handler=apply_template,
            body=TemplateRequest, answer=TemplateAnswer, summary="A conversation as text",
        ),
    ]  # fmt: skip
