"""`gemmule eval`: evaluates models one after another, then compares each with the others."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gemmule.errors import ConfigError
from gemmule.evals.benchmarks import compare
from gemmule.evals.benchmarks.evaluate import RESULT, SAMPLES, evaluate_benchmarks
from gemmule.evals.benchmarks.settings import EvalSettings
from gemmule.evals.eval_target import LoadOptions, open_target, results_folder
from gemmule.runs.lock import locked_output
from gemmule.runs.schema_evals import Benchmarks


def run_eval(
    models: Sequence[str],
    settings: EvalSettings,
    *,
    out: Path | None = None,
    options: LoadOptions | None = None,
) -> list[dict[str, Any]]:
    """Evaluates models; several are also compared with each other.

    Args:
        models: runs, folders, hub ids or files.
        settings: which benchmarks, and how.
        out: folder of the results; with several models each has a folder in it.
        options: how the models are loaded.

    Returns:
        The result of each model, the content of its benchmarks.json.

    Raises:
        UserError: for a model or benchmark that cannot be read.
    """
    settings.entries()  # finds a wrong name before a model is loaded
    folders = _folders(models, out)
    results = []
    for model, folder in zip(models, folders, strict=True):
        target = open_target(model, out=folder, options=options)
        with locked_output(target.folder / RESULT):
            results.append(evaluate_benchmarks(target, settings))
    if len(results) > 1:
        scores = [compare.read_scores(folder / SAMPLES) for folder in folders]
        for i, result in enumerate(results):
            result["against"] = [
                compare.against(other, compare.differences(scores[i], scores[j]))
                for j, other in enumerate(results)
                if j != i
            ]
            with locked_output(folders[i] / RESULT):
                Benchmarks.parse(result, RESULT).write(folders[i] / RESULT)
    return results


def _folders(models: Sequence[str], out: Path | None) -> list[Path]:
    folders = [results_folder(model) for model in models]
    if out is not None and len(models) == 1:
        folders = [out]
    elif out is not None:
        names = [Path(model).name or model for model in models]
        folders = [out / (n if names.count(n) == 1 else f"{i}-{n}") for i, n in enumerate(names, 1)]
    if len(set(folders)) < len(folders):
        raise ConfigError("the same model is named twice: a comparison needs two")
    return folders
