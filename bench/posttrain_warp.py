"""Over-optimization of a learned reward against a known one, and the front of WARP.

The known reward is a program (word_lines.py). A quickstart's student learns mediocre lines, which
is the start of all seeds. For each seed, pairs of its own answers, compared by the known reward
with noise, are preference data; reward models, the proxies, are trained on fewer and on more of
these. Then, in parts:

    rloo B               RLOO on a proxy, with an anchor fixed at the start and beta B
    warp                 RLOO with an anchor that is a moving average, in runs with different seeds;
                         their merges by SLERP and LERP, and models on the way there from the start
                         (LITI); the same once more ("second") from eta = 0.3 of the way to the
                         merge by SLERP
    longer               one such run with as many steps as all runs of an iteration
    best of n, N pairs   of the start's answers, by the proxy that was trained on N pairs
    jbond                J-BOND on a proxy
    dpo B                DPO on the pairs, with beta B

    python bench/posttrain_warp.py --quickstart runs/quickstart --out runs/posttrain-warp \
        --json bench/results/posttrain_warp.json --plots docs

All seeds do a part before the next one begins. What is finished is kept in --out and not done
again, so a stopped benchmark continues; --finished reports what there is.
"""

import argparse
import contextlib
import functools
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import harness
import posttrain_warp_measure as measures
from gemmule import files
from gemmule.config import nearest
from gemmule.errors import ConfigError
from gemmule.model.gemma import Gemma
from gemmule.posttrain.reward_model.reward import LearnedReward
from gemmule.posttrain.rewards.protocol import Answer
from gemmule.runs.layout import RunLayout
from gemmule.runtime import host
from posttrain_warp_models import FULL, TOY, Models, Size
from posttrain_warp_plots import draw_plots
from posttrain_warp_runs import UnfinishedError, loaded, states_of
from posttrain_warp_summary import show, summary
from word_lines import gold

Figures = Iterator[tuple[str, Any]]  # by name


class Case:
    """Measures the models of a seed; what is measured is kept in files.

    Args:
        models: the models.

    Attributes:
        parts: the parts of the benchmark, in order; each yields its figures by name. Of a way from
            the start they are a list of measured models, each with its place `at`, a step or an
            eta.
    """

    def __init__(self, models: Models) -> None:
        self.models, self.size = models, models.size
        self.parts: Mapping[str, Callable[[], Figures]] = {
            "start": self.start,
            **{f"rloo {b:g}": functools.partial(self.rloo, b) for b in self.size.rloo_betas},
            "warp": self.warp,
            "longer": self.longer,
            **{f"best of n, {n} pairs": functools.partial(self.best_of_n, n)
               for n in self.size.pairs},
            "jbond": self.jbond,
            **{f"dpo {b:g}": functools.partial(self.dpo, b) for b in self.size.dpo_betas},
        }  # fmt: skip

    def start(self) -> Figures:
        """The start, whose spread of rewards is the unit of all others."""
        yield "start", self._places("start", [(0, self.models.start)])

    def rloo(self, beta: float) -> Figures:
        """RLOO with a fixed anchor."""
        name = f"rloo {beta:g}"
        yield name, self._trajectory(name, self.models.rloo(beta))

    def longer(self) -> Figures:
        """A long run with a moving anchor."""
        yield "ema, longer", self._trajectory("ema, longer", self.models.longer())

    def jbond(self) -> Figures:
        """J-BOND."""
        yield "jbond", self._trajectory("jbond", self.models.jbond())

    def dpo(self, beta: float) -> Figures:
        """DPO: the last model of the run."""
        name = f"dpo {beta:g}"
        yield name, self._places(name, [(1, self.models.dpo(beta))])

    def warp(self) -> Figures:
        """Runs, merges and fronts of both iterations, and the angles between the runs."""
        models, base = self.models, self.models.start
        for number, later in ((1, ""), (2, ", second")):
            folder = models.warp(number)
            merged = folder / "merge"
            runs = [folder / f"run-{m + 1}" for m in range(self.size.runs)]
            for m, run in enumerate(runs):
                name = f"ema run {m + 1}{later}"
                yield name, self._trajectory(name, run, last=bool(later))
            yield f"slerp{later}", self._front(f"slerp{later}", merged)
            lerp = models.merged(f"lerp{later}", runs, base, "lerp")
            yield f"lerp{later}", self._front(f"lerp{later}", lerp)
            yield f"angles{later}", _angles(merged)
            base = folder / "next"

    def best_of_n(self, pairs: int) -> Figures:
        """Best of n by a proxy, and how often that orders two answers as the known reward does."""
        name = f"best of n, {pairs} pairs"
        yield name, self.models.runs.kept(name, lambda: self._best_of_n(pairs))

    def _front(self, name: str, merged: Path) -> list[Any]:
        """Models on the way from the start to a merge (LITI), and the merge."""
        start = self.models.start
        way = [
            (eta, self.models.merged(f"{name} {eta:g}", [merged], start, "lerp", eta))
            for eta in self.size.etas
        ]
        return self._places(name, [*way, (1, merged)])

    def _trajectory(self, name: str, run: Path, *, last: bool = False) -> list[Any]:
        """The models of a run's training states, or the last one alone."""
        return self.models.runs.kept(
            name,
            lambda: [
                {"at": step, **self._measured(loaded(run, state), name)}
                for step, state in states_of(run)[-1 if last else 0 :]
            ],
        )

    def _places(self, name: str, models: Sequence[tuple[float, Path]]) -> list[Any]:
        """Figures of models that belong together, each with its place `at`, a step or an eta."""
        return self.models.runs.kept(
            name, lambda: [{"at": at, **self._measured(loaded(m), name)} for at, m in models]
        )

    def _measured(self, model: Gemma, name: str) -> dict[str, float]:
        models, (count, n) = self.models, self.size.test
        models.runs.say(f"{name}: a model is measured")
        groups = models.sampled(model, models.heldout[:count], n, models.seed)
        proxy = LearnedReward.open(str(models.proxy(self.size.proxy)))
        cut = self.size.cut
        figures = measures.policy_figures(model, models.start_model, groups, proxy, gold, cut)
        return {key: harness.rounded(value) for key, value in figures.items()}

    @cached_property
    def _pool(self) -> Sequence[Answer]:
        """Answers of the start to held-out prompts, prompt by prompt."""
        models, (count, n) = self.models, self.size.pool
        groups = models.sampled(models.start_model, models.heldout[:count], n, models.seed)
        return [answer for group in groups for answer in group.answers()]

    def _best_of_n(self, pairs: int) -> dict[str, Any]:
        proxy = LearnedReward.open(str(self.models.proxy(pairs)))
        self.models.runs.say(f"best of n, {pairs} pairs")
        golds = [gold(answer.text, answer.record) for answer in self._pool]
        scores = measures.proxy_rewards(proxy, self._pool, self.size.cut)
        gold_PN, proxy_PN = (_rows(values, self.size.pool[1]) for values in (golds, scores))
        return {
            **measures.mean_and_std("gold", golds),
            **measures.mean_and_std("proxy", scores),
            "agreement": measures.agreement(proxy_PN, gold_PN),
            "places": [
                {
                    "at": n,
                    "kl": measures.best_of_kl(n),
                    "gold": measures.best_of(n, proxy_PN, gold_PN),
                    "proxy": measures.best_of(n, proxy_PN, proxy_PN),
                }
                for n in self.size.best_of
            ],
        }


