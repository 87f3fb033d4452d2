"""gemmule tokenizer train and trim."""

from pathlib import Path
from typing import Annotated

import typer

from gemmule.cli.app import DATA, app, command
from gemmule.cli.options import Field, Out, Text, TrimCoverage, TrimSize, TrimText

tokenizer_app = typer.Typer(no_args_is_help=True, help="Train a tokenizer, or trim one.")
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


@command(DATA, "trim", to=tokenizer_app)
def tokenizer_trim(
    tokenizer: Annotated[
        Path, typer.Argument(help="Folder with a tokenizer of Gemma 1, 2 or 3, or its file.")
    ],
    out: Out,
    text: TrimText = None,
    size: TrimSize = None,
    coverage: TrimCoverage = 1.0,
    field: Field = None,
) -> None:
    """Trim a tokenizer to the tokens that a text uses, with Gemma 2's ids for the fixed ones.

    Data that are prepared with it can be learned from a teacher that has the full tokenizer.

    Example: gemmule tokenizer trim models/gemma-3-270m --text ~/notes --out runs/tokenizer
    """
    from gemmule.console import counting, key_values, stage
    from gemmule.model.foreign_layout import load_in_gemma_layout
    from gemmule.runs.lock import locked
    from gemmule.runs.run_dir import claim
    from gemmule.trim import compared, trim_tokenizer_for

    with locked(out):
        claim(out)
        with counting("reading") as progress:
            full = load_in_gemma_layout(tokenizer)
            trimmed, segmentation = trim_tokenizer_for(
                full, text, field=field, size=size, coverage=coverage,
                progress=progress, stage=stage,
            )  # fmt: skip
        trimmed.tokenizer.save(out)
    key_values(
        [
            ["vocabulary", f"{len(trimmed.kept_K):,} tokens, before {full.vocab_size:,}"],
            ["coverage", f"{trimmed.coverage:.4%} of the text's tokens"],
            ["segmentation", compared(segmentation)],
        ],
        title=str(out),
    )
