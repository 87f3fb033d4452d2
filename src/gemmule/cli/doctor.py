"""gemmule doctor."""

import json
from typing import Annotated

import typer

from gemmule.cli.app import RUN, command, stoppable
from gemmule.cli.options import AsJson, Dtype, Model


@command(RUN)
def doctor(
    model: Model,
    backend: Annotated[
        str, typer.Option(help="What runs the model: gemmule, transformers or openai.")
    ] = "gemmule",
    url: Annotated[
        str | None, typer.Option(help="Base address of an OpenAI-compatible server.")
    ] = None,
    served: Annotated[
        str | None,
        typer.Option("--model", help="The server's name of the model; default: the first listed."),
    ] = None,
    attn: Annotated[str, typer.Option(help="attn_implementation of transformers.")] = "eager",
    dtype: Dtype = None,
    as_json: AsJson = False,
) -> None:
    """Check an implementation of Gemma 2 for the bugs that ports of it have had.

    The exit status is 1 if one is found.

    Example: gemmule doctor google/gemma-2-2b --backend transformers
    """
    from gemmule.doctor.examine import run_doctor

    with stoppable("nothing was written"):
        report = run_doctor(model, backend, url, served, attn, dtype)
    if as_json:
        print(json.dumps(report.as_dict()))
    else:
        report.show()
    if not report.ok:
        raise typer.Exit(1)
