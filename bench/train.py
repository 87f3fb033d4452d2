"""Training speed and memory: gemmule against transformers' Gemma2ForCausalLM, same work.

All contestants start from the same weights, read the same random ids, compute the same loss (it
is checked, and the gradient's norm with it) and step with fused AdamW behind a clipped gradient.
gemmule gets doc_ids, as from its data source; here each row is one document, which costs the same
as many and lets both compute the same. transformers runs with eager attention, the only one of its
that honors Gemma 2's soft cap here, and without its key-value cache.

Read the figures so: `ratios` of speed are gemmule's tokens per second over the other's, ratios of
memory are gemmule's peak over the other's; `matmul_share` is the model's floating-point work
(three forward passes a step) over what this machine's fp32 matrix product reached in between;
`peak_memory_mb` is the peak of resident memory, compiling included, above that after imports.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import harness
from gemmule.console import table
from gemmule.model.config import GemmaConfig
from gemmule.runtime import host

MODES = (
    "gemmule",
    "gemmule-eager",
    "transformers-compile",
    "transformers-compile+malloc",
    "transformers-eager",
)
BF16_MODES = ("transformers-bf16-compile", "transformers-bf16-eager")
MATMUL = "matmul"
TOLERANCE = 1e-4  # of the first loss (nats) and of the gradient's norm (relative); fp32 only

SHAPE = {
    "vocab_size": 8192,
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "query_pre_attn_scalar": 64,
    "sliding_window": 256,
}
TOY_SHAPE = {
    "vocab_size": 256,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "query_pre_attn_scalar": 8,
    "sliding_window": 16,
}


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """What every contestant is given."""
    return {
        "model": TOY_SHAPE if args.toy else SHAPE,
        "batch_size": 2 if args.toy else 8,
        "seq_len": 64 if args.toy else 512,
        "matmul_size": 256 if args.toy else 4096,
        "threads": host.usable_cores(),
        "learning_rate": 1e-4,
        "clip": 1.0,
        "seed": 0,
    }


# Workers. torch is imported in them only: the parent stays small and quiet.


def build(settings: Mapping[str, Any]) -> harness.Handler:
    """The contestant `settings["mode"]`, ready to be asked for steps."""
    import torch

    torch.set_num_threads(settings["threads"])
    mode = settings["mode"]
    if mode == MATMUL:
        return build_matmul(settings)
    if mode.startswith("gemmule"):
        step = gemmule_step(settings, compiled=mode == "gemmule")
    else:
        step = transformers_step(settings)
    tokens = settings["batch_size"] * settings["seq_len"]
    imports_mb = step.imports_mb

    def handle(request: Mapping[str, Any]) -> harness.Reply:
        began = time.perf_counter()
        if "warm_up" in request:
            loss, norm = step()
            for _ in range(request["warm_up"]):
                step()
            seconds = time.perf_counter() - began
            return {"loss": loss, "gradient_norm": norm, "warm_up_seconds": seconds}
        for _ in range(request["steps"]):
            step()
        rate = request["steps"] * tokens / (time.perf_counter() - began)
        peak = harness.peak_mb()
        return {"rate": rate, "peak_rss_mb": peak, "imports_rss_mb": imports_mb}

    return handle


class Step:
    """One optimizer step on a fixed batch.

    Args:
        model: model to train.
        optimizers: all its optimizers.
        loss: mean next-token loss of the batch, nats.
        clip: largest norm of the gradient.
        imports_mb: peak memory before the model was built.
    """

    def __init__(
        self, model: Any, optimizers: Any, loss: Callable[[], Any], clip: float, imports_mb: float
    ) -> None:
        self.model, self.optimizers, self.loss = model, optimizers, loss
        self.clip, self.imports_mb = clip, imports_mb

    def __call__(self) -> tuple[float, float]:
        """Loss and norm of the gradient, before the step."""
        from torch.nn.utils import clip_grad_norm_

        loss = self.loss()
        loss.backward()
        norm = clip_grad_norm_(self.model.parameters(), self.clip)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        return loss.item(), norm.item()


def start(settings: Mapping[str, Any]) -> tuple[Any, Any]:
    """The weights (a Gemma) and token ids all contestants begin with."""
    import torch

    from gemmule.model.gemma import Gemma

    torch.manual_seed(settings["seed"])
    model = Gemma(GemmaConfig(**settings["model"]))
    # Id 0 is padding, whose embedding transformers does not train.
    shape = (settings["batch_size"], settings["seq_len"])
    return model, torch.randint(1, settings["model"]["vocab_size"], shape)


def gemmule_step(settings: Mapping[str, Any], *, compiled: bool) -> Step:
    """What `gemmule train` does for a user, with AdamW."""
    import torch

    from gemmule.data.batch import Batch
    from gemmule.losses.labels import IGNORED
    from gemmule.runtime import memory, torch_compile
    from gemmule.train.config import OptimizerConfig
    from gemmule.train.objectives.next_token import NextToken
    from gemmule.train.optimizers import build_optimizers

    imports_mb = harness.peak_mb()
    memory.keep_freed_memory()
    model, tokens = start(settings)
    targets = torch.cat([tokens[:, 1:], torch.full_like(tokens[:, :1], IGNORED)], 1)
    batch = Batch(tokens, targets, torch.ones_like(tokens))
    if compiled:
        torch_compile.compile_blocks(model.layers)
    objective = NextToken()
    objective.prepare("cpu", compiled)
    optimizer = OptimizerConfig(name="adamw", learning_rate=settings["learning_rate"])
    count = int((targets != IGNORED).sum())
    return Step(
        model,
        build_optimizers(model, optimizer),
        lambda: objective.loss(model, batch)[0] / count,
        settings["clip"],
        imports_mb,
    )


def transformers_step(settings: Mapping[str, Any]) -> Step:
    """What a plain training loop over transformers' model does."""
    import torch
    from transformers import Gemma2Config, Gemma2ForCausalLM

    # Imported now so that it counts as an import in every contestant.
    from gemmule.model.gemma import Gemma

    imports_mb = harness.peak_mb()
    mode = settings["mode"]
    if mode.endswith("+malloc"):
        from gemmule.runtime import memory

        memory.keep_freed_memory()
    ours, tokens = start(settings)
    assert isinstance(ours, Gemma)
    model = Gemma2ForCausalLM(
        Gemma2Config(
            **ours.config.model_dump(),
            hidden_activation="gelu_pytorch_tanh",
            attn_implementation="eager",
        )
    ).train()
    weights = {f"model.{name}": w for name, w in ours.state_dict().items()}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert missing == ["lm_head.weight"], missing  # tied
    assert not unexpected, unexpected
    del ours, weights
    forward = torch.compile(model) if "compile" in mode else model

    def loss() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled="bf16" in mode):
            return forward(tokens, labels=tokens, use_cache=False).loss

    optimizer = torch.optim.AdamW(model.parameters(), lr=settings["learning_rate"], fused=True)
    return Step(model, [optimizer], loss, settings["clip"], imports_mb)


