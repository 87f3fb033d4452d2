"""Fifty random shapes against transformers in fp32: prefill, decode past the window, padding."""

from dataclasses import dataclass

import hypothesis.strategies as st
import torch
from hypothesis import HealthCheck, given, settings
from pairs import TOLERANCE, cached, configs, padding, pair, tokens, without

from gemmule.model.config import GemmaConfig
from parity_figures import Figures

CONFIGS = 50


@dataclass
class Case:
    config: GemmaConfig
    seed: int
    length: int  # of the sequences; longer than the window
    chunks: list[int]  # in which the cache is fed
    lengths: list[int]  # of the rows when padded


@st.composite
def cases(draw: st.DrawFn) -> Case:
    config, seed = draw(configs()), draw(st.integers(0, 2**31))
    length = config.sliding_window + draw(st.integers(8, 24))
    chunks: list[int] = []
    while (left := length - sum(chunks)) > 0:
        longest = draw(st.sampled_from([1, 7, 30]))
        chunks.append(draw(st.integers(1, min(longest, left))))
    lengths = draw(st.lists(st.integers(1, length), min_size=2, max_size=2))
    return Case(config, seed, length, chunks, lengths)


@settings(max_examples=CONFIGS, deadline=None, suppress_health_check=list(HealthCheck))
@given(case=cases())
@torch.no_grad()
def test_random_configs(figures: Figures, case: Case) -> None:
    config = case.config
    ours, theirs = pair(config, case.seed)
    ids = tokens(config, 2, case.length, case.seed)
    expected = theirs(ids).logits
    got = ours(ids)
    decoded = cached(ours, ids, case.chunks)
    figures.compare("random configs, prefill", got, expected, TOLERANCE)
    figures.compare("random configs, decode", decoded, expected, TOLERANCE)

    for side in ("left", "right"):
        mask, positions = padding(case.lengths, case.length, side)
        real = mask.bool()
        expected = theirs(ids, attention_mask=mask, position_ids=positions).logits[real]
        padded = ours(ids, positions_BT=positions, doc_ids_BT=mask)[real]
        decoded = cached(ours, ids, case.chunks, positions, mask)[real]
        figures.compare(f"random configs, padded {side}", padded, expected, TOLERANCE)
        figures.compare(f"random configs, padded {side}, decode", decoded, expected, TOLERANCE)

    # Each of these must have a say in the logits, or equal ones would prove little.
    changes: list[dict[str, object]] = [
        {"sliding_window": case.length},
        {"query_pre_attn_scalar": config.head_dim},
    ]
    for cap in ("attn_logit_softcapping", "final_logit_softcapping"):
        if getattr(config, cap) is not None:
            changes.append({cap: None})
    for change in changes:
        moved = (without(ours, **change)(ids) - got).abs().max()
        assert moved > 10 * TOLERANCE, f"{change} hardly matters"
