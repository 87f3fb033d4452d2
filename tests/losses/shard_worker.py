"""One rank of test_shard.py: losses over a shard of the vocabulary, next to plain float64.

Prints JSON: for each check, the relative errors of what it compared, and what it counted.
"""

import json
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch import distributed as dist
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from gemmule.errors import ConfigError
from gemmule.losses import chunked_head
from gemmule.losses.divergences import KINDS, DistillationLoss, Divergence
from gemmule.losses.head import Head
from gemmule.losses.plain import plain_distillation, plain_sparse_distillation
from gemmule.losses.shard import Shard, shard_bounds
from gemmule.losses.soft_cap import soft_cap
from gemmule.losses.sparse_targets import Choice, sample, top_k, top_k_with_tail, top_p
from gemmule.runtime.world import World

CHOICES: dict[str, Choice] = {
    "sample": lambda p: sample(p, 9, generator=torch.Generator().manual_seed(0)),
    "top_k": lambda p: top_k(p, 3),
    "top_p": lambda p: top_p(p, 0.8),
    "tail": lambda p: top_k_with_tail(p, 3),
    "tail of nothing": lambda p: top_k_with_tail(p, p.shape[1]),
}


class Problem:
    """Random hidden states, heads and labels, the same on all ranks, and this rank's shard.

    The student's head has padding rows; its logits reach several times the cap.
    """

    def __init__(self, n: int, v: int, seed: int, *, padding: int = 0, size: float = 1.0) -> None:
        g = torch.Generator().manual_seed(seed)
        self.v = v
        self.vocab_size = v if padding else None
        self.x = torch.randn(n, 7, generator=g)
        self.w = size * torch.randn(v + padding, 7, generator=g)
        self.tx = torch.randn(n, 10, generator=g)
        self.tw = size * torch.randn(v, 10, generator=g)
        self.labels = torch.randint(0, v, (n,), generator=g)
        self.labels[torch.rand(n, generator=g) < 0.2] = -100
        self.weights = 2 * torch.rand(n, generator=g)
        group = dist.group.WORLD
        assert group is not None
        self.shard = Shard(group, v + padding)
        self.teacher_shard = Shard(group, v)

    def leaves(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Hidden states, and the rows of this rank's shard, or in float64 the whole head."""
        w = self.w if dtype == torch.float64 else self.w[self.shard.start : self.shard.stop]
        return self.x.to(dtype).requires_grad_(), w.to(dtype).requires_grad_()

    def own(self, whole_VD: Tensor) -> Tensor:
        """This rank's rows."""
        return whole_VD[self.shard.start : self.shard.stop]


def error(got: Tensor, expected: Tensor, scale: float = 1.0) -> float:
    """Relative error; where less than `scale` is expected, relative to that."""
    return ((got.double() - expected).norm() / expected.norm().clamp(min=scale)).item()


def errors(
    p: Problem, got: tuple[Tensor, ...], leaves: Any, plain: tuple[Tensor, ...], plain_leaves: Any
) -> list[float]:
    """Of the values, and of the gradients of the first."""
    n = float(len(p.x))  # sums over this many tokens
    values = [error(a.detach(), b.detach(), n) for a, b in zip(got, plain, strict=True)]
    grad_x, grad_w = torch.autograd.grad(2.0 * got[0], leaves, retain_graph=True)
    plain_x, plain_w = torch.autograd.grad(2.0 * plain[0], plain_leaves, retain_graph=True)
    return [*values, error(grad_x, plain_x), error(grad_w, p.own(plain_w))]


def random_settings(
    seed: int, kinds: tuple[str, ...], sizes: tuple[float, ...] = (0.3, 0.7)
) -> tuple[Problem, dict[str, Any]]:
    rng = random.Random(seed)
    p = Problem(
        rng.randint(1, 40),
        rng.choice([10, 31, 70, 259]),
        seed,
        padding=rng.choice([0, 0, 2]),
        size=rng.choice(sizes),
    )
    mix = rng.choice([0.1, 0.5, 0.8])
    return p, {
        "cap": rng.choice([None, 2.0, 30.0]),
        "teacher_cap": rng.choice([None, 2.0, 30.0]),
        "loss": DistillationLoss(
            Divergence(rng.choice(kinds), beta=mix, skew=mix),  # type: ignore[arg-type]
            rng.choice([0.5, 1.0, 1.0, 3.0]),
            rng.choice([0.0, 0.0, 0.3, 1.0]),
        ),
        "chunk": rng.choice([None, 3, 16]),
        "weights": rng.choice([None, p.weights]),
        "whole_teacher": rng.random() < 0.3,
        "tile": rng.randint(1, 9),
    }


def distillation(seed: int, *sizes: float, compiled: bool = False) -> list[float]:
    p, s = random_settings(seed, KINDS, sizes or (0.3, 0.7))
    leaves, plain_leaves = p.leaves(torch.float32), p.leaves(torch.float64)
    head = Head(leaves[1], s["cap"], p.vocab_size, s["chunk"], p.shard)
    if s["whole_teacher"] or p.vocab_size:  # padding moves the bounds of the shards
        teacher = Head(p.tw, s["teacher_cap"])
    else:
        teacher = Head(p.own(p.tw), s["teacher_cap"], shard=p.teacher_shard)
    with mock.patch.object(chunked_head, "TILE_BYTES", 4 * p.shard.largest * s["tile"]):
        got = head.distillation(
            leaves[0], teacher, p.tx, p.labels, s["loss"], weights_N=s["weights"],
            compiled=compiled,
        )  # fmt: skip
    plain = plain_distillation(
        Head(plain_leaves[1], s["cap"], p.vocab_size), plain_leaves[0],
        Head(p.tw.double(), s["teacher_cap"]), p.tx.double(), p.labels, s["loss"],
        weights_N=s["weights"],
    )  # fmt: skip
    return errors(p, got, leaves, plain, plain_leaves)


def sparse(seed: int, *sizes: float, compiled: bool = False) -> list[float]:
    p, s = random_settings(seed, ("cross_entropy", "forward_kl"), sizes or (0.3, 0.7))
    choose = CHOICES[random.Random(seed).choice(sorted(CHOICES))]
    leaves, plain_leaves = p.leaves(torch.float32), p.leaves(torch.float64)
    targets = Head(p.tw, s["teacher_cap"]).sparse_targets(
        p.tx, choose, temperature=s["loss"].temperature
    )
    head = Head(leaves[1], s["cap"], p.vocab_size, s["chunk"], p.shard)
    with mock.patch.object(chunked_head, "TILE_BYTES", 4 * p.shard.largest * s["tile"]):
        got = head.sparse_distillation(
            leaves[0], targets, p.labels, s["loss"], weights_N=s["weights"], compiled=compiled
        )
    plain = plain_sparse_distillation(
        Head(plain_leaves[1], s["cap"], p.vocab_size), plain_leaves[0], targets, p.labels,
        s["loss"], weights_N=s["weights"],
    )  # fmt: skip
    return errors(p, got, leaves, plain, plain_leaves)


def large_logits(seed: int) -> list[float]:
    """Logits so large that fp32 itself keeps them less exactly."""
    return [*distillation(seed, 3.0), *sparse(seed, 3.0)]


def compiled(seed: int) -> list[float]:
    return [*distillation(seed, compiled=True), *sparse(seed, compiled=True)]


def next_token(seed: int) -> list[float]:
    p, s = random_settings(seed, KINDS)
    leaves, plain_leaves = p.leaves(torch.float32), p.leaves(torch.float64)
    head = Head(leaves[1], s["cap"], p.vocab_size, s["chunk"], p.shard)
    got = head.cross_entropy_by_token(leaves[0], p.labels)
    x, w = plain_leaves
    logits = soft_cap(x @ w[: p.v].T, s["cap"])
    nll_N = F.cross_entropy(logits, p.labels, reduction="none")
    results = errors(p, got, leaves, (nll_N.sum(), nll_N), plain_leaves)
    # And one by one, each with its weight.
    log_p_N = head.log_likelihoods(leaves[0], p.labels)
    return [
        *results,
        *errors(
            p, ((p.weights * log_p_N).sum(), log_p_N), leaves,
            (-(p.weights * nll_N).sum(), -nll_N), plain_leaves,
        ),
    ]  # fmt: skip


def whole_rows(seed: int) -> list[float]:
    """What needs the whole vocabulary at once: logits, entropies, targets and masses."""
    p, s = random_settings(seed, KINDS)
    x, w = p.leaves(torch.float32)
    x64, w64 = p.leaves(torch.float64)
    head = Head(w, s["cap"], p.vocab_size, s["chunk"], p.shard)
    plain = soft_cap(x64 @ w64[: p.v].T, s["cap"])
    direction = torch.randn(plain.shape, generator=torch.Generator().manual_seed(seed))
    logits = head.logits(x)
    results = errors(
        p, ((logits * direction).sum(), logits), (x, w), ((plain * direction).sum(), plain),
        (x64, w64),
    )  # fmt: skip
    p_NV = (plain / 2).softmax(-1).detach()
    targets = head.sparse_targets(x, lambda q: top_k(q, p.v), temperature=2.0)
    dense = torch.zeros_like(p_NV).scatter_(1, targets.ids_NK, targets.weight_NK.double())
    entropy_N = torch.special.entr(plain.detach().softmax(-1)).sum(-1)
    results += [error(dense, p_NV), error(head.entropies(x.detach()), entropy_N)]
    in_set_V = torch.zeros(p.v, dtype=torch.bool)
    in_set_V[torch.tensor([0, 2])] = True  # none of them in the last shard
    mass_N = head.log_mass(x, in_set_V)
    plain_mass_N = plain.log_softmax(-1)[:, in_set_V].logsumexp(-1)
    return [
        *results,
        *errors(
            p, ((p.weights * mass_N).sum(), mass_N), (x, w),
            ((p.weights * plain_mass_N).sum(), plain_mass_N), (x64, w64),
        ),
    ]  # fmt: skip


@contextmanager
def counted(counts: dict[str, int]) -> Iterator[None]:
    """Counts collective operations by name, and the elements of the largest tensor made."""

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            if func.namespace == "c10d":
                name = func._schema.name.partition("::")[2]
                counts[name] = counts.get(name, 0) + 1
            out = func(*args, **(kwargs or {}))
            for t in out if isinstance(out, tuple | list) else (out,):
                if isinstance(t, Tensor):
                    counts["largest"] = max(counts["largest"], t.numel())
            return out

    counts["largest"] = 0
    with Watch():
        yield


def collectives() -> dict[str, dict[str, int]]:
    """For four chunks of 16 tokens: what is exchanged, and that no tensor exceeds a chunk's."""
    p = Problem(64, 259, 0)
    results: dict[str, dict[str, int]] = {}

    def count(name: str, loss: Callable[[Head, Tensor], Tensor], cap: float | None) -> None:
        x, w = p.leaves(torch.float32)
        with counted(results.setdefault(name, {})):
            loss(Head(w, cap, None, 16, p.shard), x).backward()

    teacher = Head(p.own(p.tw), 30.0, shard=p.teacher_shard)
    targets = Head(p.tw, 30.0).sparse_targets(p.tx, CHOICES["tail"])
    for cap in (30.0, None):
        end = "" if cap else " without a cap"
        count("next token" + end, lambda head, x: head.cross_entropy(x, p.labels), cap)
        for kind in KINDS:
            loss = DistillationLoss(Divergence(kind), 2.0, 0.5)  # type: ignore[arg-type]
            count(
                kind + end,
                lambda head, x, loss=loss: head.distillation(x, teacher, p.tx, p.labels, loss)[0],  # type: ignore[misc]
                cap,
            )
        count("sparse" + end, lambda h, x: h.sparse_distillation(x, targets, p.labels)[0], cap)
    results["shard"] = {"elements": 16 * p.shard.largest}
    return results


def half_precision(seed: int) -> list[float]:
    """Hidden states in bf16, next to one device that computes the same in bf16."""
    p, s = random_settings(seed, KINDS)
    x, w = p.x.bfloat16().requires_grad_(), p.own(p.w).clone().requires_grad_()
    whole_x, whole_w = p.x.bfloat16().requires_grad_(), p.w.clone().requires_grad_()
    tx, teacher = p.tx.bfloat16(), Head(p.tw, s["teacher_cap"])
    one, _ = Head(whole_w, s["cap"], p.vocab_size).distillation(
        whole_x, teacher, tx, p.labels, s["loss"]
    )
    many, _ = Head(w, s["cap"], p.vocab_size, s["chunk"], p.shard).distillation(
        x, teacher, tx, p.labels, s["loss"]
    )
    expected = torch.autograd.grad(one, (whole_x, whole_w))
    got = torch.autograd.grad(many, (x, w))
    return [
        error(many.detach(), one.detach().double()),
        error(got[0], expected[0].double()),
        error(got[1], p.own(expected[1]).double()),
    ]


def refusals() -> list[str]:
    p = Problem(5, 10, 0)
    group, size = p.shard.group, p.shard.group.size()
    other = Head(p.own(p.tw), shard=p.teacher_shard)

    def few_rows() -> None:
        Shard(group, size - 1)

    def other_rows() -> None:
        Head(p.w, shard=p.shard)

    def padding_only() -> None:
        Head(p.own(p.w), vocab_size=2, shard=p.shard).cross_entropy(p.x, p.labels)

    def unlike() -> None:
        Head(p.w).distillation(p.x, other, p.tx, p.labels)

    messages = []
    for wrong in (few_rows, other_rows, padding_only, unlike):
        try:
            wrong()
        except ConfigError as e:
            messages.append(str(e))
        else:
            messages.append("accepted")
    return messages


def main() -> None:
    examples, compiles = int(sys.argv[1]), len(sys.argv) > 2
    torch.set_num_threads(1)
    checks = {
        distillation: examples,
        sparse: examples,
        large_logits: examples // 4,
        next_token: examples // 4,
        whole_rows: examples // 4,
        half_precision: examples // 2,
        compiled: 6 if compiles else 0,
    }
    with World.from_env("cpu", timeout=60) as world:
        report: dict[str, Any] = {
            check.__name__: [check(seed) for seed in range(count)]
            for check, count in checks.items()
        }
        report["collectives"] = collectives()
        report["refusals"] = refusals()
        report["bounds"] = shard_bounds(259, world.size)
    print(json.dumps(report))  # more than a pipe holds: after the ranks have parted


if __name__ == "__main__":
    main()
