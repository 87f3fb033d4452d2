"""Over-optimization of a learned reward against a known one, and the front of WARP.

The known reward is a program (word_lines.py). For each seed, a quickstart's student learns mediocre
lines (`start`); pairs of its own answers, compared by the known reward with noise, are preference
data; reward models, the proxies, are trained on fewer and on more of these. Then:

    best of n              of the start's answers, by each proxy
    dpo B                  DPO on the pairs, with several beta
    rloo B                 RLOO on a proxy, with an anchor fixed at the start and several beta
    rloo B, N pairs        the same on another proxy
    jbond                  J-BOND on a proxy
    ema run M              RLOO with an anchor that is a moving average: WARP's runs
    ema, longer            one such run with as many steps as all runs of an iteration
    slerp, lerp            merges of the runs, and models on the way there from the start (LITI)
    …, second              the second iteration, from eta = 0.3 of the way to `slerp`

    python bench/posttrain_warp.py --quickstart runs/quickstart --out runs/posttrain-warp \
        --json bench/results/posttrain_warp.json --plots docs

What is finished is kept in --out and not run again, so a stopped benchmark continues.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

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
from posttrain_warp_runs import loaded, states_of
from posttrain_warp_summary import show, summary
from word_lines import gold

Places = list[dict[str, float]]


class Case:
    """Measures the models of a seed; what is measured is kept in a file.

    Args:
        models: the models.
    """

    def __init__(self, models: Models) -> None:
        self.models, self.size = models, models.size

    def run(self) -> dict[str, Any]:
        """Everything of a seed; see `places` and `pool`."""
        models = self.models
        start = self.places("start", [(0, models.start)])[0]
        pool = models.runs.kept("pool", self.pool)
        policies: dict[str, Places] = {}
        for beta in self.size.dpo_betas:
            name = f"dpo {beta:g}"
            policies[name] = self.places(name, [(1, models.dpo(beta))])
        for name, run, pairs in models.policies():
            policies[name] = self.trajectory(name, run, pairs)
        return {
            "seed": models.seed,
            "start": start,
            "best_of": pool,
            "policies": policies,
            **self.warp(),
        }

    def warp(self) -> dict[str, Any]:
        """Runs, merges and fronts of both iterations, and the angles between the runs."""
        models, out = self.models, self.models.warp()
        fronts: dict[str, Places] = {}
        angles = []
        base = models.start
        for number, later in ((1, ""), (2, ", second")):
            folder = out / f"iteration-{number}"
            merged = folder / "merge"
            runs = [folder / f"run-{m + 1}" for m in range(self.size.runs)]
            for m, run in enumerate(runs):
                name = f"ema run {m + 1}{later}"
                fronts[name] = self.trajectory(name, run, self.size.proxy, last=bool(later))
            lerp = models.merged(f"lerp{later}", runs, base, "lerp")
            fronts[f"slerp{later}"] = self.front(f"slerp{later}", merged)
            fronts[f"lerp{later}"] = self.front(f"lerp{later}", lerp)
            angles.append(_angles(merged))
            base = folder / "next"
        return {"warp": fronts, "angles": angles}

    def front(self, name: str, merged: Path) -> Places:
        """Models on the way from the start to a merge (LITI), and the merge."""
        start = self.models.start
        way = [
            (eta, self.models.merged(f"{name} {eta:g}", [merged], start, "lerp", eta))
            for eta in self.size.etas
        ]
        return self.places(name, [*way, (1, merged)])

    def trajectory(self, name: str, run: Path, pairs: int, *, last: bool = False) -> Places:
        """The models of a run's training states, or the last one alone."""
        return self.models.runs.kept(
            name,
            lambda: [
                {"at": step, **self._figures(loaded(run, state), name, pairs)}
                for step, state in states_of(run)[-1 if last else 0 :]
            ],
        )

    def places(self, name: str, models: Sequence[tuple[float, Path]]) -> Places:
        """Figures of models that belong together, each with its place `at`, a step or an eta."""
        pairs = self.size.proxy
        return self.models.runs.kept(
            name,
            lambda: [{"at": at, **self._figures(loaded(m), name, pairs)} for at, m in models],
        )

    def _figures(self, model: Gemma, name: str, pairs: int) -> dict[str, float]:
        models, (count, n) = self.models, self.size.test
        models.runs.say(f"{name}: a model is measured")
        groups = models.sampled(model, models.heldout[:count], n, models.seed)
        proxy = LearnedReward.open(str(models.proxy(pairs)))
        cut = self.size.cut
        figures = measures.policy_figures(model, models.start_model, groups, proxy, gold, cut)
        return {key: harness.rounded(value) for key, value in figures.items()}

    def pool(self) -> dict[str, Any]:
        """Best of n of the start's answers, for each proxy, and how proxies agree with gold.

        Rewards are means; "std" is the standard deviation over the start's answers, the unit in
        which rewards are compared.
        """
        models, (count, n) = self.models, self.size.pool
        groups = models.sampled(models.start_model, models.heldout[:count], n, models.seed)
        answers = [answer for group in groups for answer in group.answers()]
        golds = [gold(answer.text, answer.record) for answer in answers]
        gold_PN = _rows(golds, n)
        result: dict[str, Any] = {**_mean_and_std(golds), "proxies": {}}
        for pairs in self.size.pairs:
            proxy = LearnedReward.open(str(models.proxy(pairs)))
            scores = measures.proxy_rewards(proxy, answers, self.size.cut)
            proxy_PN = _rows(scores, n)
            result["proxies"][str(pairs)] = {
                **_mean_and_std(scores),
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


def _mean_and_std(values: Sequence[float]) -> dict[str, float]:
    tensor = torch.tensor(values, dtype=torch.float64)
    return {"mean": tensor.mean().item(), "std": tensor.std().item()}


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """The whole report."""
    size = TOY if args.toy else FULL
    _check_same(args.out, size)
    base = None if args.toy else args.quickstart / "student"
    seeds = [
        Case(Models(seed, base, args.out / f"seed-{seed}", size, args.threads)).run()
        for seed in args.seeds
    ]
    report = {
        "settings": {**asdict(size), "toy": args.toy, "threads": args.threads},
        "seeds": seeds,
        "summary": summary(seeds, size.proxy, size.ema_beta),
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
    parser.add_argument("--toy", action="store_true", help="tiny shapes: does it work at all?")
    parser.add_argument(
        "--quickstart", type=Path, default=Path("runs/quickstart"), help="finished quickstart"
    )
    return harness.run(parser.parse_args(), measure, show)


if __name__ == "__main__":
    sys.exit(main())
