"""Settings of `gemmule eval`."""

from pathlib import Path

from pydantic import Field

from gemmule.config import Config
from gemmule.errors import ConfigError
from gemmule.evals.benchmarks import suites
from gemmule.evals.benchmarks.suites import SuiteEntry


class EvalSettings(Config):
    """Which benchmarks are evaluated, and how.

    Attributes:
        suite: name of a suite of benchmarks; ignored if `tasks` names benchmarks.
        tasks: names of benchmarks.
        data_dir: folder of local benchmark files; None: the hub.
        limit: maximum number of questions of each task; the first ones are taken.
        chat: use the chat template, for models that were tuned to it.
        formats: also ask each multiple-choice question in twelve formats.
        data: the run's data folder if it was moved; its text is searched for the benchmarks.
        accept_weaker_sandbox: run programs even without bubblewrap and namespaces.
    """

    suite: str = "quick"
    tasks: tuple[str, ...] | None = None
    data_dir: Path | None = None
    limit: int | None = Field(None, ge=1)
    chat: bool = False
    formats: bool = False
    data: Path | None = None
    accept_weaker_sandbox: bool = False

    def entries(self) -> list[SuiteEntry]:
        """The benchmarks, each with its limit.

        Raises:
            ConfigError: for an unknown name, or a data folder that does not exist.
        """
        if self.data_dir is not None and not self.data_dir.is_dir():
            raise ConfigError(f"--data-dir is {self.data_dir}: there is no such folder")
        if self.tasks is not None:
            entries = [SuiteEntry(suites.find(name)) for name in dict.fromkeys(self.tasks)]
        else:
            entries = list(suites.suite(self.suite).entries)
        return [SuiteEntry(e.benchmark, _lower(e.limit, self.limit)) for e in entries]


def _lower(a: int | None, b: int | None) -> int | None:
    return min(a, b) if a is not None and b is not None else a if b is None else b
