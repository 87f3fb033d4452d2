"""`gemmule eval`: models one after another, then each against the first."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gemmule import files
from gemmule.errors import ConfigError
from gemmule.evals.benchmarks import compare
from gemmule.evals.benchmarks.evaluate import RESULT, SAMPLES, measure
from gemmule.evals.benchmarks.settings import EvalSettings
from gemmule.evals.eval_target import open_subject, results_folder


def run_eval(
    models: Sequence[str],
    settings: EvalSettings,
    *,
    out: Path | None = None,
    dtype: str | None = None,
    device: str = "cpu",
    quantize: str | None = None,
) -> list[dict[str, Any]]:
    """Measures models; with several, compares each with the first.

    Args:
        models: runs, folders, hub ids or files.
        settings: what to measure.
        out: folder of results; with several models each has a folder in it.
        dtype: of the weights.
        device: where they run.
        quantize: pack the weights first.

    Returns:
        A result for each model, as its benchmarks.json has it.

    Raises:
        UserError: for a model or benchmark that cannot be read.
    """
    settings.entries()  # a wrong name is found before anything is loaded
    folders = _folders(models, out)
    results = []
    for model, folder in zip(models, folders, strict=True):
        subject = open_subject(model, out=folder, dtype=dtype, device=device, quantize=quantize)
        results.append(measure(subject, settings))
    if len(results) > 1:
        scores = [compare.read_scores(folder / SAMPLES) for folder in folders]
        for i, result in enumerate(results):
            result["against"] = [
                compare.against(other, compare.differences(scores[i], scores[j]))
                for j, other in enumerate(results)
                if j != i
            ]
            files.write_json(folders[i] / RESULT, result)
    return results


def _folders(models: Sequence[str], out: Path | None) -> list[Path]:
    found = [results_folder(model) for model in models]
    if out is not None and len(models) == 1:
        found = [out]
    elif out is not None:
        names = [Path(model).name or model for model in models]
        found = [out / (n if names.count(n) == 1 else f"{i}-{n}") for i, n in enumerate(names, 1)]
    if len(set(found)) < len(found):
        raise ConfigError("the same model is named twice: a comparison needs two")
    return found
