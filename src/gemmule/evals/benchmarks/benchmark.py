"""What a benchmark is: a row of the report's table."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from gemmule.sandbox import Sandbox

Row = dict[str, Any]
Config = Callable[[str], dict[str, Any]]  # from a task's name to its settings
# For each lm-eval task: its splits, each a list of rows with the hub's columns.
Splits = Mapping[str, Mapping[str, Sequence[Row]]]
# Examples are other questions of the file that is asked: lm-eval leaves the asked one out when both
# splits have one name.
SAME_FILE: Mapping[str, Any] = {
    "test_split": "validation",
    "validation_split": None,
    "fewshot_split": "validation",
}
# A short answer ends with its line.
ONE_LINE: Mapping[str, Any] = {
    "until": ["\n"],
    "do_sample": False,
    "temperature": 0.0,
    "max_gen_toks": 64,
}


@dataclass(frozen=True)
class Local:
    """Documents read from a user's folder.

    Attributes:
        splits: rows by task and split, in the form that the hub has them.
        files: what was read.
        notes: where the result is not what the report measured: "800 questions, two endings each".
        overrides: what of a task's lm-eval settings has to change for such rows, by task.
        chance: what guessing gets, where such rows have fewer answers than the published ones.
    """

    splits: Splits
    files: Sequence[Path]
    notes: tuple[str, ...] = ()
    overrides: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    chance: float | None = None


@dataclass(frozen=True)
class Benchmark:
    """One row: how it is measured, and where its documents come from.

    Attributes:
        name: what the command line calls it, "arc-e".
        title: what tables call it, "ARC-e".
        tasks: lm-eval's names of what it is made of.
        shots: examples before each question.
        metric: of lm-eval, "acc_norm".
        kind: "choice" among given answers, or "generation".
        chance: what guessing gets, 0 to 1; None where it gets nothing worth naming.
        filter: lm-eval's filter whose answers count.
        equal: tasks, rather than documents, have the same weight.
        folder: its place in a data folder.
        local: reads that folder; raises DataError naming file and line, FileNotFoundError for a
            file that is not there.
        overrides: what differs from lm-eval's settings for the tasks, hub or local.
        config: makes a task's settings where lm-eval's own cannot be used here; None: lm-eval's.
        sandboxed: makes `config` from the sandbox that its answers, which are programs, run in.
        lower_is_better: of its metric.
        hub_notes: as a Local's notes, where documents come from the hub.
    """

    name: str
    title: str
    tasks: tuple[str, ...]
    shots: int
    metric: str
    kind: Literal["choice", "generation"]
    chance: float | None
    folder: str
    local: Callable[[Path], Local]
    filter: str = "none"
    equal: bool = False
    overrides: Mapping[str, Any] = field(default_factory=dict)
    config: Config | None = None
    sandboxed: "Callable[[Sandbox], Config] | None" = None
    lower_is_better: bool = False
    hub_notes: tuple[str, ...] = ()
