"""Disk space of a teacher's stored targets, if there is no teacher yet to measure.

Every token gets the same distribution, a power law of rank (Zipf), with the expected entropy of the
teacher. The tokens are shuffled, and the store's own codec encodes what each kind of target keeps.
"""

import math
from collections.abc import Sequence

import torch

from gemmule.teachers.target_spec import TargetSpec

TOKENS = 32


def zipf(vocab_size: int, entropy: float) -> torch.Tensor:
    """Probabilities [V] proportional to rank^-s, with s such that their entropy is `entropy`."""
    rank_V = torch.arange(1, vocab_size + 1, dtype=torch.float64).log()
    low, high = 0.0, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        p_V = (-middle * rank_V).softmax(0)
        if float(torch.special.entr(p_V).sum()) > entropy:
            low = middle
        else:
            high = middle
    return (-low * rank_V).softmax(0).float()


def estimated_bytes(
    specs: Sequence[TargetSpec], vocab_size: int, entropy: float
) -> dict[str, float]:
    """Bytes per token by the label of the spec, for a teacher with that entropy in nats."""
    generator = torch.Generator().manual_seed(0)
    entropy = min(entropy, 0.999 * math.log(vocab_size))
    p_V = zipf(vocab_size, entropy)
    sizes = {spec.label: 0.0 for spec in specs}
    for i in range(TOKENS):
        p_1V = p_V[torch.randperm(vocab_size, generator=generator)][None]
        for spec in specs:
            targets = spec.choice(0, i)(p_1V)
            # The stream of a single token is padded to a whole byte: sixteen tokens share that.
            repeated = type(targets)(
                targets.ids_NK.expand(16, -1),
                targets.weight_NK.expand(16, -1),
                targets.entropy_N.expand(16),
                None if targets.tail_N is None else targets.tail_N.expand(16),
            )
            sizes[spec.label] += len(spec.codec(vocab_size).encode(repeated)) / (16 * TOKENS)
    return sizes
