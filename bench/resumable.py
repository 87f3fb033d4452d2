"""Training runs of benchmarks that may be killed and started again."""

import shutil
from pathlib import Path
from typing import Any

from gemmule.runs.layout import RunLayout
from gemmule.train.config import RunConfig
from gemmule.train.run import run_training


def train(config: RunConfig, folder: Path, **more: Any) -> None:
    """Trains into a folder, or goes on with the run that is there; a finished one is left as it is.

    Args:
        config: settings of the run.
        folder: its folder. What was killed before it came to a run is begun again.
        more: further arguments of `run_training`.
    """
    layout = RunLayout(folder)
    if folder.exists() and not layout.started:
        shutil.rmtree(folder)
    run_training(config, folder, resume=layout.started, **more)
