"""gemmule data --recipe: its options, and what it prints."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from gemmule.cli.options import Options
from gemmule.errors import ConfigError

if TYPE_CHECKING:
    from gemmule.data.dataset import Dataset
    from gemmule.model.tokenizer import Tokenizer


_REASONS = 4  # shown of each stage


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecipeOptions(Options):
    """What a recipe is run with."""

    recipe: Annotated[
        Path | None, typer.Option(help="TOML file with sources and stages, instead of TEXT.")
    ] = None
    explain: Annotated[
        int | None, typer.Option(help="Show this many dropped documents of each reason (max. 20).")
    ] = None
    executor: Annotated[
        Literal["local", "slurm", "ray"] | None,
        typer.Option(help="Where the tasks of a recipe run; default: in this process."),
    ] = None
    tasks: Annotated[int | None, typer.Option(help="Number of tasks of the executor.")] = None
    workers: Annotated[
        int | None, typer.Option(help="Processes (of each task); default: one per core.")
    ] = None
    sbatch: Annotated[
        list[str] | None, typer.Option(help="An option of sbatch, as in time=02:00:00; repeatable.")
    ] = None


def check(options: RecipeOptions, others: Sequence[str]) -> None:
    """Refuses options that do not go together.

    Args:
        options: those of recipes.
        others: names of the options of text without a recipe that are given.

    Raises:
        ConfigError: when some do not.
    """
    if options.recipe is None:
        if given := list(options.given()):
            raise ConfigError(f"--{given[0]} is for recipes: give one with --recipe")
        return
    if others:
        raise ConfigError(
            f"{', '.join(others)} cannot be used with --recipe: the recipe's file says it"
        )
    if (options.executor is None) != (options.tasks is None):
        raise ConfigError("--executor and --tasks go together: --executor local --tasks 4")
    if options.sbatch and options.executor != "slurm":
        raise ConfigError("--sbatch is for --executor slurm")
    if options.explain is not None and not 1 <= options.explain <= 20:
        raise ConfigError(f"--explain {options.explain}: use 1 to 20")


def run(options: RecipeOptions, tokenizer: "Tokenizer", out: Path) -> "Dataset | None":
    """Runs the recipe, or submits it: then there is no data folder yet.

    Raises:
        GemmuleError: when the recipe cannot be run as given.
    """
    from gemmule.console import counting, stage
    from gemmule.data.recipe import executors
    from gemmule.data.recipe.run import run_recipe
    from gemmule.data.recipe.settings import Recipe
    from gemmule.runtime import host

    recipe = Recipe.load(options.recipe)
    tasks = 1 if options.tasks is None else options.tasks
    if options.executor == "slurm":
        jobs = executors.submit_to_slurm(recipe, tokenizer, out, tasks, options.sbatch or ())
        for phase, job in jobs.items():
            print(f"{phase}: job {job}")
        if jobs:
            print(f"{out} is complete when the last job is; logs are in {out / 'slurm'}")
            return None
    execute = None
    if options.executor in ("local", "ray"):
        workers = options.workers or max(1, host.usable_cores() // max(1, tasks))
        start = executors.local if options.executor == "local" else executors.ray
        execute = start(out, tasks, workers)
    with counting("recipe") as progress:
        return run_recipe(
            recipe, tokenizer, out, workers=options.workers, progress=progress, stage=stage,
            execute=execute,
        )  # fmt: skip


def show(dataset: "Dataset", explain: int | None) -> None:
    """Prints the funnel, and examples of what was dropped."""
    from gemmule import files
    from gemmule.console import table
    from gemmule.data.read_log import dropped_lines
    from gemmule.data.recipe.results import FUNNEL
    from gemmule.data.recipe.run import PAGE
    from gemmule.report.data_page import not_read, title_of

    funnel = files.read_json(dataset.path / FUNNEL)
    total = funnel["total"]
    rows = [["read", *(f"{n:,}" for n in total["read"])]]
    unread = not_read(dataset.manifest, funnel)
    lines = dropped_lines({**dataset.manifest, "dropped": unread})
    for name in funnel["stages"]:
        stage = total["stages"][name]
        title = "usable text" if name == "read" else name
        rows.append([title, *(f"{n:,}" for n in stage["passed"])])
        reasons = sorted(stage["dropped"].items(), key=lambda item: -item[1][0])
        why = [f"{documents:,} {reason}" for reason, (documents, _) in reasons]
        more = [f"{len(why) - _REASONS} other reasons"] if len(why) > _REASONS else []
        if why:
            lines.append(f"{title}, dropped: {', '.join([*why[:_REASONS], *more])}")
    table(["after", "documents", "bytes"], rows, title=f"{dataset.name}: what is left")
    for line in lines:
        print(line)
    counts: dict[tuple[str, str], int] = {}
    for example in funnel["examples"] if explain else []:
        key = (example["stage"], example["reason"])
        counts[key] = counts.get(key, 0) + 1
        if counts[key] == 1:
            print(f"\n{title_of(example['stage'], example['reason'])}:")
        if counts[key] <= (explain or 0):
            like = f", like {example['like']}" if "like" in example else ""
            excerpt = " ".join(example["excerpt"].split())[:200]
            print(f"  {example['key']} ({example['bytes']:,} bytes{like}): {excerpt}")
    print(f"The whole funnel, with examples: {dataset.path / PAGE}")
