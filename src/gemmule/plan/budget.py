"""The best loss for a budget of energy or carbon: which model, trained how, for how long."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gemmule.errors import ConfigError
from gemmule.model.config import PRESETS, GemmaConfig, preset
from gemmule.plan import scaling
from gemmule.plan.law import Law
from gemmule.plan.models import Planned
from gemmule.plan.routes import STORED_OVER_SCRATCH, Clock, Route
from gemmule.plan.scaling import Floats

WAYS = ("scratch", "online", "stored")


@dataclass(frozen=True)
class Budget:
    """Limits of a run; None: no limit.

    Attributes:
        wh: watt-hours.
        gco2e: grams of CO2 equivalent.
    """

    wh: float | None
    gco2e: float | None

    def __bool__(self) -> bool:
        return self.wh is not None or self.gco2e is not None

    def allows(self, wh: float, grams: float | None) -> bool:
        """Whether a run stays within the limits."""
        within = self.wh is None or wh <= self.wh
        return within and (self.gco2e is None or (grams is not None and grams <= self.gco2e))

    def to_json(self) -> dict[str, float | None]:
        """The limits."""
        return {"wh": self.wh, "gco2e": self.gco2e}


def spend(
    budget: Budget, clock: Clock, law: Law, student: Planned, fits: Callable[[GemmaConfig], bool]
) -> dict[str, Any]:
    """What the budget buys, for each size and way to train it.

    The planned student was measured; the time of other sizes is taken in proportion to their
    FLOPs.

    Args:
        budget: the limits.
        clock: time and energy of the planned student.
        law: predictions of losses.
        student: the planned student.
        fits: whether training a model of a shape fits in memory.

    Returns:
        JSON-able: the limits, rows with the lowest expected loss first, and notes.

    Raises:
        ConfigError: when the energy or the carbon of a run is not known, the budget is smaller
            than the start of a run takes, or no student fits in memory.
    """
    notes, rows, losses, fitting = [], [], [], False
    for name, config in _sizes(student, law.teacher.config):
        if not fits(config):
            notes.append(f"{name} does not fit in memory")
            continue
        fitting = True
        scaled = clock.resized(config.forward_flops_per_token(clock.config.data.seq_len))
        for way in WAYS:
            routes = _longest(budget, scaled, way, law.request.students)
            if routes is None:
                continue
            tokens = routes[-1].tokens
            losses.append(law.losses_of(config, tokens, distilled=way != "scratch"))
            rows.append(_row(name, config, way, routes, scaled))
    if not fitting:
        raise ConfigError(
            "no student fits in this machine's memory, whatever the budget: give a shorter "
            "--seq-len, or plan for other machines with --cluster"
        )
    if not rows:
        raise ConfigError(
            "the budget is spent before the first step: starting, compiling and evaluating takes "
            "more; raise --max-wh or --max-gco2e"
        )
    for row, loss, chance in zip(rows, losses, _chances(losses), strict=True):
        row |= {"loss": scaling.interval(loss).to_json(), "best": round(chance, 3)}
    rows.sort(key=lambda row: row["loss"]["median"])
    return {**budget.to_json(), "rows": rows, "notes": notes}


def _sizes(student: Planned, teacher: GemmaConfig) -> Iterator[tuple[str, GemmaConfig]]:
    """The planned student, and our presets that are smaller than the teacher."""
    yield student.name, student.config
    for name, values in PRESETS.items():
        if "vocab_size" in values or name == student.name:
            continue
        config = preset(name, vocab_size=student.config.vocab_size)
        if config.non_embedding_parameters < teacher.non_embedding_parameters:
            yield name, config


def _longest(budget: Budget, clock: Clock, way: str, students: int) -> list[Route] | None:
    """The longest training run within the budget, after the recording that it learns from."""

    def routes(steps: int) -> list[Route]:
        tokens = steps * clock.config.data.tokens_per_step
        if way != "stored":
            return [clock.train(way, tokens, online=way == "online")]
        recorded = clock.record("record", min(tokens, clock.corpus.train or tokens))
        return [recorded, clock.train("stored", tokens, factor=STORED_OVER_SCRATCH)]

    def within(steps: int) -> bool:
        wh, grams = 0.0, 0.0
        for route in routes(steps):
            share = 1 / students if route.name == "record" else 1.0
            if route.energy_wh is None:
                raise ConfigError(
                    "a budget needs the power of this machine, which its meter does not know"
                )
            if route.gco2e is None and budget.gco2e is not None:
                raise ConfigError(
                    "--max-gco2e needs the grid's carbon intensity, which is not known: give "
                    "--country, or --max-wh"
                )
            wh += share * route.energy_wh
            grams += share * (route.gco2e or 0.0)
        return budget.allows(wh, grams)

    if not within(1):
        return None
    low, high = 1, 2
    while within(high) and high < 2**50:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if within(middle) else (low, middle)
    return routes(low)


def _row(
    name: str, config: GemmaConfig, way: str, routes: Sequence[Route], clock: Clock
) -> dict[str, Any]:
    run = routes[-1]
    passes = run.tokens / clock.corpus.train if clock.corpus.train else None
    return {
        "student": name, "non_embedding_parameters": config.non_embedding_parameters, "way": way,
        "tokens": round(run.tokens), "passes": passes,
        "seconds": round(sum(route.seconds for route in routes), 1),
    }  # fmt: skip


def _chances(losses: Sequence[Floats]) -> list[float]:
    """Probability of each row that its loss is the lowest; rows share the samples of the law."""
    lowest = np.argmin(np.stack(losses), axis=0)
    return [float((lowest == i).mean()) for i in range(len(losses))]
