"""Whether a benchmark's documents are in what a run was trained on, and when that is unknown."""

from pathlib import Path
from typing import Any

import pytest

from gemmule.data.dataset import Dataset
from gemmule.errors import DataError
from gemmule.evals.contamination import contaminated


def test_a_model_without_a_run_is_unknown_not_clean(by_heart: Path, tmp_path: Path) -> None:
    report = contaminated(str(by_heart / "model"), {"t": ["a"]})
    assert (report.known, report.tasks) == (False, {})
    assert report.why is not None
    assert report.why.startswith("unknown: training data not at hand: ")
    assert report.json()["known"] is False
    assert not contaminated("google/gemma-2-2b", {"t": ["a"]}).known


def test_of_a_run_its_own_data_are_looked_through(
    by_heart: Path, planted: Path, prepared: Path, tmp_path: Path
) -> None:
    data = Dataset.open(planted)
    train, heldout = data.split("train"), data.split("heldout")
    tokenizer = data.tokenizer
    longest = max(range(40), key=lambda n: len(train.document(n)))
    steps: list[tuple[int, int, str]] = []

    def progress(*step: Any) -> None:
        steps.append(step)

    texts = [tokenizer.decode(train.document(longest)), tokenizer.decode(heldout.document(0))]
    report = contaminated(by_heart, {"t": texts}, progress=progress)
    assert 0 in report.tasks["t"].shared
    assert report.data == {"name": data.name, "fingerprint": data.fingerprint}
    assert report.why is None
    assert report.megabytes > 0.05
    assert steps[-1] == (train.token_count, train.token_count, "tokens")
    with pytest.raises(DataError, match="is not what"):
        contaminated(by_heart, {"t": texts}, data=prepared)
