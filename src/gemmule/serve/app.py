"""The ASGI application: the table of routes, and the life of its models.

It can be mounted in another application; see docs/serving.md.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gemmule.serve import health, metrics_page, model_list, openapi, page, tokenize
from gemmule.serve.access_log import AccessLog
from gemmule.serve.anthropic import messages
from gemmule.serve.api_errors import ApiError
from gemmule.serve.endpoint import Endpoint
from gemmule.serve.middleware.hosts import Hosts
from gemmule.serve.middleware.keys import Keys
from gemmule.serve.middleware.limits import Limits
from gemmule.serve.middleware.origins import Origins
from gemmule.serve.middleware.refusal import error_form
from gemmule.serve.openai import chat_completions, completions, input_tokens
from gemmule.serve.responses import responses
from gemmule.serve.route import ApiRoute
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
    """All routes but that of their description."""
    return [route for routes in ROUTES for route in routes()]


def make_app(
    models: ServedModels, settings: ServeSettings, *, wait_for_models: bool = True
) -> Starlette:
    """Makes the application; its models are loaded when it starts, in its event loop.

    Args:
        models: models to serve.
        settings: settings of the server.
        wait_for_models: start when they are loaded; otherwise /health says that they are not.
    """
    state = ServeState(models, settings)

    async def load() -> None:
        try:
            await models.start()
        except Exception as e:
            state.failure = e
            raise
        if state.phase == "loading":
            state.phase = "ready"

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        models.observation.start()
        loading = asyncio.create_task(load())
        loading.add_done_callback(lambda task: task.cancelled() or task.exception())
        if wait_for_models:
            await loading
        try:
            yield
        finally:
            state.phase = "draining"
            loading.cancel()
            await models.stop()
            await models.observation.stop()

    described = api_routes()
    described.append(openapi.route(described[:], keys=bool(settings.keys)))
    routes = [
        Route(path, Endpoint(route), methods=[route.method])
        for route in described
        for path in route.paths
    ]
    page_routes = page.routes() if settings.page else []
    open_paths = [path for route in described if route.open for path in route.paths]
    open_paths += [route.path for route in page_routes]
    app = Starlette(
        routes=[*routes, *page_routes],
        lifespan=lifespan,
        middleware=[
            Middleware(
                AccessLog,
                observe=models.observation.observe_request,
                log_prompts=settings.log_prompts,
            ),
            Middleware(Limits, settings),
            Middleware(Hosts, settings.host, settings.allowed_hosts),
            Middleware(Origins, settings.allowed_origins),
            Middleware(Keys, settings.keys, open_paths),
        ],
        exception_handlers={HTTPException: _no_such_route},
    )
    app.router.redirect_slashes = False  # to an address made of the Host header
    app.state.serve = state
    return app


async def _no_such_route(request: Request, error: Exception) -> Response:
    """A path or method that no route has."""
    assert isinstance(error, HTTPException)
    what = "such path" if error.status_code == 404 else f"{request.method} for this path"
    told = ApiError(
        error.status_code,
        f"there is no {what}; /openapi.json lists what there is",
        headers=error.headers,
    )
    return told.response(error_form(request.scope))
