"""The native runner against the forward pass, and its promise that no bit depends on the batch."""

import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gemmule.checkpoints.checkpoint import of_model
from gemmule.checkpoints.packed.model import QuantizedGemma
from gemmule.checkpoints.packed.quantize import quantize_checkpoint
from gemmule.errors import ConfigError
from gemmule.infer.core.constraint import mask_of
from gemmule.infer.driver import Engine
from gemmule.infer.language_model import LanguageModel
from gemmule.infer.runners import native_runner
from gemmule.infer.runners.choose import make_runner
from gemmule.infer.runners.native_runner import NativeRunner
from gemmule.infer.runners.protocol import PAGE, LogitsRequest, ScheduledChunk, StepOutput
from gemmule.infer.runners.torch_runner import step_output
from gemmule.model.gemma import Gemma
from gemmule.quant import native
from models import GROUPED, fan_in, random_model, tiny_config

pytestmark = pytest.mark.skipif(not native.available(), reason="built without the library")

T, V = 150, 1100  # more words than the head computes at once
BASE = {
    **GROUPED, "vocab_size": V, "hidden_size": 72, "intermediate_size": 104, "num_hidden_layers": 3,
    "head_dim": 20, "query_pre_attn_scalar": 7, "sliding_window": 45,
    "max_position_embeddings": 256, "final_logit_softcapping": 10.0,
}  # fmt: skip
SHAPES = [
    {},
    {"attn_logit_softcapping": None, "final_logit_softcapping": None},
    {"attn_logit_softcapping": 90.0},  # past what needs no largest score taken off
    {"head_dim": 6, "hidden_size": 10, "intermediate_size": 18},
    {"num_key_value_heads": 1, "num_hidden_layers": 4},
    {"num_attention_heads": 2},
]


KINDS: dict[str, dict[str, Any]] = {
    "logits": {"all_logits": True},
    "greedy": {"top_k": 1},
    "top_k": {"top_k": 5},
    "score": {"top_k": 1, "log_z": True},
}


def strong_model(changes: dict[str, float | None], dtype: torch.dtype = torch.float32) -> Gemma:
    """Weights so large that both soft caps bite."""
    model = random_model(
        tiny_config(BASE, **changes), std={"norm": 0.3, "": lambda p: 1.7 * fan_in(p)}
    )
    return model.to(dtype)


