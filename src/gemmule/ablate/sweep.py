"""From an ablation's name to its cells: which runs, with which settings, compared with which.

Pure data: nothing is trained or read here. Cells that are compared share seed, and with it
initial weights (where the shapes agree) and batches.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from gemmule.ablate import shapes
from gemmule.ablate.ablations import CATALOGUE
from gemmule.ablate.config import SweepConfig, default_weights, shown_weights
from gemmule.errors import ConfigError
from gemmule.losses.divergences import SPARSE_KINDS
from gemmule.model.config import GemmaConfig
from gemmule.teachers.target_spec import TargetSpec
from gemmule.train.config import DataConfig

SCRATCH, DISTILLED = "from scratch", "distilled"
TEACHER_SEED = 1_000_003  # a teacher's own, so that no student shares its batches by construction
STORE = "store"  # in the folder of a cell that records
# Three numbers of draws, and draws as published; the top-k ids alone, with the mass of the
# rest, and up to a mass.
TARGETS: Mapping[str, Mapping[str, Any]] = {
    "sampled-12": {"kind": "sample", "draws": 12},
    "sampled-50": {"kind": "sample", "draws": 50},
    "sampled-200": {"kind": "sample", "draws": 200},
    "sampled-50 independent": {"kind": "sample", "draws": 50, "spread": "independent"},
    "top-12": {"kind": "top_k", "k": 12},
    "top-32": {"kind": "top_k", "k": 32},
    "top-32+tail": {"kind": "top_k_tail", "k": 32},
    "top-p 0.95": {"kind": "top_p", "p": 0.95},
}
_WIDTH = {"hidden_size", "intermediate_size", "head_dim"}
_HEADS = {"num_attention_heads", "num_key_value_heads"}
# Fields of the student's shape that an ablation sets itself.
VARIED: Mapping[str, set[str]] = {
    "size": {*_WIDTH, *_HEADS, "num_hidden_layers"},
    "heads": {"num_key_value_heads", "intermediate_size"},
    "depth": {*_WIDTH, "num_hidden_layers"},
    "window": {"sliding_window"},
}
ROUTED = (0.9, 0.75, 0.5)  # quantiles of the teacher's entropy
AT_COMPUTE = 3  # sizes from scratch for each student's compute: its own, and the next larger ones
Key = tuple[str, str]  # group, arm


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run, or one measurement of a run.

    Attributes:
        name: name of its folder.
        group: what it has in common with the cells that it is compared with, such as a size; "" for
            nothing.
        arm: what distinguishes it from these cells.
        seed: seed of the student.
        settings: settings of the training run, or of the measurement.
        x: position on the plot's axis; None if the arms have no order.
        needs: name of the cell that it learns from or measures.
        measure: a key of MEASURES (run_metrics.py), or "record" for a logit store; None trains.
        equal_compute: whether it trains for as much compute as the cell that it needs, that cell's
            share of the teacher's recording included, rather than for the steps of its settings.
        route_quantile: quantile of the measured entropies from which tokens are routed to the
            next-token loss; None routes none.
        shown: whether it is a result, rather than only a step towards one.
    """

    name: str
    group: str
    arm: str
    seed: int
    settings: Mapping[str, Any]
    x: float | None = None
    needs: str | None = None
    measure: str | None = None
    equal_compute: bool = False
    route_quantile: float | None = None
    shown: bool = True


@dataclasses.dataclass(frozen=True)
class TeachingSource:
    """What students learn from.

    Attributes:
        settings: "teacher" or "targets", with its path.
        needs: the cell that makes it; None for the user's own teacher.
    """

    settings: Mapping[str, str]
    needs: str | None


@dataclasses.dataclass(frozen=True)
class Ladder:
    """A distilled student, and models from scratch of several sizes to measure it by.

    Attributes:
        student: group and arm of the student.
        basis: what the models from scratch have in common with the student.
        rungs: group and arm of each model from scratch, the smallest first.
    """

    student: Key
    basis: Literal["equal tokens", "equal training compute"]
    rungs: tuple[Key, ...]


