"""gemmule tokenizer train and trim."""

from typing import Annotated

import typer

from gemmule.cli.app import DATA, app, command
from gemmule.cli.options import Field, Out, Text, TrimCoverage, TrimSize, TrimText
from gemmule.config import ModelName

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
        ModelName, typer.Argument(help="Model, GGUF file, or folder or file of a tokenizer.")
    ],
    out: Out,
    text: TrimText = None,
    size: TrimSize = None,
    coverage: TrimCoverage = 1.0,
    field: Field = None,
) -> None:
    """Trim a tokenizer to the tokens that a text uses.

    Tokenizers of Gemma 1, 2 and 3 get Gemma 2's ids for the fixed tokens: data that are prepared
    with the result can be learned from a teacher that has the full tokenizer. Other BPE
    tokenizers, such as those of GPT-2, Llama and Qwen, stay what they are.

    Example: gemmule tokenizer trim models/gemma-3-270m --text ~/notes --out runs/tokenizer
    """
    from gemmule.console import counting, key_values, stage
    from gemmule.data.text_trim import Extent, lines, trim_to_text
    from gemmule.runs.lock import locked
    from gemmule.runs.run_dir import claim
    from gemmule.teachers.trim_bpe import save, trim_bpe
    from gemmule.teachers.whole_tokenizer import any_bpe, gemma_tokenizer

    extent = Extent(size=size, coverage=coverage)
    with locked(out):
        claim(out)
        with counting("reading") as progress:
            other = any_bpe(tokenizer)
            if other is None:
                full = gemma_tokenizer(tokenizer)
                result = trim_to_text(
                    full, text, extent, field=field, progress=progress, stage=stage
                )
                result.trimmed.tokenizer.save(out)
                shown = lines(result.trimmed, result.segmentation, full.vocab_size)
            else:
                file, folder = other
                trimmed, segmentation = trim_bpe(
                    file, text, extent, field=field, progress=progress, stage=stage
                )
                save(trimmed, folder, out)
                shown = lines(trimmed, segmentation, file.size)
    key_values(shown, title=str(out))
