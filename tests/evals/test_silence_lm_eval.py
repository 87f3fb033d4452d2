"""lm-eval's and datasets' output is off inside `silenced`, and as before outside."""

import logging
from typing import Any

import pytest

from gemmule.evals.benchmarks.silence_lm_eval import silenced

datasets: Any = pytest.importorskip("datasets")
task: Any = pytest.importorskip("lm_eval.api.task")


def test_bars_and_warnings_are_off_inside_and_restored_after() -> None:
    logger = logging.getLogger("lm_eval")
    level, shown = logger.level, datasets.is_progress_bar_enabled()
    with pytest.raises(KeyError), silenced():
        assert task.tqdm(range(3)).disable  # the bar of a task's requests, which has no switch
        assert not datasets.is_progress_bar_enabled()
        assert not logger.isEnabledFor(logging.WARNING)
        raise KeyError
    with task.tqdm(range(3), file=None, leave=False) as bar:
        assert not bar.disable
    assert datasets.is_progress_bar_enabled() == shown
    assert logger.level == level
