"""Windowed attention, forward and backward: time and memory against full and plain attention.

One sequence, from queries, keys and values to their gradients:

- gemmule-windowed, gemmule-full: attend_sequence with and without the window, compiled as
  training compiles it; gemmule-windowed-eager: the same without a compiler;
- plain-windowed: attention.attend, attention written plainly, with the same window;
- transformers-compile, transformers-eager: the attention of transformers' Gemma 2, with the
  window as its mask (made once, outside the time);
- sdpa-windowed: torch's scaled_dot_product_attention with that mask. It has no soft cap, so it
  computes something else and less: not a model's attention, a yardstick.

Those that hold whole [T, T] scores are left out at lengths where that would take more than half
of the machine's memory. `ratios` are the other's time over gemmule-windowed's, memory ratios
gemmule-windowed's peak over the other's. `peak_memory_mb` is the resident peak above that after
imports at the main length, compiling included; `peak_growth_mb` is how much of it came after a
short sequence had gone through, compiling of that included: nearer to what the sequence itself
takes.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import harness
from gemmule.console import table
from gemmule.runtime import host

MODES = (
    "gemmule-windowed",
    "gemmule-full",
    "gemmule-windowed-eager",
    "plain-windowed",
    "transformers-compile",
    "transformers-eager",
    "sdpa-windowed",
)
QUADRATIC = ("plain-windowed", "transformers-compile", "transformers-eager")
SCORE_COPIES = 8  # fp32 [heads, T, T] tensors that these may hold at once
OTHER_FUNCTION = ("gemmule-full", "sdpa-windowed")  # no window, no cap: results differ
TOLERANCE = 1e-4  # of output and gradient against the plain version's, as a share of the largest


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """What every contestant is given; the sweep includes the main length."""
    return {
        "seq_len": 256 if args.toy else 8192,
        "window": 32 if args.toy else 1024,
        "sweep": [64, 128, 256] if args.toy else [1024, 2048, 4096, 8192, 16384],
        "batch_size": 1,
        "heads": 4,
        "kv_heads": 2,
        "head_dim": 16 if args.toy else 64,
        "cap": 50.0,
        "threads": host.usable_cores(),
        "seed": 0,
    }


# Workers.


def build(settings: Mapping[str, Any]) -> harness.Handler:
    """The contestant `settings["mode"]`: asked for a length, it does forward and backward."""
    import torch

    from gemmule.runtime import memory

    torch.set_num_threads(settings["threads"])
    mode = settings["mode"]
    prepare = make_attention(settings)
    imports_mb = harness.peak_mb()
    if mode.startswith("gemmule"):
        memory.keep_freed_memory()
    prepared: dict[int, Callable[[], tuple[Any, Any]]] = {}

    def step_for(length: int) -> Callable[[], tuple[Any, Any]]:
        g = torch.Generator().manual_seed(settings["seed"])
        heads, kv_heads, head_dim = (settings[k] for k in ("heads", "kv_heads", "head_dim"))

        def draw(count: int, spread: float = 1.0) -> torch.Tensor:
            shape = (settings["batch_size"], length, count, head_dim)
            return (torch.randn(shape, generator=g) * spread).requires_grad_()

        # Queries so large that scores reach into the cap.
        q, k, v = draw(heads, 8.0), draw(kv_heads), draw(kv_heads)
        upstream = torch.randn(q.shape, generator=g)
        attend = prepare(length)

        def step() -> tuple[torch.Tensor, torch.Tensor]:
            q.grad = k.grad = v.grad = None
            out = attend(q, k, v)
            out.backward(upstream)
            return out, k.grad

        return step

    def handle(request: Mapping[str, Any]) -> harness.Reply:
        length = request["length"]
        if length not in prepared:
            prepared[length] = step_for(length)
        step = prepared[length]
        began = time.perf_counter()
        for _ in range(request["steps"]):
            out, grad = step()
        reply = {"seconds": (time.perf_counter() - began) / request["steps"]}
        if request.get("describe"):
            pick = torch.linspace(0, length - 1, 16).long()
            reply |= {
                "output": out.detach()[0, pick].flatten().tolist(),
                "gradient": grad[0, pick].flatten().tolist(),
                "peak_rss_mb": harness.peak_mb(),
                "imports_rss_mb": imports_mb,
            }
        return reply

    return handle


def make_attention(settings: Mapping[str, Any]) -> Callable[[int], Callable[..., Any]]:
    """For the mode: from a length to a function of q, k, v [B, T, heads, H] to [B, T, heads, H]."""
    import torch

    mode, window, cap = settings["mode"], settings["window"], settings["cap"]
    scale = settings["head_dim"] ** -0.5
    if mode.startswith("gemmule"):
        from gemmule.model.block_attention import attend_sequence

        seen = None if mode == "gemmule-full" else window
        function = attend_sequence
        if not mode.endswith("-eager"):
            function = compiled(attend_sequence)

        def blocks(length: int) -> Callable[..., Any]:
            doc_ids = torch.ones(settings["batch_size"], length, dtype=torch.long)
            return lambda q, k, v: function(q, k, v, doc_ids, seen, scale, cap)

        return blocks

    if mode == "plain-windowed":
        from gemmule.model.attention import attend

        def plain(length: int) -> Callable[..., Any]:
            i = torch.arange(length)
            return lambda q, k, v: attend(q, k, v, i, i, None, None, window, scale, cap)

        return plain

    if mode == "sdpa-windowed":
        from torch.nn.functional import scaled_dot_product_attention

        def sdpa(length: int) -> Callable[..., Any]:
            mask = window_mask(length, window)
            return lambda q, k, v: scaled_dot_product_attention(
                *(x.transpose(1, 2) for x in (q, k, v)),
                attn_mask=mask,
                scale=scale,
                enable_gqa=True,
            ).transpose(1, 2)

        return sdpa

    from transformers.models.gemma2.modeling_gemma2 import eager_attention_forward

    theirs = eager_attention_forward
    if mode == "transformers-compile":
        theirs = compiled(eager_attention_forward)
    groups = settings["heads"] // settings["kv_heads"]
    layer = SimpleNamespace(num_key_value_groups=groups, training=True)

    def eager(length: int) -> Callable[..., Any]:
        mask = window_mask(length, window)
        return lambda q, k, v: theirs(
            layer, *(x.transpose(1, 2) for x in (q, k, v)), mask, scaling=scale, softcap=cap
        )[0]

    return eager


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiles the function for each length; torch's default limit of 8 shapes is too low."""
    import torch

    torch._dynamo.config.recompile_limit = 64
    return torch.compile(function, dynamic=False)


