"""The native runner's promise, through the whole engine: no bit depends on anything else."""

import random
from typing import Any

import pytest

from gemmule.infer.core import request_state
from gemmule.infer.core.request import Request
from gemmule.infer.core.sampling import SamplingParams
from gemmule.infer.core.speculative import NgramDrafter, Speculation
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


def some_requests(count: int) -> list[Request]:
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
        made.append(Request(prompt, params))
    return made


@pytest.mark.parametrize("guessing", [False, True])
@pytest.mark.parametrize(("most", "cache_tokens"), [(512, 4000), (9, 160), (64, 160)])
def test_together_is_alone_bit_for_bit(
    lm: LanguageModel, most: int, cache_tokens: int, guessing: bool
) -> None:
    requests = some_requests(60)
    plain = Engine(native(lm), lm.tokenizer)
    alone = [plain.complete([request])[0] for request in requests]
    speculation = Speculation(NgramDrafter(), always=True) if guessing else None
    e = Engine(native(lm, most), lm.tokenizer, cache_tokens=cache_tokens, speculation=speculation)
    assert e.complete(requests) == alone  # log-probabilities as well
    if cache_tokens == 160:
        assert e.stats().preemptions > 0
    if speculation:
        assert speculation.drafted > 50


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
