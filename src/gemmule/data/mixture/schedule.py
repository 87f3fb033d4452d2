"""Which window of which source is read when, in closed form.

A run is divided into segments. Within one the weights are constant, and a fair cycle (cycle.py)
says which source has which row. A segment ends where a stage begins, and where a source has been
read as often as it may be: its weight then goes to the others of the stage. The segments follow
from sizes, weights and limits alone, so any rank computes any row without replaying the rows
before it.
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from gemmule.data.mixture.cycle import Cycle, cycle_of
from gemmule.data.mixture.settings import MixtureSource, MixtureStage, exact, stage_weights
from gemmule.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Segment:
    """Rows with constant weights.

    Attributes:
        start: first row.
        stage: number of the stage, 0 before the first one.
        cycle: order of the sources.
        before: rows of each source before it, shape [sources].
    """

    start: int
    stage: int
    cycle: Cycle
    before: npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class Exhausted:
    """A source that has been read as often as it may be.

    Attributes:
        source: its number.
        row: the first row after its last one.
    """

    source: int
    row: int


class Schedule:
    """The rows of a run.

    Args:
        sources: settings of the sources.
        stages: settings of the stages, in order.
        windows: number of windows in each source.
        steps: steps of the run.
        batch_size: rows of a step.

    Attributes:
        names: name of each source.
        windows: number of windows in each source, shape [sources].
        rows: rows of the run.
        starts: first row of each stage; the first stage, of the sources' own weights, is 0.
        weights: by stage, each source's share of its rows.
        segments: the run's segments in order.
        exhausted: sources that reach their limit, in the order in which they do.

    Raises:
        ConfigError: when the run cannot be filled: a stage without a step, or more rows than the
            limits allow.
    """

    def __init__(
        self,
        sources: Sequence[MixtureSource],
        stages: Sequence[MixtureStage],
        windows: Sequence[int],
        steps: int,
        batch_size: int,
    ) -> None:
        self.names = [source.shown_name for source in sources]
        self.windows = np.array(windows, np.int64)
        self.rows = steps * batch_size
        self.starts = [start * batch_size for start in _stage_starts(stages, steps)]
        self._limits = [_limit(s, w) for s, w in zip(sources, windows, strict=True)]
        self.weights = [list(stage_weights(sources, stage).values()) for stage in (None, *stages)]
        self.segments: list[Segment] = []
        self.exhausted: list[Exhausted] = []
        before = np.zeros(len(sources), np.int64)
        ends = [*self.starts[1:], self.rows]
        for stage, (start, end) in enumerate(zip(self.starts, ends, strict=True)):
            if start < end:
                before = self._fill(stage, start, end, before)
        self._first_rows = np.array([segment.start for segment in self.segments])

    def _fill(
        self, stage: int, start: int, end: int, before: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.int64]:
        """Adds the segments of a stage; returns the rows of each source at its end."""
        while start < end:
            left = [
                None if limit is None else limit - int(n)
                for limit, n in zip(self._limits, before, strict=True)
            ]
            weights = [w if n != 0 else 0.0 for w, n in zip(self.weights[stage], left, strict=True)]
            if not any(weights):
                raise ConfigError(self._too_little(stage, start, end))
            cycle = cycle_of(weights)
            self.segments.append(Segment(start, stage, cycle, before))
            limited = [
                (start + cycle.end_of(source, n), source)
                for source, n in enumerate(left)
                if n and cycle.counts[source]
            ]
            stop, source = min([*limited, (end, len(weights))])
            if stop <= end and source < len(weights):
                self.exhausted.append(Exhausted(source, stop))
            before = before + cycle.before(stop - start)
            start = stop
        return before

    def _too_little(self, stage: int, row: int, end: int) -> str:
        allowed = ", ".join(
            f"{name} {limit:,}"
            for name, limit, weight in zip(
                self.names, self._limits, self.weights[stage], strict=True
            )
            if weight and limit is not None
        )
        where = f"stage {stage} of the mixture" if stage else "the mixture"
        return (
            f"{where} has nothing left to read after row {row:,} of {end:,}: max_epochs allows "
            f"{allowed} windows; raise max_epochs, give another source a weight, or take fewer "
            "steps"
        )

    @property
    def identity(self) -> str:
        """SHA-256 of all that decides which row is what: sizes, weights, limits, stages."""
        facts = [self.names, self.windows.tolist(), self._limits, self.weights, self.starts]
        return hashlib.sha256(json.dumps([*facts, self.rows]).encode()).hexdigest()

    def at(
        self, rows: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """What rows of the run are.

        Args:
            rows: numbers of rows, shape [N].

        Returns:
            The source of each, and how many rows of that source come before it, both [N].
        """
        number = np.searchsorted(self._first_rows, rows, side="right") - 1
        sources, counts = np.empty_like(rows), np.empty_like(rows)
        for n in np.unique(number):
            segment, mine = self.segments[n], number == n
            sources[mine], counts[mine] = segment.cycle.at(rows[mine] - segment.start)
            counts[mine] += segment.before[sources[mine]]
        return sources, counts

    def before(self, row: int) -> npt.NDArray[np.int64]:
        """How many of the rows before `row` each source has, shape [sources]."""
        segment = self.segments[max(0, int(np.searchsorted(self._first_rows, row, "right")) - 1)]
        return segment.before + segment.cycle.before(row - segment.start)

    def epochs(self, row: int) -> npt.NDArray[np.float64]:
        """How often each source has been read before `row`, shape [sources]."""
        return self.before(row) / self.windows


def _stage_starts(stages: Sequence[MixtureStage], steps: int) -> list[int]:
    """First step of each stage, that of the sources' own weights included.

    Raises:
        ConfigError: when a stage has no step.
    """
    shares = [exact(stage.share) for stage in stages]
    starts = [0, *(round(steps * (1 - sum(shares[n:]))) for n in range(len(shares)))]
    for share, start, end in zip(shares, starts[1:], [*starts, steps][2:], strict=True):
        if start >= end:
            raise ConfigError(
                f"a stage of the mixture has the share {float(share):g} of {steps:,} steps, less "
                "than one step: raise its share, or take more steps"
            )
    return starts


def _limit(source: MixtureSource, windows: int) -> int | None:
    """The most rows that may be read of a source.

    Raises:
        ConfigError: when it is none.
    """
    if source.max_epochs is None:
        return None
    limit = int(exact(source.max_epochs) * windows)
    if limit < 1:
        raise ConfigError(
            f"max_epochs {source.max_epochs:g} of {source.shown_name} allows none of its {windows} "
            "windows: raise it, or leave the source out"
        )
    return limit
