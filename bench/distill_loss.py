"""Distillation losses at Gemma 2's vocabulary: time and memory against plain and peers' versions.

From hidden states and heads to the loss and its gradients for hidden states and student's head,
fp32, forward and backward:

- gemmule: the report's objective (cross-entropy with the teacher's distribution) in chunks,
  compiled as training compiles it; gemmule-eager: the same without a compiler;
- plain: the same on whole logits, as gemmule.losses.plain writes it;
- gemmule-jsd, plain-jsd, trl-jsd: the generalized Jensen-Shannon divergence, the last by TRL's
  function of whole logits (which are capped before);
- liger-jsd: Liger's chunked one as it comes. It has no soft cap, so it computes something else:
  gemmule-jsd-uncapped is what to compare it with;
- gemmule-sampled: sparse targets of 256 draws a token, made outside the time;
- products: the four matrix products alone, in gemmule's chunks: what no version can do without.

TRL and Liger take part where they can be imported (`pip install --no-deps --target DIR trl
liger-kernel accelerate datasets multiprocess dill xxhash`, and DIR on PYTHONPATH); otherwise the
report says that they are not installed.

Whole logits of all tokens do not fit most machines, so all are compared at `compare_tokens`;
gemmule (or gemmule-eager, where only that takes part) then also runs at `tokens`.
`ratios.time_vs_*` are gemmule's time over the other's, `ratios.memory_vs_*` likewise of
`peak_extra_mb`: the resident peak above inputs and gradients. The top-level `peak_extra_mb` is
gemmule's at `tokens`, `plain_peak_extra_mb` what the plain version would take there, from its
growth between the two sizes of `plain_peaks_mb`. (Smaller ones would not do: the peak of few tokens
is in the backward pass, whose share are the gradients; that of many is in the forward pass.)
No contestant has the allocator setting that
gemmule's training uses. Large heads are a random block repeated at other scales: quick to make,
and no two rows are equal.
"""

import argparse
import importlib.util
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from importlib import metadata
from typing import Any

import harness
from gemmule.console import table
from gemmule.runtime import host

MODES = (
    "gemmule",
    "plain",
    "products",
    "gemmule-jsd",
    "trl-jsd",
    "gemmule-jsd-uncapped",
    "liger-jsd",
)
EXTRA_MODES = ("gemmule-eager", "plain-jsd", "gemmule-sampled")
PEERS = {"trl-jsd": ("trl", "trl"), "liger-jsd": ("liger_kernel", "liger-kernel")}
SAME = (  # contestants that must agree; the first is what the others are compared with
    ("gemmule", "gemmule-eager", "plain", "products", "gemmule-sampled"),
    ("gemmule-jsd", "plain-jsd", "trl-jsd"),
    ("gemmule-jsd-uncapped", "liger-jsd"),
)
FULL = ("gemmule", "gemmule-eager")  # the first of these also runs at all tokens
OTHER_FUNCTION = ("products", "gemmule-sampled")
TOLERANCE = 1e-3  # of loss and of both gradients' norms, relative: log_softmax itself is 5e-5 off
BLOCK = 8000  # rows of a head that are drawn; the rest repeats them


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """What every contestant is given."""
    return {
        "tokens": 256 if args.toy else 4096,
        "compare_tokens": 128 if args.toy else 256,
        "hidden": 32 if args.toy else 2304,
        "vocab": 1000 if args.toy else 256_000,
        "cap": 30.0,
        "beta": 0.5,
        "draws": 8 if args.toy else 256,
        "threads": host.usable_cores(),
        "seed": 0,
    }


# Workers.


