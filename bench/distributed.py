"""Sharding and its states: one rank under FSDP2 against a process without, and collectives.

Two contestants take turns at the same work, a training step of one micro-batch with Muon and AdamW:

- alone: whole weights, states in a single file (SafetensorsStates);
- sharded: the same model divided over one rank by `shard`, states by torch's DCP (ShardedStates).

Each step, save and load is timed by itself. `ratios` are sharded over alone: what the machinery
costs where there is nothing to gain. With shards "save" ends when training may go on, "written"
when the state is on disk.

`collectives` are medians between two processes of this machine, over gloo: of a tensor with as many
numbers as the model, and of the few numbers that a step agrees on.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import harness
from gemmule.console import key_values, table
from gemmule.runtime import host

MODES = ("alone", "sharded")
KINDS = ("step", "save", "written", "load")
VOCAB = 4096
RANKS = 2


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """What every contestant is given."""
    return {
        "preset": "1m" if args.toy else "10m",
        "vocab_size": VOCAB,
        "batch_size": 2 if args.toy else 8,
        "seq_len": 32 if args.toy else 256,
        "threads": host.usable_cores(),
        "seed": 0,
        "toy": args.toy,
        "rounds": args.rounds,
        "steps_per_repetition": args.steps,
    }


# Workers.


def build(settings: Mapping[str, Any]) -> harness.Handler:
    """The contestant `settings["mode"]`: takes steps, saves and loads its state."""
    import torch
    import torch.distributed as dist

    from gemmule.data.batch import Batch
    from gemmule.model.config import preset
    from gemmule.model.gemma import Gemma
    from gemmule.runtime import memory
    from gemmule.runtime.config import RuntimeConfig
    from gemmule.runtime.world import SOLO
    from gemmule.train.config import OptimizerConfig
    from gemmule.train.objectives.next_token import NextToken
    from gemmule.train.optimizers import build_optimizers, clip_gradients
    from gemmule.train.sharded_states import ShardedStates
    from gemmule.train.sharding import data_mesh, local_square, shard
    from gemmule.train.state import SafetensorsStates, StateStore
    from gemmule.train.step import accumulate

    torch.set_num_threads(settings["threads"])
    sharded, folder = settings["mode"] == "sharded", tempfile.mkdtemp(prefix="distributed-")
    imports_mb = harness.peak_mb()
    memory.keep_freed_memory()
    torch.manual_seed(settings["seed"])
    model = Gemma(preset(settings["preset"], vocab_size=settings["vocab_size"]))
    states: StateStore = SafetensorsStates(Path(folder), 1)
    if sharded:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        shard(model, data_mesh(SOLO, -1, "cpu"))
        states = ShardedStates(Path(folder), 1, SOLO)
    optimizers = build_optimizers(model, OptimizerConfig())
    shape = (settings["batch_size"], settings["seq_len"] + 1)
    ids_BT = torch.randint(0, settings["vocab_size"], shape)
    batch = Batch(ids_BT[:, :-1], ids_BT[:, 1:], torch.ones_like(ids_BT[:, 1:]))
    runtime = RuntimeConfig(device="cpu", dtype="float32")

    def step() -> float:
        means = accumulate(model, NextToken(), [batch], float(ids_BT[:, 1:].numel()), runtime)
        norm = local_square(model, SOLO) ** 0.5 if sharded else None
        clip_gradients(model, 1.0, norm).item()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        return means["loss"]

    def handle(request: Mapping[str, Any]) -> harness.Reply:
        times = [timed(step) for _ in range(request["steps"])]
        reply: harness.Reply = {"step": min(seconds for seconds, _ in times), "loss": times[-1][1]}
        reply["save"], _ = timed(lambda: states.save(1, model, optimizers, {}))
        waited, _ = timed(states.wait)
        reply["written"] = reply["save"] + waited
        reply["load"], _ = timed(lambda: states.load(1, model, optimizers))
        return reply | {
            "parameters": sum(p.numel() for p in model.parameters()),
            "peak_rss_mb": harness.peak_mb(),
            "imports_rss_mb": imports_mb,
        }

    return handle


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds that something takes, and what it returns."""
    began = time.perf_counter()
    result = work()
    return time.perf_counter() - began, result


