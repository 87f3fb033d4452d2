"""The native runner's promise, through the whole engine: no bit depends on anything else."""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from constraints import alone, with_every_setting

from gemmule.infer.core import request_state
from gemmule.infer.core.request import Completion, Request
from gemmule.infer.core.sampling import SamplingParams
from gemmule.infer.core.speculative import ModelDrafter, NgramDrafter, Speculation
from gemmule.infer.core.step_outputs import logits_request_for
from gemmule.infer.driver import Engine
from gemmule.infer.language_model import LanguageModel
from gemmule.infer.runners.choose import make_runner
from gemmule.infer.runners.protocol import LogitsRequest, Runner
from gemmule.infer.runners.torch_runner import TorchRunner


def native(lm: LanguageModel, most: int = 512) -> Runner:
    runner: Any = make_runner(lm.model)
    if isinstance(runner, TorchRunner):
        pytest.skip("there is no native runner here")
    runner.max_step_tokens = most
    return runner


def some_requests(count: int, stops: Sequence[int]) -> list[Request]:
    rng = random.Random(4)
    stems = [[rng.randrange(5, 540) for _ in range(50)] for _ in range(4)]
    made = []
    for i in range(count):
        prompt = rng.choice(stems)[: rng.randint(1, 50)] + [
            rng.randrange(540) for _ in range(rng.choice([0, 2, 10]))
        ]
        params = SamplingParams(
            max_new_tokens=rng.randint(1, 30), temperature=rng.choice([0.0, 0.7]),
            top_k=rng.choice([None, 30]), repetition_penalty=rng.choice([1.0, 1.2]),
            logprobs=rng.choice([None, 0, 5]), seed=i,
        )  # fmt: skip
        request = Request(prompt, params)
        made.append(request if i % 2 else with_every_setting(rng, request, 540, stops))
    return made


@pytest.fixture(scope="module")
def expected(lm: LanguageModel) -> dict[int, list[Completion]]:
    """What each sample gets as a request of its own, in an engine of its own."""
    return {
        i: [
            Engine(native(lm), lm.tokenizer, cache_tokens=200).complete([sample])[0]
            for sample in alone(request)
        ]
        for i, request in enumerate(some_requests(60, lm.tokenizer.stop_ids))
    }


@pytest.mark.parametrize("drafter", ["", "lookup", "model"])
@pytest.mark.parametrize(("most", "cache_tokens"), [(512, 4000), (9, 160), (64, 160)])
def test_together_is_alone_bit_for_bit(
    lm: LanguageModel,
    expected: dict[int, list[Completion]],
    most: int,
    cache_tokens: int,
    drafter: str,
) -> None:
    requests = some_requests(60, lm.tokenizer.stop_ids)
    speculation = None
    if drafter:
        small = ModelDrafter(native(lm, most), lm.tokenizer, cache_bytes=2**20)
        draft_model = NgramDrafter() if drafter == "lookup" else small
        speculation = Speculation(draft_model, always=True)
    e = Engine(native(lm, most), lm.tokenizer, cache_tokens=cache_tokens, speculation=speculation)
    got = iter(e.complete(requests))  # log-probabilities as well
    for i, request in enumerate(requests):
        assert [next(got) for _ in range(request.params.n)] == expected[i]
    # Again, with cached prefixes, among others that are cancelled.
    numbers = {e.submit(request): i for i, request in enumerate(requests)}
    rng = random.Random(most)
    left, outputs = rng.sample([*numbers], 30), []
    while e.busy:
        outputs += e.step()
        while left and rng.random() < 0.8:
            e.cancel(left.pop())
    ended = Counter(output.completion.finish_reason for output in outputs if output.completion)
    for output in outputs:
        if output.completion and output.completion.finish_reason != "cancelled":
            assert output.completion == expected[numbers[output.request_id]][output.sample]
    assert ended["cancelled"] > 10
    assert ended.total() == sum(request.params.n for request in requests)
    if cache_tokens == 160 and drafter != "model":
        assert e.stats().preemptions > 0
    if speculation:
        assert speculation.drafted > 50


