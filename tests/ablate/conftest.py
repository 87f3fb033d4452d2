"""A trained teacher of under a second, and sweeps of a few steps."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gemmule.ablate.config import SweepConfig
from gemmule.data.prepare import prepare
from gemmule.model.tokenizer import Tokenizer
from gemmule.train.config import RunConfig
from gemmule.train.run import run_training

Settings = Callable[..., dict[str, Any]]
QUICK = {"data": {"batch_size": 2, "seq_len": 16},
         "evaluation": {"tokens": 32, "heldout_tokens": 64},
         "runtime": {"compile": False, "dtype": "float32", "threads": 1}}  # fmt: skip


@pytest.fixture(autouse=True)
def _no_meter(no_meter: None) -> None:
    """Every sweep here does without a meter."""


@pytest.fixture(scope="session")
def teacher(tiny: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("teacher") / "run"
    run_training(RunConfig.parse(tiny(steps=4)), out)
    return out


@pytest.fixture(scope="session")
def another(pieces: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data of other text, made with the same tokenizer."""
    folder = tmp_path_factory.mktemp("another")
    for n in range(30):
        (folder / f"{n}.txt").write_text(f"other words {n} stand in this text " * (n % 7 + 3))
    return prepare(folder, pieces, folder / "lists").path


@pytest.fixture
def sweep(prepared: Path, another: Path, teacher: Path) -> Callable[..., SweepConfig]:
    """sweep(ablation, **changes): settings of a sweep of three steps a run."""

    def settings(ablation: str, **changes: Any) -> SweepConfig:
        values = {
            "ablation": ablation, "data": prepared, "teacher": str(teacher), "seeds": 2,
            "tokens": 90, "settings": QUICK,
        }  # fmt: skip
        if ablation in ("heads", "depth", "window", "teacher", "mixture"):
            del values["teacher"]
        if ablation == "mixture":
            values["sources"] = (prepared, another)
        return SweepConfig.parse({**values, **changes})

    return settings
