"""Whether a student learns anything from a teacher with another tokenizer.

Teacher and student read Python's library, each with a tokenizer of its own. The student is trained
from scratch (`scratch`, for as many tokens; `scratch_compute`, for as many operations as `space`),
on likelihoods of spans between all common boundaries (`token`) and between spaces, corrected
(`space`), each alone and half mixed with the next-token loss (`token_mixed`, `space_mixed`); and
with the teacher's own tokenizer (`same`), which is what trimming makes possible. What counts is
bits per byte of held-out text.

Prediction, before the first run: mixed, spans help by less than 0.02 bits per byte at equal tokens,
because a span tells one number where a distribution tells thousands, and not at equal compute;
alone, they are worse than scratch. `space` is no worse than `token`. `same` is ahead of all.
"""

import argparse
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import harness
from gemmule import stats
from gemmule.console import table
from gemmule.data.prepare import prepare, sample_texts
from gemmule.model.tokenizer import train_tokenizer
from gemmule.train.config import RunConfig
from gemmule.train.run import run_training

ARMS: Mapping[str, Mapping[str, Any]] = {
    "scratch": {},
    "token": {"span_ends": "token"},
    "space": {"span_ends": "space"},
    "token_mixed": {"span_ends": "token", "alpha": 0.5},
    "space_mixed": {"span_ends": "space", "alpha": 0.5},
    "scratch_compute": {},
    "same": {},
}
TOY_SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 16,
             "num_attention_heads": 2, "num_key_value_heads": 1}  # fmt: skip


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """What all runs share."""
    full = {
        "teacher": "3m", "student": "1m", "teacher_steps": 1500, "steps": args.steps,
        "vocabularies": {"teacher": 4096, "student": 3000},
    }  # fmt: skip
    toy = {
        "teacher": "1m", "student": "1m", "teacher_steps": 4, "steps": 3,
        "vocabularies": {"teacher": 1000, "student": 800},
    }  # fmt: skip
    return {
        **(toy if args.toy else full), "toy": args.toy, "seeds": args.rounds,
        "batch_size": 2 if args.toy else 8, "seq_len": 64 if args.toy else 256,
    }  # fmt: skip


def run_settings(
    settings: Mapping[str, Any], preset: str, data: Path, steps: int, seed: int,
    objective: Mapping[str, Any],
) -> RunConfig:  # fmt: skip
    """A run's settings."""
    return RunConfig.parse(
        {
            "steps": steps,
            "seed": seed,
            "data": {
                "path": data, "batch_size": settings["batch_size"], "seq_len": settings["seq_len"],
            },
            "model": {"preset": preset, **(TOY_SHAPE if settings["toy"] else {})},
            "objective": objective or {"kind": "pretrain"},
            "optimizer": {"learning_rate": 0.012, "embedding_learning_rate": 0.024},
            "evaluation": {
                "every": steps, "tokens": 4096,
                "heldout_tokens": 1024 if settings["toy"] else 131_072,
            },
            "runtime": {"compile": False if settings["toy"] else "auto"},
        }
    )  # fmt: skip


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Trains the teacher, and each kind of student from each seed."""
    settings = settings_of(args)
    arms: dict[str, list[dict[str, float]]] = {mode: [] for mode in ARMS}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        data = {
            who: prepare(
                None, train_tokenizer(sample_texts(None, 8_000_000), size), folder / f"data-{who}"
            ).path
            for who, size in settings["vocabularies"].items()
        }
        harness.say("training the teacher")
        config = run_settings(
            settings, settings["teacher"], data["teacher"], settings["teacher_steps"], 1000, {}
        )
        taught = run_training(config, folder / "teacher")
        for seed in range(settings["seeds"]):
            for mode in ARMS:
                done = {other: results[seed] for other, results in arms.items() if results[seed:]}
                result = _student(settings, mode, folder, data, seed, done)
                arms[mode].append(result)
                harness.say(f"seed {seed}, {mode}: {result['bits_per_byte']:.4f} bits/byte")
    return {
        "settings": settings,
        "teacher_bits_per_byte": taught["bits_per_byte"],
        "arms": arms,
        "against_scratch": {
            mode: stats.student_mean(
                [r["bits_per_byte"] - s["bits_per_byte"]
                 for r, s in zip(results, arms["scratch"], strict=True)]
            )
            for mode, results in arms.items() if mode != "scratch"
        },
    }  # fmt: skip


def _student(
    settings: Mapping[str, Any], mode: str, folder: Path, data: Mapping[str, Path], seed: int,
    done: Mapping[str, Mapping[str, float]],
) -> dict[str, float]:  # fmt: skip
    teacher = {"kind": "distill", "teacher": str(folder / "teacher")}
    who, steps, objective = "student", settings["steps"], dict(ARMS[mode])
    if mode == "same":
        who, objective = "teacher", teacher
    elif objective:
        objective = {**teacher, "cross_tokenizer": True, **objective}
    elif mode == "scratch_compute":
        steps = round(steps * done["space"]["flops"] / done["scratch"]["flops"])
    config = run_settings(settings, settings["student"], data[who], steps, seed, objective)
    result = run_training(config, folder / f"{mode}-{seed}")
    return {
        "bits_per_byte": result["bits_per_byte"],
        "train_tokens": result["train_tokens"],
        "flops": result["train_flops"],
    }


def show(report: Mapping[str, Any]) -> None:
    """Prints the table."""
    rows = []
    for mode, results in report["arms"].items():
        own = stats.student_mean([result["bits_per_byte"] for result in results])
        gap = report["against_scratch"].get(mode, {"mean": None, "half_width": None})
        rows.append(
            [
                mode,
                f"{own['mean']:.4f}",
                "" if gap["mean"] is None else f"{gap['mean']:+.4f}",
                "" if gap["half_width"] is None else f"± {gap['half_width']:.4f}",
                f"{results[0]['train_tokens']:,}",
                f"{results[0]['flops']:.2e}",
            ]
        )
    table(
        ["student", "bits/byte", "- scratch", "95%", "tokens", "operations"],
        rows,
        title=f"teacher: {report['teacher_bits_per_byte']:.4f} bits/byte",
    )


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="Example: python bench/cross_tokenizer.py --json cross_tokenizer.json",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="number of seeds")
    parser.add_argument("--steps", type=int, default=1000, metavar="N", help="steps of a student")
    parser.add_argument("--toy", action="store_true", help="tiny shapes: does it work at all?")
    args = parser.parse_args()
    return harness.run(args, measure, show)


if __name__ == "__main__":
    sys.exit(main())