def window_mask(length: int, window: int) -> Any:
    """What is added to scores, [1, 1, T, T]: 0 where i - window < j <= i, else fp32's lowest."""
    import torch

    i = torch.arange(length)
    distance = i[:, None] - i
    mask = torch.zeros(1, 1, length, length)
    return mask.masked_fill_((distance < 0) | (distance >= window), torch.finfo(mask.dtype).min)


# The parent.


def fits(mode: str, length: int, settings: Mapping[str, Any]) -> bool:
    """Whether a mode may run at a length without taking more than half of the memory."""
    memory = host.machine()["memory_gib"]
    need = SCORE_COPIES * settings["batch_size"] * settings["heads"] * length**2 * 4 / 2**30
    return mode not in QUADRATIC or memory is None or need <= memory / 2


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Everything of the report but machine and versions."""
    settings = settings_of(args)
    main, sweep = settings["seq_len"], settings["sweep"]
    times: dict[str, dict[int, list[float]]] = {m: {} for m in args.modes}
    first, short = {}, {}
    with ExitStack() as stack:
        workers = []
        for mode in args.modes:
            harness.say(f"{mode}: warming up")
            worker = stack.enter_context(harness.Worker(__file__, mode, settings))
            # Short first, then the main length, before the rest: its peak is then its own.
            short[mode] = worker.ask(length=min(sweep), steps=1, describe=True)
            first[mode] = worker.ask(length=main, steps=1, describe=True)
            for length in sweep:
                if fits(mode, length, settings):
                    worker.ask(length=length, steps=1)
            workers.append(worker)
        seconds = 0.0
        for length in sweep:
            able = [w for w in workers if fits(w.mode, length, settings)]
            harness.say(f"length {length}")
            replies, took = harness.take_turns(able, args.rounds, length=length, steps=args.steps)
            seconds += took
            for mode, answers in replies.items():
                times[mode][length] = [harness.rounded(r["seconds"]) for r in answers]
        idle_cpu = {w.mode: harness.rounded(w.idle_cpu_seconds) for w in workers}
    modes = {}
    for mode in args.modes:
        peak = first[mode]["peak_rss_mb"]
        modes[mode] = {
            "seconds": harness.median(times[mode][main]),
            "repetitions": times[mode][main],
            "peak_memory_mb": round(peak - first[mode]["imports_rss_mb"], 1),
            "peak_growth_mb": round(peak - short[mode]["peak_rss_mb"], 1),
            "peak_rss_mb": round(peak, 1),
            "imports_rss_mb": round(first[mode]["imports_rss_mb"], 1),
            "soft_cap": mode != "sdpa-windowed",
            "window": None if mode == "gemmule-full" else settings["window"],
            "difference_from_plain": difference(mode, first),
        }
    return {
        "settings": {
            **settings,
            "dtype": "float32",
            "toy": args.toy,
            "rounds": args.rounds,
            "steps_per_repetition": args.steps,
            "load_average": [round(x, 2) for x in os.getloadavg()],
            "seconds_of_turns": round(seconds, 1),
            "idle_cpu_seconds": idle_cpu,
        },
        "modes": modes,
        "ratios": ratios(modes),
        "sweep": {mode: sweep_of(seconds) for mode, seconds in times.items()},
        "left_out": {
            mode: [n for n in sweep if not fits(mode, n, settings)]
            for mode in args.modes
            if not all(fits(mode, n, settings) for n in sweep)
        },
        "agreement": agreement(modes),
    }


def difference(mode: str, first: Mapping[str, Mapping[str, Any]]) -> float | None:
    """How far output and key gradient are from the plain version's, relative to their largest.

    None where the mode computes something else, or the plain version did not run.
    """
    if mode in OTHER_FUNCTION or "plain-windowed" not in first:
        return None
    differences = []
    for key in ("output", "gradient"):
        plain = first["plain-windowed"][key]
        apart = max(abs(a - b) for a, b in zip(first[mode][key], plain, strict=True))
        differences.append(apart / max(map(abs, plain)))
    return max(differences)


def agreement(modes: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Whether all modes that should compute the same did."""
    differences = [m["difference_from_plain"] for m in modes.values()]
    largest = max((d for d in differences if d is not None), default=0.0)
    return {"largest_difference": largest, "tolerance": TOLERANCE, "agrees": largest <= TOLERANCE}