def build(settings: Mapping[str, Any]) -> harness.Handler:
    """The contestant `settings["mode"]`: asked for a number of tokens, it does one turn."""
    import torch

    torch.set_num_threads(settings["threads"])
    prepare = contestant(settings)
    imports_mb = harness.peak_mb()

    def handle(request: Mapping[str, Any]) -> harness.Reply:
        inputs = Inputs(settings, request["tokens"])
        step = prepare(inputs)
        before_mb = resident_mb()
        seconds = []
        for _ in range(request["steps"]):
            inputs.x.grad = inputs.weight.grad = None
            began = time.perf_counter()
            loss = step()
            seconds.append(time.perf_counter() - began)
        reply: harness.Reply = {"seconds": sum(seconds) / len(seconds)}
        if request.get("describe"):
            gradients = (inputs.x.grad, inputs.weight.grad)
            if settings["mode"] not in OTHER_FUNCTION:
                norms = [g.norm().item() for g in gradients]
                reply |= {"loss": loss, "gradient_norms": norms}
            size = sum(g.nbytes for g in gradients if g is not None) / 1e6
            peak = harness.peak_mb()
            reply |= {
                "peak_rss_mb": peak,
                "imports_rss_mb": imports_mb,
                "peak_extra_mb": peak - before_mb - size,
            }
        return reply

    return handle


class Inputs:
    """Hidden states and heads of student and teacher, and next tokens."""

    def __init__(self, settings: Mapping[str, Any], tokens: int) -> None:
        import torch

        g = torch.Generator().manual_seed(settings["seed"])
        hidden, vocab = settings["hidden"], settings["vocab"]

        def head() -> torch.Tensor:
            block = torch.randn(min(BLOCK, vocab), hidden, generator=g) * (6 / math.sqrt(hidden))
            whole = torch.empty(vocab, hidden)
            for i, start in enumerate(range(0, vocab, len(block))):
                rows = whole[start : start + len(block)]
                torch.mul(block[: len(rows)], 0.99**i, out=rows)
            return whole

        self.x = torch.randn(tokens, hidden, generator=g).requires_grad_()
        self.teacher_x = torch.randn(tokens, hidden, generator=g)
        self.target = torch.randint(vocab, (tokens,), generator=g)
        self.weight, self.teacher_weight = head().requires_grad_(), head()

    @property
    def all(self) -> tuple[Any, ...]:
        """As the losses take them."""
        return self.x, self.weight, self.teacher_x, self.teacher_weight, self.target


def resident_mb() -> float:
    """Memory this process has in use now, MB of 1e6 bytes."""
    import psutil

    return float(psutil.Process().memory_info().rss / 1e6)


def contestant(settings: Mapping[str, Any]) -> Callable[[Inputs], Callable[[], float]]:
    """For the mode: from inputs to a step, which leaves gradients and returns the mean loss."""
    import torch

    from gemmule.losses.divergences import DistillationLoss, Divergence

    mode, cap = settings["mode"], settings["cap"]
    if mode == "products":
        return products
    if mode == "trl-jsd":
        return trl_jsd(settings)
    if mode == "liger-jsd":
        return liger_jsd(settings)
    if mode.endswith("-uncapped"):
        cap = None
    kind = "jsd" if "jsd" in mode else "cross_entropy"
    measured = DistillationLoss(Divergence(kind, beta=settings["beta"]))

    def prepare(inputs: Inputs) -> Callable[[], float]:
        from gemmule.losses import plain, sparse_targets
        from gemmule.losses.head import Head

        head, teacher = Head(inputs.weight, cap), Head(inputs.teacher_weight, cap)
        x, teacher_x, labels = inputs.x, inputs.teacher_x, inputs.target
        if mode == "gemmule-sampled":
            kept = teacher.sparse_targets(
                teacher_x, lambda p: sparse_targets.sample(p, settings["draws"])
            )

        def loss() -> torch.Tensor:
            if mode.startswith("plain"):
                return plain.plain_distillation(head, x, teacher, teacher_x, labels, measured)[0]
            if mode == "gemmule-sampled":
                return head.sparse_distillation(x, kept, labels, measured, compiled=True)[0]
            compiled = mode != "gemmule-eager"
            return head.distillation(x, teacher, teacher_x, labels, measured, compiled=compiled)[0]

        return lambda: backward(loss() / len(inputs.x))

    return prepare


def backward(loss: Any) -> float:
    """Its gradients, and its value."""
    loss.backward()
    return float(loss)


