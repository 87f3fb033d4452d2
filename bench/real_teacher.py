"""A pretrained teacher with a large vocabulary, and small students of a little text.

A text's vocabulary is trimmed out of the teacher's, the first part of the text is recorded once,
and students of one shape read that part again and again: from the text alone ("scratch") or from
the teacher's distribution, stored or online, with next-token loss mixed in or not, from the teacher
as it is or adapted to the text. Each is measured after every epoch, on validation text, which
chooses the best epoch, and on held-out text, which the tables show.

Everything is in the folder --out: finished parts are not run again, and a killed run goes on. The
arms are in the order of what they are worth, seed by seed; --report tells what there is so far.

    python bench/real_teacher.py --teacher models/gemma-3-270m --text middlemarch.txt
"""

import argparse
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import harness
import real_teacher_report as results
import resumable
from gemmule import files
from gemmule.data.dataset import Dataset
from gemmule.errors import ConfigError
from gemmule.model.gemma import Gemma
from gemmule.runs import metrics
from gemmule.runs.layout import RunLayout
from gemmule.runtime import host
from gemmule.train.config import RunConfig
from gemmule.train.evaluate import evaluate
from gemmule.train.probe import Probe
from real_teacher_materials import Materials, toy_materials

BATCH, SEQ_LEN = 4, 256  # little text: small batches, for more steps


@dataclass(frozen=True)
class Arm:
    """A way to train a student.

    Attributes:
        source: what it learns from.
        epochs: number of times that it reads the text.
        alpha: weight of the next-token loss next to the teacher's.
        teacher: which teacher: "plain" or "adapted".
        preset: shape of the student.
    """

    source: Literal["text", "stored", "online"]
    epochs: int
    alpha: float = 0.0
    teacher: str = "plain"
    preset: str = "1m"


STAGES: tuple[Mapping[str, Arm], ...] = (  # each is finished for all seeds before the next begins
    {"scratch-2": Arm("text", 2), "stored-4": Arm("stored", 4)},
    {"stored-2": Arm("stored", 2), "scratch-3": Arm("text", 3), "scratch-1": Arm("text", 1)},
    {
        "alpha-0.25": Arm("stored", 4, alpha=0.25),
        "alpha-0.5": Arm("stored", 4, alpha=0.5),
    },
    {"adapted-4": Arm("stored", 4, teacher="adapted")},
    {"stored-8": Arm("stored", 8), "scratch-4": Arm("text", 4)},
    {"online-2": Arm("online", 2)},
    {
        "3m-scratch-1": Arm("text", 1, preset="3m"),
        "3m-scratch-2": Arm("text", 2, preset="3m"),
        "3m-stored-4": Arm("stored", 4, preset="3m"),
    },
)
ARMS = {name: arm for stage in STAGES for name, arm in stage.items()}


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """What all arms share."""
    return {
        "toy": args.toy, "tokens": 4 * BATCH * 32 if args.toy else args.tokens,
        "seq_len": 32 if args.toy else SEQ_LEN, "batch_size": BATCH,
        "draws": 20 if args.toy else 200,
        "learning_rate": 0.012, "embedding_learning_rate": 0.024, "weight_decay": 0.1,
        "validation_tokens": 512 if args.toy else 15_360,
        "heldout_tokens": 512 if args.toy else 20_480,
        "adapt_steps": 2 if args.toy else 112, "adapt_learning_rate": 5e-5,
        "compile": False, "dtype": "float32", "threads": args.threads,
    }  # fmt: skip


