"""gemmule data."""

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from gemmule.cli.app import DATA, RERUN, command, stoppable
from gemmule.cli.options import AsJson, CorpusLicence, CorpusName, Field, Out, Text


@command(DATA)
def data(
    tokenizer: Annotated[Path, typer.Option(help="Folder or .model file of the tokenizer.")],
    out: Out,
    source: Text = None,
    field: Field = None,
    name: CorpusName = None,
    licence: CorpusLicence = None,
    near_duplicates: Annotated[
        Literal["group", "drop", "ignore"],
        typer.Option(
            help="What becomes of documents that are nearly the same: group keeps them in one "
            "split, drop keeps one of them, ignore lets a near copy of what is trained on be "
            "held out."
        ),
    ] = "group",
    as_json: AsJson = False,
) -> None:
    """Tokenize text and split it into train, validation and held-out documents.

    If it is stopped, the same command continues from there.

    Example: gemmule data ~/notes --tokenizer runs/tokenizer --out runs/data
    """
    from gemmule.console import counting, table
    from gemmule.data.prepare import prepare
    from gemmule.data.read_log import dropped_lines
    from gemmule.model.tokenizer import Tokenizer

    with stoppable(RERUN), counting("tokenizing") as progress:
        dataset = prepare(
            source, Tokenizer.load(tokenizer), out, field=field, name=name, licence=licence,
            near_duplicates=near_duplicates, progress=progress,
        )  # fmt: skip
    splits = dataset.manifest["splits"]
    counts = {k: {n: s[n] for n in ("documents", "tokens", "bytes")} for k, s in splits.items()}
    if as_json:
        shown = ("name", "licence", "dropped", "dropped_examples", "notes")
        about = {k: dataset.manifest[k] for k in shown if k in dataset.manifest}
        print(json.dumps({**about, "fingerprint": dataset.fingerprint, "splits": counts}))
        return
    rows = [[k, *(f"{n:,}" for n in c.values())] for k, c in counts.items()]
    table(["split", "documents", "tokens", "bytes"], rows, title=dataset.name)
    for note in [*dataset.manifest["notes"], *dropped_lines(dataset.manifest)]:
        print(note)