class Running:
    """One sequence's tokens and pages."""

    def __init__(self, ids: Sequence[int], pages: Sequence[int], window: int) -> None:
        self.ids, self.window, self.at = ids, window, 0
        half = len(pages) // 2
        self.of_global, self.of_local = pages[:half], pages[half:]

    def chunk(self, count: int, kind: str = "logits") -> ScheduledChunk:
        end = self.at + count
        pages, oldest = -(-end // PAGE), max(0, self.at - self.window + 1) // PAGE
        local = [-1 if i < oldest else self.of_local[i] for i in range(pages)]
        targets = [*self.ids[1:], 0]
        requests = [
            LogitsRequest(i, target=targets[self.at + i] if kind == "score" else -1, **KINDS[kind])
            for i in range(count)
        ]
        made = ScheduledChunk(
            self.ids[self.at : end], self.at, self.of_global[:pages], local, requests
        )
        self.at = end
        return made


def run(
    runner: NativeRunner, ids: Sequence[int], cuts: Sequence[int], kind: str = "logits"
) -> list[StepOutput]:
    """All chunk_outputs of a sequence that is run in parts, on pages in disorder."""
    pages = 2 * -(-len(ids) // PAGE)
    runner.allocate(pages + 3)
    runner.pool.fill_(255)  # as halves and as floats NaN: what was not written must not be read
    numbers = random.Random(len(cuts)).sample(range(pages + 3), pages)
    sequence = Running(ids, numbers, runner.config.sliding_window)
    return [p for count in cuts for p in runner.step([sequence.chunk(count, kind)])[0]]


def tokens(seed: int = 0, count: int = T) -> list[int]:
    return torch.randint(V, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def stacked(outputs: Sequence[StepOutput]) -> Tensor:
    rows = [p.logits for p in outputs if p.logits is not None]
    return torch.stack(rows)


CUTS = ([T], [1] * T, [40, 1, 1, 33, 75], [7, 70, 8, 64, 1])


@torch.inference_mode()
@pytest.mark.parametrize("changes", SHAPES)
def test_the_forward_pass_in_parts_of_any_size(
    instructions: str, changes: dict[str, float | None]
) -> None:
    model, ids = strong_model(changes), tokens()
    expected = model(torch.tensor([ids]))[0]
    runner = NativeRunner(model)
    whole = stacked(run(runner, ids, CUTS[0]))
    assert (whole - expected).abs().max() < 1e-4 * expected.abs().max()
    for cuts in CUTS[1:]:
        assert torch.equal(stacked(run(runner, ids, cuts)), whole)


@torch.inference_mode()
@pytest.mark.parametrize("cache", ["float16", "int8"])
def test_smaller_caches(instructions: str, cache: str) -> None:
    model, ids = strong_model({}), tokens()
    expected = model(torch.tensor([ids]))[0]
    runner = NativeRunner(model, cache=cache)
    whole = stacked(run(runner, ids, CUTS[0]))
    # Strong weights make much of a small error.
    assert (whole - expected).norm() < {"float16": 2e-3, "int8": 0.06}[cache] * expected.norm()
    for cuts in CUTS[1:]:
        assert torch.equal(stacked(run(runner, ids, cuts)), whole)
    assert runner.page_bytes < 0.56 * NativeRunner(model, cache="float32").page_bytes


@torch.inference_mode()
@pytest.mark.parametrize("format", ["int4", "int6", "int8"])
def test_quantized_models(instructions: str, format: str, lm: LanguageModel) -> None:
    """The module over the same packed matrices computes the same, but for rounding in between."""
    packed = quantize_checkpoint(of_model(lm.model, lm.tokenizer), format)
    model = QuantizedGemma(packed)
    ids = [i % lm.config.vocab_size for i in tokens(count=100)]
    expected = model(torch.tensor([ids]))[0]
    runner = NativeRunner(model, cache="float32")
    whole = stacked(run(runner, ids, [100]))
    # A sum that differs in its last bit may round to another step of an activation.
    assert (whole - expected).norm() < 0.01 * expected.norm()
    for cuts in ([1] * 100, [40, 1, 1, 33, 25]):
        assert torch.equal(stacked(run(runner, ids, cuts)), whole)


@torch.inference_mode()
def test_bfloat16_weights() -> None:
    # The root of 64 is the same in bfloat16.
    model, ids = strong_model({"hidden_size": 64}, torch.bfloat16), tokens()
    expected = model.float()(torch.tensor([ids]))[0]
    outputs = stacked(run(NativeRunner(model.bfloat16(), cache="float32"), ids, [T]))
    assert (outputs - expected).norm() < 2e-3 * expected.norm()


@torch.inference_mode()
def test_a_small_step_runs_on_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that wait for each other at each product would cost more than they save."""
    model, ids, library = strong_model({}), tokens(), native.loaded()
    one, two, used = native.threads(1), native.threads(2), list[Any]()

    class Watched:
        def __getattr__(self, name: str) -> Any:
            return getattr(library, name)

        def gm_run(self, handle: Any, *rest: Any) -> Any:
            used.append(handle)
            return library.gm_run(handle, *rest)

    monkeypatch.setattr(native, "threads", lambda count=None: {None: two, 1: one, 2: two}[count])
    monkeypatch.setattr(native, "loaded", Watched)
    cuts = [T - 2, 1, 1]
    expected = stacked(run(NativeRunner(model, threads=2), ids, cuts))
    assert used == [two.handle] * 3
    assert model.config.parameters < native_runner._SMALL_STEP < T * model.config.parameters
    used.clear()
    assert torch.equal(stacked(run(NativeRunner(model), ids, cuts)), expected)
    assert used == [two.handle, one.handle, one.handle]


@torch.inference_mode()
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_whatever_else_is_in_the_step(threads: int) -> None:
    model, rng = strong_model({}), random.Random(threads)
    alone = NativeRunner(model, threads=1)
    texts = [tokens(seed, rng.randint(20, 140)) for seed in range(6)]
    expected = [stacked(run(alone, ids, [len(ids)])) for ids in texts]
    together = NativeRunner(model, threads=threads)
    together.allocate(100)
    together.pool.fill_(255)
    numbers = rng.sample(range(100), 60)
    sequences = [Running(ids, numbers[10 * i : 10 * i + 10], 45) for i, ids in enumerate(texts)]
    outputs: list[list[StepOutput]] = [[] for _ in texts]
    while any(s.at < len(s.ids) for s in sequences):
        chosen = [i for i, s in enumerate(sequences) if s.at < len(s.ids) and rng.random() < 0.7]
        counts = [
            min(len(sequences[i].ids) - sequences[i].at, rng.choice([1, 1, 2, 40])) for i in chosen
        ]
        if chosen:
            chunks = [sequences[i].chunk(n) for i, n in zip(chosen, counts, strict=True)]
            for i, chunk_outputs in zip(chosen, together.step(chunks), strict=True):
                outputs[i] += chunk_outputs
    for rows, logits in zip(outputs, expected, strict=True):
        assert torch.equal(stacked(rows), logits)


@torch.inference_mode()
@pytest.mark.parametrize("changes", SHAPES[:2])
def test_outputs_of_every_kind(changes: dict[str, float | None]) -> None:
    model, ids = strong_model(changes), tokens()
    runner = NativeRunner(model)
    logits = stacked(run(runner, ids, [T]))
    for row, top, greedy, scored, target in zip(
        logits,
        run(runner, ids, [T], "top_k"),
        run(runner, ids, [1] * T, "greedy"),
        run(runner, ids, [100, 50], "score"),
        [*ids[1:], 0],
        strict=True,
    ):
        best = row.topk(5)
        assert top.top_ids is not None and top.top_logits is not None
        assert torch.equal(top.top_ids, best.indices)
        assert torch.equal(top.top_logits, best.values)
        assert greedy.top_ids is not None and greedy.top_ids.tolist() == [int(row.argmax())]
        assert scored.target_logit == float(row[target])
        assert scored.log_z == pytest.approx(float(row.double().logsumexp(0)), abs=2e-6, rel=1e-6)
        assert scored.top_ids is not None and scored.top_ids.tolist() == [int(row.argmax())]


@torch.inference_mode()
@pytest.mark.parametrize("changes", SHAPES[:2])
def test_the_top_k_under_a_mask_are_the_plain_ones(
    instructions: str, changes: dict[str, float | None]
) -> None:
    """Masks of every density, of whole words, and of ids at the ends of words and parts."""
    model, ids, rng = strong_model(changes), tokens(count=60), random.Random(5)
    model.embed_tokens.weight[600:] = model.embed_tokens.weight[:500]  # ties
    logits = stacked(run(NativeRunner(model), ids, [60]))
    z = [p.log_z for p in run(NativeRunner(model), ids, [60], "score")]
    masks = [mask_of(rng.sample(range(V), round(V * share)), V) for share in (0.01, 0.5, 0.99)]
    masks += [mask_of(range(V), V), mask_of([0], V), mask_of([V - 1], V), mask_of([1023, 1024], V)]
    masks += [mask_of([*range(64, 96), 700], V), np.full(-(-V // 32), 2**32 - 1, np.uint32)]
    requests = [
        LogitsRequest(
            i, top_k=rng.choice([1, 1, 2, 5, 64]), log_z=rng.random() < 0.5,
            target=rng.randrange(V), mask=rng.choice([None, *masks]),
        )
        for i in range(60)
    ]  # fmt: skip
    for threads in (1, 3):
        runner = NativeRunner(model, threads=threads)
        runner.allocate(4)
        chunk = ScheduledChunk(ids, 0, [0, 1], [2, 3], requests)
        for request, row, log_z, output in zip(
            requests, logits, z, runner.step([chunk])[0], strict=True
        ):
            plain = step_output(request, row)
            assert output.top_ids is not None and output.top_logits is not None
            assert output.top_ids.tolist() == plain.top_ids.tolist()  # type: ignore[union-attr]
            assert output.top_logits.tolist() == plain.top_logits.tolist()  # type: ignore[union-attr]
            assert output.target_logit == plain.target_logit
            assert output.log_z == (log_z if request.log_z else None)


@torch.inference_mode()
def test_of_equal_logits_the_first_word_comes_first() -> None:
    model = strong_model({})
    model.embed_tokens.weight[600:] = model.embed_tokens.weight[:500]
    model.embed_tokens.weight[500:600] = 0.0
    runner = NativeRunner(model)
    for output in run(runner, tokens(count=40), [40], "top_k"):
        assert output.top_ids is not None and output.top_logits is not None
        for first, second in zip(range(4), range(1, 5), strict=True):
            if output.top_logits[first] == output.top_logits[second]:
                assert output.top_ids[first] < output.top_ids[second]
    for output in run(runner, tokens(count=40), [40], "greedy"):
        assert output.top_ids is not None and int(output.top_ids) < 600


def test_what_it_cannot_run() -> None:
    model = strong_model({})
    assert NativeRunner.supports(model)
    assert not NativeRunner.supports(model.half())
    assert not NativeRunner.supports(torch.nn.Linear(2, 2))
    with pytest.raises(ConfigError, match="cache 'float8' is not one of float16, int8, float32"):
        NativeRunner(strong_model({}), cache="float8")


def test_the_cache_is_chosen_where_the_model_is_made(lm: LanguageModel) -> None:
    made = LanguageModel(lm.model, lm.tokenizer, cache="int8")
    runner = make_runner(made.model, "int8")
    assert isinstance(runner, NativeRunner)
    assert runner.page_bytes < 0.35 * NativeRunner(lm.model).page_bytes
    assert made.generate("def", temperature=0.0, max_new_tokens=3)
    with pytest.raises(ConfigError, match="cache 'bfloat8' is not one of"):
        LanguageModel(lm.model, lm.tokenizer, cache="bfloat8").generate("def")
    with pytest.raises(ConfigError, match="cache 'int8' needs the native kernels"):
        make_runner(strong_model({}).half(), "int8")


def test_the_library_can_be_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMMULE_NATIVE", "0")
    assert not NativeRunner.supports(strong_model({}))


def test_runners_in_several_threads_take_turns() -> None:
    """They share one pool of native threads, which does one call at a time."""
    model = strong_model({})
    rng = random.Random(0)
    sequences = [[rng.randrange(model.config.vocab_size) for _ in range(40)] for _ in range(4)]
    engines = [Engine(NativeRunner(model, threads=2)) for _ in sequences]

    def log_probs(i: int) -> list[float]:
        (score,) = engines[i].score([(sequences[i][:1], sequences[i][1:])])
        return list(score.log_probs)

    expected = [log_probs(i) for i in range(4)]
    for engine in engines:
        engine.weights_changed()  # the prefix cache would leave nothing to do
    with ThreadPoolExecutor(4) as pool:
        for _ in range(20):
            assert list(pool.map(log_probs, range(4))) == expected
            for engine in engines:
                engine.weights_changed()
