"""Verbs that foresee, check, compare and describe."""

import json
from pathlib import Path
from typing import Annotated

import typer

from gemmule.cli.app import AsJson, Dtype, Model, Overrides, app, stoppable
from gemmule.errors import ConfigError


@app.command()
def plan(
    teacher: Annotated[str, typer.Option(help="Preset, or run or model folder.")],
    student: Annotated[str, typer.Option(help="Preset, or run or model folder.")],
    data: Annotated[Path | None, typer.Option(help="Folder made by gemmule data.")] = None,
    vocab_size: Annotated[
        int | None, typer.Option(help="Words of the presets, where there is no data yet.")
    ] = None,
    tokens: Annotated[
        int | None, typer.Option(help="To train on; default: 20 for each parameter.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Instead of --tokens.")] = None,
    batch_size: Annotated[int, typer.Option(help="Sequences per step.")] = 8,
    seq_len: Annotated[int, typer.Option(help="Tokens per sequence.")] = 256,
    runs: Annotated[
        list[Path] | None,
        typer.Option(help="A finished run or quickstart, to correct the law; may be repeated."),
    ] = None,
    students: Annotated[int, typer.Option(help="That share one record of the teacher.")] = 1,
    teacher_tokens: Annotated[
        int | None, typer.Option(help="A preset's training; default: 20 for each parameter.")
    ] = None,
    country: Annotated[
        str | None, typer.Option(help="ISO 3166 code (DEU, USA, …) for the carbon intensity.")
    ] = None,
    calibration_seconds: Annotated[float, typer.Option(help="Measure for at most so long.")] = 60.0,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Says what training and distilling would take here: memory, disk, time, energy, and gain.

    Measures the machine for up to a minute. Settings of the run are set as for gemmule train.

    Example: gemmule plan --teacher runs/quickstart/teacher --student 1m --data runs/quickstart/data
    --runs runs/quickstart --tokens 1000000
    """
    from gemmule.console import console
    from gemmule.plan.forecast import make_plan
    from gemmule.plan.settings import PlanRequest
    from gemmule.plan.tables import show

    settings = [f"batch_size={batch_size}", f"seq_len={seq_len}", *(overrides or [])]
    settings += [f"country={json.dumps(country)}"] if country else []
    values = {
        "teacher": teacher, "student": student, "data": data, "vocab_size": vocab_size,
        "tokens": tokens, "steps": steps, "teacher_tokens": teacher_tokens, "students": students,
        "runs": runs or [], "settings": settings, "calibration_seconds": calibration_seconds,
    }  # fmt: skip
    request = PlanRequest.parse(values, source="plan")
    with stoppable("nothing was written"):
        console.print(f"measuring for up to {calibration_seconds:.0f} s", style="dim")
        found = make_plan(request, lambda what: console.print(f"measured: {what}", style="dim"))
    if as_json:
        print(json.dumps(found))
    else:
        show(found)


@app.command()
def doctor(
    model: Model,
    backend: Annotated[
        str, typer.Option(help="Who runs the model: gemmule, transformers or openai.")
    ] = "gemmule",
    url: Annotated[
        str | None, typer.Option(help="Base address of an OpenAI-compatible server.")
    ] = None,
    served: Annotated[
        str | None, typer.Option("--model", help="The server's name for it; default: its first.")
    ] = None,
    attn: Annotated[str, typer.Option(help="transformers' attn_implementation.")] = "eager",
    dtype: Dtype = None,
    as_json: AsJson = False,
) -> None:
    """Looks for the bugs that ports of Gemma 2 have had; exits with 1 when it finds one.

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


@app.command()
def bench(
    model: Model,
    quantize: Annotated[
        str | None, typer.Option(help="int4, int6 or int8: pack a floating model first.")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Default: every core.")] = None,
    prompt: Annotated[int, typer.Option(help="Tokens of the prompt that is taken in.")] = 512,
    context: Annotated[int, typer.Option(help="Tokens before those that are decoded.")] = 128,
    batch: Annotated[str, typer.Option(help="Sequences decoded together, as in 1,8.")] = "1,8",
    as_json: AsJson = False,
) -> None:
    """Measures how fast a model runs here, beside what memory and processor allow.

    Takes some seconds for a small model, about a minute for a 2B.

    Example: gemmule bench runs/quickstart/student --batch 1,4
    """
    from gemmule.console import ProgressBar
    from gemmule.speed.settings import SpeedRequest

    values = {
        "model": model, "quantize": quantize, "threads": threads, "prompt": prompt,
        "context": context, "batch": batch,
    }  # fmt: skip
    request = SpeedRequest.parse(values, source="bench")
    from gemmule.speed.benchmark import measure
    from gemmule.speed.tables import show

    with stoppable("nothing was written"), ProgressBar("measuring", 100, "%") as bar:

        def progress(done: int, total: int, note: str) -> None:
            bar.update(100 * done / total, note)

        found = measure(request, progress)
    if as_json:
        print(json.dumps(found))
    else:
        show(found)


@app.command()
def ablate(
    ablation: Annotated[
        str, typer.Argument(metavar="NAME", help="Which one; list shows them, as below.")
    ],
    data: Annotated[Path | None, typer.Option(help="Folder made by gemmule data.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write, or to go on in.")] = None,
    teacher: Annotated[
        str | None, typer.Option(help="The teacher; left out, one is trained first.")
    ] = None,
    teacher_size: Annotated[
        str | None, typer.Option(help="Model size of a teacher that is trained.")
    ] = None,
    teacher_tokens: Annotated[int | None, typer.Option(help="What it is trained on.")] = None,
    student: Annotated[str | None, typer.Option(help="Model size of the student.")] = None,
    seeds: Annotated[int, typer.Option(help="Runs of each kind.")] = 3,
    tokens: Annotated[int, typer.Option(help="What each student is trained on.")] = 300_000,
    online: Annotated[
        bool, typer.Option("--online", help="Learn from the teacher itself, not from a record.")
    ] = False,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Repeats an ablation of the report at your scale: several seeds, means with intervals.

    The same command goes on with a stopped sweep and tries failed runs again. Table, plot and
    page are in the folder; exits with 1 when runs failed.

    Example: gemmule ablate size --data runs/data --out runs/ablate-size

    distilled  distilled against from scratch (report, table 6)
    size       the gap by student size (table 7)
    heads      grouped-query against multi-head attention (table 8)
    depth      deep against wide (table 9)
    window     the sliding window shrunk at inference (table 10)
    loss       divergences, temperature, share of the next token
    teacher    how large a teacher
    targets    ways to store what a teacher says, by bytes a token
    induction  does the model copy what it saw before
    routing    tokens that the teacher is unsure of learn from the text
    """
    from gemmule.ablate.ablations import find, listing
    from gemmule.console import console, facts, table

    if ablation == "list":
        rows = listing()
        if as_json:
            print(json.dumps([dict(zip(("name", "title", "table"), r, strict=True)) for r in rows]))
        else:
            facts([(name, f"{title} ({where})") for name, title, where in rows])
        return
    find(ablation)
    if data is None or out is None:
        raise ConfigError(
            f"gemmule ablate {ablation} needs --data, a folder made by gemmule data, and --out, a "
            "folder to write"
        )
    from gemmule.ablate.config import SweepConfig, given_settings

    values = {
        "ablation": ablation, "data": data, "teacher": teacher, "teacher_size": teacher_size,
        "teacher_tokens": teacher_tokens, "student": student, "seeds": seeds, "tokens": tokens,
        "online": online, "settings": given_settings(overrides or [], data),
    }  # fmt: skip
    config = SweepConfig.parse({k: v for k, v in values.items() if v is not None}, "ablate")
    with stoppable("the same command goes on from there"):
        from gemmule.ablate.page import failures, summary_table, verdicts
        from gemmule.ablate.run_sweep import run_ablation

        results = run_ablation(config, out)
    if as_json:
        print(json.dumps(results))
    else:
        table(*summary_table(results, brief=True), title=results["title"])
        for line in [*verdicts(results), *(f"failed: {f}" for f in failures(results))]:
            console.print(line, markup=False)
        console.print(f"the page: {out / 'README.md'}", markup=False)
    if results["failed"]:
        raise typer.Exit(1)


@app.command()
def card(
    run: Annotated[Path, typer.Argument(help="A run or quickstart directory.")],
    licence: Annotated[
        str | None, typer.Option(help="Licence of the weights, as the hub spells it.")
    ] = None,
) -> None:
    """Writes the model card: README.md for the hub and index.html to look at.

    Example: gemmule card runs/quickstart
    """
    from gemmule.report.card import write_card

    print(write_card(run, licence) / "index.html")
