"""Cached decoding against full recomputation; batches against single prompts."""

import copy
from typing import Any

import pytest
import torch

from gemmule.errors import ConfigError
from gemmule.infer import language_model
from gemmule.infer.core import request_state
from gemmule.infer.core.request import Completion, Request
from gemmule.infer.core.sampling import SamplingParams
from gemmule.infer.driver import Engine
from gemmule.infer.language_model import LanguageModel
from gemmule.infer.runners.choose import make_runner
from gemmule.infer.runners.protocol import Runner
from gemmule.infer.runners.torch_runner import TorchRunner
from gemmule.model.gemma import Gemma

Patch = pytest.MonkeyPatch

GREEDY = SamplingParams(temperature=0.0, max_new_tokens=40)
PROMPTS = ["def wrap(", "x", "", "the text is wrapped at the given width, and", "\n\n    if"]


def recomputed(lm: LanguageModel, prompt: list[int], steps: int) -> tuple[list[int], torch.Tensor]:
    """Greedy ids and log-probabilities, running the whole sequence again for each token."""
    ids, logits = list(prompt), []
    with torch.no_grad():
        for _ in range(steps):
            row = lm.model(torch.tensor([ids]))[0, -1]
            logits.append(row.log_softmax(-1))
            ids.append(int(row[: lm.tokenizer.vocab_size].argmax()))
    return ids[len(prompt) :], torch.stack(logits)


@pytest.fixture(params=["torch 512", "torch 20", "torch 5", "torch 1", "native 512", "native 5"])
def runner(request: pytest.FixtureRequest, lm: LanguageModel, monkeypatch: Patch) -> None:
    """Either runner; prompts run whole, or in parts, or token by token."""
    name, most = request.param.split()

    def make(model: Gemma, cache: str | None = None) -> Runner:
        made = TorchRunner(model) if name == "torch" else make_runner(model)
        made.max_step_tokens = int(most)
        return made

    if name == "native" and isinstance(make_runner(lm.model), TorchRunner):
        pytest.skip("there is no native runner here")
    monkeypatch.setattr(language_model, "make_runner", make)


@pytest.mark.usefixtures("runner")
def test_each_row_of_a_batch_is_full_recomputation_past_the_window(lm: LanguageModel) -> None:
    prompts = [lm.tokenizer.encode(p, bos=True) for p in PROMPTS]
    assert len({len(p) for p in prompts}) > 3
    assert len(prompts[3]) > lm.config.sliding_window
    params = SamplingParams(temperature=0.0, max_new_tokens=30, logprobs=20)
    rows = LanguageModel(lm.model, lm.tokenizer).complete(prompts, params)
    for row, prompt in zip(rows, prompts, strict=True):
        ids, expected = recomputed(lm, prompt, 30)
        assert list(row.ids) == ids[: len(row.ids)]
        assert row.finish_reason == "length" or ids[len(row.ids)] in lm.tokenizer.stop_ids
        assert row.logprobs is not None and len(row.logprobs) == len(row.ids)
        for given, log_probs in zip(row.logprobs, expected, strict=False):
            assert given.id == given.top[0][0] and given.logprob == given.top[0][1]
            likeliest, values = zip(*given.top, strict=True)
            assert (torch.tensor(values) - log_probs[list(likeliest)]).abs().max() <= 5e-4
            assert (torch.tensor(values) - log_probs[:540].topk(20)[0]).abs().max() <= 5e-4
    assert sum(len(row.ids) > 20 for row in rows) > 2
    assert all(len(set(row.ids)) > 5 for row in rows if len(row.ids) > 20)


@pytest.mark.parametrize("settings", [{"temperature": 0.0}, {"temperature": 0.9, "seed": 11}])
def test_generate_on_a_list(lm: LanguageModel, settings: dict[str, Any]) -> None:
    batch = lm.generate(PROMPTS, max_new_tokens=20, **settings)
    seed = settings.pop("seed", None)
    for i, (prompt, text) in enumerate(zip(PROMPTS, batch, strict=True)):
        own: Any = {} if seed is None else {"seed": seed + i}
        assert lm.generate(prompt, max_new_tokens=20, **settings, **own) == text


