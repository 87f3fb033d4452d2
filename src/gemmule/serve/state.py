"""What all handlers share."""

from dataclasses import dataclass
from typing import Literal

from starlette.requests import Request

from gemmule.serve.api_errors import ApiError
from gemmule.serve.route import hold
from gemmule.serve.served_models import ServedModel, ServedModels
from gemmule.serve.settings import ServeSettings

SERVED = "gemmule.served"  # in the scope: the model that a request uses


@dataclass
class ServeState:
    """A running server.

    Attributes:
        models: its models.
        settings: its settings.
        phase: "loading" until the first model is there, "draining" once it is told to stop.
        running: number of requests that are being answered, those for information left out.
        failure: why no model could be loaded.
    """

    models: ServedModels
    settings: ServeSettings
    phase: Literal["loading", "ready", "draining"] = "loading"
    running: int = 0
    failure: Exception | None = None

    def check_ready(self) -> None:
        """Refuses work that cannot be begun now.

        Raises:
            ApiError: 503 while loading or draining.
        """
        if self.phase == "loading":
            raise ApiError(503, "the model is being loaded", code="loading", retry_after=1)
        if self.phase == "draining":
            raise ApiError(
                503, "the server is shutting down", code="shutting_down",
                headers={"Connection": "close"},
            )  # fmt: skip


def state_of(request: Request) -> ServeState:
    """The server that a request came to."""
    return request.app.state.serve


async def use_model(request: Request, name: str | None) -> ServedModel:
    """The model that a request names; it stays loaded until the whole answer has been sent.

    Raises:
        ApiError: 404 if there is none of that name.
    """
    served = await hold(request, state_of(request).models.use(name))
    request.scope[SERVED] = served
    return served
