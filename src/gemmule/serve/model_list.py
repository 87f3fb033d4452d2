"""/v1/models: the models of this server, and their cards."""

import asyncio

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from gemmule.serve.api_errors import ApiError
from gemmule.serve.route import ApiRoute
from gemmule.serve.state import state_of


class ModelMeta(BaseModel):
    """llama.cpp's description of a model; size in bytes."""

    n_vocab: int
    n_ctx_train: int
    n_params: int
    size: int


class SamplingDefaults(BaseModel):
    """Settings of requests that say nothing; max_tokens is None for as many as fit."""

    temperature: float
    top_p: float
    top_k: int
    min_p: float
    presence_penalty: float
    frequency_penalty: float
    repetition_penalty: float
    max_tokens: int | None


class ModelDetails(BaseModel):
    """What gemmule says of a model besides."""

    aliases: list[str]
    context_length: int
    parameters: int
    quantization: str | None
    defaults: SamplingDefaults
    card: bool
    loaded: bool


class ModelEntry(BaseModel):
    """One model, with OpenAI's fields first; created is 0 until it is loaded."""

    id: str
    object: str
    created: int
    owned_by: str
    max_model_len: int
    meta: ModelMeta
    gemmule: ModelDetails


class ModelList(BaseModel):
    """All models."""

    object: str
    data: list[ModelEntry]


async def list_models(request: Request) -> Response:
    """All models."""
    return JSONResponse({"object": "list", "data": state_of(request).models.infos()})


async def get_model(request: Request) -> Response:
    """One model."""
    models = state_of(request).models
    return JSONResponse(models.info(models.find(request.path_params["name"])))


async def get_card(request: Request) -> Response:
    """The card of a model, which its run or folder has."""
    source = state_of(request).models.find(request.path_params["name"])
    if source.card is None:
        raise ApiError(404, f"the model {source.name!r} has no card", code="no_card")
    try:
        text = await asyncio.to_thread(source.card.read_text, encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise ApiError(404, f"the card of {source.name!r} cannot be read", code="no_card") from None
    return Response(text, media_type="text/markdown; charset=utf-8")


def routes() -> list[ApiRoute]:
    """Routes of this module."""
    return [
        ApiRoute(
            method="GET", path="/v1/models", handler=list_models, answer=ModelList,
            summary="The models of this server",
        ),
        ApiRoute(
            method="GET", path="/v1/models/{name:path}/card", handler=get_card,
            media_type="text/markdown", summary="The card of a model",
        ),
        ApiRoute(
            method="GET", path="/v1/models/{name:path}", handler=get_model, answer=ModelEntry,
            summary="One model",
        ),
    ]  # fmt: skip
