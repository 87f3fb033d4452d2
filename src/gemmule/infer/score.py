"""How likely a model finds a text."""

from collections.abc import Sequence

import torch
from torch import Tensor

from gemmule.model.gemma import Gemma

_LOGITS_AT_ONCE = 2**24  # 64 MiB of fp32: bounds memory at any vocabulary


@torch.inference_mode()
def token_log_probs(model: Gemma, tokens: Sequence[int]) -> Tensor:
    """Log-probability of each token after the first, given those before it.

    Args:
        model: the weights.
        tokens: T ids; the first is only a condition.

    Returns:
        [T - 1], fp32, nats, on the CPU.
    """
    if len(tokens) < 2:
        return torch.empty(0)
    device = model.embed_tokens.weight.device
    tokens_T = torch.tensor(list(tokens), dtype=torch.long, device=device)
    x_TD = model.hidden_states(tokens_T[None, :-1])[0]
    targets_T = tokens_T[1:]
    chunk = max(1, _LOGITS_AT_ONCE // model.config.vocab_size)
    parts = []
    for start in range(0, len(targets_T), chunk):
        logits_CV = model.logits(x_TD[start : start + chunk]).float()
        chosen_C = logits_CV.gather(1, targets_T[start : start + chunk, None])[:, 0]
        parts.append(chosen_C - logits_CV.logsumexp(-1))
    return torch.cat(parts).cpu()