def build_matmul(settings: Mapping[str, Any]) -> harness.Handler:
    """Square fp32 matrix products, on all threads."""
    import torch

    size = settings["matmul_size"]
    a, b = torch.randn(2, size, size)
    product = torch.empty(size, size)

    def handle(request: Mapping[str, Any]) -> harness.Reply:
        count = request.get("steps", 1)
        began = time.perf_counter()
        for _ in range(count):
            torch.mm(a, b, out=product)
        return {"rate": 2e-9 * size**3 * count / (time.perf_counter() - began)}

    return handle


# The parent.


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Everything of the report but machine and versions."""
    settings = settings_of(args)
    with ExitStack() as stack:
        workers, first = [], {}
        for mode in (MATMUL, *args.modes):
            harness.say(f"{mode}: warming up")
            worker = stack.enter_context(harness.Worker(__file__, mode, settings))
            first[mode] = worker.ask(warm_up=2)
            workers.append(worker)
        replies, seconds = harness.take_turns(workers, args.rounds, steps=args.steps)
        idle_cpu = {w.mode: harness.rounded(w.idle_cpu_seconds) for w in workers}
    gflops = [harness.rounded(r["rate"]) for r in replies.pop(MATMUL)]
    peak = harness.median(gflops)
    config = GemmaConfig(**settings["model"])
    flops = 3 * config.forward_flops_per_token(settings["seq_len"])
    modes = {}
    for mode in args.modes:
        rates = [harness.rounded(r["rate"]) for r in replies[mode]]
        last = replies[mode][-1]
        modes[mode] = {
            "tokens_per_second": harness.median(rates),
            "repetitions": rates,
            "peak_memory_mb": round(last["peak_rss_mb"] - last["imports_rss_mb"], 1),
            "peak_rss_mb": round(last["peak_rss_mb"], 1),
            "imports_rss_mb": round(last["imports_rss_mb"], 1),
            "matmul_share": harness.rounded(harness.median(rates) * flops / (peak * 1e9)),
            "loss": first[mode]["loss"],
            "gradient_norm": first[mode]["gradient_norm"],
            "warm_up_seconds": round(first[mode]["warm_up_seconds"], 2),
        }
    return {
        "settings": {
            **settings,
            "optimizer": "AdamW, fused, fp32 weights; gradient clipped",
            "parameters": config.parameters,
            "training_flops_per_token": flops,
            "toy": args.toy,
            "rounds": args.rounds,
            "steps_per_repetition": args.steps,
            "load_average": [round(x, 2) for x in os.getloadavg()],
            "seconds_of_turns": round(seconds, 1),
            "idle_cpu_seconds": idle_cpu,
        },
        "modes": modes,
        "matmul_gflops": {"median": peak, "repetitions": gflops},
        "agreement": agreement(modes),
        **ratios(modes),
    }


def agreement(modes: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Whether all fp32 modes did the same work: one loss, one gradient norm."""
    exact = [m for name, m in modes.items() if "bf16" not in name]
    losses, norms = ([m[key] for m in exact] for key in ("loss", "gradient_norm"))
    loss_apart = max(losses) - min(losses)
    norm_apart = max(norms) / min(norms) - 1
    return {
        "largest_loss_difference": loss_apart,
        "largest_relative_gradient_norm_difference": norm_apart,
        "tolerance": TOLERANCE,
        "agrees": loss_apart <= TOLERANCE and norm_apart <= TOLERANCE,
    }


