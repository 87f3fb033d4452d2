"""SFT and DPO alongside TRL: tokens per second, peak memory, and equality of losses and gradients.

Both sides start from the same weights, get the same conversations as ids, and step with fused AdamW
behind a clipped gradient, in fp32. gemmule packs conversations into rows and computes the
reference's log-probabilities once, before the first step; TRL pads and keeps a second model, as its
defaults do. "trl-dpo-precomputed" computes the reference once, too. TRL's default is gradient
checkpointing, which saves memory and costs time: "-checkpointing", with --all.

Read the figures so: tokens are those of conversations, without padding. `peak_memory_mb` is the
peak of resident memory above that after imports. `equality` has the largest difference of a first
step's loss (relative, above 1), and of an entry of its gradient relative to the gradient's largest
entry.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import harness
from gemmule.console import table
from gemmule.model.config import PRESETS
from gemmule.runtime import host
from posttrain_sides import build_gemmule, build_trl

MODES = ("gemmule-sft", "trl-sft", "gemmule-dpo", "trl-dpo", "trl-dpo-precomputed")
MORE_MODES = (
    "gemmule-sft-compiled",
    "gemmule-dpo-compiled",
    "trl-sft-checkpointing",
    "trl-dpo-checkpointing",
)
VOCABULARIES = (4096, 256_000)
TOLERANCE = 1e-5
EQUAL_STEPS = 3

TOY_SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "sliding_window": 16,
    "max_position_embeddings": 256,
}
COMMON = {"seed": 0, "beta": 0.1, "learning_rate": 1e-4}
TOY = {
    **COMMON,
    "conversations": 8,
    "prompt_tokens": [3, 12],
    "answer_tokens": [4, 30],
    "seq_len": 48,
    "batches": 3,
}
FULL = {
    **COMMON,
    "conversations": 8,
    "prompt_tokens": [20, 120],
    "answer_tokens": [40, 360],
    "seq_len": 512,
    "batches": 2,
}


def build(settings: Mapping[str, Any]) -> harness.Handler:
    """The contestant `settings["mode"]`."""
    make = build_gemmule if settings["mode"].startswith("gemmule") else build_trl
    return make(settings).handle


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Everything of the report but machine and versions."""
    from importlib import metadata

    vocabularies = (512,) if args.toy else VOCABULARIES
    shape, settings = (TOY_SHAPE, TOY) if args.toy else (PRESETS["1m"], FULL)
    settings = {**settings, "threads": host.usable_cores()}
    report: dict[str, Any] = {
        "trl": metadata.version("trl"),
        "settings": {
            **settings,
            "model": dict(shape),
            "toy": args.toy,
            "rounds": args.rounds,
            "steps_per_repetition": args.steps,
            "load_average": [round(x, 2) for x in os.getloadavg()],
        },
        "equality": equality(),
        "vocabularies": {},
    }
    for size in vocabularies:
        harness.say(f"vocabulary {size:,}")
        model = {**shape, "vocab_size": size}
        modes = speed(args, {**settings, "model": model})
        report["vocabularies"][str(size)] = {"modes": modes, "ratios": ratios(modes)}
    return report


