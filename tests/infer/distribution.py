"""The distribution that a sampler draws from, to compare samples with."""

import torch
from torch import Tensor

from gemmule.infer.core.sampling import SamplingParams, candidates


def probabilities(logits_V: Tensor, params: SamplingParams) -> Tensor:
    """Returns the distribution [V] that `params` samples from: one-hot if greedy."""
    full_V = torch.zeros(len(logits_V), dtype=torch.float32, device=logits_V.device)
    if params.greedy:
        full_V[logits_V.argmax()] = 1.0
        return full_V
    weights, ids = candidates(logits_V.cpu(), params)
    weights = (weights / weights.sum()).to(full_V.device)
    return weights if ids is None else full_V.index_put_((ids.to(full_V.device),), weights)
