"""/health: whether requests are taken; answered without the engine's lock."""

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from gemmule.serve.api_errors import ApiError
from gemmule.serve.route import ApiRoute
from gemmule.serve.state import state_of


class Health(BaseModel):
    """Answer of /health."""

    status: str


async def health(request: Request) -> Response:
    """200 if requests are taken, 503 while loading, while draining, and if the engine is dead."""
    state = state_of(request)
    state.check_ready()
    if any(served.engine.dead for served in state.models.loaded):
        raise ApiError(503, "the engine has failed: restart the server", code="engine_dead")
    return JSONResponse({"status": "ok"})


def routes() -> list[ApiRoute]:
    """Routes of this module."""
    return [
        ApiRoute(
            method="GET", path="/v1/health", handler=health, open=True, answer=Health,
            summary="Whether the server takes requests",
        )
    ]  # fmt: skip
