"""What bench/posttrain_warp.py measures: answers, distance from the start, best of n.

Distances are KL(policy || start) of whole answers in nats; each token's is summed over the
vocabulary, so that few answers are enough.
"""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from gemmule.losses.divergences import DistillationLoss, Divergence
from gemmule.losses.labels import IGNORED
from gemmule.model.gemma import Gemma
from gemmule.posttrain.answer_rows import batches_of_rollouts
from gemmule.posttrain.rewards.protocol import Answer, Reward
from gemmule.posttrain.rollouts import Group, Rollout

Rows = Sequence[Sequence[float]]  # a value of each of N answers to each of P prompts
Gold = Callable[[str, Mapping[str, Any]], float]
BATCH = 64  # answers


def proxy_rewards(reward: Reward, answers: Sequence[Answer], cut: float) -> list[float]:
    """Rewards as a policy gets them: `cut` for an answer that a limit cut."""
    scores = iter(reward.score([answer for answer in answers if answer.finished]))
    return [next(scores) if answer.finished else cut for answer in answers]


@torch.no_grad()
def divergence(model: Gemma, start: Gemma, rollouts: Sequence[Rollout]) -> float:
    """KL(model || start) in nats per answer, on answers of `model`."""
    loss, total = DistillationLoss(Divergence("reverse_kl")), 0.0
    for batch in batches_of_rollouts(rollouts, BATCH):
        labels_N = batch.labels_BT.flatten()
        index_A = (labels_N != IGNORED).nonzero()[:, 0]
        own_AD, start_AD = (
            m.hidden_states(batch.tokens_BT, doc_ids_BT=batch.doc_ids_BT).flatten(0, 1)[index_A]
            for m in (model, start)
        )
        kl, _ = model.head.distillation(own_AD, start.head, start_AD, labels_N[index_A], loss)
        total += kl.item()
    return total / len(rollouts)


def policy_figures(
    model: Gemma, start: Gemma, groups: Sequence[Group], proxy: Reward, gold: Gold, cut: float
) -> dict[str, float]:
    """Figures of a policy's answers: means, and standard deviations of the rewards."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    answers = [answer for group in groups for answer in group.answers()]
    golds = [gold(answer.text, answer.record) for answer in answers]
    proxies = proxy_rewards(proxy, answers, cut)
    return {
        "kl": divergence(model, start, rollouts),
        **mean_and_std("gold", golds),
        **mean_and_std("proxy", proxies),
        "words": statistics.mean(len(answer.text.split()) for answer in answers),
        "cut": statistics.mean(not answer.finished for answer in answers),
    }


def mean_and_std(name: str, values: Sequence[float]) -> dict[str, float]:
    """The mean as `name`, and the standard deviation as `name`_std."""
    return {name: statistics.mean(values), f"{name}_std": statistics.stdev(values)}


def best_of(n: int, proxy_PN: Rows, value_PN: Rows) -> float:
    """The expected value of the answer with the highest proxy among n of a prompt's N answers.

    The mean over all subsets of n, in closed form: an answer with i - 1 others below it is the best
    of C(i - 1, n - 1) of the C(N, n) subsets (arXiv 2112.09332, appendix I).
    """
    total = 0.0
    for proxies, values in zip(proxy_PN, value_PN, strict=True):
        order = sorted(range(len(proxies)), key=proxies.__getitem__)
        subsets = math.comb(len(order), n)
        total += sum(math.comb(i, n - 1) / subsets * values[k] for i, k in enumerate(order))
    return total / len(proxy_PN)


def best_of_kl(n: int) -> float:
    """KL(best of n || start) in nats: log n - (n - 1) / n, for rewards without ties."""
    return math.log(n) - (n - 1) / n


def agreement(proxy_PN: Rows, gold_PN: Rows) -> float:
    """Part of neighboring answers with different gold rewards that a proxy orders rightly."""
    right = total = 0
    for proxies, golds in zip(proxy_PN, gold_PN, strict=True):
        for i in range(0, len(golds) - 1, 2):
            if golds[i] != golds[i + 1]:
                total += 1
                right += (proxies[i] > proxies[i + 1]) == (golds[i] > golds[i + 1])
    return right / total if total else float("nan")