def speed(args: argparse.Namespace, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Tokens per second and peak memory of each mode."""
    idle: dict[str, float] = {}
    replies: dict[str, list[harness.Reply]] = {}
    for method in ("sft", "dpo"):
        modes = [mode for mode in args.modes if mode.split("-")[1] == method]
        with ExitStack() as stack:
            workers = []
            for mode in modes:
                own = {**settings, "method": method}
                workers.append(stack.enter_context(harness.Worker(__file__, mode, own)))
                workers[-1].ask(steps=1)
                harness.say(f"{mode}: warm")
            if workers:
                replies |= harness.take_turns(workers, args.rounds, steps=args.steps)[0]
            idle |= {w.mode: harness.rounded(w.idle_cpu_seconds) for w in workers}
    return {
        mode: {
            "tokens_per_second": harness.median([r["rate"] for r in turns]),
            "repetitions": [harness.rounded(r["rate"]) for r in turns],
            "peak_memory_mb": round(turns[-1]["peak_rss_mb"] - turns[-1]["imports_rss_mb"], 1),
            "peak_rss_mb": round(turns[-1]["peak_rss_mb"], 1),
            "idle_cpu_seconds": idle[mode],
        }
        for mode, turns in replies.items()
    }


def ratios(modes: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Gemmule's speed and memory over TRL's, for each of TRL's modes."""
    results: dict[str, float] = {}
    for mode, theirs in modes.items():
        if mode.startswith("trl"):
            for ending in ("", "-compiled"):
                ours = modes.get(f"gemmule-{mode.split('-')[1]}{ending}")
                if ours is not None:
                    for name, key in (("speed", "tokens_per_second"), ("memory", "peak_memory_mb")):
                        ratio = ours[key] / theirs[key] if theirs[key] > 0 else float("nan")
                        results[f"{name}{ending}_vs_{mode}"] = harness.rounded(ratio)
    return results


def equality() -> dict[str, Any]:
    """Losses and gradients of the first steps of both sides, on a tiny model."""
    results: dict[str, Any] = {"tolerance": TOLERANCE, "steps": EQUAL_STEPS}
    model = {**TOY_SHAPE, "vocab_size": 512}
    for method in ("sft", "dpo", "rloo"):
        settings = {**TOY, "model": model, "method": method, "threads": 1}
        with tempfile.TemporaryDirectory() as folder:
            losses, gradients = {}, {}
            for side in ("gemmule", "trl"):
                own = Path(folder) / side
                own.mkdir()
                with harness.Worker(__file__, f"{side}-{method}", settings) as worker:
                    reply = worker.ask(steps=EQUAL_STEPS, gradients=str(own))
                losses[side], gradients[side] = reply["losses"], own
            results[method] = {
                "losses": losses,
                "largest_loss_difference": max(
                    abs(a - b) / max(1.0, abs(b))
                    for a, b in zip(losses["gemmule"], losses["trl"], strict=True)
                ),
                "largest_gradient_difference": max(
                    difference(gradients["gemmule"] / name, gradients["trl"] / name)
                    for name in (f"{i}.safetensors" for i in range(EQUAL_STEPS))
                ),
            }
    results["agrees"] = all(
        results[method][key] <= TOLERANCE
        for method in ("sft", "dpo", "rloo")
        for key in ("largest_loss_difference", "largest_gradient_difference")
    )
    return results


def difference(ours: Path, theirs: Path) -> float:
    """Largest difference of two gradients, relative to the largest entry."""
    from safetensors.torch import load_file

    a, b = load_file(ours), load_file(theirs)
    assert a.keys() == b.keys(), sorted(a.keys() ^ b.keys())
    largest = max(float(value.abs().max()) for value in b.values())
    return max(float((a[name] - b[name]).abs().max()) for name in a) / largest


def show(report: Mapping[str, Any]) -> None:
    """Prints the report as tables."""
    equal = report["equality"]
    for method in ("sft", "dpo", "rloo"):
        loss, grad = (equal[method][f"largest_{k}_difference"] for k in ("loss", "gradient"))
        harness.say(f"{method}: losses within {loss:.1g}, gradients within {grad:.1g} (relative)")
    if not equal["agrees"]:
        harness.say(f"NOT EQUAL within {TOLERANCE}: the sides do not do the same work")
    for size, part in report["vocabularies"].items():
        rows = [
            (
                name,
                f"{m['tokens_per_second']:,.0f}",
                f"{min(m['repetitions']):,.0f}-{max(m['repetitions']):,.0f}",
                f"{m['peak_memory_mb']:,.0f}",
            )
            for name, m in part["modes"].items()
        ]
        table(["mode", "tok/s", "range", "MB"], rows, title=f"Vocabulary {int(size):,}")
        for name, ratio in part["ratios"].items():
            harness.say(f"{name}: {ratio:.2f}")


def main() -> int:
    """Command line; a worker when asked to be one."""
    args = harness.parse_arguments("posttrain.py", __doc__.splitlines()[0], MODES, MORE_MODES)
    return harness.run(args, measure, show, build)


if __name__ == "__main__":
    sys.exit(main())
