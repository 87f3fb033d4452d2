"""/metrics: what Prometheus reads."""

from starlette.requests import Request
from starlette.responses import Response

from gemmule.serve.route import ApiRoute
from gemmule.serve.state import state_of


async def metrics(request: Request) -> Response:
    """The metrics as text, or in OpenMetrics' form if that is asked for."""
    observation = state_of(request).models.observation
    text, media_type = observation.metrics.render(request.headers.get("accept", ""))
    return Response(text, headers={"Content-Type": media_type})


def routes() -> list[ApiRoute]:
    """Routes of this module."""
    return [
        ApiRoute(
            method="GET", path="/metrics", handler=metrics, media_type="text/plain",
            summary="Metrics for Prometheus",
        )
    ]  # fmt: skip
