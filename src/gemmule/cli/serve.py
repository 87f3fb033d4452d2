"""gemmule serve."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from gemmule.cli.app import RUN, command
from gemmule.cli.options import AsJson, Country, Options, Serving
from gemmule.errors import MissingExtraError

Names = Annotated[
    list[str],
    typer.Argument(metavar="MODEL...", help="Models as for generate, or NAME=MODEL for a name."),
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Access(Options):
    """Where the server listens, and who may use it."""

    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1"
    port: Annotated[int, typer.Option(help="Port to listen on; 0: any free one.")] = 8000
    key_file: Annotated[
        Path | None,
        typer.Option(help="File of API keys, one a line; GEMMULE_API_KEY also holds one."),
    ] = None
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Let other machines in without a key.")
    ] = False
    allow_host: Annotated[
        list[str] | None,
        typer.Option(help="Further name of this server in the Host header; repeatable."),
    ] = None
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(help="Origin whose web pages may use the server; repeatable."),
    ] = None
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate chain in PEM: HTTPS.")] = None
    tls_key: Annotated[Path | None, typer.Option(help="Its private key in PEM.")] = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits(Options):
    """How much the server takes on."""

    max_queue: Annotated[
        int, typer.Option(help="Requests that may wait for others to end; more get 429.")
    ] = 256
    max_running: Annotated[int, typer.Option(help="Requests that run at once.")] = 32
    max_tokens: Annotated[
        int | None, typer.Option(help="Tokens of answers without max_tokens; default: the context.")
    ] = None
    queue_timeout: Annotated[float, typer.Option(help="Seconds a request may wait.")] = 300.0
    idle_timeout: Annotated[
        float, typer.Option(help="Seconds a client may be silent, or not read its answer.")
    ] = 60.0
    request_timeout: Annotated[float, typer.Option(help="Seconds a request may take.")] = 3600.0
    drain: Annotated[
        float, typer.Option(help="Seconds that running requests have to finish at the end.")
    ] = 30.0


@command(RUN)
def serve(
    models: Names,
    serving: Serving,
    access: Access,
    limits: Limits,
    keep_all: Annotated[
        bool, typer.Option("--keep-all", help="Keep all models in memory that fit, not just one.")
    ] = False,
    no_page: Annotated[bool, typer.Option("--no-page", help="Leave out the chat page.")] = False,
    country: Country = None,
    log_prompts: Annotated[
        bool, typer.Option("--log-prompts", help="Write prompts and answers into the log.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Serve models to other programs with OpenAI's API, and a chat page.

    Example: gemmule serve runs/quickstart/student
    """
    try:
        from gemmule.serve.server import serve as run_server
    except ModuleNotFoundError as e:
        package = (e.name or "").split(".")[0]
        if package == "gemmule":
            raise
        raise MissingExtraError(package, "serve", "gemmule serve") from None
    from gemmule.serve.announcement import announcement, readiness
    from gemmule.serve.key_file import read_keys
    from gemmule.serve.model_source import parse_sources
    from gemmule.serve.served_models import ServedModels
    from gemmule.serve.settings import ServeSettings

    keys, warning = read_keys(access.key_file)
    if warning:
        print(f"gemmule: {warning}", file=sys.stderr)
    settings = ServeSettings(
        host=access.host,
        port=access.port,
        keys=keys,
        insecure=access.insecure,
        allowed_hosts=tuple(access.allow_host or ()),
        allowed_origins=tuple(access.allow_origin or ()),
        tls_cert=access.tls_cert,
        tls_key=access.tls_key,
        max_waiting=limits.max_queue,
        max_running=limits.max_running,
        default_max_tokens=limits.max_tokens,
        queue_timeout=limits.queue_timeout,
        idle_timeout=limits.idle_timeout,
        request_timeout=limits.request_timeout,
        drain_seconds=limits.drain,
        page=not no_page,
        country=country,
        log_prompts=log_prompts,
    )
    sources = parse_sources(
        models, draft=serving.draft, quantize=serving.quantize, cache=serving.cache
    )
    served = ServedModels(sources, settings, keep_all=keep_all)

    def announce(url: str) -> None:
        if as_json:
            print(json.dumps(readiness(url, served)), flush=True)
        else:
            print(announcement(url, served, settings, access.key_file), flush=True)

    run_server(served, settings, announce)
