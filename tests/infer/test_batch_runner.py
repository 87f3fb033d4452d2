"""The batched runner: the plain runner's logits, and the same bits in any batch."""

import random
from collections.abc import Sequence

import pytest
import torch

from gemmule.infer.core.request import Completion, Request
from gemmule.infer.core.sampling import SamplingParams
from gemmule.infer.driver import Engine
from gemmule.infer.language_model import LanguageModel
from gemmule.infer.runners.batch_runner import BatchRunner
from gemmule.infer.runners.choose import make_batch_runner
from gemmule.infer.runners.native_runner import NativeRunner
from gemmule.infer.runners.protocol import PAGE, LogitsRequest, ScheduledChunk
from gemmule.infer.runners.torch_runner import TorchRunner
from gemmule.model.gemma import Gemma
from models import GROUPED, tiny_config

WORDS = 540


@pytest.fixture(scope="module")
def model() -> Gemma:
    """Window shorter than the texts, caps that bite, weights small enough not to be chaotic."""
    config = tiny_config(
        GROUPED, vocab_size=544, hidden_size=48, intermediate_size=96, sliding_window=40,
        max_position_embeddings=400, attn_logit_softcapping=3.0, final_logit_softcapping=5.0,
    )  # fmt: skip
    made = Gemma(config)
    made.init_weights(torch.Generator().manual_seed(5))
    return made


def prompts(count: int, seed: int = 0) -> list[list[int]]:
    """Of many lengths; some begin with the same hundred tokens."""
    draw = random.Random(seed)
    shared = [draw.randrange(WORDS) for _ in range(100)]
    lengths = [draw.choice((1, 2, 31, 33, 64, 65, 130)) for _ in range(count)]
    own = [[draw.randrange(WORDS) for _ in range(n)] for n in lengths]
    return [shared + ids if draw.random() < 0.4 else ids for ids in own]


def answers(
    runner: TorchRunner, given: Sequence[Sequence[int]], tokens: int | None = None, **params: int
) -> list[Completion]:
    engine = Engine(runner, cache_tokens=tokens)
    settings = SamplingParams(max_new_tokens=24, temperature=0.0, logprobs=1, **params)
    return engine.complete([Request(ids, settings) for ids in given])


def test_as_the_plain_runner(model: Gemma) -> None:
    given = prompts(12)
    for ours, plain in zip(
        answers(BatchRunner(model), given), answers(TorchRunner(model), given), strict=True
    ):
        assert ours.ids == plain.ids
        assert ours.logprobs is not None
        assert plain.logprobs is not None
        for a, b in zip(ours.logprobs, plain.logprobs, strict=True):
            assert a.logprob == pytest.approx(b.logprob, abs=2e-5)


def test_company_order_cuts_and_shared_beginnings_change_no_bit(model: Gemma) -> None:
    given = prompts(10)
    together = answers(BatchRunner(model), given)
    for i, ids in enumerate(given):
        assert answers(BatchRunner(model), [ids]) == [together[i]]
    order = list(range(len(given)))
    random.Random(1).shuffle(order)
    shuffled = answers(BatchRunner(model), [given[i] for i in order])
    assert [shuffled[order.index(i)] for i in range(len(given))] == together
    for most in (17, 64, 200):  # prompts cut anywhere
        runner = BatchRunner(model)
        runner.max_step_tokens = most
        assert answers(runner, given) == together
    assert (
        answers(BatchRunner(model), given, tokens=1600) == together
    )  # some must wait, or give way


def test_what_was_never_written_is_never_read(model: Gemma) -> None:
    """Nor what stands in the place of a page that was let go, when a window has passed it."""
    ids = random.Random(3).choices(range(WORDS), k=150)
    whole, rest = list(range(1, 6)), list(range(6, 11))  # no sequence has page 0

    def chunk(start: int, end: int, gone: int) -> ScheduledChunk:
        local = [-1] * gone + rest[gone:]
        requests = [LogitsRequest(i, all_logits=True) for i in range(end - start)]
        pages = -(-end // PAGE)
        return ScheduledChunk(ids[start:end], start, whole[:pages], local[:pages], requests)

    runner = BatchRunner(model)
    runner.allocate(11)
    runner.kv.pages.fill_(torch.nan)
    outputs = runner.step([chunk(0, 100, 0)])[0] + runner.step([chunk(100, 150, 1)])[0]
    expected = model(torch.tensor([ids]))[0]
    for output, logits in zip(outputs, expected, strict=True):
        assert output.logits is not None
        assert (output.logits - logits).abs().max() < 1e-4


def test_scores_are_the_models(model: Gemma) -> None:
    engine = Engine(BatchRunner(model))
    pairs = [(ids[: max(1, len(ids) // 2)], ids[max(1, len(ids) // 2) :]) for ids in prompts(9)]
    pairs = [(context, rest) for context, rest in pairs if rest]
    for (context, rest), score in zip(pairs, engine.score(pairs), strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([[*context, *rest]]))[0].log_softmax(-1)
        expected = [float(logits[len(context) - 1 + i, token]) for i, token in enumerate(rest)]
        assert score.log_probs == pytest.approx(expected, abs=2e-5)


def test_who_runs_what(model: Gemma, lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NativeRunner, "supports", lambda model: False)
    assert type(make_batch_runner(model)) is BatchRunner
    ids = prompts(1)[0]
    drawn = SamplingParams(max_new_tokens=12, temperature=1.0, seed=3)
    engine = Engine(make_batch_runner(lm.model), lm.tokenizer)
    (one,) = engine.complete([Request(ids[:40], drawn)])
    many = engine.complete([Request(p[:40], drawn) for p in [ids, *prompts(4, 2)]])
    assert many[0] == one