def products(inputs: Inputs) -> Callable[[], float]:
    """Logits of both, and both gradients, from logits that are taken for their own gradient."""
    import torch

    from gemmule.losses.chunked_head import chunk_size

    x, weight = inputs.x.detach(), inputs.weight.detach()
    chunk = min(chunk_size(len(weight)), len(x))

    def step() -> float:
        grad_x, grad_weight = torch.empty_like(x), torch.zeros_like(weight)
        student, teacher = (torch.empty(chunk, len(weight)) for _ in range(2))
        for start in range(0, len(x), chunk):
            rows = slice(start, start + chunk)
            size = len(x[rows])
            torch.mm(x[rows], weight.T, out=student[:size])
            torch.mm(inputs.teacher_x[rows], inputs.teacher_weight.T, out=teacher[:size])
            torch.mm(student[:size], weight, out=grad_x[rows])
            grad_weight.addmm_(student[:size].T, x[rows])
        inputs.x.grad, inputs.weight.grad = grad_x, grad_weight
        return 0.0

    return step


def trl_jsd(settings: Mapping[str, Any]) -> Callable[[Inputs], Callable[[], float]]:
    """TRL's generalized JSD of logits that a model's head and cap made."""
    import torch

    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    from trl.experimental.gkd.gkd_trainer import GKDTrainer

    from gemmule.losses.soft_cap import soft_cap

    cap = settings["cap"]

    def prepare(inputs: Inputs) -> Callable[[], float]:
        def step() -> float:
            logits = soft_cap(inputs.x @ inputs.weight.T, cap)
            with torch.no_grad():
                teacher = soft_cap(inputs.teacher_x @ inputs.teacher_weight.T, cap)
            loss = GKDTrainer.generalized_jsd_loss(
                logits[None], teacher[None], beta=settings["beta"], reduction="sum"
            )
            return backward(loss / len(inputs.x))

        return step

    return prepare


def liger_jsd(settings: Mapping[str, Any]) -> Callable[[Inputs], Callable[[], float]]:
    """Liger's fused linear JSD with its defaults, the loss on next tokens off."""
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    function = LigerFusedLinearJSDLoss(
        weight_hard_loss=0.0, weight_soft_loss=1.0, beta=settings["beta"]
    )
    return lambda inputs: lambda: backward(function(*inputs.all))


