"""Cached decoding against full recomputation; batches against single prompts."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from gemmule.errors import ConfigError
from gemmule.infer import generate
from gemmule.infer.language_model import LanguageModel
from gemmule.infer.sampling import Sampler, SamplingParams

GREEDY = SamplingParams(temperature=0.0, max_new_tokens=40)
PROMPTS = ["def wrap(", "x", "", "the text is wrapped at the given width, and", "\n\n    if"]


def recomputed(lm: LanguageModel, prompt: list[int], steps: int) -> tuple[list[int], torch.Tensor]:
    """Greedy ids and their logits, running the whole sequence anew for each token."""
    ids, logits = list(prompt), []
    with torch.no_grad():
        for _ in range(steps):
            row = lm.model(torch.tensor([ids]))[0, -1, : lm.tokenizer.vocab_size]
            logits.append(row)
            ids.append(int(row.argmax()))
    return ids[len(prompt) :], torch.stack(logits)


def cached(
    lm: LanguageModel,
    prompts: list[list[int]],
    steps: int,
    monkeypatch: pytest.MonkeyPatch,
) -> tuple[list[list[int]], torch.Tensor]:
    seen: list[torch.Tensor] = []
    draw = generate._draw

    def spy(logits_BV: torch.Tensor, samplers: Sequence[Sampler]) -> list[int]:
        seen.append(logits_BV.clone())
        return draw(logits_BV, samplers)

    with monkeypatch.context() as patch:
        patch.setattr(generate, "_draw", spy)
        samplers = [Sampler(GREEDY) for _ in prompts]
        vocab = lm.tokenizer.vocab_size
        steps_ids = list(generate.next_ids(lm.model, prompts, samplers, steps, vocab))
    return [list(row) for row in zip(*steps_ids, strict=True)], torch.stack(seen, 1)


@pytest.mark.parametrize("chunk", [512, 5, 1])
def test_cached_decoding_is_full_recomputation_past_the_window(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(generate, "PREFILL_TOKENS", chunk)
    prompt = lm.tokenizer.encode(PROMPTS[3], bos=True)
    assert len(prompt) > lm.config.sliding_window
    ids, logits = cached(lm, [prompt], 40, monkeypatch)
    expected_ids, expected = recomputed(lm, prompt, 40)
    assert ids[0] == expected_ids
    assert (logits[0] - expected).abs().max() <= 1e-4
    assert len(set(expected_ids)) > 5  # not one token over and over


@pytest.mark.parametrize("chunk", [512, 20])
def test_each_row_of_a_batch_is_as_if_alone(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(generate, "PREFILL_TOKENS", chunk)
    prompts = [lm.tokenizer.encode(p, bos=True) for p in PROMPTS]
    assert len({len(p) for p in prompts}) > 3
    ids, logits = cached(lm, prompts, 30, monkeypatch)
    for row, prompt in enumerate(prompts):
        expected_ids, expected = recomputed(lm, prompt, 30)
        assert ids[row] == expected_ids
        assert (logits[row] - expected).abs().max() <= 1e-4


@pytest.mark.parametrize("settings", [{"temperature": 0.0}, {"temperature": 0.9, "seed": 11}])
def test_generate_on_a_list(lm: LanguageModel, settings: dict[str, Any]) -> None:
    batch = lm.generate(PROMPTS, max_new_tokens=20, **settings)
    seed = settings.pop("seed", None)
    for i, (prompt, text) in enumerate(zip(PROMPTS, batch, strict=True)):
        own: Any = {} if seed is None else {"seed": seed + i}
        assert lm.generate(prompt, max_new_tokens=20, **settings, **own) == text


def test_more_prompts_than_one_batch_keep_their_order(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generate, "ROWS_AT_ONCE", 2)
    batch = lm.generate(PROMPTS, temperature=0.0, max_new_tokens=8)
    assert batch == [lm.generate(p, temperature=0.0, max_new_tokens=8) for p in PROMPTS]
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
        monkeypatch.setattr(generate, "_draw", lambda x, s, ids=ids: [next(ids)])
        (done,) = lm.complete([[2]], GREEDY)
        assert done == generate.Completion("some text", tuple(script), "stop")
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


def test_bfloat16_generates(lm: LanguageModel) -> None:
    import copy

    half = LanguageModel(copy.deepcopy(lm.model).bfloat16(), lm.tokenizer)
    assert isinstance(half.generate("def", max_new_tokens=12, seed=0), str)
    assert len(half.score("def wrap")) == len(lm.tokenizer.encode("def wrap"))
