"""Runs over several data folders: their data, source of batches, and what is said of them."""

from collections.abc import Callable, Mapping
from typing import Any

from gemmule.console import console, table
from gemmule.data.dataset import Dataset
from gemmule.data.mixture.mixed_dataset import MixedDataset
from gemmule.data.mixture.mixed_text import MixedText
from gemmule.data.mixture.schedule import Schedule
from gemmule.data.packed_text import sequence_count, too_few
from gemmule.data.recipe.facts import facts
from gemmule.errors import ConfigError, DataError
from gemmule.train.config import DataConfig, DistillConfig, PretrainConfig, RunConfig

MIXTURE = "mixture"  # entry of a run's manifest


def open_data(settings: DataConfig) -> Dataset:
    """The data of a run: one folder, or all of a mixture.

    Raises:
        DataError: when a folder cannot be used.
    """
    if settings.mixture is None:
        return Dataset.open(settings.path)
    return MixedDataset.open_all(settings.mixture)


def check_mixable(config: RunConfig) -> None:
    """Refuses a mixture where it has no meaning.

    Raises:
        ConfigError: saying what to do instead.
    """
    if config.data.mixture is None:
        return
    objective = config.objective
    if not isinstance(objective, PretrainConfig | DistillConfig):
        raise ConfigError(
            f"data.mixture: a run of kind {objective.kind!r} reads one data folder; give data.path"
        )
    if isinstance(objective, DistillConfig) and objective.targets is not None:
        raise ConfigError(
            "objective.targets is a logit store of one data folder, and data.mixture reads several:"
            " set objective.teacher to run the teacher itself, or give the recorded folder as "
            "data.path"
        )
    if config.evaluation.memorization is not None:
        raise ConfigError(
            "evaluation.memorization measures passages of one data folder, and data.mixture reads "
            "several: leave one of them out"
        )


def schedule_of(config: RunConfig, dataset: MixedDataset) -> Schedule:
    """Which source has which row of a run.

    Raises:
        DataError: when a folder is shorter than one sequence.
        ConfigError: when weights, limits and stages cannot fill the run.
    """
    assert config.data.mixture is not None
    seq_len = config.data.seq_len
    windows = []
    for folder in dataset.sources.values():
        split = folder.split("train")
        windows.append(sequence_count(split, seq_len))
        if windows[-1] < 1:
            raise DataError(f"{folder.path}: {too_few(split, seq_len)}")
    return Schedule(
        config.data.mixture, config.data.stages or (), windows, config.steps, config.data.batch_size
    )


def mixed_text(
    config: RunConfig, dataset: MixedDataset, *, part: int = 0, parts: int = 1
) -> MixedText:
    """The batches of a run over a mixture; `part` and `parts` as in `PackedText`."""
    return MixedText(
        [folder.split("train") for folder in dataset.sources.values()],
        schedule_of(config, dataset),
        config.data.micro_batch,
        config.data.seq_len,
        config.seed,
        part=part,
        parts=parts,
    )


def describe(config: RunConfig, dataset: MixedDataset, schedule: Schedule) -> dict[str, Any]:
    """What a manifest says about a mixture: its sources, and what the run is to read of each."""
    assert config.data.mixture is not None
    rows, epochs = schedule.before(schedule.rows), schedule.epochs(schedule.rows)
    batch, sources = config.data.batch_size, []
    exhausted = {e.source: -(-e.row // batch) for e in schedule.exhausted if e.row < schedule.rows}
    for n, (settings, folder) in enumerate(
        zip(config.data.mixture, dataset.sources.values(), strict=True)
    ):
        sources.append(
            {
                "name": settings.shown_name,
                "corpus": folder.name,
                "licence": folder.licence,
                "fingerprint": folder.fingerprint,
                **facts(folder.manifest),
                "weights": [stage[n] for stage in schedule.weights],
                **({} if settings.max_epochs is None else {"max_epochs": settings.max_epochs}),
                **({"exhausted_in_step": exhausted[n]} if n in exhausted else {}),
                "corpus_tokens": int(schedule.windows[n]) * config.data.seq_len,
                "tokens": int(rows[n]) * config.data.seq_len,
                "epochs": round(float(epochs[n]), 4),
            }
        )
    stages = [start // batch for start in schedule.starts]
    return {"identity": schedule.identity, "stage_starts": stages, "sources": sources}


def with_tokens_read(
    result: Callable[[], dict[str, Any]], source: MixedText
) -> Callable[[], dict[str, Any]]:
    """A run's result with the tokens and epochs that it has read of each source of its mixture."""

    def both() -> dict[str, Any]:
        values = result()
        read = {name: {**values["sources"][name], **own} for name, own in source.read().items()}
        return {**values, "sources": read}

    return both


def announce(mixture: Mapping[str, Any]) -> None:
    """Prints what a run is going to read of each source; `mixture` is from `describe`."""
    sources = mixture["sources"]
    totals = [sum(weights) for weights in zip(*(s["weights"] for s in sources), strict=True)]
    rows = [
        [
            s["name"],
            " > ".join(f"{100 * w / t:.3g}%" for w, t in zip(s["weights"], totals, strict=True)),
            f"{s['corpus_tokens']:,}",
            f"{s['tokens']:,}",
            f"{s['epochs']:.2f}",
            f"{s['max_epochs']:g}" if "max_epochs" in s else "",
        ]
        for s in sources
    ]
    headings = ["source", "share", "corpus tokens", "tokens read", "epochs", "at most"]
    table(headings, rows, title="mixture")
    if len(totals) > 1:
        steps = ", ".join(f"{step:,}" for step in mixture["stage_starts"][1:])
        console.print(f"shares change after step {steps}")
    for s in sources:
        if "exhausted_in_step" in s:
            console.print(
                f"{s['name']} reaches its most epochs in step {s['exhausted_in_step']:,}: "
                "from its last window on its share goes to the others"
            )
