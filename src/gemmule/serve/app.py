"""The ASGI application: the table of routes, and the life of its models.

It can be mounted in another application; see docs/serving.md.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gemmule.serve import health, metrics_page, model_list, page, tokenize
from gemmule.serve.access_log import AccessLog
from gemmule.serve.anthropic import messages
from gemmule.serve.api_errors import ApiError
from gemmule.serve.openai import chat_completions, completions, input_tokens
from gemmule.serve.responses import responses
from gemmule.serve.route import ApiRoute, Endpoint
from gemmule.serve.served_models import ServedModels
from gemmule.serve.settings import ServeSettings
from gemmule.serve.state import ServeState

# Each module of routes adds its function here.
ROUTES: tuple[Callable[[], list[ApiRoute]], ...] = (
    health.routes,
    model_list.routes,
    metrics_page.routes,
    chat_completions.routes,
    completions.routes,
    input_tokens.routes,
    responses.routes,
    messages.routes,
    tokenize.routes,
)


def api_routes() -> list[ApiRoute]:
    """All routes."""
    return [route for routes in ROUTES for route in routes()]


def make_app(models: ServedModels, settings: ServeSettings) -> Starlette:
    """Makes the application; its models are loaded when it starts, in its event loop.

    Args:
        models: models to serve.
        settings: settings of the server.
    """
    state = ServeState(models, settings)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        models.observation.start()
        await models.start()
        state.phase = "ready"
        try:
            yield
        finally:
            state.phase = "draining"
            await models.stop()
            await models.observation.stop()

    routes = [
        Route(path, Endpoint(route), methods=[route.method])
        for route in api_routes()
        for path in route.paths
    ]
    if settings.page:
        routes += page.routes()
    app = Starlette(
        routes=routes,
        lifespan=lifespan,
        middleware=[
            Middleware(
                AccessLog,
                observe=models.observation.observe_request,
                log_prompts=settings.log_prompts,
            )
        ],
        exception_handlers={HTTPException: _no_such_route},
    )
    app.state.serve = state
    return app


async def _no_such_route(request: Request, error: Exception) -> Response:
    """A path or method that no route has."""
    assert isinstance(error, HTTPException)
    what = "this path" if error.status_code == 404 else f"{request.method} for this path"
    return ApiError(
        error.status_code,
        f"there is no {what}; /openapi.json lists what there is",
        headers=error.headers,
    ).response()
