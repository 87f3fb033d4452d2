"""/v1/models: the models of this server."""

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from gemmule.serve.route import ApiRoute
from gemmule.serve.state import state_of


class ModelMeta(BaseModel):
    """llama.cpp's description of a model; size in bytes."""

    n_vocab: int
    n_ctx_train: int
    n_params: int
    size: int


class ModelDetails(BaseModel):
    """What gemmule says of a model besides."""

    context_length: int
    parameters: int
    loaded: bool


class ModelEntry(BaseModel):
    """One model, with OpenAI's fields first."""

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
    name = models.source(request.path_params["name"]).names[0]
    return JSONResponse(next(info for info in models.infos() if info["id"] == name))


def routes() -> list[ApiRoute]:
    """Routes of this module."""
    return [
        ApiRoute(
            method="GET", path="/v1/models", handler=list_models, answer=ModelList,
            summary="The models of this server",
        ),
        ApiRoute(
            method="GET", path="/v1/models/{name:path}", handler=get_model, answer=ModelEntry,
            summary="One model",
        ),
    ]  # fmt: skip
