"""gemmule serve."""

from typing import Annotated

import typer

from gemmule.cli.app import RUN, command
from gemmule.cli.options import Serving
from gemmule.errors import MissingExtraError


@command(RUN)
def serve(
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL...", help="Models, each PATH or NAME=PATH.")
    ],
    serving: Serving,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0: any free one.")] = 8000,
) -> None:
    """Serve models to other programs, with OpenAI's API.

    Example: gemmule serve runs/quickstart/student
    """
    try:
        from gemmule.serve.server import serve as run_server
    except ModuleNotFoundError as e:
        if (e.name or "").split(".")[0] == "gemmule":
            raise
        raise MissingExtraError(str(e.name), "serve", "gemmule serve") from None
    from gemmule.serve.model_source import parse_sources
    from gemmule.serve.served_models import ServedModels
    from gemmule.serve.settings import ServeSettings

    settings = ServeSettings(host=host, port=port)
    sources = parse_sources(
        models, draft=serving.draft, quantize=serving.quantize, cache=serving.cache
    )
    run_server(ServedModels(sources, settings), settings, print)
