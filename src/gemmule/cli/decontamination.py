"""gemmule decontamination."""

import json
from pathlib import Path
from typing import Annotated

import typer

from gemmule.cli.app import DATA, command
from gemmule.cli.options import AsJson, BenchmarkFiles


@command(DATA)
def decontamination(
    out: Annotated[Path, typer.Option(help="File to write.")],
    data_dir: BenchmarkFiles = None,
    suite: Annotated[str, typer.Option(help="Benchmarks to collect: report or quick.")] = "report",
    tasks: Annotated[
        str | None, typer.Option(help="Tasks in place of a suite, as in arc-e,gsm8k.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Collect the texts of benchmarks, so that a recipe can take them out of a corpus.

    The file is named under [decontaminate] in the recipe. What is checked by gemmule eval
    afterwards is exactly what was collected here, so that it finds nothing.

    Example: gemmule decontamination --data-dir benchmarks --out runs/benchmarks.json
    """
    from gemmule.console import console, table
    from gemmule.data import benchmark_texts
    from gemmule.evals.benchmarks.collect import collect
    from gemmule.evals.benchmarks.settings import EvalSettings

    values = {"suite": suite, "data_dir": data_dir, "tasks": tasks.split(",") if tasks else None}
    settings = EvalSettings.parse({k: v for k, v in values.items() if v is not None}, "eval")
    benchmarks, missing = collect(settings)
    out.parent.mkdir(parents=True, exist_ok=True)
    benchmark_texts.write(out, benchmarks)
    if as_json:
        counts = {b.name: {"items": len(b.texts), "sha256": b.sha256} for b in benchmarks}
        print(json.dumps({"benchmarks": counts, "missing": missing}))
        return
    rows = [[b.name, f"{len(b.texts):,}", b.sha256[:12]] for b in benchmarks]
    table(["benchmark", "items", "SHA-256"], rows, title=str(out))
    for name, why in missing.items():
        console.print(f"missing: {name}: {why}", markup=False)
