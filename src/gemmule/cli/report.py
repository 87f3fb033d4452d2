"""gemmule card."""

from pathlib import Path
from typing import Annotated

import typer

from gemmule.cli.app import EVALUATE, command


@command(EVALUATE)
def card(
    run: Annotated[Path, typer.Argument(help="Directory of a run or quickstart.")],
    licence: Annotated[
        str | None, typer.Option(help="License of the weights, by its identifier on the hub.")
    ] = None,
) -> None:
    """Write the model card: README.md for the hub, and index.html as a page of its own.

    Example: gemmule card runs/quickstart
    """
    from gemmule.report.card import write_card

    print(write_card(run, licence) / "index.html")
