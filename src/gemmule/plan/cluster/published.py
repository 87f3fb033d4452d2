"""Training runs that others have published (published.toml)."""

import dataclasses
import functools
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

from gemmule.plan.cluster.devices import Cluster, devices
from gemmule.plan.cluster.layout import Layout
from gemmule.plan.cluster.shapes import PUBLISHED_SHAPES, Shape
from gemmule.plan.cluster.step import StepWork, step_work

_LAYOUT = {field.name for field in dataclasses.fields(Layout)} - {"shards"}


@dataclass(frozen=True)
class PublishedRun:
    """A published run.

    Attributes:
        name, source, url: what was run, and where it was published.
        stack: software that ran it.
        listed: whether it is in the table of anchors that the project set itself.
        shape, cluster, layout, seq_len: the run.
        tokens: published tokens/s per device.
        memory_gib: published peak memory per device; None if not published.
        assumed: what the source leaves open.
    """

    name: str
    source: str
    url: str
    stack: str
    listed: bool
    shape: Shape
    cluster: Cluster
    layout: Layout
    seq_len: int
    tokens: float
    memory_gib: float | None
    assumed: str

    @functools.cached_property
    def work(self) -> StepWork:
        """The work of one of its steps."""
        return step_work(self.shape, self.cluster, self.layout, self.seq_len)

    @property
    def tflops(self) -> float:
        """Useful TFLOP/s per device: without recomputation, attention over the causal half."""
        return self.tokens * self.shape.training_flops(self.seq_len) / 1e12


@dataclass(frozen=True)
class WholeRun:
    """A whole published run: its device-hours hold restarts, evaluations and repeated stretches."""

    name: str
    shape: str
    device: str
    tokens: float
    device_hours: float
    url: str


@functools.cache
def _table() -> dict[str, Any]:
    text = resources.files(__package__).joinpath("published.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


@functools.cache
def published_runs() -> tuple[PublishedRun, ...]:
    """Every published run."""
    return tuple(
        _run(source, {**source.get("defaults", {}), **row})
        for source in _table()["source"]
        for row in source["run"]
    )


def whole_runs() -> list[WholeRun]:
    """Whole runs with their device-hours."""
    return [WholeRun(**row) for row in _table()["whole"]]


def reported_carbon(name: str) -> Mapping[str, Any]:
    """What was reported of a model's carbon: tonnes, url, and its runs."""
    reported: Mapping[str, Any] = _table()["carbon"][name]
    return reported


def _run(source: Mapping[str, Any], row: dict[str, Any]) -> PublishedRun:
    shape = PUBLISHED_SHAPES[row["shape"]]
    key = row.get("device", source["device"])
    cluster = Cluster(key, devices()[key], row["devices"])
    given = {name: value for name, value in row.items() if name in _LAYOUT}
    grid = given.get("tensor", 1) * given.get("pipeline", 1) * given.get("replicas", 1)
    layout = Layout(**given, shards=row["devices"] // grid)
    tokens = row.get("tokens")
    if tokens is None:
        causal = row.get("counted") == "causal"
        flops = (shape.training_flops if causal else shape.full_square_flops)(row["seq_len"])
        tokens = row["tflops"] * 1e12 / flops
    return PublishedRun(
        row["name"], source["title"], source["url"], source["stack"], source["listed"], shape,
        cluster, layout, row["seq_len"], tokens, row.get("memory_gib"), row.get("assumed", ""),
    )  # fmt: skip