def test_log_probabilities_of_a_prompt_are_its_score(lm: LanguageModel) -> None:
    rng = random.Random(3)
    e = Engine(native(lm, 24), lm.tokenizer, cache_tokens=200)
    for length in (1, 2, 33, 70):
        prompt = [rng.randrange(540) for _ in range(length)]
        params = SamplingParams(max_new_tokens=2, temperature=0.0, prompt_logprobs=4, logprobs=4)
        outputs = [*e.iterate(Request(prompt, params))]
        completion = outputs[-1].completion
        assert completion is not None and completion.prompt_logprobs is not None
        assert sum((o.prompt_logprobs for o in outputs), ()) == completion.prompt_logprobs
        (score,) = e.score([(prompt[:1], prompt[1:])])
        assert [t.id for t in completion.prompt_logprobs] == prompt[1:]
        assert tuple(t.logprob for t in completion.prompt_logprobs) == score.log_probs
        greedy = tuple(t.id == t.top[0][0] for t in completion.prompt_logprobs)
        for mine, theirs in zip(greedy, score.greedy, strict=True):
            assert mine >= theirs  # the score's most likely ids may be ids without a token
        # They are what generating the same tokens gives.
        forced = [t.top for t in completion.prompt_logprobs[1:]]
        for i, top in enumerate(forced, start=2):
            (step,) = e.complete([Request(prompt[:i], replace(params, prompt_logprobs=None))])
            assert step.logprobs is not None
            assert step.logprobs[0].top == top
            if i > 5:
                break


def test_scores_do_not_depend_on_how_they_were_computed(lm: LanguageModel) -> None:
    rng = random.Random(1)
    context = [rng.randrange(540) for _ in range(70)]
    pairs = [(context, [rng.randrange(540) for _ in range(n)]) for n in (1, 5, 20, 5)]
    pairs += [(context[:1], context[1:])]
    alone = [Engine(native(lm), lm.tokenizer).score([pair])[0] for pair in pairs]
    assert Engine(native(lm, 16), lm.tokenizer, cache_tokens=256).score(pairs) == alone
    # A text's scores are its parts' scores.
    whole = Engine(native(lm), lm.tokenizer).score([(context[:1], context[1:] + pairs[1][1])])[0]
    assert whole.log_probs == alone[4].log_probs + alone[1].log_probs


@pytest.mark.parametrize("kind", ["native", "torch"])
def test_log_probabilities_from_the_top_k_are_those_from_the_whole_row(
    lm: LanguageModel, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def runner() -> Runner:
        return native(lm) if kind == "native" else TorchRunner(lm.model)

    rng = random.Random(2)
    requests = [
        Request(
            [rng.randrange(540) for _ in range(rng.randint(1, 20))],
            SamplingParams(
                max_new_tokens=12, temperature=temperature, top_k=top_k, logprobs=count, seed=i
            ),
        )
        for i, (temperature, top_k, count) in enumerate(
            [(0.0, None, 0), (0.0, None, 3), (0.8, 5, 0), (0.8, 5, 20), (0.8, 40, 2)] * 3
        )
    ]
    asked = [logits_request_for(r.params, 540, 544) for r in requests]
    assert not any(request.all_logits for request in asked)
    small = Engine(runner(), lm.tokenizer).complete(requests)

    def whole_row(*args: Any, **more: Any) -> LogitsRequest:
        return LogitsRequest(0, all_logits=True, log_z=True)

    monkeypatch.setattr(request_state, "logits_request_for", whole_row)
    assert Engine(runner(), lm.tokenizer).complete(requests) == small
    for completion, request in zip(small, requests, strict=True):
        assert completion.logprobs is not None
        assert len(completion.logprobs) == len(completion.ids)
        assert all(len(t.top) == request.params.logprobs for t in completion.logprobs)
        # They are the scores of the same tokens, bit for bit with the native runner.
        if kind == "native":
            (score,) = Engine(runner()).score([(request.prompt, completion.ids)])
            assert score.log_probs == tuple(t.logprob for t in completion.logprobs)
