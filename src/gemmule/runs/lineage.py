"""Which model a run started from: what leads from a post-trained model back to its base."""

import tomllib
from pathlib import Path

from gemmule import files
from gemmule.errors import CheckpointError
from gemmule.runs.layout import RunLayout
from gemmule.runs.schema import Manifest


def start_of(run: Path) -> str | None:
    """The model that a run's weights were before its first step, as its files name it.

    That of a training run is its setting model.init, that of a merge its base. A teacher or another
    model that a run has learned from is not its start.

    Returns:
        Path or hub id; None: random weights, a merge without a base, or not a run.

    Raises:
        CheckpointError: when the run's files are damaged.
    """
    layout = RunLayout(run)
    if layout.manifest.is_file():
        parents = Manifest.read(layout.manifest).parents or []
        bases = [parent.path for parent in parents if getattr(parent, "role", None) == "base"]
        if bases:
            return bases[0]
    if not layout.config.is_file():
        return None
    try:
        settings = files.read_toml(layout.config)
    except (OSError, tomllib.TOMLDecodeError) as e:
        raise CheckpointError(f"{layout.config} is not readable TOML: {e}") from None
    group = settings.get("model")
    init = group.get("init") if isinstance(group, dict) else None
    return init if isinstance(init, str) else None
