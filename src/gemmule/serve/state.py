"""What all handlers share."""

from dataclasses import dataclass
from typing import Literal

from starlette.requests import Request

from gemmule.serve.route import hold
from gemmule.serve.served_models import ServedModel, ServedModels
from gemmule.serve.settings import ServeSettings


@dataclass
class ServeState:
    """A running server.

    Attributes:
        models: its models.
        settings: its settings.
        phase: "loading" until the first model is there, "draining" once it is told to stop.
    """

    models: ServedModels
    settings: ServeSettings
    phase: Literal["loading", "ready", "draining"] = "loading"


def state_of(request: Request) -> ServeState:
    """The server that a request came to."""
    return request.app.state.serve


async def use_model(request: Request, name: str | None) -> ServedModel:
    """The model that a request names; it stays loaded until the whole answer has been sent.

    Raises:
        ApiError: 404 if there is none of that name.
    """
    return await hold(request, state_of(request).models.use(name))
