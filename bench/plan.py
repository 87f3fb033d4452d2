"""Whether what `gemmule plan` predicts is what then happens: memory and time of real runs.

For each shape a plan is made, in its own minute, and then the runs that it is about are run, one
from scratch and one distilled, each as a whole training run in a fresh process with no compiled
code at hand. Predictions and runs alternate, so that other work on the machine is felt by both.

Read the figures so: `memory_predicted_over_measured` is the predicted peak of resident memory over
the process's; `time_predicted_over_measured` is the predicted time from starting the command to
its end over the one it took. `memory_extrapolated_over_measured` takes the first shape's
measurement and counts from there what the shape at hand adds, as a plan does to find the largest
batch.
The aim is memory within 10% and time within 20%.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import harness

MEMORY_AIM, TIME_AIM = 0.10, 0.20
WAYS = ("scratch", "distilled")
VOCAB = 4096
TEACHER = "3m"


@dataclass(frozen=True)
class Case:
    """A shape to plan and run.

    Attributes:
        name: in the report.
        student: preset.
        batch_size: sequences a step.
        compiled: whether blocks are compiled.
        steps: optimizer steps of each run.
    """

    name: str
    student: str
    batch_size: int
    compiled: bool
    steps: int

    def settings(self) -> list[str]:
        """As for `gemmule train --set`."""
        return [
            f"data.batch_size={self.batch_size}", "data.seq_len=256",
            f"runtime.compile={str(self.compiled).lower()}", "runtime.dtype=float32",
            "evaluation.every=20", "evaluation.tokens=16384", "evaluation.heldout_tokens=32768",
        ]  # fmt: skip


CASES = [
    Case("1m-b8", "1m", 8, False, 40),
    Case("1m-b16", "1m", 16, False, 20),
    Case("3m-b8", "3m", 8, False, 16),
    Case("1m-b8-compiled", "1m", 8, True, 100),
]
TOY = [Case("toy", "1m", 2, False, 3)]


def work(settings: Mapping[str, Any]) -> harness.Handler:
    """A worker: one whole training run in this process."""

    def handle(_: Mapping[str, Any]) -> harness.Reply:
        from gemmule.train.config import load_run_config
        from gemmule.train.run import run_training

        names = {"data": "data.path", "preset": "model.preset", "steps": "steps"}
        values = [f"{name}={json.dumps(settings[k])}" for k, name in names.items()]
        values += settings["settings"]
        if settings["teacher"]:
            teacher = json.dumps(settings["teacher"])
            values += ["objective.kind='distill'", f"objective.teacher={teacher}"]
        config = load_run_config(None, values)
        with tempfile.TemporaryDirectory() as folder:
            run_training(config, Path(folder) / "run")
        return {"peak_mb": harness.peak_mb()}

    return handle


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Plans and runs every case."""
    with tempfile.TemporaryDirectory() as folder:
        data, teacher = args.data, args.teacher
        if data is None:
            data, teacher = prepare(Path(folder))
        cases = TOY if args.toy else CASES
        if args.cases:
            cases = [case for case in cases if case.name in args.cases.split(",")]
        modes: dict[str, Any] = {}
        first: dict[str, Any] = {}
        for case in cases:
            plan = predict(case, data, teacher, args.seconds)
            for way in WAYS:
                name = f"{case.name}-{way}"
                figures = compare(case, way, plan, data, teacher)
                base = first.setdefault(f"{way}-{case.compiled}", (case, plan))
                if base[0] is not case:
                    guess = extrapolated(case, way, *base, teacher)
                    figures["memory_extrapolated_over_measured"] = harness.rounded(
                        guess / 1e6 / figures["peak_mb"]
                    )
                modes[name] = figures
                harness.say(
                    f"{name:<26} memory x{figures['memory_predicted_over_measured']:.2f}   "
                    f"time x{figures['time_predicted_over_measured']:.2f}"
                )
    keys = ("memory_predicted_over_measured", "time_predicted_over_measured")
    return {
        "settings": {
            "cases": {case.name: vars(case) for case in cases}, "teacher": TEACHER,
            "calibration_seconds": args.seconds,
        },
        "modes": modes,
        "ratios": {name: {k: figures[k] for k in keys} for name, figures in modes.items()},
        "within_aim": {
            key: sum(abs(f[key] - 1) <= aim for f in modes.values()) / len(modes)
            for key, aim in zip(keys, (MEMORY_AIM, TIME_AIM), strict=True)
        },
    }  # fmt: skip


def predict(case: Case, data: Path, teacher: Path, seconds: float) -> dict[str, Any]:
    """The plan, made as the command makes it."""
    from gemmule.plan.forecast import make_plan
    from gemmule.plan.settings import PlanRequest

    request = PlanRequest.parse(
        {
            "teacher": str(teacher),
            "student": case.student,
            "data": data,
            "steps": case.steps,
            "settings": case.settings(),
            "calibration_seconds": seconds,
        }
    )
    return make_plan(request)


