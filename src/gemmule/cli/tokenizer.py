"""gemmule tokenizer train."""

from typing import Annotated

import typer

from gemmule.cli.app import DATA, app, command
from gemmule.cli.options import Field, Out, Text

tokenizer_app = typer.Typer(no_args_is_help=True, help="Train a tokenizer.")
app.add_typer(tokenizer_app, name="tokenizer", rich_help_panel=DATA)


@command(DATA, "train", to=tokenizer_app)
def tokenizer_train(
    out: Out,
    source: Text = None,
    vocab_size: Annotated[
        int, typer.Option(help="Vocabulary size, the 473 reserved tokens included.")
    ] = 4096,
    field: Field = None,
) -> None:
    """Train a SentencePiece tokenizer with Gemma's settings.

    Example: gemmule tokenizer train ~/notes --vocab-size 8192 --out runs/tokenizer
    """
    from gemmule.console import console
    from gemmule.data.prepare import sample_texts
    from gemmule.data.read_log import ReadLog
    from gemmule.model.tokenizer import train_tokenizer
    from gemmule.runs.lock import locked
    from gemmule.runs.run_dir import claim

    log = ReadLog()
    with locked(out):
        claim(out)
        trained = train_tokenizer(sample_texts(source, field=field, log=log), vocab_size)
        trained.save(out)
    for note in [*log.notes, *([f"left out: {log.summary()}"] if log.left_out else [])]:
        console.print(note, markup=False)
    console.print(f"{trained.vocab_size:,} tokens in {out}")