class Experiment:
    """Trains students in a folder; what is finished there is left as it is.

    Args:
        settings: as `settings_of` returns them.
        materials: text and teachers.
        out: the folder.
    """

    def __init__(self, settings: Mapping[str, Any], materials: Materials, out: Path) -> None:
        self.settings, self.materials, self.out = settings, materials, out
        self.dataset = materials.dataset
        self.steps = settings["tokens"] // (settings["batch_size"] * settings["seq_len"])

    def train(self, name: str, seed: int) -> None:
        """A student of one arm."""
        arm, settings = ARMS[name], self.settings
        objective: dict[str, Any] = {"kind": "pretrain"}
        if arm.source != "text":
            objective = {"kind": "distill", "alpha": arm.alpha}
            if arm.source == "online":
                objective["teacher"] = str(self.materials.teachers[arm.teacher])
            else:
                objective["targets"] = str(self.materials.record(arm.teacher))
        rates = ("learning_rate", "embedding_learning_rate", "weight_decay")
        values = {
            "steps": self.steps * arm.epochs,
            "seed": seed,
            "data": {
                "path": str(self.dataset.path), "corpus_tokens": settings["tokens"],
                "seq_len": settings["seq_len"], "batch_size": settings["batch_size"],
            },
            "model": {"preset": arm.preset},
            "objective": objective,
            "optimizer": {k: settings[k] for k in rates},
            "evaluation": {
                "every": self.steps, "tokens": settings["validation_tokens"],
                "heldout_tokens": settings["seq_len"],  # the probe has measured all that count
            },
            "checkpoint": {"keep": 1, "minutes": 2.0},
            "runtime": {k: settings[k] for k in ("compile", "dtype", "threads")},
        }  # fmt: skip
        folder, probes = self.run_folder(name, seed), [self._heldout]
        resumable.train(RunConfig.parse(values), folder, label=folder.name, make_probes=probes)

    def _heldout(self, config: RunConfig, model: Gemma, dataset: Dataset) -> Probe:
        """Held-out loss after every epoch; it decides nothing."""

        def measure(_: int) -> dict[str, float]:
            split = dataset.split("heldout")
            values = evaluate(
                model, split, dataset.tokenizer, seq_len=config.data.seq_len,
                max_tokens=self.settings["heldout_tokens"],
            )  # fmt: skip
            return {k: values[k] for k in ("nats_per_token", "bits_per_byte")}

        return Probe("heldout", self.steps, measure, label="split")

    def run_folder(self, name: str, seed: int) -> Path:
        """Folder of a student."""
        return self.out / "runs" / f"{name}-seed{seed}"

    def finished(self, seeds: int) -> Iterator[dict[str, Any]]:
        """The students that are trained: loss and cost after each epoch."""
        for name, arm in ARMS.items():
            for seed in range(seeds):
                layout = RunLayout(self.run_folder(name, seed))
                if not layout.finished:
                    continue
                result = files.read_json(layout.result)
                flops = result["train_flops"] / result["train_tokens"]
                points = [
                    {
                        "epoch": line["step"] // self.steps, "tokens": line["tokens"],
                        "seconds": line["seconds"], "flops": flops * line["tokens"],
                    }
                    for line in metrics.read(layout.metrics)
                    if line.get("split") == "validation"
                ]  # fmt: skip
                for split in ("validation", "heldout"):
                    lines = [m for m in metrics.read(layout.metrics) if m.get("split") == split]
                    for point, line in zip(points, lines, strict=True):
                        point[split] = line["bits_per_byte"]
                yield {
                    "arm": name, "seed": seed, "source": arm.source, "preset": arm.preset,
                    "alpha": arm.alpha, "teacher": arm.teacher, "epochs": arm.epochs,
                    "parameters": result["parameters"], "points": points,
                }  # fmt: skip


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Runs what is missing, and reports what there is."""
    settings = settings_of(args)
    out = args.out / "toy" if args.toy else args.out
    path, text = args.teacher, args.text
    if args.toy:
        path, text = toy_materials(out)
    if path is None or text is None:
        raise ConfigError("--teacher and --text are needed: a folder of a model, and a text")
    materials = Materials(settings, path, text, out)
    experiment = Experiment(settings, materials, out)
    if not args.report:
        materials.record("plain")
        for stage in STAGES:
            for seed in range(args.seeds):
                for name in stage:
                    if name in args.arms:
                        experiment.train(name, seed)
    runs = list(experiment.finished(args.seeds))
    for which in sorted({run["teacher"] for run in runs if run["source"] != "text"}):
        materials.judge(which)
    report = results.summarize(runs, materials.figures())
    return {"settings": settings, "text": materials.about(), **report}


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0],
        epilog="Example: python bench/real_teacher.py --teacher models/gemma-3-270m --text a.txt",
    )
    parser.add_argument("--teacher", type=Path, metavar="DIR", help="the pretrained model")
    parser.add_argument("--text", type=Path, metavar="FILE", help="the text")
    parser.add_argument("--tokens", type=int, default=229_376, help="of it, to train on")
    parser.add_argument("--out", type=Path, default=Path("runs/real-teacher"))
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="number of seeds")
    parser.add_argument("--threads", type=int, default=host.usable_cores())
    parser.add_argument("--toy", action="store_true", help="tiny shapes: does it work at all?")
    parser.add_argument("--report", action="store_true", help="train nothing: what is there?")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the losses there")
    args = parser.parse_args()

    def show(report: Mapping[str, Any]) -> None:
        results.show(report)
        if args.plot:
            files.write_text(args.plot, results.draw(report))

    return harness.run(args, measure, show)


if __name__ == "__main__":
    sys.exit(main())
