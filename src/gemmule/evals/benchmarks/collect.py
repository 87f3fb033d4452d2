"""Collects the texts of benchmarks, exactly as they are looked for in a model's training text."""

import dataclasses
from typing import TYPE_CHECKING, cast

from gemmule.data.benchmark_texts import Benchmark, digest, leaves
from gemmule.errors import DataError
from gemmule.evals.benchmarks import benchmark as definitions
from gemmule.evals.benchmarks.lm_eval_tasks import Unavailable, load_tasks
from gemmule.evals.benchmarks.settings import EvalSettings
from gemmule.evals.benchmarks.silence_lm_eval import silenced

if TYPE_CHECKING:
    from gemmule.sandbox import Sandbox


def collect(settings: EvalSettings) -> tuple[list[Benchmark], dict[str, str]]:
    """The questions and answers of benchmarks.

    Args:
        settings: which benchmarks, and from where.

    Returns:
        The benchmarks, and by the name of each that is missing the reason.

    Raises:
        UserError: for broken files or an unknown benchmark, or if none is available.
    """
    benchmarks, missing = [], {}
    with silenced():
        for entry in settings.entries():
            definition = _without_sandbox(entry.benchmark)
            try:
                loaded = load_tasks(definition, settings.data_dir)
            except Unavailable as e:
                missing[definition.title] = str(e)
                continue
            texts = dict.fromkeys(
                " ".join(leaves(document))
                for task in loaded.tasks.values()
                for document in task.eval_docs
            )
            benchmarks.append(Benchmark(definition.title, digest([*texts]), tuple(texts)))
    if not benchmarks:
        reasons = "; ".join(f"{name}: {why}" for name, why in missing.items())
        raise DataError(f"none of the benchmarks is available ({reasons}): nothing was written")
    return benchmarks, missing


def _without_sandbox(definition: definitions.Benchmark) -> definitions.Benchmark:
    """The benchmark for reading alone: no program is run, so none needs a place to run in."""
    if definition.sandboxed is None:
        return definition
    config = definition.sandboxed(cast("Sandbox", None))
    return dataclasses.replace(definition, config=config, sandboxed=None)
