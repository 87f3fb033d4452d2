"""The definition of a benchmark: one row of the report's table."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from gemmule.sandbox import Sandbox

Doc = dict[str, Any]  # one question with its answers, lm-eval's "doc"
TaskConfig = Callable[[str], dict[str, Any]]  # from a task's name to its lm-eval settings
# The splits of each lm-eval task, each a list of documents with the hub's columns.
Splits = Mapping[str, Mapping[str, Sequence[Doc]]]
# Few-shot examples are other questions of the evaluated file: lm-eval leaves out the evaluated
# question if both splits have the same name.
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
class LocalData:
    """Documents read from a user's folder.

    Attributes:
        splits: documents by task and split, with the hub's columns.
        files: files that were read.
        notes: differences from what the report measured: "800 questions, two endings each".
        overrides: changes to a task's lm-eval settings for these documents, by task.
        chance: score of guessing, if these documents have fewer answers than the published ones.
    """

    splits: Splits
    files: Sequence[Path]
    notes: tuple[str, ...] = ()
    overrides: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    chance: float | None = None


@dataclass(frozen=True)
class Benchmark:
    """One row of the table: how it is measured, and where its documents come from.

    Attributes:
        name: name on the command line, "arc-e".
        title: name in tables, "ARC-e".
        tasks: names of its lm-eval tasks.
        shots: number of few-shot examples before each question.
        metric: lm-eval metric, "acc_norm".
        kind: "choice" among given answers, or "generation".
        chance: score of guessing, 0 to 1; None if guessing scores next to nothing.
        filter: lm-eval filter whose answers count.
        equal: weight tasks, rather than documents, equally.
        folder: its folder in a data folder.
        local: reads that folder. Raises DataError naming file and line, and FileNotFoundError for
            a missing file.
        overrides: changes to lm-eval's settings of the tasks, for documents of any origin.
        config: makes a task's settings if lm-eval's own cannot be used; None: lm-eval's.
        sandboxed: makes `config` from the sandbox in which its answers, which are programs, run.
        lower_is_better: whether a lower value of the metric is better.
        hub_notes: the counterpart of LocalData.notes for documents from the hub.
    """

    name: str
    title: str
    tasks: tuple[str, ...]
    shots: int
    metric: str
    kind: Literal["choice", "generation"]
    chance: float | None
    folder: str
    local: Callable[[Path], LocalData]
    filter: str = "none"
    equal: bool = False
    overrides: Mapping[str, Any] = field(default_factory=dict)
    config: TaskConfig | None = None
    sandboxed: "Callable[[Sandbox], TaskConfig] | None" = None
    lower_is_better: bool = False
    hub_notes: tuple[str, ...] = ()
