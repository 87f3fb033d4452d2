"""Over-optimization of a learned reward against a known one, and the front of WARP.

The known reward is a program (word_lines.py). A quickstart's student learns mediocre lines, which
is the start of all seeds. For each seed, pairs of its own answers, compared by the known reward
with noise, are preference data; reward models, the proxies, are trained on fewer and on more of
these. Then, in parts:

    rloo         RLOO on a proxy, with an anchor fixed at the start and several beta
    warp         RLOO with an anchor that is a moving average, in runs with different seeds; their
                 merges by SLERP and LERP, and models on the way there from the start (LITI); the
                 same once more ("second") from eta = 0.3 of the way to the merge by SLERP
    longer       one such run with as many steps as all runs of an iteration
    best-of-n    the best of n of the start's answers, by each proxy
    jbond        J-BOND on a proxy
    dpo          DPO on the pairs, with several beta

    python bench/posttrain_warp.py --quickstart runs/quickstart --out runs/posttrain-warp \
        --json bench/results/posttrain_warp.json --plots docs

All seeds do a part before the next one begins. What is finished is kept in --out and not done
again, so a stopped benchmark continues; --finished reports what there is.
"""

import argparse
import contextlib
import json
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import harness
import posttrain_warp_measure as measures
from gemmule import files
from gemmule.errors import ConfigError
from gemmule.model.gemma import Gemma
from gemmule.posttrain.reward_model.reward import LearnedReward
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
            "rloo": self.rloo,
            "warp": self.warp,
            "longer": self.longer,
            "best-of-n": self.best_of_n,
            "jbond": self.jbond,
            "dpo": self.dpo,
        }

    def start(self) -> Figures:
        """The start, whose spread of rewards is the unit of all others."""
        yield "start", self._places("start", [(0, self.models.start)])

    def rloo(self) -> Figures:
        """RLOO with a fixed anchor."""
        for beta in self.size.rloo_betas:
            name = f"rloo {beta:g}"
            yield name, self._trajectory(name, self.models.rloo(beta))

    def longer(self) -> Figures:
        """A long run with a moving anchor."""
        yield "ema, longer", self._trajectory("ema, longer", self.models.longer())

    def jbond(self) -> Figures:
        """J-BOND."""
        yield "jbond", self._trajectory("jbond", self.models.jbond())

    def dpo(self) -> Figures:
        """DPO: the last model of each run."""
        for beta in self.size.dpo_betas:
            name = f"dpo {beta:g}"
            yield name, self._places(name, [(1, self.models.dpo(beta))])

    def warp(self) -> Figures:
        """Runs, merges and fronts of both iterations, and the angles between the runs."""
        models, out = self.models, self.models.warp()
        base = models.start
        for number, later in ((1, ""), (2, ", second")):
            folder = out / f"iteration-{number}"
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

    def best_of_n(self) -> Figures:
        """Best of n, by each proxy."""
        yield "best of n", self.models.runs.kept("pool", self._pool)

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

    def _pool(self) -> dict[str, Any]:
        """Best of n of the start's answers, for each proxy, and how proxies agree with gold.

        Means and standard deviations are over the start's answers, the unit in which rewards are
        compared.
        """
        models, (count, n) = self.models, self.size.pool
        groups = models.sampled(models.start_model, models.heldout[:count], n, models.seed)
        answers = [answer for group in groups for answer in group.answers()]
        golds = [gold(answer.text, answer.record) for answer in answers]
        gold_PN = _rows(golds, n)
        result: dict[str, Any] = {"proxies": {}}
        for pairs in self.size.pairs:
            proxy = LearnedReward.open(str(models.proxy(pairs)))
            scores = measures.proxy_rewards(proxy, answers, self.size.cut)
            proxy_PN = _rows(scores, n)
            result["proxies"][str(pairs)] = {
                **_mean_and_std("gold", golds),
                **_mean_and_std("proxy", scores),
                "agreement": measures.agreement(proxy_PN, gold_PN),
                "places": [
                    {
                        "at": k,
                        "kl": measures.best_of_kl(k),
                        "gold": measures.best_of(k, proxy_PN, gold_PN),
                        "proxy": measures.best_of(k, proxy_PN, proxy_PN),
                    }
                    for k in self.size.best_of
                ],
            }
        return result


def _angles(merged: Path) -> dict[str, float | None]:
    """The angle between the first two task vectors of a merge in degrees, by layer."""
    layers = files.read_json(RunLayout(merged).result)["layers"]
    return {name: values["angles"][0][1] for name, values in layers.items()}


def _rows(values: Sequence[float], n: int) -> list[Sequence[float]]:
    return [values[i : i + n] for i in range(0, len(values), n)]


def _mean_and_std(name: str, values: Sequence[float]) -> dict[str, float]:
    return {name: statistics.mean(values), f"{name}_std": statistics.stdev(values)}


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
    for part in cases[0].parts:
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
