"""One process against two on this machine: what `gemmule plan --nproc` predicts, and what happens.

Trains the same few steps with one process on all cores and with two that share them, once with
whole weights in each and once in shards, and times an exchange as the planner does. The step of one
process is what the prediction starts from; it is not predicted here. A step's time is that of the
fastest, which other work on the machine disturbs least.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

from gemmule.data.dataset import Dataset
from gemmule.files import write_text
from gemmule.model.config import preset
from gemmule.plan.processes import predict
from gemmule.runs.metrics import read_metrics
from gemmule.runtime import host
from gemmule.train.config import RunConfig, load_run_config

COUNT = 2


def train(settings: list[str], out: Path, count: int) -> float:
    """Seconds of the fastest step, as the run has logged them."""
    words = [word for setting in settings for word in ("--set", setting)]
    command = [sys.executable, "-m", "gemmule", "train", *words, "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(max(1, host.usable_cores() // count))}
    subprocess.run([*command, "--nproc", str(count)], check=True, timeout=600, env=environment)
    times = [0.0] + [m["seconds"] for m in read_metrics(out) if "loss" in m]
    return min(b - a for a, b in pairwise(times))


def measure(settings: list[str], folder: Path, alone: float | None) -> dict[str, Any]:
    """Predicted and measured seconds of a step; `alone` once it is known."""
    config: RunConfig = load_run_config(None, settings)
    if alone is None:
        alone = train(settings, folder / "alone", 1)
    threads = config.runtime.threads or host.usable_cores()
    vocab = Dataset.open(config.data.path).tokenizer.vocab_size
    model = preset(config.model.preset, vocab_size=vocab)
    predicted = predict(model, config, alone, threads, COUNT).to_json()
    degree = config.parallel.data_parallel_shard_degree
    measured = train(settings, folder / f"shards{degree}", COUNT)
    return {
        **predicted, "measured_seconds": measured,
        "predicted_over_measured": predicted["together_seconds"] / measured,
    }  # fmt: skip


def main() -> None:
    """Measures and prints JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder made by gemmule data")
    parser.add_argument("--preset", default="1m")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=0, help="of each process; 0: all cores")
    parser.add_argument("--json", type=Path, help="write the figures as JSON")
    args = parser.parse_args()
    settings = [
        f"data.path={args.data}", f"model.preset={args.preset}", f"steps={args.steps}",
        f"runtime.threads={args.threads}", "runtime.compile=false", "runtime.dtype=float32",
        "log_every=1", "data.batch_size=8",
        "evaluation.every=1000000", "evaluation.tokens=512", "evaluation.heldout_tokens=512",
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        whole = measure(settings, Path(folder), None)
        shards = [*settings, "parallel.data_parallel_shard_degree=-1"]
        result = {
            "machine": host.machine(), "preset": args.preset, "threads": args.threads,
            "whole": whole,
            "shards": measure(shards, Path(folder), whole["alone_seconds"]),
        }  # fmt: skip
    print(json.dumps(result, indent=1))
    if args.json is not None:
        write_text(args.json, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
