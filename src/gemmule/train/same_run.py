"""Whether a folder holds the run that a command asks for, before the run is continued."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gemmule.errors import ConfigError, brief
from gemmule.runs.layout import RunLayout
from gemmule.shell import quoted
from gemmule.train.config import RunConfig, load_run_config

# What a setting says that leaves the choice to the machine; the choice is saved with the run.
_OPEN: Mapping[str, Any] = {
    "runtime.device": "auto", "runtime.dtype": "auto", "runtime.compile": "auto",
    "runtime.threads": 0,
}  # fmt: skip
_NOT_SET = object()


def check_same_run(config: RunConfig, out: Path) -> None:
    """Refuses to continue the run of other settings.

    Settings that leave a choice to the machine fit whatever was chosen.

    Args:
        config: settings that a command gives.
        out: folder of a run.

    Raises:
        ConfigError: naming the first setting that differs.
    """
    given = dict(_settings(config.model_dump(mode="json", exclude_none=True)))
    saved_config = load_run_config(RunLayout(out).config)
    saved = dict(_settings(saved_config.model_dump(mode="json", exclude_none=True)))
    for name in [*given, *(name for name in saved if name not in given)]:
        here, there = given.get(name, _NOT_SET), saved.get(name, _NOT_SET)
        if here == there or (name in _OPEN and here == _OPEN[name]):
            continue
        raise ConfigError(
            f"{out} holds another run: its {name} is {_shown(there)}, and {_shown(here)} here. "
            f"Choose another folder, or continue that run with --resume --out {quoted(out)} alone"
        )


def _settings(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Settings by their full names."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _settings(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _shown(value: Any) -> str:
    return "not set" if value is _NOT_SET else brief(value)
