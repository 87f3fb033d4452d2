"""What a training run tells the outside: metrics, TensorBoard events, progress, messages.

    with Reporter(layout, world, label="student", total=tokens, step=state.step) as report:
        report.progress(state.tokens, "loss 3.21")
        report.log(step, tokens, seconds, {"loss": 3.21, "learning_rate": 0.01})
        report.log(step, tokens, seconds, {"split": "validation", "perplexity": 24.8})

Only the first rank of a world writes and prints; every method of the others does nothing.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from gemmule.console import ProgressBar, console
from gemmule.runs import metrics
from gemmule.runs.event_file import EventFile
from gemmule.runs.layout import RunLayout
from gemmule.runs.ledger.activity import pulse
from gemmule.runtime.world import SOLO, World


class Reporter:
    """Reports one session of a run, from `step` on.

    Args:
        layout: the run whose metrics.jsonl and tensorboard/ are written. What earlier sessions
            logged after `step` is dropped.
        world: the ranks of the run.
        label: name in front of the progress bar.
        total: progress at the end of the run, in `unit`.
        unit: unit of progress, for the rate.
        step: optimizer steps finished before this session.
        done: progress at its start.

    Raises:
        OutputError: by every method, when the disk refuses.
    """

    def __init__(
        self,
        layout: RunLayout,
        world: World = SOLO,
        *,
        label: str,
        total: float,
        unit: str = "tok",
        step: int = 0,
        done: float = 0,
    ) -> None:
        self.layout, self.step, self.silent = layout, step, not world.first
        self._events: EventFile | None = None
        self._bar: ProgressBar | None = None
        self._open = ExitStack()
        if not self.silent:
            self._bar = ProgressBar(label, total, unit, done)

    def __enter__(self) -> Self:
        """Cuts the metrics back to `step`, opens the event file and shows the progress bar."""
        if self._bar is not None:
            metrics.cut(self.layout.metrics, self.step)
            self._events = self._open.enter_context(
                EventFile(self.layout.tensorboard, self.step + 1)
            )
            self._open.enter_context(self._bar)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes the event file and takes the progress bar away."""
        self._open.__exit__(kind, error, trace)

    def progress(self, done: float, note: str = "", total: float | None = None) -> None:
        """Moves the progress bar to `done`, with a short note such as the loss.

        Args:
            done: work that is done, in the bar's unit.
            note: shown after the rate.
            total: all work, if it is known better by now.
        """
        pulse()
        if self._bar is not None:
            self._bar.update(done, note, total)

    def log(
        self, step: int, tokens: int, seconds: float, values: Mapping[str, float | str]
    ) -> None:
        """Writes a line of metrics.jsonl, and each float as a point of a TensorBoard curve.

        Args:
            step: finished optimizer steps.
            tokens: training tokens read so far.
            seconds: time spent in steps so far.
            values: the metrics. "probe" or "split" among them names the group of their curves;
                without one they are those of the training step.
        """
        if self._events is None:
            return
        line = {"step": step, "tokens": tokens, "seconds": round(seconds, 3), **values}
        metrics.append(self.layout.metrics, line)
        group = values.get("probe", values.get("split", "train"))
        for name, value in values.items():
            if isinstance(value, float):
                self._events.add(f"{group}/{name}", value, step)
        if group != "train":
            self._events.flush()

    def message(self, text: str) -> None:
        """Prints a line to the terminal."""
        if not self.silent:
            console.print(text, markup=False)
