"""gemmule tasks."""

from pathlib import Path
from typing import Annotated

import typer

from gemmule.cli.app import POST_TRAIN, command


@command(POST_TRAIN)
def tasks(
    task: Annotated[str | None, typer.Argument(help="Name of a task; default: list them.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write.")] = None,
    count: Annotated[int, typer.Option(help="Number of training problems.")] = 10_000,
    heldout: Annotated[int, typer.Option(help="Number of held-out problems.")] = 1000,
    seed: Annotated[int, typer.Option(help="Seed of the problems.")] = 0,
) -> None:
    """Write problems whose answers a program can check, as train.jsonl and heldout.jsonl.

    The same arguments give the same problems, and none is in both files.

    Example: gemmule tasks countdown --out runs/countdown
    """
    from gemmule.console import table
    from gemmule.errors import ConfigError
    from gemmule.posttrain.tasks.by_name import TASKS, task_problems, write_problems

    if task is None:
        table(["task", "problems"], [[name, about] for name, about in TASKS.items()])
        return
    if out is None:
        raise ConfigError(f"where to? Name a folder: gemmule tasks {task} --out runs/{task}")
    splits = {
        "train": task_problems(task, "train", count, seed),
        "heldout": task_problems(task, "heldout", heldout, seed),
    }
    for split, rows in splits.items():
        write_problems(out / f"{split}.jsonl", rows)
        print(f"{out / f'{split}.jsonl'}: {len(rows):,} problems")