def _angles(merged: Path) -> dict[str, float | None]:
    """The angle between the first two task vectors of a merge in degrees, by layer."""
    layers = files.read_json(RunLayout(merged).result)["layers"]
    return {name: values["angles"][0][1] for name, values in layers.items()}


def _rows(values: Sequence[float], n: int) -> list[Sequence[float]]:
    return [values[i : i + n] for i in range(0, len(values), n)]


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """The whole report."""
    size = TOY if args.toy else FULL
    _check_same(args.out, size)
    base = None if args.toy else args.quickstart / "student"
    cases = [
        Case(Models(seed, base, args.out / f"seed-{seed}", size, args.threads, args.finished))
        for seed in args.seeds
    ]
    seeds: list[dict[str, Any]] = [{"seed": seed} for seed in args.seeds]
    for part in _parts(cases[0], args.parts):
        for case, figures in zip(cases, seeds, strict=True):
            with (
                contextlib.suppress(UnfinishedError) if args.finished else contextlib.nullcontext()
            ):
                figures.update(case.parts[part]())
    report = {
        "settings": {**asdict(size), "toy": args.toy, "threads": args.threads},
        "seeds": seeds,
        "summary": summary(seeds, size.ema_beta),
    }
    if args.plots is not None:
        draw_plots(report, args.plots)
    return report


def _parts(case: Case, given: Sequence[str] | None) -> Sequence[str]:
    """The start, and the parts that are asked for or all."""
    for part in given or ():
        if part not in case.parts:
            raise ConfigError(f"there is no part {part!r}; {nearest(part, list(case.parts))}")
    return list(dict.fromkeys(["start", *(given or case.parts)]))


def _check_same(out: Path, size: Size) -> None:
    """Raises ConfigError where a folder holds models of another size."""
    path, own = out / "size.json", json.loads(json.dumps(asdict(size)))
    if path.is_file() and files.read_json(path) != own:
        raise ConfigError(f"{out} holds models of another size: give another --out")
    with files.writing_to(out):
        out.mkdir(parents=True, exist_ok=True)
    files.write_json(path, own)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="Example: python bench/posttrain_warp.py --quickstart runs/quickstart",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="draw the two plots there")
    parser.add_argument("--out", type=Path, default=Path("runs/posttrain-warp"))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument(
        "--parts", nargs="+", metavar="PART", help='parts to do, in this order, such as "rloo 0.2"'
    )
    parser.add_argument("--threads", type=int, default=host.usable_cores())
    parser.add_argument(
        "--finished", action="store_true", help="train and measure nothing, report what there is"
    )
    parser.add_argument("--toy", action="store_true", help="tiny shapes: does it work at all?")
    parser.add_argument(
        "--quickstart", type=Path, default=Path("runs/quickstart"), help="finished quickstart"
    )
    return harness.run(parser.parse_args(), measure, show)


if __name__ == "__main__":
    sys.exit(main())
