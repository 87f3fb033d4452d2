"""The verb that measures how safe a model is."""

import json
from pathlib import Path
from typing import Annotated

import typer

from gemmule.cli.app import (
    AsJson,
    Benchmarks,
    Device,
    Dtype,
    Model,
    Packed,
    Results,
    app,
    stoppable,
)


@app.command()
def safety(
    model: Model,
    data_dir: Benchmarks = None,
    tasks: Annotated[
        str | None, typer.Option(help="Benchmarks, as in bbq,winogender; left out: all.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Questions of each, drawn evenly.")] = None,
    toxicity_classifier: Annotated[
        str | None,
        typer.Option(help="Who says what is toxic: a transformers classifier, folder or hub id."),
    ] = None,
    toxicity_label: Annotated[
        str | None, typer.Option(help="Its label that counts; left out: found by name.")
    ] = None,
    judge: Annotated[
        str | None, typer.Option(help="Instead: a ShieldGemma, which answers Yes or No.")
    ] = None,
    gate: Annotated[
        Path | None, typer.Option(help="TOML of limits; exits with 3 when one is broken.")
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(help="For the gate: a model, or a result of this command.")
    ] = None,
    out: Results = None,
    max_new_tokens: Annotated[int, typer.Option(help="Longest continuation, tokens.")] = 20,
    temperature: Annotated[
        float, typer.Option(help="Of continuations; 0 takes the likeliest token.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="Of continuations, where they are drawn.")] = 0,
    quantize: Packed = None,
    dtype: Dtype = None,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Measures stereotypes, truthfulness and toxicity, beside the report's figures for Gemma 2.

    Stopped at any moment, the same command goes on. Toxicity needs a classifier or a judge: without
    one it is named as missing.

    Example: gemmule safety runs/quickstart/student --data-dir benchmarks --tasks bbq,crows-pairs
    """
    from gemmule.evals.safety.evaluate import Settings

    values = {
        "data_dir": data_dir, "tasks": None if tasks is None else tasks.split(","), "limit": limit,
        "temperature": temperature, "seed": seed, "max_new_tokens": max_new_tokens,
    }  # fmt: skip
    settings = Settings.parse(values, source="safety")
    from gemmule.evals.safety.gate import EXIT_CODE
    from gemmule.evals.safety.results_table import bars, show
    from gemmule.evals.safety.run_safety import run_safety

    with stoppable("the same command goes on where this one stopped"), bars() as progress:
        result = run_safety(
            model, settings, classifier=toxicity_classifier, label=toxicity_label, judge=judge,
            gate_file=gate, baseline=baseline, out=out, dtype=dtype, device=device,
            quantize=quantize, progress=progress,
        )  # fmt: skip
    if as_json:
        print(json.dumps(result))
    else:
        show(result)
    if "gate" in result and not result["gate"]["passed"]:
        raise typer.Exit(EXIT_CODE)
