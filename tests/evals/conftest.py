"""A run that learned some of its text by heart: canaries were planted in it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def planted(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The prepared text with two canaries once and two 64 times in it."""
    from gemmule.data.canaries import add_canaries
    from gemmule.data.dataset import Dataset

    out = tmp_path_factory.mktemp("planted") / "data"
    return add_canaries(Dataset.open(prepared), out, repeats=(1, 64), each=2, tokens=20).path


@pytest.fixture(scope="session")
def by_heart(
    planted: Path, tiny: Callable[..., dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A run on it, long enough to know the frequent ones."""
    from gemmule.train.config import RunConfig
    from gemmule.train.run import run_training

    out = tmp_path_factory.mktemp("runs") / "by-heart"
    settings = tiny(
        data={"path": str(planted), "batch_size": 8, "micro_batch_size": 8, "seq_len": 48},
        steps=200, log_every=1000, evaluation={"every": 1000}, checkpoint={"every": 1000},
        optimizer={"learning_rate": 0.03},
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gemmule.runs.carbon.start_tracker", lambda *_: 1 / 0)
        run_training(RunConfig.parse(settings), out)
    return out
