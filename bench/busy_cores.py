"""Training next to a busy process: what ways to wait and numbers of threads make of it.

When an OpenMP thread has done its part, it spins for a while before it sleeps. On cores of its own
that is the fastest. When another program is busy, a thread that spins keeps the core that the one
it waits for could use. All contestants are gemmule's training step of bench/train.py, compiled,
each with settings of the OpenMP library (GNU's, which torch brings) in its environment.

Read the figures so: `share` is the speed next to busy processes over that alone, of the same
contestant; `over_default` is a contestant's speed over the default's, in both situations.

    python bench/busy_cores.py --json bench/results/busy_cores.json
"""

import argparse
import os
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import harness
import train
from gemmule.console import table
from gemmule.errors import ConfigError
from gemmule.runtime.openmp import SETTINGS
from gemmule.speed.busy import busy_processes

# Environments. GNU's own number is 300,000 spins, some milliseconds, or 1,000 where there are more
# threads than cores; the command line asks for 1,000 (src/gemmule/runtime/openmp.py).
WAYS: dict[str, dict[str, str]] = {
    "default": {},
    "spin-100000": {"GOMP_SPINCOUNT": "100000"},
    "spin-10000": {"GOMP_SPINCOUNT": "10000"},
    "spin-1000": {"GOMP_SPINCOUNT": "1000"},
    "passive": {"OMP_WAIT_POLICY": "passive"},
    "one-thread-fewer": {},
}


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Everything of the report but machine and versions."""
    given = [name for name in SETTINGS if name in os.environ]
    if given:
        raise ConfigError(f"{given[0]} is set, which every contestant would inherit: unset it")
    settings = train.settings_of(args)
    script = str(Path(train.__file__))
    with ExitStack() as stack:
        workers = {}
        for way in args.modes:
            harness.say(f"{way}: warming up")
            threads = max(1, settings["threads"] - (way == "one-thread-fewer"))
            of_way = {**settings, "threads": threads}
            worker = harness.Worker(script, "gemmule", of_way, environment=WAYS[way])
            workers[way] = stack.enter_context(worker)
            worker.ask(warm_up=2)
        rates: dict[str, dict[str, list[float]]] = {
            way: {"alone": [], "busy": []} for way in workers
        }
        for number in range(args.rounds):
            for way, worker in workers.items():
                rates[way]["alone"].append(worker.ask(steps=args.steps)["rate"])
                with busy_processes(args.busy):
                    rates[way]["busy"].append(worker.ask(steps=args.steps)["rate"])
            harness.say(f"round {number + 1} of {args.rounds}")
    return {
        "settings": {**settings, "busy": args.busy, "rounds": args.rounds, "steps": args.steps,
                     "ways": {way: WAYS[way] for way in workers}},
        "ways": summary(rates),
    }  # fmt: skip


def summary(rates: Mapping[str, Mapping[str, list[float]]]) -> dict[str, Any]:
    """Medians, and how they relate."""
    medians = {
        way: {where: harness.median(values) for where, values in of.items()}
        for way, of in rates.items()
    }
    base = medians.get("default")
    return {
        way: {
            "tokens_per_second": of,
            "repetitions": {w: [harness.rounded(v) for v in vs] for w, vs in rates[way].items()},
            "share": harness.rounded(of["busy"] / of["alone"]),
            "over_default": base and {w: harness.rounded(of[w] / base[w]) for w in of},
        }
        for way, of in medians.items()
    }


def show(report: Mapping[str, Any]) -> None:
    """Prints the report."""
    rows = []
    for way, figures in report["ways"].items():
        speeds, ratios = figures["tokens_per_second"], figures["over_default"]
        rows.append(
            [
                way,
                *(f"{speeds[where]:,.0f}" for where in ("alone", "busy")),
                f"{figures['share']:.2f}",
                *(f"{ratios[where]:.2f}" if ratios else "" for where in ("alone", "busy")),
            ]
        )
    table(
        ["", "alone, tok/s", "cores busy, tok/s", "share", "over default alone", "cores busy"],
        rows,
        title=f"training next to {report['settings']['busy']} busy processes",
    )


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contestant")
    parser.add_argument("--steps", type=int, default=3, help="timed steps of one turn")
    parser.add_argument("--busy", type=int, default=1, help="busy processes")
    parser.add_argument("--modes", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--toy", action="store_true", help="tiny shapes: does it work at all?")
    return harness.run(parser.parse_args(), measure, show)


if __name__ == "__main__":
    sys.exit(main())
