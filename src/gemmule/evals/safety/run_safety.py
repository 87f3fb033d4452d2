"""`gemmule safety`: a model's safety metrics, shown next to the report's and checked by a gate."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gemmule.checkpoints.locate import locate
from gemmule.console import Progress
from gemmule.evals.eval_target import EvalTarget, LoadOptions, open_target
from gemmule.evals.lm_eval_model import GemmuleLM
from gemmule.evals.safety import gate as gates
from gemmule.evals.safety.evaluate import (
    RESULT,
    Documents,
    SafetySettings,
    evaluate_safety,
    load_documents,
    open_cache,
    read_result,
    read_samples,
)
from gemmule.evals.safety.gate import GateOptions
from gemmule.evals.safety.toxicity_scorer import ScorerOptions, open_scorer
from gemmule.evals.safety.verdict import ToxicityScorer
from gemmule.runs.lock import locked_output
from gemmule.runs.schema_evals import Safety


def run_safety(
    model: str,
    settings: SafetySettings,
    *,
    scorer_options: ScorerOptions | None = None,
    gate_options: GateOptions | None = None,
    load_options: LoadOptions | None = None,
    out: Path | None = None,
    progress: Progress = lambda *_: None,
) -> dict[str, Any]:
    """Evaluates a model, and checks it against a gate; see `evaluate_safety`.

    Args:
        model: a run, an HF folder, a hub id, a .gguf, .ckpt or .npz file.
        settings: which benchmarks, and how.
        scorer_options: what scores toxicity; None: it is reported as missing.
        gate_options: the gate, and what its margins compare with; None: there is no gate.
        load_options: how the model is loaded. A baseline is loaded without quantization.
        out: folder of the results; None: as `results_folder`.
        progress: called as progress(done, total, what) while responses are scored.

    Returns:
        The result, with "gate" if there is one.

    Raises:
        UserError: for anything that the user can correct.
    """
    gate_options = gate_options or GateOptions()
    load_options = load_options or LoadOptions()
    gate = gates.open_gate(gate_options)
    base = None
    if gate is not None and gate.margins:
        base = _existing(str(gate.baseline))
    scorer_options = scorer_options or ScorerOptions()
    has_scorer = (scorer_options.classifier or scorer_options.judge) is not None
    documents = load_documents(settings, has_scorer)
    scorer = open_scorer(scorer_options)
    target = open_target(model, out=out, options=load_options)
    result = _evaluate(target, settings, documents, scorer, progress)
    if gate is None or gate_options.file is None:
        return result
    if gate.margins and base is None:
        other = open_target(
            str(gate.baseline),
            out=target.folder / "baseline",
            options=dataclasses.replace(load_options, quantize=None),
        )
        of_baseline = functools.partial(_baseline_progress, progress)
        base_result = _evaluate(other, settings, documents, scorer, of_baseline)
        base = base_result, read_samples(other.folder)
    checks = gates.check(gate, result, read_samples(target.folder), base)
    result["gate"] = gates.record(gate, gate_options.file, checks)
    Safety.parse(result, RESULT).write(target.folder / RESULT)
    return result


def _evaluate(
    target: EvalTarget,
    settings: SafetySettings,
    documents: Documents,
    scorer: ToxicityScorer | None,
    progress: Progress,
) -> dict[str, Any]:
    with locked_output(target.folder / RESULT):
        cache = open_cache(target)
        lm = GemmuleLM(target.lm, cache=cache)
        lm.label = target.name
        return evaluate_safety(target, lm, settings, documents, scorer, cache, progress)


def _baseline_progress(progress: Progress, done: int, total: int, what: str) -> None:
    progress(done, total, f"baseline: {what}")


def _existing(name: str) -> tuple[Mapping[str, Any], Sequence[Mapping[str, Any]]] | None:
    """The baseline's result if `name` is one; None if it is a model that must be evaluated.

    Raises:
        UserError: if it is neither; found out before the model is evaluated.
    """
    path = Path(name)
    if (path.is_file() and path.suffix == ".json") or (path / RESULT).is_file():
        return read_result(path)
    locate(name)
    return None
