"""gemmule sft."""

from pathlib import Path
from typing import Annotated

import typer

from gemmule.cli.app import POST_TRAIN, command
from gemmule.cli.options import AsJson, ConfigFile, Out, Overrides, Resume
from gemmule.cli.post_training import StartAndData, new_run
from gemmule.cli.train import override, run_settings, train_model
from gemmule.errors import ConfigError


@command(POST_TRAIN)
def sft(
    out: Out,
    start: StartAndData,
    config: ConfigFile = None,
    targets: Annotated[
        Path | None,
        typer.Option(help="Folder made by gemmule record on the same data: its teacher's logits."),
    ] = None,
    epochs: Annotated[
        float | None, typer.Option(help="Passes through the data, in place of the config's steps.")
    ] = None,
    overrides: Overrides = None,
    resume: Resume = False,
    as_json: AsJson = False,
) -> None:
    """Fine-tune a model on conversations: its turns are learned, and where they end.

    Example: gemmule sft configs/sft-1m.toml --model runs/quickstart/student --file chats.jsonl
    --out runs/sft
    """
    from gemmule.posttrain.chat_data import prepare_conversations
    from gemmule.posttrain.recipes.sft import check_epochs, describe_stops, with_epochs

    chosen = list(overrides or [])
    if resume:
        if start.given() or targets or epochs is not None:
            raise ConfigError("--resume continues with the run's saved settings: give only --out")
        settings = run_settings(config, chosen, out, resume)
    else:
        if targets is not None:
            chosen.append(override("objective.targets", targets))
        if epochs is not None:
            check_epochs(epochs)
            chosen.append("steps=1")  # until the data is there to be counted
        settings = new_run("sft", config, chosen, start, out, lambda _: prepare_conversations)
        if epochs is not None:
            settings = with_epochs(settings, epochs)
    train_model(settings, out, resume, as_json, further=describe_stops, chats=True)
