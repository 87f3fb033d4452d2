"""What a budget of energy or carbon buys on a cluster: tokens and loss, for each size."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from gemmule.errors import ConfigError
from gemmule.model.config import PRESETS, preset
from gemmule.plan import scaling
from gemmule.plan.budget import Budget
from gemmule.plan.cluster.choice import choose
from gemmule.plan.cluster.devices import Cluster
from gemmule.plan.cluster.footprint import footprint, goodput
from gemmule.plan.cluster.request import ClusterRequest
from gemmule.plan.cluster.shapes import Shape
from gemmule.plan.models import Planned
from gemmule.plan.scaling import LawPoint

_FIRST_GUESS = 10**9
_ROUNDS = 4  # the batch, and with it the layout, depends on the length that is looked for


def affordable_tokens(
    request: ClusterRequest, cluster: Cluster, student: Planned, teacher: Planned | None,
    grid: float | None,
) -> int:  # fmt: skip
    """Training tokens that the budget pays for.

    Raises:
        ConfigError: when the run does not fit, the grid's intensity is not known where it is
            needed, or the budget does not pay for one step.
    """
    budget = Budget(request.max_wh, request.max_gco2e)
    if budget.gco2e is not None and grid is None:
        raise ConfigError(
            "--max-gco2e needs the grid's carbon intensity, which is not known: give --country, "
            "or --max-wh"
        )
    shape = Shape.of_gemma(student.name, student.config)
    of_teacher = None if teacher is None else Shape.of_gemma(teacher.name, teacher.config)
    seq_len, tokens = request.context(student.config), _FIRST_GUESS
    good = goodput(shape.parameters, cluster).fraction
    for _ in range(_ROUNDS):
        sequences = request.sequences(tokens, seq_len)
        best = choose(shape, cluster, sequences, seq_len, request.dtype, of_teacher)[0]
        hours = 1 / (best.tokens * cluster.count * good * 3600)  # of one token
        used = footprint(cluster, hours, grid, request.pue)
        costs = [(budget.wh, used.kwh * 1000), (budget.gco2e, (used.kg or 0.0) * 1000)]
        tokens = int(min(limit / cost for limit, cost in costs if limit is not None))
        step = best.layout.sequences * seq_len
        if tokens < step:
            raise ConfigError(
                f"the budget pays for {tokens:,} tokens of {student.name} on {cluster}, less than "
                f"one step of {step:,}: raise --max-wh or --max-gco2e, or take fewer devices"
            )
    return tokens


def sizes_for_budget(
    request: ClusterRequest, cluster: Cluster, student: Planned, teacher: Planned | None,
    grid: float | None,
) -> dict[str, Any]:  # fmt: skip
    """The planned student and other sizes, each trained from scratch for what the budget buys.

    Losses are those of training from scratch, by the published law; a teacher only costs here.

    Returns:
        JSON-able: the limits, rows with the lowest expected loss first, and notes.
    """
    draws = scaling.posterior_draws([])
    rows: list[dict[str, Any]] = []
    losses, notes = [], []
    for model in _sizes(student, teacher):
        try:
            tokens = affordable_tokens(request, cluster, model, teacher, grid)
        except ConfigError as e:
            if model is student:
                raise
            notes.append(f"{model.name}: {e}")
            continue
        point = LawPoint(model.config.non_embedding_parameters, tokens)
        loss = np.minimum(scaling.loss(draws, point), np.log(model.config.vocab_size))
        losses.append(loss)
        rows.append(
            {
                "student": model.name, "tokens": tokens, "loss": scaling.interval(loss).to_json(),
                "non_embedding_parameters": model.config.non_embedding_parameters,
            }
        )  # fmt: skip
    lowest = np.argmin(np.stack(losses), axis=0)
    for i, row in enumerate(rows):
        row["best"] = round(float((lowest == i).mean()), 3)
    rows.sort(key=lambda row: row["loss"]["median"])
    return {**Budget(request.max_wh, request.max_gco2e).to_json(), "rows": rows, "notes": notes}


def _sizes(student: Planned, teacher: Planned | None) -> Iterator[Planned]:
    """The planned student, and the presets from 100M parameters on with its vocabulary."""
    yield student
    vocab = student.config.vocab_size
    for name in PRESETS:
        config = preset(name, vocab_size=vocab)
        small = config.non_embedding_parameters < 5e7
        of_teacher = teacher is not None and (
            config.non_embedding_parameters >= teacher.config.non_embedding_parameters
        )
        if name != student.name and not small and not of_teacher:
            yield Planned(name, config)
