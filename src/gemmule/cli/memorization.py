"""Verbs about what a model remembers of its training text."""

import json
from pathlib import Path
from typing import Annotated

import typer

from gemmule.cli.app import AsJson, Device, Out, Results, app, stoppable
from gemmule.errors import ConfigError


@app.command()
def memorization(
    run: Annotated[
        str,
        typer.Argument(help="A run; of a quickstart its two students."),
    ],
    data: Annotated[
        Path | None, typer.Option(help="Its data folder, where the run does not lead to it.")
    ] = None,
    probes: Annotated[int, typer.Option(help="Passages to try; as many held-out ones.")] = 10_000,
    prompt_tokens: Annotated[int, typer.Option(help="Of a passage, given to the model.")] = 50,
    continuation_tokens: Annotated[int, typer.Option(help="That it is to give.")] = 50,
    against: Annotated[
        str | None, typer.Option(help="Another run on the same text, tried on the same passages.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Decides which passages.")] = 0,
    device: Device = "cpu",
    out: Results = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Begin anew, whatever was measured before.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Measures how much of its training text a model gives back, and personal data in it.

    Greedy continuations of passages, exact and with at most a tenth of the tokens edited. Held-out
    passages are the control. Stopped at any moment, the same command goes on.

    Example: gemmule memorization runs/quickstart/student --against runs/quickstart/scratch
    """
    from gemmule.evals.memorization.results_table import show
    from gemmule.evals.memorization.run_memorization import run_memorization
    from gemmule.evals.memorization.settings import Settings

    settings = Settings(
        probes=probes,
        prompt_tokens=prompt_tokens,
        continuation_tokens=continuation_tokens,
        seed=seed,
    )
    with stoppable("the same command goes on where this one stopped"):
        result = run_memorization(
            run, settings, against=against, data=data, out=out, device=device, fresh=fresh
        )
    if as_json:
        print(json.dumps(result))
    else:
        show(result)


@app.command()
def canaries(
    data: Annotated[Path, typer.Argument(help="Folder made by gemmule data.")],
    out: Out,
    repeats: Annotated[
        str, typer.Option(help="How often canaries are to be there, a group for each number.")
    ] = "1,2,4,8,16,32,64",
    each: Annotated[int, typer.Option(help="Canaries of each group.")] = 4,
    tokens: Annotated[int, typer.Option(help="Of a canary.")] = 100,
    seed: Annotated[int, typer.Option(help="Decides what they are.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Copies a data folder and plants canaries in its training text: random passages, repeated.

    gemmule memorization looks for them in a run on the copy: how often must a passage be read to
    be remembered?

    Example: gemmule canaries runs/data --out runs/data-canaries --repeats 1,8,64
    """
    from gemmule.console import console
    from gemmule.data.canaries import add_canaries
    from gemmule.data.dataset import Dataset

    try:
        counts = [int(number) for number in repeats.split(",")]
    except ValueError:
        raise ConfigError(
            f"--repeats {repeats!r} is no list of numbers: write it as in 1,8,64"
        ) from None
    with stoppable("nothing was written"):
        made = add_canaries(
            Dataset.open(data), out, repeats=counts, each=each, tokens=tokens, seed=seed
        )
    planted = made.manifest["canaries"]
    if as_json:
        print(json.dumps({"fingerprint": made.fingerprint, "canaries": planted}))
    else:
        console.print(
            f"{len(planted['repeats'])} canaries of {tokens} tokens as {len(planted['order'])} "
            f"documents in {out}, fingerprint {made.fingerprint[:12]}",
            markup=False,
        )
