"""`gemmule plan --cluster`: a run on machines that are not at hand, always with an interval."""

import math
from typing import Any

import numpy as np

from gemmule.errors import ConfigError
from gemmule.model.config import GemmaConfig
from gemmule.plan import scaling
from gemmule.plan.cluster import efficiency
from gemmule.plan.cluster.budget import affordable_tokens, sizes_for_budget
from gemmule.plan.cluster.choice import Estimate, choose, usable_bytes
from gemmule.plan.cluster.devices import Cluster
from gemmule.plan.cluster.footprint import Footprint, footprint, goodput
from gemmule.plan.cluster.published import PublishedRun, published_runs, whole_runs
from gemmule.plan.cluster.request import DEFAULT_VOCAB, ClusterRequest
from gemmule.plan.cluster.shapes import Shape
from gemmule.plan.cluster.teacher_placement import placements
from gemmule.plan.models import Planned, find
from gemmule.plan.scaling import LawPoint
from gemmule.runs.emissions.grid import national_grid

ALTERNATIVES = 5
UNSEEN = 0.35  # spread of the logarithm for a family of devices without a published run
POWER = 0.15  # the same for power, where a limit is published; POWER_ASSUMED where none is
POWER_ASSUMED = 0.3
EMBODIED = 0.4
Z90 = 1.645


def plan_cluster(request: ClusterRequest) -> dict[str, Any]:
    """Predicts a run on a cluster.

    Args:
        request: settings of the plan.

    Returns:
        JSON-able: what `forecast` returns, budget (None without one), and how the planner did on
        published runs.

    Raises:
        UserError: when a model or a setting cannot be used, or the run does not fit.
    """
    cluster = Cluster.parse(request.cluster)
    student, teacher = models(request)
    electricity = national_grid(request.country)
    grid, grid_how = electricity.gco2e_per_kwh, electricity.source
    if request.max_wh is None and request.max_gco2e is None:
        tokens, budget = request.length(student.config), None
    else:
        tokens = affordable_tokens(request, cluster, student, teacher, grid)
        budget = sizes_for_budget(request, cluster, student, teacher, grid)
    plan = forecast(request, cluster, student, teacher, tokens, grid, grid_how)
    return {**plan, "budget": budget, "checked": _checked()}


def models(request: ClusterRequest) -> tuple[Planned, Planned | None]:
    """The student and the teacher.

    Raises:
        ConfigError: when they cannot share a vocabulary.
    """
    vocab = request.vocab_size or DEFAULT_VOCAB
    student = find("student", request.student, vocab)
    if request.teacher is None:
        return student, None
    teacher = find("teacher", request.teacher, student.config.vocab_size)
    if teacher.config.vocab_size != student.config.vocab_size:
        raise ConfigError(
            f"the teacher has a vocabulary of {teacher.config.vocab_size:,} and the student of "
            f"{student.config.vocab_size:,}: a student learns from a teacher of its own vocabulary"
        )
    return student, teacher


