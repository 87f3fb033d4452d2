"""What fraction of each peak a training step reaches: learned from published runs.

A step takes

    (products / e + attention / e' + traffic / e'' + exposed communication) x (1 + bubble)
        x (1 + s x doublings of the servers) + optimizer

with `e` for each data type, times a factor of the device's family and one of the software, times
1 / (1 + w (1/m + 1/n + 1/k)) for small products. FSDP's communication hides behind the rest
except for a fraction; tensor parallelism's is exposed unless it is asynchronous. The coefficients
have priors (the width of the logarithm, below) and are found by Gauss-Newton steps on the
logarithms of tokens/s; with fewer runs than it takes to tell them apart, the priors decide.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from gemmule.plan.cluster.published import PublishedRun, published_runs
from gemmule.plan.cluster.step import StepWork

Floats = npt.NDArray[np.float64]

# Coefficient: value and width of the prior, the standard deviation of its logarithm.
_PRIORS: dict[str, tuple[float, float]] = {
    "products": (0.65, 0.15),  # fraction of the peak that large bfloat16 products reach
    "float8": (0.75, 0.2),  # the same in float8, relative to bfloat16's fraction
    "attention": (0.45, 0.2),  # fraction of the peak between queries and keys
    "traffic": (0.7, 0.3),  # fraction of the memory's bandwidth, operations fused
    "eager": (2.0, 0.3),  # traffic without fusion over that with it
    "small": (200.0, 0.5),  # w: size at which a product loses half
    "link": (0.7, 0.2),  # fraction of a link's bandwidth
    "leak": (0.15, 0.5),  # fraction of hidden communication that slows computing all the same
    "async": (0.4, 0.4),  # exposed fraction of asynchronous tensor-parallel communication
    "context": (0.5, 0.5),  # exposed fraction of context-parallel communication
    "ring": (0.7, 0.4),  # slowdown of attention in a ring whose ranks wait for the last
    "straggle": (0.008, 0.5),  # slowdown per doubling of the servers
}
FAMILY_WIDTH, STACK_WIDTH = 0.15, 0.12
_ROUNDS = 30
_RUN_ERROR = 0.06  # spread of published figures around a right model
STACK = "torchtitan"  # what gemmule's own stack (FSDP2, torch.compile) is closest to
TPU_STACK = "maxtext"


@dataclass(frozen=True)
class Setting:
    """What the efficiency of a step depends on, other than its work."""

    family: str
    stack: str
    compiled: bool
    async_tensor: bool


@dataclass(frozen=True)
class Efficiency:
    """Fitted coefficients.

    Attributes:
        log_values: logarithms of the coefficients of _PRIORS, then of families and stacks.
        families, stacks: those that have a factor of their own; others get 1.
    """

    log_values: Floats
    families: tuple[str, ...]
    stacks: tuple[str, ...]

    def seconds(self, work: StepWork, setting: Setting) -> dict[str, float]:
        """Seconds of a step by part: compute, memory, communication, idle; and their sum."""
        batch = _Batch([work], [setting], self.families, self.stacks)
        parts = {name: float(value[0]) for name, value in batch.parts(self.log_values).items()}
        return {**parts, "step": sum(parts.values())}

    def values(self) -> dict[str, float]:
        """The coefficients by name."""
        names = [*_PRIORS, *self.families, *self.stacks]
        return {name: float(v) for name, v in zip(names, np.exp(self.log_values), strict=True)}


class _Batch:
    """Steps as arrays, so that all of them are computed at once."""

    def __init__(
        self,
        works: Sequence[StepWork],
        settings: Sequence[Setting],
        families: Sequence[str],
        stacks: Sequence[str],
    ) -> None:
        self.work = {
            field.name: np.array([getattr(work, field.name) for work in works])
            for field in fields(StepWork)
        }
        self.family = np.array([[s.family == name for name in families] for s in settings], float)
        self.stack = np.array([[s.stack == name for name in stacks] for s in settings], float)
        self.eager = np.array([not s.compiled for s in settings])
        self.asynchronous = np.array([s.async_tensor for s in settings])

    def parts(self, log_values: Floats) -> dict[str, Floats]:
        n, f = len(_PRIORS), self.family.shape[1]
        c = dict(zip(_PRIORS, np.exp(log_values[:n]), strict=True))
        own = np.exp(self.family @ log_values[n : n + f] + self.stack @ log_values[n + f :])
        w = self.work
        small = 1 / (1 + c["small"] * w["narrowness"])
        products = c["products"] * own * small
        compute = w["matrix"] / products + w["matrix8"] / (products * c["float8"])
        compute = compute + w["attention"] / (c["attention"] * own) * (1 + c["ring"] * w["ring"])
        traffic = w["elementwise"] / c["traffic"] * np.where(self.eager, c["eager"], 1.0)
        busy = compute + traffic
        gather = w["gather"] / c["link"]
        hidden = np.minimum(gather, busy)
        exposed = gather - hidden + c["leak"] * hidden
        exposed = exposed + w["tensor"] / c["link"] * np.where(self.asynchronous, c["async"], 1.0)
        exposed = exposed + c["context"] * w["context"] / c["link"]
        idle = (busy + exposed) * (
            (1 + w["bubble"]) * (1 + c["straggle"] * w["doublings"]) - 1
        )  # fmt: skip
        memory = traffic + w["optimizer"] / c["traffic"]
        return {"compute": compute, "memory": memory, "communication": exposed, "idle": idle}

    def log_tokens(self, log_values: Floats) -> Floats:
        """Logarithms of tokens/s per device."""
        step = sum(self.parts(log_values).values())
        return np.asarray(np.log(self.work["tokens"] / step))


def setting_of(run: PublishedRun) -> Setting:
    """The setting of a published run."""
    return Setting(
        run.cluster.device.family, run.stack, run.layout.compiled, run.layout.async_tensor
    )


def fit(runs: Sequence[PublishedRun], near: Efficiency | None = None) -> Efficiency:
    """Coefficients from published runs: the most probable ones, by damped Gauss-Newton steps.

    Args:
        runs: the runs.
        near: a fit of nearly the same runs, to start from.
    """
    families = tuple(sorted({run.cluster.device.family for run in runs}))
    stacks = tuple(sorted({run.stack for run in runs}))
    batch = _Batch([run.work for run in runs], [setting_of(run) for run in runs], families, stacks)
    target = np.log([run.tokens for run in runs])
    centre = np.concatenate(
        [np.log([value for value, _ in _PRIORS.values()]), np.zeros(len(families) + len(stacks))]
    )
    width = np.array(
        [width for _, width in _PRIORS.values()]
        + [FAMILY_WIDTH] * len(families)
        + [STACK_WIDTH] * len(stacks)
    )

    def residuals(values: Floats) -> Floats:
        errors = (batch.log_tokens(values) - target) / _RUN_ERROR
        # Far-off runs pull less (Student's t with four degrees of freedom).
        errors = np.sign(errors) * np.sqrt(5 * np.log1p(errors**2 / 4))
        return np.concatenate([errors, (values - centre) / width])

    values, damping = centre.copy(), 1e-2
    if near is not None and (near.families, near.stacks) == (families, stacks):
        values = near.log_values.copy()
    now = residuals(values)
    for _ in range(_ROUNDS):
        slope = np.stack(
            [(residuals(values + step) - now) / 1e-5 for step in 1e-5 * np.eye(len(values))], axis=1
        )
        normal = slope.T @ slope
        move = np.linalg.solve(normal + damping * np.diag(np.diag(normal)), -slope.T @ now)
        after = residuals(values + move)
        if after @ after < now @ now:
            values, now, damping = values + move, after, damping / 5
        else:
            damping *= 10
        if np.abs(move).max() < 1e-4:
            break
    return Efficiency(values, families, stacks)


@functools.cache
def fitted() -> Efficiency:
    """Coefficients from all published runs."""
    return fit(published_runs())


def predicted_tokens(efficiency: Efficiency, run: PublishedRun) -> float:
    """Predicted tokens/s per device of a published run."""
    return run.work.tokens / efficiency.seconds(run.work, setting_of(run))["step"]


def left_out(runs: Sequence[PublishedRun], by: str = "run") -> list[float]:
    """Predicted over published tokens/s of each run, from a fit that has not seen it.

    Args:
        runs: the runs.
        by: "run" leaves one run out at a time, "source" all runs of its page.
    """
    ratios = []
    fits: dict[str, Efficiency] = {}
    whole = fit(runs)
    for i, run in enumerate(runs):
        if by == "run":
            seen = fit([other for j, other in enumerate(runs) if j != i], whole)
        else:
            if run.url not in fits:
                others = [other for other in runs if other.url != run.url]
                fits[run.url] = fit(others, whole)
            seen = fits[run.url]
        ratios.append(predicted_tokens(seen, run) / run.tokens)
    return ratios


@functools.cache
def errors() -> tuple[float, ...]:
    """Predicted over published tokens/s of every published run, each left out of its fit."""
    return tuple(left_out(published_runs()))


@functools.cache
def errors_by_source() -> tuple[float, ...]:
    """The same, each left out together with all runs of its page."""
    return tuple(left_out(published_runs(), "source"))
