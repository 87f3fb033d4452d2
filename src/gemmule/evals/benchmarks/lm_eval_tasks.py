"""Benchmarks as lm-eval's tasks: its prompts and metrics, documents from the hub or from files."""

import copy
import dataclasses
import functools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemmule.errors import MissingExtraError, first_line
from gemmule.evals.benchmarks import checksums, hub, lm_eval_settings
from gemmule.evals.benchmarks.benchmark import Benchmark, Row

if TYPE_CHECKING:
    from lm_eval.api.task import ConfigurableTask

    from gemmule.sandbox import Sandbox

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


def load_tasks(
    benchmark: Benchmark, data_dir: Path | None = None, sandbox: "Sandbox | None" = None
) -> Loaded:
    """The tasks of a benchmark.

    Args:
        benchmark: which.
        data_dir: a folder laid out as docs/benchmark-data.md says; None: from the hub.
        sandbox: where programs that a model writes are run.

    Raises:
        Unavailable: when its documents are not there, or it needs a sandbox and there is none.
        DataError: when a file is broken, naming file and line.
        MissingExtraError: without lm-eval.
    """
    _require()
    lm_eval_settings.keep_templates()
    if benchmark.sandboxed:
        if sandbox is None:
            raise Unavailable("programs of a model are run in a sandbox only, and none is open")
        benchmark = dataclasses.replace(benchmark, config=benchmark.sandboxed(sandbox))
    if data_dir is None:
        return _from_hub(benchmark)
    folder = data_dir / benchmark.folder
    try:
        local = benchmark.local(folder)
    except FileNotFoundError as e:
        # A card shows this: it says nothing of where on the machine the folder is.
        missing = Path(e.filename or folder).relative_to(data_dir).as_posix()
        raise Unavailable(f"there is no {missing} in the data folder") from None
    if local.chance is not None:
        benchmark = dataclasses.replace(benchmark, chance=local.chance)
    made = {
        name: _task(benchmark, name, rows, local.overrides.get(name, {}))
        for name, rows in local.splits.items()
    }
    files, notes = checksums.examine(data_dir, local.files)
    return Loaded(benchmark, made, files, [*local.notes, *notes])


def _from_hub(benchmark: Benchmark) -> Loaded:
    with hub.asked_once() as unreachable:
        try:
            made = {name: _task(benchmark, name, None, {}) for name in benchmark.tasks}
        except Exception as e:  # whatever `datasets` and the hub raise
            why = f"not in the hub's cache, and no hub: {unreachable}" if unreachable else ""
            raise Unavailable(why or f"not from the hub: {first_line(e)}") from e
    return Loaded(benchmark, made, notes=benchmark.hub_notes)


def _require() -> None:
    try:
        import lm_eval  # noqa: F401
    except ImportError:
        raise MissingExtraError("lm-eval", "eval", "benchmarks") from None


def _task(
    benchmark: Benchmark,
    name: str,
    rows: Mapping[str, Sequence[Row]] | None,
    more: Mapping[str, Any],
) -> "ConfigurableTask":
    from lm_eval.api.task import ConfigurableTask

    config = copy.deepcopy((benchmark.config or lm_eval_settings.settings)(name))
    config |= {"num_fewshot": benchmark.shots, **benchmark.overrides, **more, "task": name}
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
