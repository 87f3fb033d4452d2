"""gemmule data-export."""

import json
from pathlib import Path
from typing import Annotated

import typer

from gemmule.cli.app import DATA, RERUN, command, stoppable
from gemmule.cli.options import AsJson, Out


@command(DATA, "data-export")
def data_export(
    data: Annotated[Path, typer.Argument(help="Folder made by gemmule data.")],
    *,
    out: Out,
    as_json: AsJson = False,
) -> None:
    """Write a data folder as datatrove's token files (.ds with .index), for other trainers.

    Example: gemmule data-export runs/data --out runs/ds
    """
    from gemmule.console import table
    from gemmule.data.dataset import Dataset
    from gemmule.data.token_shards.export import export_datatrove

    with stoppable(RERUN):
        about = export_datatrove(Dataset.open(data), out)
    if as_json:
        print(json.dumps(about))
        return
    rows = [
        [entry["file"], f"{entry['documents']:,}", f"{entry['tokens']:,}"]
        for entries in about["splits"].values()
        for entry in entries
    ]
    table(["file", "documents", "tokens"], rows, title=str(out))
