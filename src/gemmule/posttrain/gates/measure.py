"""What a promotion gate measures: answers, their rewards, the divergence, the loss on base text."""

from collections.abc import Sequence

import torch
from torch import Tensor

from gemmule.data.dataset import Split
from gemmule.data.packed_text import eval_batches
from gemmule.infer.core.sampling import SamplingParams
from gemmule.losses.divergences import DistillationLoss, Divergence
from gemmule.losses.labels import IGNORED
from gemmule.model.gemma import Gemma
from gemmule.model.tokenizer import Tokenizer
from gemmule.posttrain.gates.rules import Answers
from gemmule.posttrain.rewards.protocol import Reward, scores
from gemmule.posttrain.rollouts import Group, Rollout, RolloutPrompt, RolloutSampler

_REVERSE_KL = DistillationLoss(Divergence("reverse_kl"))


def sample(
    model: Gemma,
    tokenizer: Tokenizer,
    prompts: Sequence[RolloutPrompt],
    *,
    samples: int,
    max_new_tokens: int,
    seed: int,
) -> list[Group]:
    """Answers from the model's own distribution; two models get the same random numbers."""
    params = SamplingParams.on_policy(max_new_tokens, n=samples)
    return RolloutSampler(model, tokenizer, params, seed).sample(prompts, range(len(prompts)))


def describe_answers(groups: Sequence[Group], reward: Reward | None, cut_reward: float) -> Answers:
    """Rewards, lengths and ends of answers.

    Args:
        groups: the answers to each prompt.
        reward: scores the answers that ended by themselves; None: none are scored.
        cut_reward: reward of an answer that a limit cut.

    Raises:
        DataError: for a reward that is not finite.
    """
    rewards = None
    if reward is not None:
        values = iter(scores(reward, [a for group in groups for a in group.answers()], cut_reward))
        rewards = [[next(values) for _ in group.rollouts] for group in groups]
    return Answers(
        rewards,
        [[len(rollout.answer) for rollout in group.rollouts] for group in groups],
        [[rollout.finished for rollout in group.rollouts] for group in groups],
    )


@torch.no_grad()
def divergences(candidate: Gemma, parent: Gemma, groups: Sequence[Group]) -> list[float]:
    """KL(candidate, parent) summed over the tokens of each prompt's answers, nats.

    Each token's divergence is the exact sum over the vocabulary, which has less variance than the
    log ratio of the sampled token.
    """
    sums = []
    for group in groups:
        tokens_BT = _rows(group.rollouts)
        ours_BTD, theirs_BTD = (m.hidden_states(tokens_BT) for m in (candidate, parent))
        total = 0.0
        for rollout, ours_TD, theirs_TD in zip(group.rollouts, ours_BTD, theirs_BTD, strict=True):
            predicts = slice(len(rollout.prompt) - 1, len(rollout) - 1)
            kl, _ = candidate.head.distillation(
                ours_TD[predicts],
                parent.head,
                theirs_TD[predicts],
                torch.tensor(rollout.answer, device=ours_TD.device),
                _REVERSE_KL,
            )
            total += kl.item()
        sums.append(total)
    return sums


def _rows(rollouts: Sequence[Rollout]) -> Tensor:
    """Prompts with their answers, padded at the right, where no other token sees it."""
    rows = [torch.tensor(r.prompt + r.answer) for r in rollouts]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


@torch.no_grad()
def window_losses(
    model: Gemma, split: Split, *, seq_len: int, max_tokens: int, batch_size: int = 8
) -> list[float]:
    """Nats per token of windows spread evenly over a text, equal ones for every model."""
    losses: list[float] = []
    for batch in eval_batches(split, batch_size, seq_len, max_tokens):
        x_BTD = model.hidden_states(batch.tokens_BT, doc_ids_BT=batch.doc_ids_BT)
        labels_N = batch.labels_BT.flatten()
        log_p_BT = model.head.log_likelihoods(x_BTD.flatten(0, 1), labels_N).view_as(
            batch.labels_BT
        )
        counts_B = (batch.labels_BT != IGNORED).sum(-1)
        means_B = -log_p_BT.double().sum(-1) / counts_B.clamp(min=1)
        losses += [m for m, c in zip(means_B.tolist(), counts_B.tolist(), strict=True) if c]
    return losses
