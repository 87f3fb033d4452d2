"""What `gemmule eval` is asked for."""

from pathlib import Path

from pydantic import Field

from gemmule.config import Config
from gemmule.errors import ConfigError
from gemmule.evals.benchmarks import suites
from gemmule.evals.benchmarks.suites import Entry


class EvalSettings(Config):
    """What is measured, and how.

    Attributes:
        suite: benchmarks that belong together; used unless `tasks` names some.
        tasks: benchmarks by name.
        data_dir: folder of local files; None: the hub.
        limit: at most so many questions of each task, the first ones.
        chat: ask through the chat template, for a model that was tuned to it.
        formats: also ask each multiple-choice question in twelve formats.
        data: the run's data folder, where it was moved: its text is looked for in the benchmarks.
        accept_weaker_sandbox: run programs where neither bubblewrap nor namespaces are to be had.
    """

    suite: str = "quick"
    tasks: tuple[str, ...] | None = None
    data_dir: Path | None = None
    limit: int | None = Field(None, ge=1)
    chat: bool = False
    formats: bool = False
    data: Path | None = None
    accept_weaker_sandbox: bool = False

    def entries(self) -> list[Entry]:
        """The benchmarks, each with its limit.

        Raises:
            ConfigError: for a name that is not known, or a data folder that is not there.
        """
        if self.data_dir is not None and not self.data_dir.is_dir():
            raise ConfigError(f"--data-dir is {self.data_dir}: there is no such folder")
        if self.tasks is not None:
            found = [Entry(suites.find(name)) for name in dict.fromkeys(self.tasks)]
        else:
            found = list(suites.suite(self.suite).entries)
        return [Entry(e.benchmark, _least(e.limit, self.limit)) for e in found]


def _least(a: int | None, b: int | None) -> int | None:
    return min(a, b) if a is not None and b is not None else a if b is None else b
