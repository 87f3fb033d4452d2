"""Chunks over pages against the forward pass of a whole sequence."""

import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from gemmule.infer.runners.protocol import PAGE, LogitsRequest, ScheduledChunk, StepOutput
from gemmule.infer.runners.torch_runner import TorchRunner
from gemmule.losses import soft_cap
from gemmule.model.gemma import Gemma
from models import GROUPED, random_model, tiny_config

T, V = 150, 61


KINDS: dict[str, dict[str, Any]] = {
    "logits": {"all_logits": True},
    "greedy": {"top_k": 1},
    "top_k": {"top_k": 5},
    "score": {"top_k": 1, "log_z": True},
}


def strong_model(seed: int, **changes: int | float | None) -> Gemma:
    """Weights so large that both soft caps bite."""
    config = tiny_config(
        GROUPED,
        **{
            "vocab_size": V, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 5,
            "head_dim": 10, "query_pre_attn_scalar": 7, "sliding_window": 45,
            "max_position_embeddings": 256, "final_logit_softcapping": 10.0, **changes,
        },
    )  # fmt: skip
    return random_model(config, seed, std={"norm": 0.3, "q_proj": 1.2, "": 0.6})


def run(
    runner: TorchRunner, ids: Sequence[int], cuts: Sequence[int], kind: str = "logits"
) -> list[StepOutput]:
    """All predictions of a sequence that is run in parts, on pages in disorder."""
    pages = -(-len(ids) // PAGE)
    runner.allocate(2 * pages + 3)
    with torch.inference_mode():
        runner.kv.pages.fill_(torch.nan)  # whatever was not written must not be read
    numbers = random.Random(0).sample(range(2 * pages + 3), 2 * pages)
    window, outputs_so_far, start = runner.config.sliding_window, [], 0
    for count in cuts:
        end = start + count
        oldest = max(0, start - window + 1) // PAGE
        local = [-1 if i < oldest else numbers[pages + i] for i in range(-(-end // PAGE))]
        targets = [*ids[1:], 0]
        requests = [
            LogitsRequest(i, target=targets[start + i] if kind == "score" else -1, **KINDS[kind])
            for i in range(count)
        ]
        chunk = ScheduledChunk(ids[start:end], start, numbers[: -(-end // PAGE)], local, requests)
        outputs_so_far += runner.step([chunk])[0]
        start = end
    assert start == len(ids)
    return outputs_so_far


CUTS = [[T], [1] * T, [33, 1, 1, 1, 64, 50], [32, 32, 32, 32, 22], [149, 1]]


@pytest.mark.parametrize("cuts", CUTS, ids=lambda c: str(len(c)))
@pytest.mark.parametrize(
    "changes",
    [{}, {"sliding_window": 1}, {"sliding_window": 500}, {"num_hidden_layers": 1},
     {"attn_logit_softcapping": None, "final_logit_softcapping": 5.0}],
    ids=str,
)  # fmt: skip
def test_chunks_are_the_forward_pass(changes: dict[str, float | None], cuts: list[int]) -> None:
    model = strong_model(1, **changes)
    ids = torch.randint(V, (T,), generator=torch.Generator().manual_seed(2)).tolist()
    with torch.no_grad():
        expected = model(torch.tensor([ids]))[0]
    logits = torch.stack(
        [p.logits for p in run(TorchRunner(model), ids, cuts) if p.logits is not None]
    )
    assert expected.std() > 2
    assert (logits - expected).abs().max() < 2e-3 * expected.abs().max()
    assert (logits - expected).abs().mean() < 1e-5


def test_the_caps_are_felt(monkeypatch: pytest.MonkeyPatch) -> None:
    model = strong_model(1)
    seen = []
    original = soft_cap.soft_cap

    def spy(x: torch.Tensor, cap: float | None) -> torch.Tensor:
        seen.append(float(x.abs().max()) / (cap or 1))
        return original(x, cap)

    monkeypatch.setattr("gemmule.model.attention.soft_cap", spy)
    monkeypatch.setattr("gemmule.losses.head.soft_cap", spy)
    run(TorchRunner(model), list(range(V)), [V])
    assert len(seen) == 6
    assert min(seen[-1], max(seen[:-1])) > 1


def test_kinds_of_predictions_agree() -> None:
    model = strong_model(3)
    runner = TorchRunner(model)
    ids = torch.randint(V, (T,), generator=torch.Generator().manual_seed(2)).tolist()
    rows = [p.logits for p in run(runner, ids, [T])]
    outputs = {kind: run(runner, ids, [T], kind) for kind in ("greedy", "top_k", "score")}
    for i, row in enumerate(rows):
        assert row is not None
        order = sorted(range(V), key=lambda n: (-float(row[n]), n))
        for kind, count in (("greedy", 1), ("top_k", 5), ("score", 1)):
            p = outputs[kind][i]
            assert p.top_ids is not None and p.top_logits is not None
            assert p.top_ids.tolist() == order[:count]
            assert torch.equal(p.top_logits, row[order[:count]])
        p = outputs["score"][i]
        assert p.log_z == float(row.logsumexp(-1))
        assert p.target_logit == float(row[[*ids[1:], 0][i]])


def test_a_chunk_does_not_depend_on_the_others() -> None:
    model = strong_model(4)
    runner = TorchRunner(model)
    ids = [list(range(10, 40)), list(range(50, 20, -1))]
    runner.allocate(4)
    chunks = [
        ScheduledChunk(x, 0, [2 * i], [2 * i + 1], [LogitsRequest(29, all_logits=True)])
        for i, x in enumerate(ids)
    ]
    alone = [runner.step([chunk])[0][0].logits for chunk in chunks]
    together = [rows[0].logits for rows in runner.step(chunks)]
    for a, b in zip(alone, together, strict=True):
        assert a is not None and b is not None
        assert torch.equal(a, b)


def test_bfloat16_keeps_bfloat16_pages() -> None:
    model = strong_model(5)
    half = TorchRunner(model.bfloat16())
    assert half.page_bytes == 2 * 3 * 2 * PAGE * 2 * 10
    (output,) = run(half, [3], [1])
    assert output.logits is not None and output.logits.dtype == torch.float32
