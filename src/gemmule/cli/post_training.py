"""What the commands of post-training do in the same way: settings, and data made from files."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gemmule.cli.app import stoppable
from gemmule.cli.options import Options
from gemmule.cli.train import override, run_settings
from gemmule.config import ModelName
from gemmule.errors import ConfigError
from gemmule.runs.layout import RunLayout

if TYPE_CHECKING:
    from gemmule.model.tokenizer import Tokenizer
    from gemmule.posttrain.chat_data import ChatData, ChatOptions
    from gemmule.train.config import RunConfig

    Prepare = Callable[[Sequence[Path], Tokenizer, Path, ChatOptions], ChatData]

# The whole folder, with the data in it, is made again by the command that was stopped.
AGAIN = "the same command starts again with the data that is finished"


@dataclasses.dataclass(frozen=True, kw_only=True)
class StartAndData(Options):
    """The model that a run starts from, and what it learns from."""

    model: Annotated[
        ModelName | None, typer.Option(help="Model to start from: run, HF folder or hub id.")
    ] = None
    files: Annotated[
        list[Path] | None,
        typer.Option("--file", help="File or folder of records to learn from; repeatable."),
    ] = None
    data: Annotated[
        Path | None, typer.Option(help="Data of an earlier run, in place of files: RUN/data.")
    ] = None
    split_by: Annotated[
        str | None,
        typer.Option(help="Field of the records that keeps them on one side of the split."),
    ] = None
    no_personal_data: Annotated[
        bool | None,
        typer.Option(
            "--no-personal-data", help="Leave out what holds numbers, keys or addresses of people."
        ),
    ] = None


def new_run(
    kind: str,
    config: Path | None,
    overrides: Sequence[str],
    given: StartAndData,
    out: Path,
    preparer: "Callable[[RunConfig], Prepare]",
) -> "RunConfig":
    """The settings of a new run, whose data is made first if files are given.

    Args:
        kind: kind of the run.
        config: file of settings.
        overrides: further settings.
        given: model and data.
        out: folder of the run; the data goes to OUT/data.
        preparer: function from the settings to what makes the data of files.

    Raises:
        UserError: when a setting, a file or the model cannot be used.
    """
    chosen = [*overrides, override("objective.kind", kind)]
    if given.model is not None:
        chosen.append(override("model.init", given.model))
    if given.files and given.data:
        raise ConfigError("give files or --data, not both: --data is what an earlier run made")
    if given.data is not None:
        chosen.append(override("data.path", given.data))
    elif given.files:
        chosen.append(override("data.path", RunLayout(out).data))
    settings = run_settings(config, chosen, out, resume=False)
    if settings.model.init is None:
        raise ConfigError("post-training starts from a model: name it with --model")
    if given.files:
        with stoppable(AGAIN):
            make_data(settings, given, preparer(settings))
    return settings


def make_data(settings: "RunConfig", given: StartAndData, prepare: "Prepare") -> None:
    """Makes the data folder of a run from files, and says what was left out."""
    from gemmule.checkpoints.load import open_checkpoint
    from gemmule.console import console
    from gemmule.data.read_log import dropped_lines
    from gemmule.posttrain.chat_data import ChatOptions
    from gemmule.posttrain.filters import Filters
    from gemmule.posttrain.rendering import longest_conversation
    from gemmule.runs.ledger import activity as ledger

    assert given.files is not None and settings.model.init is not None
    with open_checkpoint(settings.model.init) as checkpoint:
        tokenizer = checkpoint.tokenizer
    severities = frozenset({"high", "medium"} if given.no_personal_data else ())
    options = ChatOptions(
        max_tokens=longest_conversation(settings.data.seq_len),
        split_by=given.split_by,
        filters=Filters(personal_data=severities),
    )
    with ledger.activity("data", settings.data.path):
        data = prepare(given.files, tokenizer, settings.data.path, options)
    counts = ", ".join(
        f"{data.count(split):,} {split}" for split in data.dataset.manifest["splits"]
    )
    console.print(f"{data.kind}: {counts}")
    for line in dropped_lines(data.dataset.manifest):
        console.print(line)


def reward_weights(texts: Sequence[str]) -> dict[str, float]:
    """Weights of rewards by name, from "NAME" or "NAME=WEIGHT".

    Raises:
        ConfigError: for a weight that is not a finite number, or a reward that is named twice.
    """
    weights: dict[str, float] = {}
    for text in texts:
        name, equals, weight = text.rpartition("=")
        name = name if equals else text
        try:
            value = float(weight) if equals else 1.0
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise ConfigError(
                f"--reward {text}: the weight {weight!r} is not a number; NAME=0.5, for example"
            )
        if name in weights:
            raise ConfigError(f"--reward {text}: {name} is named twice; give it one weight")
        weights[name] = value
    return weights
