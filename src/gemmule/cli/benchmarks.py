"""The verb that measures what a model can do."""

import json
from pathlib import Path
from typing import Annotated

import typer

from gemmule.cli.app import (
    AsJson,
    Benchmarks,
    Device,
    Dtype,
    Packed,
    Results,
    app,
    stoppable,
)
from gemmule.errors import ConfigError


@app.command(name="eval")
def evaluate(
    models: Annotated[
        list[str] | None,
        typer.Argument(help="Runs, HF folders, hub ids or files; two are compared."),
    ] = None,
    suite: Annotated[str, typer.Option(help="quick or report.")] = "quick",
    tasks: Annotated[
        str | None, typer.Option(help="Benchmarks instead, as in arc-e,gsm8k; list shows all.")
    ] = None,
    data_dir: Benchmarks = None,
    limit: Annotated[int | None, typer.Option(help="Questions of each task, the first.")] = None,
    formats: Annotated[
        bool, typer.Option("--formats", help="Also ask in twelve formats, and say how they differ.")
    ] = False,
    chat: Annotated[
        bool, typer.Option("--chat", help="Ask through the chat template: for tuned models.")
    ] = False,
    data: Annotated[
        Path | None,
        typer.Option(help="The run's data folder, where it was moved: looked for in benchmarks."),
    ] = None,
    accept_weaker_sandbox: Annotated[
        bool,
        typer.Option("--accept-weaker-sandbox", help="Run programs without namespaces: see docs."),
    ] = False,
    out: Results = None,
    quantize: Packed = None,
    dtype: Dtype = None,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Measures models on benchmarks, with 95% intervals, beside the published figures of Gemma 2.

    Stopped at any moment, the same command goes on. A benchmark whose files are missing is named
    and left out. Two models or more are compared question by question.

    Example: gemmule eval runs/quickstart/student --data-dir benchmarks
    """
    from gemmule.evals.benchmarks.settings import EvalSettings

    if tasks == "list":
        from gemmule.evals.benchmarks.results_table import listing

        listing(as_json)
        return
    if not models:
        raise ConfigError("gemmule eval needs a model: gemmule eval runs/quickstart/student")
    values = {
        "suite": suite, "tasks": None if tasks is None else tasks.split(","),
        "data_dir": data_dir, "limit": limit, "formats": formats, "chat": chat, "data": data,
        "accept_weaker_sandbox": accept_weaker_sandbox,
    }  # fmt: skip
    settings = EvalSettings.parse(values, source="eval")
    from gemmule.evals.benchmarks.results_table import show
    from gemmule.evals.benchmarks.run_benchmarks import run_eval

    with stoppable("the same command goes on where this one stopped"):
        results = run_eval(
            models, settings, out=out, dtype=dtype, device=device, quantize=quantize
        )  # fmt: skip
    if as_json:
        print(json.dumps(results[0] if len(results) == 1 else results))
    else:
        show(results)
