"""A full-size model before and after its vocabulary is trimmed: size, loading, prompts, decoding.

A random Gemma 2 2B in bf16 whose tokenizer has 256,000 tokens is trimmed to 32,000 by
`gemmule.trim`. Ratios are the trimmed model's figure over the full one's, both in bf16 and on the
same threads. What is trimmed is random, so the probability of the dropped tokens means nothing
here.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import checkpoints
import harness
import inference_files
from gemmule.console import table
from gemmule.runtime import host

MODES = ("full", "trimmed")
FIGURES = ("load_seconds", "prompt_seconds", "step_seconds", "peak_mb")


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """What both models are given."""
    return {
        "preset": "1m" if args.toy else "2b",
        "vocab_size": 1100 if args.toy else 256_000,
        "size": 800 if args.toy else 32_000,
        "prompt": 16 if args.toy else 256,
        "threads": host.usable_cores(),
        "seed": 0,
        "toy": args.toy,
        "rounds": args.rounds,
        "steps": args.steps,
    }


def build(settings: Mapping[str, Any]) -> harness.Handler:
    """A worker: loads the model, reads a prompt and decodes."""
    import gemmule
    from gemmule.speed.benchmark import runner_of
    from gemmule.speed.drive import Driver

    def handle(_: Mapping[str, Any]) -> harness.Reply:
        began = time.perf_counter()
        model = gemmule.load(settings["folder"]).model
        loaded = time.perf_counter() - began
        room = 2 * settings["prompt"] + settings["steps"]
        driver = Driver(runner_of(model, settings["threads"]), cache_tokens=room)
        driver.prefill(settings["prompt"])
        prompt = driver.prefill(settings["prompt"])
        steps = driver.decode(1, settings["prompt"], settings["steps"])
        return {
            "load_seconds": loaded, "prompt_seconds": prompt,
            "step_seconds": harness.median(steps), "peak_mb": harness.peak_mb(),
        }  # fmt: skip

    return handle


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """The whole report."""
    from gemmule.trim import trim

    settings = settings_of(args)
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        folders = {mode: Path(scratch) / mode for mode in MODES}
        folders["full"].mkdir()
        harness.say(f"writing a random {settings['preset']}")
        tokenizer = inference_files.tokenizer_of(settings["vocab_size"])
        checkpoints.write_model(settings, folders["full"], tokenizer)
        trimmed = trim(
            folders["full"], checkpoints.TEXT, folders["trimmed"], size=settings["size"],
            stage=harness.say,
        )  # fmt: skip
        workers = [
            stack.enter_context(harness.Worker(__file__, mode, {**settings, "folder": str(folder)}))
            for mode, folder in folders.items()
        ]
        replies, _ = harness.take_turns(workers, args.rounds)
        modes = {
            mode: {
                **{name: harness.median([r[name] for r in replies[mode]]) for name in FIGURES},
                "repetitions": replies[mode],
                "bytes": sum(file.stat().st_size for file in folders[mode].glob("*.safetensors")),
            }
            for mode in MODES
        }
    full, small = (modes[mode] for mode in MODES)
    return {
        "settings": settings,
        "modes": modes,
        "vocabulary": trimmed["vocabulary"],
        "parameters": trimmed["parameters"],
        "segmentation": trimmed["segmentation"],
        "trim_seconds": trimmed["seconds"],
        "ratios": {name: harness.rounded(small[name] / full[name]) for name in (*FIGURES, "bytes")},
    }


def show(report: Mapping[str, Any]) -> None:
    """Prints the report as a table."""
    rows = [
        [
            mode,
            f"{m['bytes'] / 1e9:.2f}",
            f"{m['load_seconds']:.2f}",
            f"{report['settings']['prompt'] / m['prompt_seconds']:.1f}",
            f"{1 / m['step_seconds']:.2f}",
            f"{m['peak_mb']:,.0f}",
        ]
        for mode, m in report["modes"].items()
    ]
    ratios = report["ratios"]
    rows.append(
        [
            "trimmed over full",
            f"{ratios['bytes']:.2f}",
            f"{ratios['load_seconds']:.2f}",
            f"{1 / ratios['prompt_seconds']:.2f}",
            f"{1 / ratios['step_seconds']:.2f}",
            f"{ratios['peak_mb']:.2f}",
        ]
    )
    sizes = report["vocabulary"]
    table(
        ["model", "GB", "load s", "prompt tokens/s", "decode tokens/s", "peak MB"],
        rows,
        title=f"{sizes['before']:,} tokens trimmed to {sizes['after']:,}",
    )


def main() -> int:
    """Command line; a worker when asked to be one."""
    args = harness.parse_arguments("trim.py", __doc__.splitlines()[0], MODES)
    return harness.run(args, measure, show, build)


if __name__ == "__main__":
    sys.exit(main())
