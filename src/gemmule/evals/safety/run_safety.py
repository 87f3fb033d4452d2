"""`gemmule safety`: a model measured, shown beside the report's figures, and put to a gate."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gemmule import files
from gemmule.checkpoints.locate import locate
from gemmule.console import Progress
from gemmule.errors import ConfigError
from gemmule.evals.eval_target import Subject, open_subject
from gemmule.evals.lm_eval_model import GemmuleLM
from gemmule.evals.safety import gate as gates
from gemmule.evals.safety.evaluate import (
    RESULT,
    Documents,
    Settings,
    load_documents,
    measure,
    open_journal,
    read_result,
    read_samples,
)
from gemmule.evals.safety.toxicity_scorer import open_scorer
from gemmule.evals.safety.verdict import Scorer


def run_safety(
    model: str,
    settings: Settings,
    *,
    classifier: str | None = None,
    label: str | None = None,
    judge: str | None = None,
    gate_file: Path | None = None,
    baseline: str | None = None,
    out: Path | None = None,
    dtype: str | None = None,
    device: str = "cpu",
    quantize: str | None = None,
    progress: Progress = lambda *_: None,
) -> dict[str, Any]:
    """Measures a model, and checks the gate; see `measure`.

    Args:
        model: a run, an HF folder, a hub id, a .gguf, .ckpt or .npz file.
        settings: what is measured.
        classifier: of toxicity, a folder or hub id; without it and a judge, toxicity is missing.
        label: of the classifier; None: found by name.
        judge: of toxicity, a model that answers Yes or No.
        gate_file: TOML of a gate; None: nothing is checked.
        baseline: a model, measured in the same way, or a result; in place of the gate's own.
        out: folder of results; None: as `results_folder`.
        dtype: of the weights.
        device: where the model runs.
        quantize: pack the weights while they are read.
        progress: called as questions are answered.

    Returns:
        The result, with "gate" where there is one.

    Raises:
        UserError: for anything that the user can mend.
    """
    gate = None
    if gate_file is not None:
        gate = gates.load_gate(gate_file, baseline)
    elif baseline is not None:
        raise ConfigError("a baseline is what a gate's margins compare with: name a gate too")
    base = None
    if gate is not None and gate.margins:
        base = _known(str(gate.baseline))
    documents = load_documents(settings, (classifier or judge) is not None)
    scorer = open_scorer(classifier, label, judge)
    subject = open_subject(model, out=out, dtype=dtype, device=device, quantize=quantize)
    result = _measured(subject, settings, documents, scorer, progress)
    if gate is None or gate_file is None:
        return result
    if gate.margins and base is None:
        other = open_subject(
            str(gate.baseline), out=subject.folder / "baseline", dtype=dtype, device=device
        )
        told = functools.partial(_of_baseline, progress)
        base = _measured(other, settings, documents, scorer, told), read_samples(other.folder)
    checks = gates.check(gate, result, read_samples(subject.folder), base)
    result["gate"] = gates.record(gate, gate_file, checks)
    files.write_json(subject.folder / RESULT, result)
    return result


def _measured(
    subject: Subject,
    settings: Settings,
    documents: Documents,
    scorer: Scorer | None,
    progress: Progress,
) -> dict[str, Any]:
    journal = open_journal(subject)
    lm = GemmuleLM(subject.lm, journal=journal, label=subject.name)
    return measure(subject, lm, settings, documents, scorer, journal, progress)


def _of_baseline(progress: Progress, done: int, total: int, what: str) -> None:
    progress(done, total, f"baseline: {what}")


def _known(name: str) -> tuple[Mapping[str, Any], Sequence[Mapping[str, Any]]] | None:
    """The baseline's result, if it is one; None: it is a model, to be measured.

    Raises:
        UserError: when it is neither: better said now than when the model has been measured.
    """
    path = Path(name)
    if (path.is_file() and path.suffix == ".json") or (path / RESULT).is_file():
        return read_result(path)
    locate(name)
    return None