def test_more_prompts_than_fit_at_once_keep_their_order(lm: LanguageModel) -> None:
    params = SamplingParams(temperature=0.0, max_new_tokens=8)
    requests = [Request(lm.tokenizer.encode(p, bos=True), params) for p in PROMPTS * 2]
    engine = Engine(TorchRunner(lm.model), lm.tokenizer, cache_tokens=64)
    done = engine.complete(requests)
    assert engine.stats().pool.allocated == 0
    assert [c.text for c in done] == [
        lm.generate(p, temperature=0.0, max_new_tokens=8) for p in PROMPTS * 2
    ]
    assert lm.generate([], temperature=0.0) == []


def test_rows_without_a_token_are_never_drawn(lm: LanguageModel) -> None:
    prompt = lm.tokenizer.encode("wrap", bos=True)
    with torch.no_grad():
        assert int(lm.model(torch.tensor([prompt]))[0, -1].argmax()) >= lm.tokenizer.vocab_size
    done = lm.complete([prompt], SamplingParams(temperature=2.0, seed=1, max_new_tokens=30))
    assert max(done[0].ids) < lm.tokenizer.vocab_size


def test_stops_at_either_stop_token(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    script = lm.tokenizer.encode("some text")
    for stop_id in (1, 107):
        ids = iter([*script, stop_id, 300])
        monkeypatch.setattr(request_state, "sample", lambda *_, ids=ids: next(ids))
        (done,) = lm.complete([[2]], GREEDY)
        assert done == Completion("some text", tuple(script), "stop", stop_id=stop_id)
        assert next(ids) == 300  # nothing was computed after the stop


def test_stop_strings(lm: LanguageModel) -> None:
    whole = lm.generate("def", temperature=0.0, max_new_tokens=40)
    stop = whole[15:18]
    at = whole.find(stop)
    got = lm.generate("def", temperature=0.0, max_new_tokens=40, stop=["\0never", stop])
    assert got == whole[:at]
    streamed = lm.stream("def", temperature=0.0, max_new_tokens=40, stop=stop)
    assert "".join(streamed) == whole[:at]


def test_stream_is_generate(lm: LanguageModel) -> None:
    pieces = list(lm.stream("def", temperature=0.7, seed=3, max_new_tokens=30))
    assert len(pieces) > 5
    assert all(pieces)
    assert "".join(pieces) == lm.generate("def", temperature=0.7, seed=3, max_new_tokens=30)


def test_prompt_longer_than_the_context(lm: LanguageModel) -> None:
    for call in (lm.generate, lm.stream):  # a stream says so at once, not at its first piece
        with pytest.raises(ConfigError, match=r"the prompt has \d{3} tokens; .* context is 96"):
            call("x" * 500)


def test_generation_ends_where_the_context_does(lm: LanguageModel) -> None:
    prompt = lm.tokenizer.encode("x" * 200)[:90]
    short = lm.tokenizer.encode("def")
    params = SamplingParams(temperature=0.0, max_new_tokens=10)
    rows = lm.complete([prompt, short], params)
    assert (len(rows[0].ids), rows[0].finish_reason) == (6, "context")
    assert (len(rows[1].ids), rows[1].finish_reason) == (10, "length")
    assert rows[1] == lm.complete([short], params)[0]
    (last,) = lm.complete([lm.tokenizer.encode("x" * 200)[:95]], params)
    assert (len(last.ids), last.finish_reason) == (1, "context")
    with pytest.raises(ConfigError, match=r"96 tokens; .*at most 95"):
        lm.complete([lm.tokenizer.encode("x" * 200)[:96]], params)


def test_an_interrupted_stream_leaves_everything_usable(lm: LanguageModel) -> None:
    expected = lm.generate("def", temperature=0.0, max_new_tokens=12)
    stream = lm.stream("def", temperature=0.0, max_new_tokens=12)
    next(stream)
    with pytest.raises(KeyboardInterrupt):
        stream.throw(KeyboardInterrupt)  # type: ignore[attr-defined]
    assert not torch.is_inference_mode_enabled()
    assert lm.generate("def", temperature=0.0, max_new_tokens=12) == expected


def test_streams_can_be_interleaved_and_do_not_leak_inference_mode(lm: LanguageModel) -> None:
    a = lm.stream("def", temperature=0.0, max_new_tokens=12)
    b = lm.stream("the text", temperature=0.0, max_new_tokens=12)
    texts = ["", ""]
    for i in range(12):
        for n, stream in enumerate((a, b)):
            texts[n] += next(stream, "")
            assert not torch.is_inference_mode_enabled(), i
    texts = [texts[0] + "".join(a), texts[1] + "".join(b)]
    assert texts == lm.generate(["def", "the text"], temperature=0.0, max_new_tokens=12)


def test_a_model_can_be_trained_after_generating(lm: LanguageModel) -> None:
    lm.generate("def", max_new_tokens=2)
    loss = lm.model(torch.tensor([[2, 300, 301]])).sum()
    loss.backward()
    assert lm.model.norm.weight.grad is not None
    lm.model.zero_grad(set_to_none=True)


PROMPT = "the text is wrapped at the given width, and more of the same text follows here"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("how", ["in place", "trained", "replaced"])
def test_trained_further_a_model_forgets_what_it_computed(
    lm: LanguageModel, how: str, dtype: torch.dtype
) -> None:
    """Tokens are those of a fresh engine; the engine and its pool stay."""
    own = LanguageModel(copy.deepcopy(lm.model).to(dtype), lm.tokenizer)
    greedy: Any = {"temperature": 0.0, "max_new_tokens": 12}
    before, scores = own.generate(PROMPT, **greedy), own.score(PROMPT)
    engine = own.engine()
    steps = engine.stats().steps
    assert engine.stats().pool.hashed > 0
    if how == "trained":
        optimizer = torch.optim.SGD(own.model.parameters(), lr=0.5)
        own.model(torch.tensor([lm.tokenizer.encode(PROMPT, bos=True)])).float().sum().backward()
        optimizer.step()
    else:
        with torch.no_grad():
            weight = own.model.embed_tokens.weight
            changed = torch.cat((weight[:540].roll(7, 0), weight[540:]))
            if how == "replaced":
                own.model.embed_tokens.weight.data = changed
            else:
                weight.copy_(changed)
            own.model.norm.weight += 0.25
            own.model.layers[1].input_layernorm.weight *= 0.5  # type: ignore[operator, union-attr]
    fresh = LanguageModel(own.model, lm.tokenizer)
    assert own.score(PROMPT) == fresh.score(PROMPT) != scores
    after = own.generate(PROMPT, **greedy)
    assert after == fresh.generate(PROMPT, **greedy)
    assert after != before or how == "trained"
    assert own.engine() is engine
    assert engine.stats().steps > steps


def test_a_trained_draft_model_is_noticed(lm: LanguageModel) -> None:
    small = LanguageModel(
        Gemma(lm.config.model_copy(update={"num_hidden_layers": 1})), lm.tokenizer
    )
    both = LanguageModel(lm.model, lm.tokenizer, draft=small)
    greedy: Any = {"temperature": 0.0, "max_new_tokens": 12}
    before = both.generate(PROMPT, **greedy)
    engine = both.engine()
    with torch.no_grad():
        small.model.norm.weight += 1.0
    assert both.generate(PROMPT, **greedy) == before
    assert both.engine() is engine


def test_another_dtype_needs_another_engine(lm: LanguageModel) -> None:
    own = LanguageModel(copy.deepcopy(lm.model), lm.tokenizer)
    engine = own.engine()
    own.model.bfloat16()
    assert own.engine() is not engine
    assert own.generate("def", max_new_tokens=3, seed=0) is not None


def test_bfloat16_generates(lm: LanguageModel) -> None:
    half = LanguageModel(copy.deepcopy(lm.model).bfloat16(), lm.tokenizer)
    assert isinstance(half.generate("def", max_new_tokens=12, seed=0), str)
    assert len(half.score("def wrap")) == len(lm.tokenizer.encode("def wrap"))
