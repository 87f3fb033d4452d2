"""The application, and what several verbs take alike."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from gemmule.errors import Interrupted

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Make, distil, run, check and publish small Gemma 2 models on the machine you have.",
)
tokenizer_app = typer.Typer(no_args_is_help=True, help="Train tokenizers.")
app.add_typer(tokenizer_app, name="tokenizer")

Source = Annotated[
    Path | None,
    typer.Argument(help="File, folder or glob of text; left out: Python's own standard library."),
]
Model = Annotated[
    str, typer.Argument(help="A run, an HF folder, a hub id, a .gguf, .ckpt or .npz file.")
]
Field = Annotated[str, typer.Option(help="JSON field or Parquet column that holds the text.")]
Out = Annotated[Path, typer.Option(help="Folder to write.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on where a stopped run was saved.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a setting; may be repeated."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Packed = Annotated[
    str | None, typer.Option("--quantize", help="int4, int6 or int8: pack the weights first.")
]
Dtype = Annotated[
    str | None, typer.Option(help="float32, bfloat16 or float16; default: as stored.")
]
Device = Annotated[str, typer.Option(help="Where the model runs: cpu, cuda.")]
Benchmarks = Annotated[
    Path | None, typer.Option("--data-dir", help="Folder of benchmark files; left out: the hub.")
]
Results = Annotated[
    Path | None, typer.Option("--out", help="Folder of results; left out: the run's evals/.")
]
ConfigFile = Annotated[Path | None, typer.Argument(help="TOML file of settings.")]


@contextmanager
def stoppable(how: str) -> Iterator[None]:
    """Turns a Ctrl-C that nothing further down took care of into a message how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(f"stopped; {how}") from None
