"""What a logit store costs and what a student learns from it, for each kind of targets.

Two questions, one table:

- Quality: students of one shape learn from the whole distribution (the teacher at hand), from each
  kind of stored targets, and from scratch; same text, same steps, several seeds. `loss` is
  nats/token on held-out text, `over_full` its share above that of full distillation with the same
  seed; means over seeds, --seeds of them for the arms that matter most, --other-seeds for others.
- Cost: bytes a token; tokens a second of recording, of reading a store, and of training from a
  store and with the teacher at hand. Contestants take turns, medians of rounds.

"systematic" draws are gemmule's default, "sampled" ones are independent, as published (Random
Sampling KD). "top-k at equal bytes" keeps as many of the most likely ids as sampled-50's bytes
allow: what tools do that store top-k log-probabilities (DistillKit and others), in our format.

It needs a quickstart's folder (--quickstart, made by `make quickstart`), whose teacher and data are
used. Stores and students stay in --work, so that a stopped run goes on; --quality-only and
--cost-only run one half.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

import harness
from gemmule import files
from gemmule.console import table
from gemmule.data.dataset import Dataset
from gemmule.data.packed_text import SEQUENCE_INDICES, PackedText, batch_of
from gemmule.errors import ConfigError
from gemmule.model.config import preset
from gemmule.model.gemma import Gemma
from gemmule.runtime import host, memory, torch_compile
from gemmule.teachers.gemma import GemmaTeacher
from gemmule.teachers.logit_store import Store
from gemmule.teachers.record import record
from gemmule.teachers.record_config import RecordConfig
from gemmule.teachers.target_spec import TargetSpec
from gemmule.train.config import OptimizerConfig, RunConfig
from gemmule.train.objective import Objective
from gemmule.train.objectives.distillation import Distillation
from gemmule.train.objectives.next_token import NextToken
from gemmule.train.objectives.stored_distillation import StoredDistillation
from gemmule.train.optimizers import build_optimizers
from gemmule.train.run import run_training

BATCH = 8
EQUAL_BYTES = "top-k at equal bytes"
MAIN = ("scratch", "full", "systematic-50", "systematic-256", "sampled-50")  # with all seeds
KINDS: Mapping[str, Mapping[str, Any]] = {
    "systematic-12": {"draws": 12},
    "systematic-50": {"draws": 50},
    "systematic-256": {"draws": 256},
    "sampled-12": {"draws": 12, "spread": "independent"},
    "sampled-50": {"draws": 50, "spread": "independent"},
    "sampled-256": {"draws": 256, "spread": "independent"},
    "top-32": {"kind": "top_k", "k": 32},
    "top-32+tail": {"kind": "top_k_tail", "k": 32},
    EQUAL_BYTES: {"kind": "top_k"},
}


def main() -> int:
    """The whole benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quickstart", type=Path, default=Path("runs/quickstart"))
    parser.add_argument("--work", type=Path, default=Path("runs/bench-logit-store"))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there")
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="draw the --json file's losses there"
    )
    parser.add_argument("--steps", type=int, default=200, help="of each student")
    parser.add_argument("--seeds", type=int, default=3, help="of the arms that matter most")
    parser.add_argument("--other-seeds", type=int, default=1, help="of the other arms")
    parser.add_argument("--rounds", type=int, default=5, help="turns, for the rates")
    parser.add_argument("--student", default="1m", help="preset")
    parser.add_argument("--toy", action="store_true", help="short rows: does it work at all?")
    parser.add_argument("--quality-only", action="store_true")
    parser.add_argument("--cost-only", action="store_true")
    args = parser.parse_args()
    args.modes = list(KINDS)
    args.seq_len = 24 if args.toy else 256
    status = harness.run(args, measure, show)
    if not status and args.plot and args.json:
        _plot(files.read_json(args.json), args.plot)
    return status


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Everything, as one report."""
    if not (args.quickstart / "teacher" / "result.json").is_file():
        raise ConfigError(f"no quickstart in {args.quickstart}: make quickstart, or --quickstart")
    args.work.mkdir(parents=True, exist_ok=True)
    tokens = args.steps * BATCH * args.seq_len
    stores = _stores(args, tokens)
    report: dict[str, Any] = {
        "settings": {
            "student": args.student,
            "student_tokens": tokens,
            "seeds": args.seeds,
            "seq_len": args.seq_len,
            "batch_size": BATCH,
            "teacher": files.read_json(args.quickstart / "teacher" / "result.json"),
            "corpus": Dataset.open(args.quickstart / "data").name,
        },
        "targets": {
            name: {
                "label": store.spec.label,
                "bytes_per_token": round(store.bytes_per_token, 2),
                "unbiased": not store.spec.biased,
            }
            for name, store in stores.items()
        },
    }
    if not args.cost_only:
        report["quality"] = _quality(args, stores)
    if not args.quality_only:
        report["cost"] = _cost(args, stores)
    return report


def _stores(args: argparse.Namespace, tokens: int) -> dict[str, Store]:
    stores: dict[str, Store] = {}
    for name, kind in KINDS.items():
        settings = dict(kind)
        if name == EQUAL_BYTES:
            # Of top-32's bytes all but the header are proportional to the ids kept, nearly.
            head = 2.3
            each = (stores["top-32"].bytes_per_token - head) / 32
            settings["k"] = round((stores["sampled-50"].bytes_per_token - head) / each)
        out = args.work / f"store-{name.replace(' ', '-')}"
        config = RecordConfig(
            teacher=str(args.quickstart / "teacher"),
            data=args.quickstart / "data",
            targets=TargetSpec.parse(settings),
            seq_len=args.seq_len,
            tokens=tokens,
        )
        record(config, out)
        stores[name] = Store.open(out)
        harness.say(f"{name}: {stores[name].bytes_per_token:.1f} bytes a token")
    return stores


def _quality(args: argparse.Namespace, stores: Mapping[str, Store]) -> dict[str, Any]:
    losses: dict[str, list[float]] = {}
    for seed in range(args.seeds):
        for name in ("scratch", "full", *stores):
            if name not in MAIN and seed >= args.other_seeds:
                continue
            objective: dict[str, Any] = {"kind": "pretrain"}
            if name == "full":
                objective = {"kind": "distill", "teacher": str(args.quickstart / "teacher")}
            elif name != "scratch":
                objective = {"kind": "distill", "targets": stores[name].path}
            config = RunConfig.parse(
                {
                    "steps": args.steps,
                    "seed": seed,
                    "data": {
                        "path": args.quickstart / "data",
                        "corpus_tokens": args.steps * BATCH * args.seq_len,
                        "seq_len": args.seq_len,
                        "batch_size": BATCH,
                    },
                    "model": {"preset": args.student},
                    "objective": objective,
                    "evaluation": {"every": args.steps},
                }
            )
            run = args.work / f"student-{name.replace(' ', '-')}-{seed}"
            resume = (run / "config.toml").is_file()
            result = run_training(config, run, resume=resume)
            losses.setdefault(name, []).append(result["nats_per_token"])
            harness.say(f"{run.name}: {result['nats_per_token']:.4f}")
    full = losses["full"]
    summaries = {}
    for name, values in losses.items():
        over = [value / base - 1.0 for value, base in zip(values, full, strict=False)]
        summaries[name] = {
            "losses": values,
            "loss": statistics.mean(values),
            "over_full": statistics.mean(over),
            "over_full_each": over,
        }
    return summaries


def _cost(args: argparse.Namespace, stores: Mapping[str, Store]) -> dict[str, Any]:
    memory.keep_freed_memory()
    torch.set_num_threads(host.usable_cores())
    dataset = Dataset.open(args.quickstart / "data")
    teacher = GemmaTeacher.open(str(args.quickstart / "teacher"), dataset)
    if not args.toy:
        torch_compile.compile_blocks(teacher.model.layers)
    split = dataset.split("train")
    batches = [batch_of(split, np.arange(BATCH) + BATCH * i, args.seq_len) for i in range(4)]
    turns: dict[str, Callable[[], int]] = {}
    for name, store in stores.items():
        turns[f"record {name}"] = _recording(teacher, store, batches)
        turns[f"read {name}"] = _reading(store, args.steps)
    turns["train scratch"] = _training(args, dataset, NextToken)
    turns["train with the teacher"] = _training(
        args, dataset, lambda: Distillation(teacher, 1.0, 0.0)
    )
    turns["train from a store"] = _training(
        args, dataset, lambda: StoredDistillation(stores["systematic-50"], 1.0, 0.0)
    )
    rates: dict[str, list[float]] = {name: [] for name in turns}
    for turn in turns.values():
        turn()  # compiles
    for i in range(args.rounds):
        for name, turn in turns.items():
            began = time.perf_counter()
            tokens = turn()
            rates[name].append(tokens / (time.perf_counter() - began))
        harness.say(f"round {i + 1} of {args.rounds}")
    medians = {name: harness.median(values) for name, values in rates.items()}
    return {
        "tokens_per_second": medians,
        "ratios": {
            "stored_vs_online_training": harness.rounded(
                medians["train from a store"] / medians["train with the teacher"]
            ),
            "stored_vs_scratch_training": harness.rounded(
                medians["train from a store"] / medians["train scratch"]
            ),
            "read_vs_training": harness.rounded(
                medians["read systematic-50"] / medians["train from a store"]
            ),
        },
    }


def _recording(teacher: GemmaTeacher, store: Store, batches: list[Any]) -> Callable[[], int]:
    def turn() -> int:
        for batch in batches:
            choices = [store.spec.choice(0, int(w)) for w in batch.extras[SEQUENCE_INDICES]]
            for targets in teacher.targets(batch, choices, 1.0):
                store.codec.encode(targets)
        return len(batches) * BATCH * store.seq_len

    return turn


def _reading(store: Store, steps: int) -> Callable[[], int]:
    order = np.random.default_rng(0).permutation(store.sequences)

    def turn() -> int:
        for i in range(0, min(steps, 40)):
            store.targets(order[i * BATCH : (i + 1) * BATCH].tolist())
        return min(steps, 40) * BATCH * store.seq_len

    return turn


def _training(
    args: argparse.Namespace, dataset: Dataset, build: Callable[[], Objective]
) -> Callable[[], int]:
    shape = preset(args.student, vocab_size=dataset.tokenizer.vocab_size)
    torch.manual_seed(0)
    model = Gemma(shape)
    if not args.toy:
        torch_compile.compile_blocks(model.layers)
    objective = build()
    objective.prepare("cpu", not args.toy)
    optimizers = build_optimizers(model, OptimizerConfig(), torch.float32)
    windows = args.steps * BATCH
    source = PackedText(dataset.split("train"), BATCH, args.seq_len, 0, windows)
    steps = 5

    def turn() -> int:
        for _ in range(steps):
            loss, _ = objective.loss(model, source.next())
            (loss / (BATCH * args.seq_len)).backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
        return steps * BATCH * args.seq_len

    return turn


def show(report: Mapping[str, Any]) -> None:
    """The table."""
    rows = []
    quality, cost = report.get("quality", {}), report.get("cost", {})
    rates = cost.get("tokens_per_second", {})
    for name in ("scratch", "full", *report["targets"]):
        about = report["targets"].get(name)
        row = quality.get(name)
        rows.append(
            [
                _shown(report, name),
                "" if about is None else f"{about['bytes_per_token']:.1f}",
                "" if row is None else f"{row['loss']:.4f}",
                "" if row is None else f"{row['over_full']:+.2%}",
                "" if row is None else str(len(row["losses"])),
                _rate(rates, f"record {name}"),
                _rate(rates, f"read {name}"),
            ]
        )
    headers = ["targets", "B/token", "loss", "over full", "seeds", "record tok/s", "read tok/s"]
    table(headers, rows)
    for name, ratio in cost.get("ratios", {}).items():
        harness.say(f"{name.replace('_', ' ')}: {ratio:.2f}")


def _shown(report: Mapping[str, Any], name: str) -> str:
    """Of the kind with equal bytes, how many ids those are."""
    return f"{report['targets'][name]['label']}, equal bytes" if name == EQUAL_BYTES else name


def _rate(rates: Mapping[str, float], name: str) -> str:
    return f"{rates[name]:,.0f}" if name in rates else ""


def _plot(report: Mapping[str, Any], path: Path) -> None:
    """Loss against bytes a token, seed by seed and on average, between full and from scratch."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    params: Any = mpl.rcParams
    params.update({"svg.hashsalt": "gemmule", "svg.fonttype": "none", "font.size": 10.5})
    quality = report["quality"]
    canvas = Figure(figsize=(8.2, 4.6), facecolor="#fffefb", layout="constrained")
    axes = canvas.subplots()
    axes.set_facecolor("#fffefb")
    for name, color, label in (
        ("full", "#1d2226", "the teacher at hand (whole distribution)"),
        ("scratch", "#59636b", "from scratch"),
    ):
        axes.axhline(quality[name]["loss"], color=color, linestyle="--", linewidth=1)
        axes.annotate(
            label, (0, quality[name]["loss"]), xycoords=("axes fraction", "data"),
            xytext=(6, 5 if name == "scratch" else -12), textcoords="offset points", color=color,
        )  # fmt: skip
    for name, about in report["targets"].items():
        color, marker = ("#00756f", "o") if about["unbiased"] else ("#c2500f", "s")
        row, size = quality[name], about["bytes_per_token"]
        axes.plot([size] * len(row["losses"]), row["losses"], marker, color=color, alpha=0.3,
                  markersize=4)  # fmt: skip
        axes.plot(size, row["loss"], marker, color=color, markersize=8)
        beside = {"sampled": (-6, 10), "systematic": (8, -14)}.get(name.partition("-")[0], (9, -4))
        axes.annotate(_shown(report, name), (size, row["loss"]), xytext=beside,
                      textcoords="offset points", color=color)  # fmt: skip
    axes.margins(y=0.12)
    axes.set_xscale("log", base=2)
    axes.set_xticks([8, 16, 32, 64, 128, 256], ["8", "16", "32", "64", "128", "256"])
    axes.set_xlim(8, 256)
    axes.set_xlabel("bytes per token in the store (circles: unbiased, squares: biased)")
    axes.set_ylabel("student's held-out loss, nats/token")
    axes.grid(color="#e1dcd2", linewidth=0.8)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(length=0, which="both")
    with files.atomic_path(path) as tmp:
        canvas.savefig(tmp, format="svg", metadata={"Creator": None, "Date": None})


if __name__ == "__main__":
    raise SystemExit(main())