@dataclasses.dataclass(frozen=True)
class SweepPlan:
    """A sweep's cells, each after the cells that it needs.

    Attributes:
        comparisons: pairs of (group, arm), each with its baseline.
        axis: meaning and unit of x; "" if cells have none.
        ladders: students whose size factor is computed.
    """

    cells: tuple[Cell, ...]
    comparisons: tuple[tuple[Key, Key], ...]
    axis: str = ""
    ladders: tuple[Ladder, ...] = ()


def source_names(sources: Sequence[Path]) -> list[str]:
    """Names of data folders: the last part of each path, or all parts where two share it."""
    names = [path.resolve().name for path in sources]
    return names if len(set(names)) == len(names) else [str(path) for path in sources]


def make_plan(config: SweepConfig, out: Path, vocab_size: int) -> SweepPlan:
    """The cells of `config`, to be run in the folder `out`, all with that vocabulary size.

    Raises:
        ConfigError: when the student or a setting does not suit the ablation.
    """
    return _Planner(config, out, vocab_size).plan()


class _Planner:
    def __init__(self, config: SweepConfig, out: Path, vocab_size: int) -> None:
        self.config, self.out, self.vocab_size = config, out, vocab_size
        self.student = config.student or CATALOGUE[config.ablation].student
        self.given = {k: v for k, v in config.settings.items() if k != "objective"}
        self.given_distilled = config.settings.get("objective", {})
        self.corpus_tokens: int | None = None  # of a sweep that records its teacher
        self.cells: list[Cell] = []

    def plan(self) -> SweepPlan:
        varied = VARIED.get(self.config.ablation, set()) & set(self.given.get("model", {}))
        if varied:
            keys = ", ".join(f"model.{key}" for key in sorted(varied))
            raise ConfigError(f"{self.config.ablation} varies {keys}: do not set it")
        make: Callable[[], SweepPlan] = getattr(self, f"plan_{self.config.ablation}")
        return make()

    # The ablations, one function each.

    def plan_distilled(self) -> SweepPlan:
        """Table 6."""
        base, teacher = self._base(self.student), self._teacher()
        for seed in range(self.config.seeds):
            self._run(self.student, SCRATCH, seed, base)
            self._run(self.student, DISTILLED, seed, base, source=teacher)
        pair = ((self.student, DISTILLED), (self.student, SCRATCH))
        return SweepPlan(tuple(self.cells), (pair,))

    def plan_size(self) -> SweepPlan:
        """Table 7."""
        if self.config.student is not None:
            raise ConfigError("size compares students of several sizes: leave --student out")
        names = shapes.ladder(self.config.largest)
        bases = {name: self._base(name) for name in names}
        x = {name: float(base.non_embedding_parameters) for name, base in bases.items()}
        taught = self._taught()
        ladders: dict[tuple[str, str], Ladder] = {}
        for seed in range(self.config.seeds):
            students = {}
            for name in names:
                self._run(name, SCRATCH, seed, bases[name], x=x[name])
                if name in shapes.STUDENTS:
                    students[name] = self._run(
                        name, DISTILLED, seed, bases[name], x=x[name], source=taught
                    )
            for name, student in students.items():
                key, arm = (name, DISTILLED), f"{SCRATCH}, compute of {name} {DISTILLED}"
                first = names.index(name)
                rungs = names[first : first + AT_COMPUTE]
                for rung in rungs:
                    self._run(rung, arm, seed, bases[rung], x=x[rung], compute_of=student)
                ladders[name, "tokens"] = Ladder(
                    key, "equal tokens", tuple((rung, SCRATCH) for rung in names)
                )
                ladders[name, "compute"] = Ladder(
                    key, "equal training compute", tuple((rung, arm) for rung in rungs)
                )
        pairs = tuple(((name, DISTILLED), (name, SCRATCH)) for name in shapes.STUDENTS)
        axis = "non-embedding parameters"
        return SweepPlan(tuple(self.cells), pairs, axis, tuple(ladders.values()))

    def plan_heads(self) -> SweepPlan:
        """Table 8."""
        base = self._base(self.student)
        mha = shapes.multi_head(base)
        gqa = shapes.grouped(base)
        filled = shapes.filled(gqa, mha.non_embedding_parameters)
        arms = {"MHA": mha, "GQA": gqa, "GQA, equal parameters": filled}
        return self._by_shape(arms)

    def plan_depth(self) -> SweepPlan:
        """Table 9."""
        base = self._base(self.student)
        layers = base.num_hidden_layers
        arms = {
            "wide": shapes.stretched(base, max(1, layers // 2)),
            "deep": shapes.stretched(base, 2 * layers),
        }
        return self._by_shape(arms)

    def plan_window(self) -> SweepPlan:
        """Table 10: one model a seed, measured with each window."""
        trained = self._common()["seq_len"] // 4
        if trained < 4:
            raise ConfigError(f"seq_len {4 * trained} leaves no window to shrink: use 16 or more")
        windows = [trained, trained // 2, trained // 4]
        base = self._base(self.student, sliding_window=trained)
        for seed in range(self.config.seeds):
            run = self._run("", "trained", seed, base, shown=False)
            for window in windows:
                arm = f"window {window}"
                self._add(
                    "", arm, seed, {"sliding_window": window}, x=float(window), needs=run.name,
                    measure="window",
                )  # fmt: skip
        return self._plan(f"window {trained}", axis="sliding window at inference, tokens")

    def plan_loss(self) -> SweepPlan:
        """Divergences at their default parameters, temperature, alpha."""
        arms: dict[str, dict[str, Any]] = {
            kind: {"loss": kind}
            for kind in ("cross_entropy", "forward_kl", "reverse_kl", "jsd", "skew_kl",
                         "skew_reverse_kl")
        }  # fmt: skip
        arms["temperature 2"] = {"temperature": 2.0}
        arms["alpha 0.5"] = {"alpha": 0.5}
        varied = {"loss", "temperature", "alpha"} & set(self.given_distilled)
        if varied:
            raise ConfigError(f"loss varies {', '.join(sorted(varied))}: do not set it")
        base, teacher = self._base(self.student), self._teacher()
        for seed in range(self.config.seeds):
            for arm, settings in arms.items():
                self._run("", arm, seed, base, source=teacher, distilled=settings)
        return self._plan("cross_entropy")

    def plan_targets(self) -> SweepPlan:
        """Ways to store a teacher, against its whole distribution."""
        teacher, whole = self._teacher(), "whole distribution"
        sources = {label: self._recorded(teacher, spec) for label, spec in TARGETS.items()}
        base = self._base(self.student)
        for seed in range(self.config.seeds):
            self._run("", whole, seed, base, source=teacher)
            for label, source in sources.items():
                self._run("", label, seed, base, source=source)
        return self._plan(whole)

    def plan_routing(self) -> SweepPlan:
        """Trains the tokens with the highest teacher entropy on the text, in growing numbers."""
        if "route_above" in self.given_distilled:
            raise ConfigError("routing varies route_above: do not set it")
        teacher = self._teacher()
        settings = {**teacher.settings, "seq_len": self._common()["seq_len"]}
        probe = self._add(
            "", "entropy", TEACHER_SEED, settings, needs=teacher.needs, measure="entropy",
            shown=False,
        )  # fmt: skip
        base, all_taught = self._base(self.student), "all from the teacher"
        for seed in range(self.config.seeds):
            self._run("", all_taught, seed, base, source=teacher)
            for q in ROUTED:
                arm = f"unsurest {1 - q:.0%} from the text"
                source = TeachingSource(teacher.settings, probe.name)
                self._run("", arm, seed, base, source=source, route_quantile=q)
            self._run("", SCRATCH, seed, base)
        return self._plan(all_taught)

    def plan_mixture(self) -> SweepPlan:
        """Weights of the sources; every run is evaluated on all of them, read or not."""
        base = self._base(self.student)
        grid = self.config.weights or default_weights(len(self.config.sources))
        for seed in range(self.config.seeds):
            for weights in grid:
                settings = self._training(base, self.config.tokens, seed)
                settings["data"].pop("path")
                settings["data"]["mixture"] = [
                    {"path": str(path), "name": name, "weight": weight}
                    for path, name, weight in zip(
                        self.config.sources, source_names(self.config.sources), weights, strict=True
                    )
                ]
                self._add("", shown_weights(weights), seed, settings)
        arms = [shown_weights(weights) for weights in grid]
        equal = [shown_weights(weights) for weights in grid if len(set(weights)) == 1]
        return self._plan([*equal, *arms][0])

    def plan_teacher(self) -> SweepPlan:
        """Teachers of several sizes, all trained the same way, against none."""
        size = self.config.teacher_size
        sizes = [*(s for s in shapes.TEACHERS if s != size), size]
        teachers = {s: self._teacher(s) for s in sizes}
        base = self._base(self.student)
        for seed in range(self.config.seeds):
            self._run("", SCRATCH, seed, base)
            for name, source in teachers.items():
                self._run("", f"{name} teacher", seed, base, source=source)
        return self._plan(SCRATCH)

    def plan_induction(self) -> SweepPlan:
        """The same students as of table 6, probed for copying."""
        base, teacher = self._base(self.student), self._teacher()
        for seed in range(self.config.seeds):
            for arm, source in ((SCRATCH, None), (DISTILLED, teacher)):
                run = self._run("", f"{arm} run", seed, base, source=source, shown=False)
                self._add("", arm, seed, {}, needs=run.name, measure="induction")
        return self._plan(SCRATCH)

    def _by_shape(self, arms: Mapping[str, GemmaConfig]) -> SweepPlan:
        for seed in range(self.config.seeds):
            for arm, shape in arms.items():
                self._run("", arm, seed, shape)
        return self._plan(next(iter(arms)))

    # What they are made of.

    def _plan(self, baseline: str, axis: str = "") -> SweepPlan:
        """All shown cells against the one arm `baseline`."""
        keys = dict.fromkeys((c.group, c.arm) for c in self.cells if c.shown)
        pairs = tuple((key, ("", baseline)) for key in keys if key[1] != baseline)
        return SweepPlan(tuple(self.cells), pairs, axis)

    def _base(self, size: str, **changes: int) -> GemmaConfig:
        given = self.given.get("model", {})
        return shapes.shape(size, self.vocab_size, **{**given, **changes})

    def _common(self) -> dict[str, Any]:
        given, fields = self.given.get("data", {}), DataConfig.model_fields
        return {name: given.get(name, fields[name].default) for name in ("batch_size", "seq_len")}

    def _training(self, shape: GemmaConfig, tokens: int, seed: int) -> dict[str, Any]:
        common = self._common()
        if common["seq_len"] > shape.max_position_embeddings:
            raise ConfigError(
                f"data.seq_len = {common['seq_len']} is longer than the context of "
                f"{shape.max_position_embeddings} tokens of a model of the sweep: shorten it, or "
                "choose other sizes"
            )
        steps = -(-tokens // (common["batch_size"] * common["seq_len"]))
        part = {"corpus_tokens": self.corpus_tokens} if self.corpus_tokens else {}
        given = self.given
        return {
            **given,
            "steps": steps,
            "seed": seed,
            "data": {**given.get("data", {}), **part, **common, "path": str(self.config.data)},
            "model": shape.model_dump(exclude_none=True),
            "evaluation": {
                "every": max(1, steps // 4), "tokens": 16384, **given.get("evaluation", {}),
            },
            "checkpoint": {
                "every": max(100, steps), "minutes": 1.0, "keep": 1, **given.get("checkpoint", {}),
            },
        }  # fmt: skip

    def _teacher(self, size: str | None = None) -> TeachingSource:
        """The teacher itself: the user's, or one that a cell trains."""
        if self.config.teacher is not None:
            return TeachingSource({"teacher": self.config.teacher}, None)
        size = size or self.config.teacher_size
        shape = shapes.shape(size, self.vocab_size)
        settings = self._training(shape, self.config.teacher_tokens, TEACHER_SEED)
        name = self._add(f"teacher {size}", "", TEACHER_SEED, settings, shown=False).name
        return TeachingSource({"teacher": str(self.out / "cells" / name)}, name)

    def _taught(self) -> TeachingSource:
        """What several students of each seed learn from: a record of unbiased draws, made once."""
        teacher = self._teacher()
        return teacher if self.config.online else self._recorded(teacher, {})

    def _recorded(self, teacher: TeachingSource, spec: Mapping[str, Any]) -> TeachingSource:
        """A store of a part of the corpus that is as long as what all seeds read together.

        Every student of the sweep, distilled or not, reads that part.
        """
        loss = self.given_distilled.get("loss", "cross_entropy")
        if loss not in SPARSE_KINDS or "route_above" in self.given_distilled:
            what = "route_above" if loss in SPARSE_KINDS else f"loss = {loss}"
            raise ConfigError(
                f"a recorded teacher cannot be learned from with {what}: leave it out, or add "
                "--online, with which the teacher itself is used (targets is about records)"
            )
        tokens = self.config.seeds * self.config.tokens
        self.corpus_tokens = min(tokens, self.given.get("data", {}).get("corpus_tokens", tokens))
        spec = {"temperature": self.given_distilled.get("temperature", 1.0), **spec}
        settings = {
            **teacher.settings,
            **self.given.get("runtime", {}),
            "data": str(self.config.data),
            "seq_len": self._common()["seq_len"],
            "tokens": self.corpus_tokens,
            "targets": spec,
        }
        label = TargetSpec.parse(spec, "targets").label
        cell = self._add(
            "", f"record {label}", TEACHER_SEED, settings, needs=teacher.needs,
            measure="record", shown=False,
        )  # fmt: skip
        return TeachingSource({"targets": str(self.out / "cells" / cell.name / STORE)}, cell.name)

    def _run(
        self,
        group: str,
        arm: str,
        seed: int,
        shape: GemmaConfig,
        *,
        source: TeachingSource | None = None,
        distilled: Mapping[str, Any] | None = None,
        compute_of: Cell | None = None,
        **more: Any,
    ) -> Cell:
        """A training run, from scratch where there is no `source`.

        With `compute_of`, its number of steps is set when that cell is done.
        """
        settings = self._training(shape, self.config.tokens, seed)
        needs: str | None = None
        if compute_of is not None:
            needs = compute_of.name
            more["equal_compute"] = True
        if source is not None:
            own = {**source.settings, **self.given_distilled, **(distilled or {})}
            settings["objective"] = {"kind": "distill", **own}
            needs = source.needs
        return self._add(group, arm, seed, settings, needs=needs, **more)

    def _add(
        self, group: str, arm: str, seed: int, settings: Mapping[str, Any], **more: Any
    ) -> Cell:
        words = [w for w in (group, arm) if w]
        name = re.sub(r"[^\w.+-]+", "-", "-".join(words).replace("%", " percent"))
        if seed != TEACHER_SEED:
            name += f"-seed{seed}"
        cell = Cell(name, group, arm, seed, settings, **more)
        self.cells.append(cell)
        return cell