def compare(
    case: Case, way: str, plan: Mapping[str, Any], data: Path, teacher: Path
) -> dict[str, Any]:
    """Executes one of the planned runs and compares it with its prediction."""
    route = {"scratch": "scratch", "distilled": "online"}[way]
    settings = {
        "data": str(data), "preset": case.student, "steps": case.steps,
        "settings": case.settings(), "teacher": str(teacher) if way == "distilled" else None,
    }  # fmt: skip
    began = time.monotonic()
    with harness.Worker(__file__, f"{case.name}-{way}", settings) as worker:
        reply = worker.ask()
    seconds = time.monotonic() - began
    memory, told = plan["memory"][route]["peak_bytes"] / 1e6, plan["routes"][route]["seconds"]
    part = {"scratch": "scratch", "distilled": "distill"}[way]
    return {
        "peak_mb": harness.rounded(reply["peak_mb"]),
        "predicted_peak_mb": harness.rounded(memory),
        "seconds": harness.rounded(seconds),
        "predicted_seconds": told,
        "measured_itself": plan["calibration"][part] is not None,
        "calibration_seconds": plan["calibration"]["seconds"],
        "memory_predicted_over_measured": harness.rounded(memory / reply["peak_mb"]),
        "time_predicted_over_measured": harness.rounded(told / seconds),
    }


def extrapolated(case: Case, way: str, base: Case, plan: Mapping[str, Any], teacher: Path) -> float:
    """Bytes of the peak by counting from another shape's measurement."""
    from gemmule.checkpoints.load import open_checkpoint
    from gemmule.model.config import preset
    from gemmule.plan.memory import StepShape, predict_peak

    with open_checkpoint(teacher) as checkpoint:
        other = checkpoint.config
    taught = other if way == "distilled" else None

    def shape(of: Case) -> StepShape:
        student = preset(of.student, vocab_size=other.vocab_size)
        return StepShape(student, of.batch_size, 256, of.compiled, teacher=taught)

    route = {"scratch": "scratch", "distilled": "online"}[way]
    return predict_peak(plan["memory"][route]["peak_bytes"], shape(base), shape(case))


def prepare(folder: Path) -> tuple[Path, Path]:
    """Python's own library as a corpus, and a teacher of a few steps: its loss does not matter."""
    from gemmule.data.prepare import prepare as tokenize
    from gemmule.data.prepare import sample_texts
    from gemmule.model.tokenizer import train_tokenizer
    from gemmule.train.config import RunConfig
    from gemmule.train.run import run_training

    harness.say("preparing text and a teacher")
    tokenizer = train_tokenizer(sample_texts(None), VOCAB)
    data = tokenize(None, tokenizer, folder / "data").path
    config = RunConfig.parse(
        {
            "steps": 5,
            "data": {"path": data},
            "model": {"preset": TEACHER},
            "evaluation": {"tokens": 4096, "heldout_tokens": 4096},
            "runtime": {"compile": False},
        }
    )
    run_training(config, folder / "teacher")
    return data, folder / "teacher"


def show(report: Mapping[str, Any]) -> None:
    """Prints the table."""
    from gemmule.console import table

    table(
        ["run", "peak MB", "predicted", "ratio", "counted", "seconds", "predicted", "ratio"],
        [
            [
                name,
                f"{f['peak_mb']:,.0f}",
                f"{f['predicted_peak_mb']:,.0f}",
                f"{f['memory_predicted_over_measured']:.2f}",
                f"{f.get('memory_extrapolated_over_measured', 1):.2f}",
                f"{f['seconds']:,.1f}",
                f"{f['predicted_seconds']:,.1f}",
                f"{f['time_predicted_over_measured']:.2f}",
            ]
            for name, f in report["modes"].items()
        ],
    )
    for key, share in report["within_aim"].items():
        harness.say(f"{key}: {share:.0%} of runs within the aim")


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Predictions of gemmule plan against real runs.",
        epilog="Example: python bench/plan.py --json bench/results/plan.json",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there")
    parser.add_argument("--data", type=Path, help="prepared corpus; default: made for the purpose")
    parser.add_argument("--teacher", type=Path, help="a model of that corpus's tokenizer")
    parser.add_argument("--cases", metavar="A,B", help=", ".join(case.name for case in CASES))
    parser.add_argument("--seconds", type=float, default=60.0, help="for each calibration")
    parser.add_argument("--toy", action="store_true", help="tiny runs: does it work at all?")
    parser.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if (args.data is None) != (args.teacher is None):
        parser.error("give --data and --teacher together, or neither")
    known = {case.name for case in CASES}
    if args.cases and not set(args.cases.split(",")) <= known:
        parser.error(f"no such case in {args.cases}; there are: {', '.join(sorted(known))}")
    return harness.run(args, measure, show, work)


if __name__ == "__main__":
    sys.exit(main())