def sweep_of(by_length: Mapping[int, Sequence[float]]) -> list[dict[str, Any]]:
    """Times by length; "growth" is the time over that at half the length (2 linear, 4 square)."""
    rows = []
    for length, repetitions in by_length.items():
        seconds = harness.median(repetitions)
        half = by_length.get(length // 2)
        rows.append(
            {
                "seq_len": length,
                "seconds": seconds,
                "microseconds_per_token": harness.rounded(seconds / length * 1e6),
                "growth": harness.rounded(seconds / harness.median(half)) if half else None,
                "repetitions": list(repetitions),
            }
        )
    return rows


def ratios(modes: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """The windowed contestant of gemmule against every other."""
    ours = next((m for m in modes if m.startswith("gemmule-windowed")), None)
    ratios: dict[str, float] = {}
    for name, m in modes.items():
        if ours is not None and name != ours:
            label = name.replace("-", "_")
            ratios[f"vs_{label}"] = harness.rounded(m["seconds"] / modes[ours]["seconds"])
            for kind in ("peak_memory", "peak_growth"):
                if m[f"{kind}_mb"] > 0:
                    share = modes[ours][f"{kind}_mb"] / m[f"{kind}_mb"]
                    ratios[f"{kind}_vs_{label}"] = harness.rounded(share)
    return ratios


def show(report: Mapping[str, Any]) -> None:
    """Prints the report as tables."""
    settings, modes, sweep = report["settings"], report["modes"], report["sweep"]
    rows = [
        (
            name,
            f"{m['seconds'] * 1e3:,.0f}",
            f"{min(m['repetitions']) * 1e3:,.0f}-{max(m['repetitions']) * 1e3:,.0f}",
            f"{m['peak_memory_mb']:,.0f}",
            f"{report['ratios'].get('vs_' + name.replace('-', '_'), 1.0):.2f}",
        )
        for name, m in modes.items()
    ]
    table(
        ["attention", "ms", "range", "MB", "x ours"],
        rows,
        title=f"Forward and backward, {settings['seq_len']} tokens, window {settings['window']}, "
        f"{settings['heads']}/{settings['kv_heads']} heads of {settings['head_dim']}, "
        f"{settings['threads']} threads",
    )
    by_length = {mode: {r["seq_len"]: r for r in rows} for mode, rows in sweep.items()}
    table(
        ["µs a token at length", *map(str, settings["sweep"])],
        [
            (
                mode,
                *(
                    f"{rows[n]['microseconds_per_token']:.1f}" if n in rows else "-"
                    for n in settings["sweep"]
                ),
            )
            for mode, rows in by_length.items()
        ],
    )
    if not report["agreement"]["agrees"]:
        harness.say(f"RESULTS DIFFER, the figures say nothing: {report['agreement']}")


def main() -> int:
    """Command line; a worker when asked to be one."""
    args = harness.parse_arguments("attention.py", __doc__.splitlines()[0], MODES)
    return harness.run(args, measure, show, build)


if __name__ == "__main__":
    sys.exit(main())
