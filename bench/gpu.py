"""gemmule on one GPU, in one command of at most eight minutes: no figure of it is known yet.

    python bench/gpu.py --json bench/results/gpu.json
    python bench/gpu.py --toy --device cpu            # the same code, in seconds, without a GPU

- train: steps of distilling a 2B student from a 2B teacher of its vocabulary, random weights, in
  bfloat16, with each attention backend; useful FLOP/s over the peak of bfloat16 products measured
  next to it (MFU).
- decode: one sequence, token by token; bytes of the weights per second over the bandwidth of a copy
  measured next to it.
- losses: a small model's losses in fp32 and in bfloat16 next to the CPU's in fp32, and whether
  their difference is within what rounding to bfloat16 explains.

Parts come in order of price; what the time does not suffice for is missing and named.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from gemmule.data.batch import Batch
from gemmule.files import write_text
from gemmule.model.block_attention import block_attention
from gemmule.model.config import GemmaConfig, preset
from gemmule.model.flex_attention import FlexAttention
from gemmule.model.gemma import Gemma
from gemmule.model.kv_cache import KVCache
from gemmule.plan.calibration_worker import random_model
from gemmule.runtime import device as devices
from gemmule.runtime import host, torch_compile
from gemmule.runtime.config import RuntimeConfig
from gemmule.teachers.gemma import GemmaTeacher
from gemmule.train.config import OptimizerConfig
from gemmule.train.objectives.distillation import Distillation
from gemmule.train.optimizers import build_optimizers, clip_gradients
from gemmule.train.step import accumulate

SECONDS = 480.0
HALF_ERROR = 2**-8  # relative rounding of bfloat16
SMALL = {"vocab_size": 4096, "num_hidden_layers": 4, "sliding_window": 64}


def wait(device: str) -> None:
    """Waits for what the device was given to do."""
    if device == "cuda":
        torch.cuda.synchronize()


def fastest(work: Callable[[], Any], device: str, times: int) -> float:
    """Seconds of the fastest of some rounds, after one to warm up."""
    seconds = []
    for _ in range(times + 1):
        wait(device)
        began = time.perf_counter()
        work()
        wait(device)
        seconds.append(time.perf_counter() - began)
    return min(seconds[1:])


def batch_of(config: GemmaConfig, rows: int, length: int) -> Batch:
    """Random tokens; each row is two documents."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(4, config.vocab_size, (rows, length + 1), generator=generator)
    doc_ids = torch.ones(rows, length, dtype=torch.int64)
    doc_ids[:, length // 3 :] = 2
    return Batch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous(), doc_ids)


