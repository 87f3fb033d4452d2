"""Which of a benchmark's documents share text with what a run was trained on.

The rule is common practice: a document counts as contaminated if any 13 consecutive words of it
are in the training text (see data/ngrams.py).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gemmule.console import Progress
from gemmule.data.ngrams import RULE, NgramIndex, Overlap, training_text
from gemmule.evals.training_data import NoTrainingData, open_training_data


@dataclasses.dataclass(frozen=True)
class ContaminationReport:
    """What is known about a benchmark's overlap with a model's training text.

    Attributes:
        known: whether the training text was available.
        why: why it was not, or a caveat about it; None if there is nothing to add.
        tasks: overlaps by task; empty if the training text was not available.
        data: name and fingerprint of the training text.
        megabytes: size of the text that was searched.
    """

    known: bool
    why: str | None
    tasks: dict[str, Overlap]
    data: dict[str, str] | None = None
    megabytes: float = 0.0

    def json(self) -> dict[str, Any]:
        """The form that results keep."""
        return {
            "known": self.known,
            "why": self.why,
            "rule": RULE,
            "data": self.data,
            "tasks": {name: overlap.json() for name, overlap in self.tasks.items()},
        }


def contaminated(
    run: str | Path,
    texts: Mapping[str, Sequence[str]],
    *,
    data: Path | None = None,
    progress: Progress | None = None,
) -> ContaminationReport:
    """Compares benchmarks with the whole training split of a run, whether or not it was read.

    Args:
        run: a run directory; for any other model the result is "unknown", unless `data` is given.
        texts: texts of the documents of each task, as the model sees them.
        data: the data folder, if the run does not lead to it.
        progress: called as progress(done, total, "tokens").

    Raises:
        DataError: if `data` is not what the run was trained on, or is damaged.
    """
    try:
        training = open_training_data(run, data)
    except NoTrainingData as e:
        why = f"unknown: training data not at hand: {e}"
        return ContaminationReport(False, why, {})
    dataset = training.dataset
    index = NgramIndex(texts)
    size = 0
    if len(index):
        split = dataset.split("train")
        for chunk, done in training_text(split, dataset.tokenizer):
            index.search(chunk)
            size += len(chunk)
            if progress:
                progress(done, split.token_count, "tokens")
    return ContaminationReport(
        True,
        None if training.reading is not None else "; ".join(training.notes),
        index.overlaps(),
        {"name": dataset.name, "fingerprint": dataset.fingerprint},
        size / 1e6,
    )