def forecast(
    request: ClusterRequest,
    cluster: Cluster,
    student: Planned,
    teacher: Planned | None,
    tokens: int,
    grid: float | None,
    grid_how: str,
) -> dict[str, Any]:
    """The plan of one run of a known length.

    Returns:
        JSON-able: cluster, student, teacher, run, layout, memory, step, tokens/s, mfu, goodput,
        hours, energy, carbon, loss, teacher_placement, nearest, alternatives and notes; see
        docs/plan-cluster.md.
    """
    shape = Shape.of_gemma(student.name, student.config)
    of_teacher = None if teacher is None else Shape.of_gemma(teacher.name, teacher.config)
    seq_len = request.context(student.config)
    sequences = request.sequences(tokens, seq_len)
    fitting = choose(shape, cluster, sequences, seq_len, request.dtype, of_teacher)
    best = fitting[0]
    flops = shape.training_flops(seq_len)
    if of_teacher is not None:
        flops += of_teacher.training_flops(seq_len) / 3
    low, high = time_spread(cluster)
    good = goodput(shape.parameters, cluster)
    hours = tokens / (best.tokens * cluster.count) / good.fraction / 3600
    used = footprint(cluster, hours, grid, request.pue)
    nearest = nearest_run(shape, cluster, request.dtype)
    seen = efficiency.errors()[published_runs().index(nearest)]
    return {
        "cluster": {
            "name": str(cluster), "device": cluster.device.name, "devices": cluster.count,
            "peak_tflops": cluster.device.peak_of(request.dtype) / 1e12,
            "memory_gib": cluster.device.memory_gib, "source": cluster.device.source,
            "assumed": cluster.device.assumed or None,
        },
        "student": _about(student),
        "teacher": None if teacher is None else _about(teacher),
        "run": {
            "tokens": tokens, "seq_len": seq_len, "dtype": request.dtype,
            "steps": math.ceil(tokens / (best.layout.sequences * seq_len)),
            "batch_tokens": best.layout.sequences * seq_len, "flops": flops * tokens,
        },
        "layout": _layout(best),
        "memory": _memory(best, cluster),
        "step": {
            "seconds": best.seconds["step"],
            **{k: v / best.seconds["step"] for k, v in best.seconds.items() if k != "step"},
        },
        "tokens_per_second_per_device": _interval(best.tokens, 1 / high, 1 / low),
        "mfu": best.tokens * flops / cluster.device.peak_of(request.dtype),
        "goodput": {
            "fraction": good.fraction, "interruptions_per_day": good.interruptions_per_day,
            "checkpoint_seconds": good.checkpoint_seconds,
            "minutes_between_checkpoints": good.checkpoint_minutes,
        },
        "hours": _interval(hours, low, high),
        "device_hours": _interval(hours * cluster.count, low, high),
        "energy": {
            "kwh": _spread(used.kwh, _widen(cluster, low, high)), "pue": request.pue,
            "watts_per_device": cluster.device.busy_watts, "host_watts": cluster.device.host_watts,
        },
        "carbon": _carbon(used, cluster, low, high, grid, grid_how),
        "loss": _loss(student, teacher, tokens),
        "teacher_placement": None if of_teacher is None else placements(
            best, shape, of_teacher, cluster, sequences, seq_len, request.dtype, tokens
        ),
        "nearest": _about_run(nearest, seen),
        "alternatives": [_layout(one) | _memory(one, cluster) for one in _different(fitting)],
        "notes": _notes(request, cluster, best, sequences),
    }  # fmt: skip


def time_spread(cluster: Cluster) -> tuple[float, float]:
    """Factors of the predicted time between which the true one lies with 90%.

    Runs that a fit has not seen, nor others of the same page, are off by what a new cluster will
    be. A family of devices that no published run is of adds its own spread.
    """
    ratios = np.log(efficiency.errors_by_source())
    low, high = np.quantile(ratios, [0.05, 0.95])
    if cluster.device.family not in efficiency.fitted().families:
        extra = Z90 * UNSEEN * (2 if cluster.device.family == "cpu" else 1)
        low, high = -math.hypot(low, extra), math.hypot(high, extra)
    # Predicted over published tokens/s is true over predicted time.
    return float(np.exp(min(low, 0.0))), float(np.exp(max(high, 0.0)))


def nearest_run(shape: Shape, cluster: Cluster, dtype: str) -> PublishedRun:
    """The published run that is most like a planned one."""

    def distance(run: PublishedRun) -> float:
        other = run.cluster
        return (
            abs(math.log(run.shape.parameters / shape.parameters))
            + 0.3 * abs(math.log(other.count / cluster.count))
            + 1.5 * (other.device.family != cluster.device.family)
            + 0.3 * (other.key != cluster.key)
            + 0.7 * (run.layout.dtype != dtype)
            + 0.1 * (run.seq_len != 8192)
        )

    return min(published_runs(), key=distance)


def _checked() -> dict[str, Any]:
    off = np.abs(np.array(efficiency.errors()) - 1)
    return {"runs": len(off), "median": float(np.median(off)), "worst": float(off.max())}


def _interval(value: float, low: float, high: float) -> dict[str, float]:
    return {"low": value * low, "best": value, "high": value * high}


def _widen(cluster: Cluster, low: float, high: float) -> tuple[float, float]:
    """The spread of energy: that of time, and that of power."""
    power = Z90 * (POWER_ASSUMED if "power" in cluster.device.assumed else POWER)
    return (
        math.exp(-math.hypot(math.log(low), power)),
        math.exp(math.hypot(math.log(high), power)),
    )