# The parent.


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Everything of the report but machine and versions."""
    settings = settings_of(args)
    missing = {m: p for m, (module, p) in PEERS.items() if not importlib.util.find_spec(module)}
    names = [m for m in args.modes if m not in missing]
    for mode in args.modes:
        if mode in missing:
            harness.say(f"{mode}: {missing[mode]} is not installed")
    compare, first = settings["compare_tokens"], {}
    full: harness.Reply = {}
    with ExitStack() as stack:
        workers = []
        for mode in names:
            harness.say(f"{mode}: warming up")
            worker = stack.enter_context(harness.Worker(__file__, mode, settings))
            worker.ask(tokens=compare // 2, steps=1)  # compiles
            first[mode] = worker.ask(tokens=compare, steps=1, describe=True)
            workers.append(worker)
        replies, seconds = harness.take_turns(
            workers, args.rounds, tokens=compare, steps=args.steps
        )
        if ours := next((w for w in workers if w.mode in FULL), None):
            harness.say(f"{ours.mode}: {settings['tokens']} tokens")
            full = ours.ask(tokens=settings["tokens"], steps=1, describe=True)
        peaks = {
            n: w.ask(tokens=n, steps=1, describe=True)["peak_extra_mb"]
            for w in workers
            if w.mode == "plain"
            for n in (2 * compare, 3 * compare)
        }
        idle_cpu = {w.mode: harness.rounded(w.idle_cpu_seconds) for w in workers}
    modes = {}
    for mode in names:
        times = [harness.rounded(r["seconds"]) for r in replies[mode]]
        modes[mode] = {
            "seconds": harness.median(times),
            "repetitions": times,
            "peak_extra_mb": round(first[mode]["peak_extra_mb"], 1),
            "peak_rss_mb": round(first[mode]["peak_rss_mb"], 1),
            "imports_rss_mb": round(first[mode]["imports_rss_mb"], 1),
            "soft_cap": mode not in ("gemmule-jsd-uncapped", "liger-jsd"),
            "loss": first[mode].get("loss"),
            "gradient_norms": first[mode].get("gradient_norms"),
        }
    report = {
        "settings": {
            **settings,
            "dtype": "float32",
            "flops": 8 * compare * settings["vocab"] * settings["hidden"],
            "toy": args.toy,
            "rounds": args.rounds,
            "steps_per_repetition": args.steps,
            "load_average": [round(x, 2) for x in os.getloadavg()],
            "seconds_of_turns": round(seconds, 1),
            "idle_cpu_seconds": idle_cpu,
        },
        "peers": {p: "not installed" if m in missing else metadata.version(p)
                  for m, (_, p) in PEERS.items()},
        "modes": modes,
        "ratios": ratios(modes),
        "agreement": agreement(modes),
    }  # fmt: skip
    if full:
        report["peak_extra_mb"] = round(full["peak_extra_mb"], 1)
        report["seconds"] = harness.rounded(full["seconds"])
    if peaks:
        (a, low), (b, high) = peaks.items()
        more = (settings["tokens"] - b) * (high - low) / (b - a)
        report["plain_peaks_mb"] = {str(n): round(peak, 1) for n, peak in peaks.items()}
        report["plain_peak_extra_mb"] = round(high + more, 1)
    return report


def ratios(modes: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """The first contestant of each group over the others of it, in time and in memory."""
    ratios: dict[str, float] = {}
    for group in SAME:
        ours, *others = [m for m in group if m in modes] or [""]
        for other in others if ours.startswith("gemmule") else []:
            for kind, key in (("time", "seconds"), ("memory", "peak_extra_mb")):
                a, b = modes[ours][key], modes[other][key]
                if a > 0 and b > 0:
                    ratios[f"{kind}_vs_{other.replace('-', '_')}"] = harness.rounded(a / b)
    return ratios


def agreement(modes: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Whether those of a group computed the same loss and gradients."""
    largest = 0.0
    for group in SAME:
        there = [modes[m] for m in group if m in modes and m not in OTHER_FUNCTION]
        for figures in zip(*([m["loss"], *m["gradient_norms"]] for m in there), strict=True):
            largest = max(largest, max(figures) / min(figures) - 1)
    return {"largest_difference": largest, "tolerance": TOLERANCE, "agrees": largest <= TOLERANCE}


def show(report: Mapping[str, Any]) -> None:
    """Prints the report as a table."""
    settings, ratios = report["settings"], report["ratios"]
    rows = [
        (
            name,
            f"{m['seconds']:.3g}",
            f"{min(m['repetitions']):.3g}-{max(m['repetitions']):.3g}",
            f"{m['peak_extra_mb']:,.0f}",
            f"{ratios.get('time_vs_' + name.replace('-', '_'), 1.0):.2f}",
        )
        for name, m in report["modes"].items()
    ]
    table(
        ["loss", "s", "range", "MB", "ours / it"],
        rows,
        title=f"Forward and backward, {settings['compare_tokens']} tokens, hidden "
        f"{settings['hidden']}, vocabulary {settings['vocab']}, {settings['threads']} threads",
    )
    if "peak_extra_mb" in report:
        harness.say(
            f"gemmule at {settings['tokens']} tokens: {report['seconds']:.3g} s, "
            f"{report['peak_extra_mb']:,.0f} MB above inputs and gradients"
        )
    if "plain_peak_extra_mb" in report:
        harness.say(f"the plain version would take {report['plain_peak_extra_mb']:,.0f} MB there")
    for name, version in report["peers"].items():
        harness.say(f"{name}: {version}")
    if not report["agreement"]["agrees"]:
        harness.say(f"RESULTS DIFFER, the figures say nothing: {report['agreement']}")


def main() -> int:
    """Command line; a worker when asked to be one."""
    args = harness.parse_arguments("distill_loss.py", __doc__.splitlines()[0], MODES, EXTRA_MODES)
    return harness.run(args, measure, show, build)


if __name__ == "__main__":
    sys.exit(main())
