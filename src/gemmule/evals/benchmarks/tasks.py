"""Benchmarks as lm-eval's tasks: its prompts and metrics, documents from the hub or from files."""

import copy
import functools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemmule.errors import MissingExtraError
from gemmule.evals.benchmarks import sums
from gemmule.evals.benchmarks.benchmark import Benchmark, Row

if TYPE_CHECKING:
    from lm_eval.api.task import ConfigurableTask

SEED = 1234  # lm-eval's own default for drawing examples


class Unavailable(Exception):
    """A benchmark whose documents cannot be had; the message says why. It is left out by name."""


@dataclass(frozen=True)
class Loaded:
    """A benchmark, ready to be run.

    Attributes:
        benchmark: which.
        tasks: lm-eval's, by name.
        files: for each file read: path in the data folder, its sum, and what is known of it.
        notes: what a reader of the score must know.
    """

    benchmark: Benchmark
    tasks: Mapping[str, "ConfigurableTask"]
    files: Sequence[Mapping[str, Any]] = ()
    notes: Sequence[str] = field(default_factory=tuple)


def load_tasks(benchmark: Benchmark, data_dir: Path | None = None) -> Loaded:
    """The tasks of a benchmark.

    Args:
        benchmark: which.
        data_dir: a folder laid out as docs/benchmark-data.md says; None: from the hub.

    Raises:
        Unavailable: when its documents are not there.
        DataError: when a file is broken, naming file and line.
        MissingExtraError: without lm-eval.
    """
    _require()
    if data_dir is None:
        try:
            made = {name: _task(benchmark, name, None, {}) for name in benchmark.tasks}
        except Exception as e:  # whatever `datasets` and the hub raise
            raise Unavailable(f"not from the hub: {type(e).__name__}: {e}") from e
        return Loaded(benchmark, made)
    folder = data_dir / benchmark.folder
    try:
        local = benchmark.local(folder)
    except FileNotFoundError as e:
        raise Unavailable(f"no {e.filename or e} in {folder}") from None
    made = {
        name: _task(benchmark, name, rows, local.overrides.get(name, {}))
        for name, rows in local.splits.items()
    }
    files, notes = sums.examine(data_dir, local.files)
    return Loaded(benchmark, made, files, [*local.notes, *notes])


def _require() -> None:
    try:
        import lm_eval  # noqa: F401
    except ImportError:
        raise MissingExtraError("lm-eval", "eval", "benchmarks") from None


@functools.cache
def _index() -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager()


def _config(name: str) -> dict[str, Any]:
    """lm-eval's own settings of a task."""
    from lm_eval.tasks._yaml_loader import load_yaml

    path = _index().task_index[name].yaml_path
    return dict(load_yaml(path, resolve_func=True))


def _task(
    benchmark: Benchmark,
    name: str,
    rows: Mapping[str, Sequence[Row]] | None,
    more: Mapping[str, Any],
) -> "ConfigurableTask":
    from lm_eval.api.task import ConfigurableTask

    config = copy.deepcopy(benchmark.config(name) if benchmark.config else _config(name))
    config |= {**benchmark.overrides, **more, "task": name, "num_fewshot": benchmark.shots}
    for key in ("tag", "group"):
        config.pop(key, None)
    if rows is not None:
        config["custom_dataset"] = functools.partial(_dataset, rows)
        for split in ("training_split", "validation_split", "test_split"):
            if config.get(split) and not rows.get(config[split]):
                config[split] = None
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it warns of what is meant here
    try:
        task = ConfigurableTask(config=config)
    finally:
        logger.setLevel(level)
    task.set_fewshot_seed(seed=SEED)
    return task


def _dataset(rows: Mapping[str, Sequence[Row]], **_: Any) -> Any:
    from datasets import Dataset, DatasetDict

    return DatasetDict({split: Dataset.from_list(list(r)) for split, r in rows.items() if r})