def _spread(value: float, factors: tuple[float, float]) -> dict[str, float]:
    return _interval(value, *factors)


def _carbon(
    used: Footprint, cluster: Cluster, low: float, high: float, grid: float | None, grid_how: str
) -> dict[str, Any]:
    less, more = _widen(cluster, low, high)
    made = Z90 * EMBODIED
    embodied = _spread(
        used.embodied_kg,
        (math.exp(-math.hypot(math.log(low), made)), math.exp(math.hypot(math.log(high), made))),
    )
    operational = total = None
    if used.operational_kg is not None:
        operational = _interval(used.operational_kg, less, more)
        total = {k: operational[k] + embodied[k] for k in ("low", "best", "high")}
    return {
        "kg": total, "operational_kg": operational, "embodied_kg": embodied,
        "grid_gco2e_per_kwh": grid, "grid": grid_how,
    }  # fmt: skip


def _loss(student: Planned, teacher: Planned | None, tokens: int) -> dict[str, Any]:
    """What the published scaling law says; a preset teacher is taken as fully trained."""
    draws = scaling.posterior_draws([])
    config: GemmaConfig = student.config
    point = LawPoint(config.non_embedding_parameters, tokens)
    loss = scaling.interval(scaling.predict(draws, point, config.vocab_size)).to_json()
    return {**loss, "of": "training from scratch, by the published law alone"}


def _about(model: Planned) -> dict[str, Any]:
    return {
        "name": model.name,
        "parameters": model.config.parameters,
        "non_embedding_parameters": model.config.non_embedding_parameters,
        "vocab_size": model.config.vocab_size,
    }


def _about_run(run: PublishedRun, ratio: float) -> dict[str, Any]:
    return {
        "name": run.name, "cluster": str(run.cluster), "source": run.source, "url": run.url,
        "tokens_per_second_per_device": run.tokens, "tflops": run.tflops,
        "predicted_over_published": ratio,
    }  # fmt: skip


def _layout(one: Estimate) -> dict[str, Any]:
    layout = one.layout
    return {
        "text": layout.text, "shards": layout.shards, "replicas": layout.replicas,
        "tensor": layout.tensor, "micro_batch": layout.micro_batch,
        "accumulate": layout.accumulate, "recompute": layout.recompute,
        "tokens_per_second_per_device": one.tokens,
    }  # fmt: skip


def _memory(one: Estimate, cluster: Cluster) -> dict[str, Any]:
    parts = {name: getattr(one.memory, name) / 2**30 for name in one.memory.__dataclass_fields__}
    return {
        "peak_gib": one.peak_bytes / 2**30,
        "usable_gib": usable_bytes(cluster) / 2**30,
        "counted_gib": parts,
    }


def _different(fitting: list[Estimate]) -> list[Estimate]:
    """The fastest of each kind of parallelism and recomputation."""
    kinds: dict[tuple[int, int, str], Estimate] = {}
    for one in fitting:
        layout = one.layout
        kinds.setdefault((layout.shards, layout.tensor, layout.recompute), one)
    return list(kinds.values())[:ALTERNATIVES]


def _notes(request: ClusterRequest, cluster: Cluster, best: Estimate, sequences: int) -> list[str]:
    notes = []
    if best.layout.sequences > sequences:
        notes.append(
            f"a step has {best.layout.sequences:,} sequences, one for each group of "
            f"{best.layout.model_ranks} devices, more than the {sequences:,} that were asked for"
        )
    if cluster.device.assumed:
        notes.append(f"assumed of {cluster.device.name}: {cluster.device.assumed}")
    if cluster.device.family not in efficiency.fitted().families:
        notes.append(
            f"no published run on {cluster.device.name} or its kind: efficiency as on other "
            "devices, and a wider interval"
        )
    whole = whole_runs()[0]
    notes.append(
        f"hours are those of one run that goes well. {whole.name} took {whole.device_hours:,.0f} "
        f"{whole.device} hours for {whole.tokens / 1e12:g}T tokens, "
        f"{whole.tokens / whole.device_hours / 3600:,.0f} tokens/s each; development, failed runs "
        "and evaluation often cost as much again (OLMo 2) or several times that (Olmo 3)"
    )
    if request.teacher is not None:
        notes.append("the teacher is spread over the same devices; its training is not counted")
    return notes
