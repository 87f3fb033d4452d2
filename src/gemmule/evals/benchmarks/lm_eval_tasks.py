"""Benchmarks as lm-eval's tasks: its prompts and metrics, documents from the hub or from files."""

import copy
import dataclasses
import functools
import logging
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemmule.errors import MissingExtraError, first_line
from gemmule.evals.benchmarks import checksums, hub, lm_eval_settings
from gemmule.evals.benchmarks.benchmark import Benchmark, Doc

if TYPE_CHECKING:
    from lm_eval.api.task import ConfigurableTask

    from gemmule.sandbox import Sandbox

SEED = 1234  # lm-eval's default for drawing few-shot examples


class Unavailable(Exception):
    """A benchmark whose documents are not available, with the reason. It is reported as missing."""


@dataclass(frozen=True)
class LoadedBenchmark:
    """A benchmark, ready to be run.

    Attributes:
        benchmark: its definition.
        tasks: lm-eval tasks by name.
        files: path in the data folder, checksum and origin of each file that was read.
        notes: caveats for a reader of the score.
    """

    benchmark: Benchmark
    tasks: Mapping[str, "ConfigurableTask"]
    files: Sequence[Mapping[str, Any]] = ()
    notes: Sequence[str] = field(default_factory=tuple)


def load_tasks(
    benchmark: Benchmark, data_dir: Path | None = None, sandbox: "Sandbox | None" = None
) -> LoadedBenchmark:
    """Loads the tasks of a benchmark.

    Args:
        benchmark: its definition.
        data_dir: a folder laid out as in docs/benchmark-data.md; None: the hub.
        sandbox: where programs that a model wrote are run.

    Raises:
        Unavailable: if its documents are missing, or it needs a sandbox and there is none.
        DataError: if a file is broken, naming file and line.
        MissingExtraError: without lm-eval.
    """
    _require()
    lm_eval_settings.keep_templates()
    if benchmark.sandboxed:
        if sandbox is None:
            raise Unavailable("a model's programs run only in a sandbox, and there is none")
        benchmark = dataclasses.replace(benchmark, config=benchmark.sandboxed(sandbox))
    if data_dir is None:
        return _from_hub(benchmark)
    folder = data_dir / benchmark.folder
    try:
        local = benchmark.local(folder)
    except FileNotFoundError as e:
        # Cards show this, so it does not reveal where on the machine the folder is.
        missing = Path(e.filename or folder).relative_to(data_dir).as_posix()
        raise Unavailable(f"there is no {missing} in the data folder") from None
    if local.chance is not None:
        benchmark = dataclasses.replace(benchmark, chance=local.chance)
    tasks = {
        name: _task(benchmark, name, docs, local.overrides.get(name, {}))
        for name, docs in local.splits.items()
    }
    files, notes = checksums.examine(data_dir, local.files)
    return LoadedBenchmark(benchmark, tasks, files, [*local.notes, *notes])


def first_documents(
    count: int,
    limit: int | None,
    *,
    groups: Sequence[Hashable] | None = None,
    together: int = 1,
) -> list[int]:
    """The documents of a task that are evaluated: the first `limit`, as lm-eval's --limit.

    A task made of groups that follow one another (files, categories) contributes the first
    documents of every group, in proportion to the groups' sizes.

    Args:
        count: number of documents of the task.
        limit: maximum number to evaluate; None: all.
        groups: the group of each document; None: the task has no groups.
        together: size of the blocks of consecutive documents that are compared with each other;
            the limit is rounded up to whole blocks.

    Returns:
        Indexes of the documents, ascending.
    """
    if limit is None or limit >= count:
        return list(range(count))
    blocks = range(0, count - count % together, together)
    chosen = -(-limit // together)
    if groups is None:
        starts = list(blocks)[:chosen]
    else:
        sizes = Counter(groups[start] for start in blocks)
        seen: Counter[Hashable] = Counter()
        places = []
        for start in blocks:
            group = groups[start]
            places.append(((seen[group] + 0.5) / sizes[group], start))
            seen[group] += 1
        starts = sorted(start for _, start in sorted(places)[:chosen])
    return [start + i for start in starts for i in range(together)]


def _from_hub(benchmark: Benchmark) -> LoadedBenchmark:
    with hub.offline_if_unreachable() as unreachable:
        try:
            tasks = {name: _task(benchmark, name, None, {}) for name in benchmark.tasks}
        except Exception as e:  # whatever `datasets` and the hub raise
            why = f"not in the hub's cache, and no hub: {unreachable}" if unreachable else ""
            raise Unavailable(why or f"not from the hub: {first_line(e)}") from e
    return LoadedBenchmark(benchmark, tasks, notes=benchmark.hub_notes)


def _require() -> None:
    try:
        import lm_eval  # noqa: F401
    except ImportError:
        raise MissingExtraError("lm-eval", "eval", "benchmarks") from None


def _task(
    benchmark: Benchmark,
    name: str,
    docs: Mapping[str, Sequence[Doc]] | None,
    overrides: Mapping[str, Any],
) -> "ConfigurableTask":
    from lm_eval.api.task import ConfigurableTask

    config = copy.deepcopy((benchmark.config or lm_eval_settings.settings)(name))
    config |= {"num_fewshot": benchmark.shots, **benchmark.overrides, **overrides, "task": name}
    for key in ("tag", "group"):
        config.pop(key, None)
    if docs is not None:
        config["custom_dataset"] = functools.partial(_dataset, docs)
        for split in ("training_split", "validation_split", "test_split"):
            if config.get(split) and not docs.get(config[split]):
                config[split] = None
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)  # its warnings are about what is intended here
    try:
        task = ConfigurableTask(config=config)
    finally:
        logger.setLevel(level)
    task.set_fewshot_seed(seed=SEED)
    return task


def _dataset(splits: Mapping[str, Sequence[Doc]], **_: Any) -> Any:
    from datasets import Dataset, DatasetDict

    return DatasetDict(
        {name: Dataset.from_list(list(docs)) for name, docs in splits.items() if docs}
    )