def ratios(modes: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Gemmule against each other mode, and against transformers' fastest.

    The mode with gemmule's allocator setting is not what transformers' users get: it has its own
    ratio and is left out of "best".
    """
    ours = next((m for m in modes if m.startswith("gemmule")), None)
    if ours is None:
        return {"ratios": {}}
    ratios: dict[str, float] = {}

    def compare(label: str, other: str) -> None:
        for prefix, key in (("", "tokens_per_second"), ("memory_", "peak_memory_mb")):
            if modes[other][key] > 0:
                ratio = modes[ours][key] / modes[other][key]
                ratios[f"{prefix}vs_{label}"] = harness.rounded(ratio)

    theirs = [m for m in modes if m.startswith("transformers") and not m.endswith("+malloc")]
    best = max(theirs, key=lambda m: modes[m]["tokens_per_second"], default=None)
    if best is not None:
        compare("transformers_best", best)
    for mode in modes:
        if mode != ours:
            compare(mode.replace("-", "_").replace("+", "_"), mode)
    return {"ratios": ratios, "ratios_are_of": ours, "transformers_best": best}


def show(report: Mapping[str, Any]) -> None:
    """Prints the report as a table."""
    settings, ratios = report["settings"], report["ratios"]
    rows = [
        (
            name,
            f"{m['tokens_per_second']:,.0f}",
            f"{min(m['repetitions']):,.0f}-{max(m['repetitions']):,.0f}",
            f"{m['matmul_share']:.0%}",
            f"{m['peak_memory_mb']:,.0f}",
            f"{m['warm_up_seconds']:.0f}",
        )
        for name, m in report["modes"].items()
    ]
    table(
        ["mode", "tok/s", "range", "matmul", "MB", "warm-up s"],
        rows,
        title=f"Training, {settings['parameters'] / 1e6:.1f}M parameters, batch "
        f"{settings['batch_size']} x {settings['seq_len']}, {settings['threads']} threads "
        f"(fp32 matrix product: {report['matmul_gflops']['median']:.0f} GFLOP/s)",
    )
    if "vs_transformers_best" in ratios:
        harness.say(
            f"{report['ratios_are_of']} against transformers' best ({report['transformers_best']}):"
            f" {ratios['vs_transformers_best']:.2f} x its speed,"
            f" {ratios.get('memory_vs_transformers_best', float('nan')):.2f} x its memory"
        )
    agreement = report["agreement"]
    if agreement["agrees"]:
        apart = agreement["largest_loss_difference"]
        harness.say(f"all do the same work: first losses within {apart:.1g} nats of one another")
    else:
        harness.say(f"NOT THE SAME WORK, the figures say nothing: {agreement}")


def main() -> int:
    """Command line; a worker when asked to be one."""
    args = harness.parse_arguments("train.py", __doc__.splitlines()[0], MODES, BF16_MODES)
    return harness.run(args, measure, show, build)


if __name__ == "__main__":
    sys.exit(main())
