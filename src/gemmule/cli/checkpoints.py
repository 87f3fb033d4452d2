"""gemmule info, convert, quantize and trim: checkpoints as files."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from gemmule import shell
from gemmule.cli.app import CHECKPOINTS, RERUN, command, stoppable
from gemmule.cli.options import (
    AsJson,
    Field,
    Model,
    Out,
    TrimCoverage,
    TrimSize,
    TrimText,
)
from gemmule.config import ModelName


@command(CHECKPOINTS)
def info(model: Model, as_json: AsJson = False) -> None:
    """Show a checkpoint's shape, sizes, dtype and tokenizer without loading its weights.

    What cannot be loaded is described as far as its headers tell; the exit status is then 2.

    Example: gemmule info google/gemma-2-2b
    """
    from gemmule.checkpoints import describe, identify
    from gemmule.console import key_values
    from gemmule.errors import UserError

    try:
        description = describe.describe(model)
        rows = describe.lines(description)
    except UserError as e:
        other = identify.identify(model)
        if other is None:
            raise
        if as_json:
            print(json.dumps({**other, "problem": str(e)}))
        else:
            key_values(identify.lines(other), title=other["path"])
        raise
    if as_json:
        print(json.dumps(description))
    else:
        key_values(rows, title=description["path"])


@command(CHECKPOINTS)
def convert(
    model: Model,
    out: Annotated[Path, typer.Argument(help="Folder to write; must be new or empty.")],
    to: Annotated[str, typer.Option(help="Format to write: hf, gguf or gemma_pytorch.")],
    dtype: Annotated[
        str | None,
        typer.Option(help="dtype of the matrices: float32, bfloat16, float16; GGUF: Q8_0, Q4_0."),
    ] = None,
    base: Annotated[
        ModelName | None,
        typer.Option(help="Model to merge an adapter into; default: the one the adapter names."),
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option(help="Text to compare on; default: a module of Python's standard library."),
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Compare the copy with the original.")
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Convert a model to the format of other programs, and verify the copy by reading it back.

    If it is stopped, the same command continues from there. The folder's export.json holds the
    result of the comparison.

    Example: gemmule convert runs/quickstart/student exports/student-gguf --to gguf --dtype Q8_0
    """
    from gemmule.checkpoints.convert import convert as run
    from gemmule.checkpoints.convert import summary
    from gemmule.console import key_values, staged

    with stoppable(RERUN), staged() as progress:
        report = run(model, out, to, dtype, base=base, verify=verify, text=text, progress=progress)
    if as_json:
        print(json.dumps(report))
    else:
        key_values(summary(report), title=str(out))


@command(CHECKPOINTS)
def quantize(
    model: Model,
    to: Annotated[str, typer.Option(help="Format of the layers' matrices: int4, int6 or int8.")],
    head: Annotated[
        str | None,
        typer.Option(
            help="Format of embedding and head: int4, int6, int8 or bf16; default: by size."
        ),
    ] = None,
    calibrate: Annotated[
        ModelName | None,
        typer.Option(
            help="Text file or data folder to calibrate int4 on, or none; default: the run's data."
        ),
    ] = None,
    eval_text: Annotated[
        Path | None, typer.Option(help="Text file to evaluate on; default: the run's data.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder to write; default: NAME-int4 next to the model.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Quantize a model to 4, 6 or 8 bits per weight, and measure the loss in quality.

    KL divergence from the original, top-1 agreement and perplexity on held-out text are in the
    folder's quantization.json. A stopped run leaves nothing and starts from the beginning.

    Example: gemmule quantize runs/quickstart/student --to int4 --out exports/student-int4
    """
    from gemmule.console import counting, stage
    from gemmule.quantize import quantize as run
    from gemmule.quantize import summary

    with stoppable("nothing was written"), counting("quantizing") as progress:
        report = run(
            model, to, out, head=head, calibrate=calibrate, eval_text=eval_text,
            progress=progress, stage=stage,
        )  # fmt: skip
    _show(report, summary(report), as_json)


@command(CHECKPOINTS)
def trim(
    model: Model,
    out: Out,
    text: TrimText = None,
    size: TrimSize = None,
    coverage: TrimCoverage = 1.0,
    field: Field = None,
    as_json: AsJson = False,
) -> None:
    """Trim a model's vocabulary to the tokens that a text uses.

    The trimmed model gives the same logits of the tokens that are left, and the text is segmented
    as before. What the dropped tokens' probability was is measured on the text: the folder's
    trim.json has it. A stopped run leaves nothing and starts from the beginning.

    Example: gemmule trim google/gemma-2-2b --text ~/notes --out models/notes-2b
    """
    from gemmule.console import counting, stage
    from gemmule.trim import summary
    from gemmule.trim import trim as run

    with stoppable("nothing was written"), counting("reading") as progress:
        report = run(
            model, text, out, field=field, size=size, coverage=coverage,
            progress=progress, stage=stage,
        )  # fmt: skip
    _show(report, summary(report), as_json)


def _show(report: dict[str, Any], rows: list[list[str]], as_json: bool) -> None:
    """Prints the report on a model that was made from another."""
    from gemmule.console import key_values, next_commands

    if as_json:
        print(json.dumps(report))
    else:
        key_values(rows, title=report["out"])
        next_commands(shell.command("generate", Path(report["out"]), "The"))
