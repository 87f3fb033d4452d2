"""Rounding errors of both implementations, measured from a float64 forward pass.

bf16 keeps eight bits, and N(0, 1) weights drive every cap into saturation, where a random deep
model multiplies rounding. Equality within 3e-5 cannot be asked there; being no worse can.
"""

import statistics

import pytest
import torch
from pairs import cached, pair, shrunken, tokens, weights
from plain_gemma import exact_logits

from gemmule.model.config import PRESETS
from parity_figures import Figures


@pytest.mark.parametrize(
    ("dtype", "saturated"), [(torch.float32, False), (torch.float32, True), (torch.bfloat16, False)]
)
@torch.no_grad()
def test_our_rounding_is_no_worse_than_theirs(
    dtype: torch.dtype, saturated: bool, figures: Figures
) -> None:
    group = f"{str(dtype).removeprefix('torch.')}{', saturated' if saturated else ''}"
    ratios = []
    for name in PRESETS:
        ours, theirs = (model.to(dtype) for model in pair(shrunken(name), 6, saturated))
        ids = tokens(ours.config, 2, 32)
        # From the weights as `dtype` holds them: only the arithmetic differs.
        exact = exact_logits(weights(theirs), ours.config, ids)
        their_error = (theirs(ids).logits.double() - exact).abs().max().item()
        figures.note(f"{group}, their error", their_error)
        for logits in (ours(ids), cached(ours, ids, [24] + [1] * 8)):
            error = (logits.double() - exact).abs().max().item()
            figures.note(f"{group}, our error", error)
            ratios.append(error / their_error)
    median = statistics.median(ratios)
    figures.note(f"{group}, ours / theirs, median", median, 1.5, cases=len(ratios))
    assert median <= 1.5