def train(config: GemmaConfig, args: argparse.Namespace, backend: str) -> dict[str, Any]:
    """Distillation steps."""
    rows, length = (2, 64) if args.toy else (4, 4096)
    runtime = RuntimeConfig(device=args.device, dtype="float32" if args.toy else "bfloat16")
    model = random_model(config).to(args.device)
    flex = FlexAttention(compiled=args.device == "cuda")
    model.attend = block_attention if backend == "block" else flex
    teacher = random_model(config)
    with torch.no_grad():  # the student's weights, but for the names of the tokens
        teacher.embed_tokens.weight.copy_(teacher.embed_tokens.weight.roll(1, 0))
    if not args.toy:
        teacher = teacher.to(torch.bfloat16)
        torch_compile.compile_blocks(model.layers)
    teacher.attend = model.attend
    objective = Distillation(GemmaTeacher("random", teacher, ""), 1.0, 0.0)
    objective.prepare(args.device, not args.toy)
    optimizers = build_optimizers(model, OptimizerConfig(name="adamw", learning_rate=1e-4))
    batches = [batch_of(config, rows, length)]
    losses = []

    def step() -> None:
        means = accumulate(model, objective, batches, rows * length, runtime)
        clip_gradients(model, 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        losses.append(means["loss"])

    seconds = fastest(step, args.device, 5)
    dtype = torch.float32 if args.toy else torch.bfloat16
    peak = devices.matmul_gflops(args.device, dtype, seconds=1.0) * 1e9
    flops = rows * length * objective.flops_per_token(model, length)
    return {
        "attention": backend, "tokens": rows * length, "step_seconds": seconds,
        "tokens_per_second": rows * length / seconds, "peak_flops": peak,
        "mfu": flops / seconds / peak, "losses": losses,
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if args.device == "cuda" else None,
    }  # fmt: skip


@torch.inference_mode()
def decode(config: GemmaConfig, args: argparse.Namespace) -> dict[str, Any]:
    """Tokens of one sequence, one after the other."""
    dtype = torch.float32 if args.toy else torch.bfloat16
    model = random_model(config).to(args.device, dtype)
    tokens = 8 if args.toy else 128
    prompt = batch_of(config, 1, 16 if args.toy else 512).tokens_BT.to(args.device)

    def generate() -> None:
        room = prompt.shape[1] + tokens
        cache = KVCache.new(config, 1, room, dtype=dtype, device=args.device)
        logits = model(prompt, cache=cache)
        for _ in range(tokens):
            logits = model(logits[:, -1:].argmax(-1), cache=cache)

    def prefill() -> None:
        model(
            prompt, cache=KVCache.new(config, 1, prompt.shape[1], dtype=dtype, device=args.device)
        )

    seconds = (fastest(generate, args.device, 2) - fastest(prefill, args.device, 2)) / tokens
    source = torch.empty(2**22 if args.toy else 2**30, dtype=torch.uint8, device=args.device)
    target = torch.empty_like(source)
    bandwidth = 2 * source.numel() / fastest(lambda: target.copy_(source), args.device, 5)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    return {
        "tokens_per_second": 1 / seconds, "weight_bytes": weights, "bytes_per_second": bandwidth,
        "share_of_bandwidth": weights / seconds / bandwidth,
    }  # fmt: skip


def losses(args: argparse.Namespace) -> dict[str, Any]:
    """Losses and gradient norms of a small model, next to the CPU's in fp32."""
    config = preset("1m", **SMALL)
    batch = batch_of(config, 2, 256)

    def figures(device: str, dtype: str, attend: Any) -> tuple[float, float]:
        model: Gemma = random_model(config).to(device)
        model.attend = attend
        on, half = batch.to(device), dtype == "bfloat16"
        with torch.autocast(device, torch.bfloat16, enabled=half):
            x_BTD = model.hidden_states(on.tokens_BT, doc_ids_BT=on.doc_ids_BT)
            loss = model.head.cross_entropy(x_BTD.flatten(0, 1), on.labels_BT.flatten())
        (loss / batch.labels_BT.numel()).backward()
        return loss.item() / batch.labels_BT.numel(), clip_gradients(model, 1e9).item()

    exact = figures("cpu", "float32", block_attention)
    result: dict[str, Any] = {"cpu float32": exact}
    backends = {"block": block_attention}
    if args.device == "cuda":
        backends["flex"] = FlexAttention(compiled=True)
    for name, attend in backends.items():
        for dtype, allowed in (("float32", 1e-4), ("bfloat16", 4 * HALF_ERROR)):
            value = figures(args.device, dtype, attend)
            apart = max(abs(a / b - 1) for a, b in zip(value, exact, strict=True))
            result[f"{args.device} {dtype}, {name}"] = {
                "loss": value[0], "norm": value[1], "apart": apart, "allowed": allowed,
                "ok": apart <= allowed,
            }  # fmt: skip
    return result


def main() -> None:
    """Measures and prints JSON; the exit status is 1 when losses differ by too much."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--toy", action="store_true", help="tiny shapes, to test this program")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--seconds", type=float, default=SECONDS, help="no part begins after this")
    parser.add_argument("--json", type=Path, help="write the figures as JSON")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no GPU here: use --toy --device cpu to test the program")
    if args.device == "cpu" and not args.toy:
        parser.error("--device cpu is for --toy: a 2B takes hours there")
    began = time.monotonic()
    config = preset("1m", **SMALL) if args.toy else preset("2b")
    parts: dict[str, Callable[[], Any]] = {
        "losses": lambda: losses(args),
        "train, block": lambda: train(config, args, "block"),
        "decode": lambda: decode(config, args),
    }
    if args.device == "cuda":  # torch computes no gradients of it on a CPU
        parts["train, flex"] = lambda: train(config, args, "flex")
    name = torch.cuda.get_device_name() if args.device == "cuda" else host.machine()["processor"]
    report: dict[str, Any] = {"device": name, "torch": torch.__version__, "toy": args.toy}
    for part, work in parts.items():
        if time.monotonic() - began > args.seconds:
            report[part] = "left out: no time"
            continue
        report[part] = work()
        if args.device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        report["seconds"] = time.monotonic() - began
        if args.json is not None:  # after each part, in case the next one takes too long
            write_text(args.json, json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))
    if not all(row["ok"] for row in report["losses"].values() if isinstance(row, dict)):
        raise SystemExit("losses differ from the CPU's by more than rounding explains")


if __name__ == "__main__":
    main()