def collectives(size: int, rounds: int) -> None:
    """One of the ranks: times operations on `size` numbers, and prints medians on the first."""
    import torch
    import torch.distributed as dist

    from gemmule.runtime.world import World

    with World.from_env("cpu") as world:
        whole = torch.ones(size // world.size * world.size)
        part = torch.ones(size // world.size)
        operations: dict[str, Callable[[], Any]] = {
            "all_reduce": lambda: dist.all_reduce(whole),
            "all_gather": lambda: dist.all_gather_into_tensor(whole, part),
            "reduce_scatter": lambda: dist.reduce_scatter_tensor(part, whole),
            "world_sum": lambda: world.sum([1.0, 2.0, 3.0, 4.0]),
        }
        medians = {}
        for name, operation in operations.items():
            seconds = []
            for _ in range(rounds + 1):  # the first one makes connections
                world.barrier()
                began = time.perf_counter()
                operation()
                seconds.append(time.perf_counter() - began)
            medians[name] = harness.rounded(statistics.median(seconds[1:]))
        if world.first:
            print(json.dumps(medians))


# The parent.


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Everything of the report but machine and versions."""
    settings = settings_of(args)
    with ExitStack() as stack:
        workers = []
        for mode in args.modes:
            harness.say(f"{mode}: warming up")
            worker = stack.enter_context(harness.Worker(__file__, mode, settings))
            worker.ask(steps=1)
            workers.append(worker)
        replies, took = harness.take_turns(workers, args.rounds, steps=args.steps)
        idle_cpu = {w.mode: harness.rounded(w.idle_cpu_seconds) for w in workers}
    modes = {}
    for mode, answers in replies.items():
        modes[mode] = {
            **{f"{k}_seconds": harness.median([r[k] for r in answers]) for k in KINDS},
            "repetitions": [harness.rounded(r["step"]) for r in answers],
            "loss": answers[-1]["loss"],
            "peak_rss_mb": round(max(r["peak_rss_mb"] for r in answers), 1),
            "imports_rss_mb": round(answers[0]["imports_rss_mb"], 1),
        }
    parameters = next(iter(replies.values()))[0]["parameters"]
    harness.say("collectives")
    return {
        "settings": {
            **settings,
            "parameters": parameters,
            "load_average": [round(x, 2) for x in os.getloadavg()],
            "seconds_of_turns": round(took, 1),
            "idle_cpu_seconds": idle_cpu,
        },
        "modes": modes,
        "ratios": ratios(modes),
        "collectives": {"ranks": RANKS, "seconds": between_ranks(parameters, args.rounds)},
    }


def between_ranks(size: int, rounds: int) -> dict[str, float]:
    """Medians of the collectives between two processes."""
    done = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone",
            f"--nproc-per-node={RANKS}", __file__, "--collectives", str(size), str(rounds),
        ],
        capture_output=True, text=True, check=False,
        env={**os.environ, **harness.QUIET, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    if done.returncode:
        raise harness.WorkerError(f"collectives failed:\n{done.stderr[-2000:]}")
    medians: dict[str, float] = json.loads(done.stdout)
    return medians


def ratios(modes: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Sharded over alone, for each kind of work."""
    if not set(MODES) <= modes.keys():
        return {}
    alone, sharded = (modes[mode] for mode in MODES)
    return {k: harness.rounded(sharded[f"{k}_seconds"] / alone[f"{k}_seconds"]) for k in KINDS}


def show(report: Mapping[str, Any]) -> None:
    """Prints the report as tables."""
    settings, modes = report["settings"], report["modes"]
    table(
        ["one rank", *(f"{kind}, ms" for kind in KINDS), "peak MB"],
        [
            (
                mode,
                *(f"{m[f'{kind}_seconds'] * 1e3:,.1f}" for kind in KINDS),
                f"{m['peak_rss_mb']:,.0f}",
            )
            for mode, m in modes.items()
        ],
        title=f"{settings['parameters']:,} parameters, {settings['batch_size']} x "
        f"{settings['seq_len']} tokens, {settings['threads']} threads",
    )
    seconds = report["collectives"]["seconds"]
    key_values([(name, f"{value * 1e3:,.3f} ms") for name, value in seconds.items()])


def main() -> int:
    """Command line; a worker or a rank when asked to be one."""
    if sys.argv[1:2] == ["--collectives"]:
        collectives(*map(int, sys.argv[2:]))
        return 0
    args = harness.parse_arguments("distributed.py", __doc__.splitlines()[0], MODES)
    return harness.run(args, measure, show, build)


if __name__ == "__main__":
    sys.exit(main())
