"""Guessing ahead changes nothing but the time."""

import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from constraints import alone, with_every_setting
from distribution import probabilities
from fake_runner import ROWS, WORDS, FakeRunner, FakeTokenizer, expected
from test_engine import assert_nothing_is_left, requests, without_log_probs

from gemmule.errors import TokenizerError
from gemmule.infer.core.request import Request
from gemmule.infer.core.request_state import GenerationState
from gemmule.infer.core.sampling import SamplingParams
from gemmule.infer.core.speculative import DraftModel, ModelDrafter, NgramDrafter, Speculation
from gemmule.infer.driver import Engine
from gemmule.infer.language_model import LanguageModel
from gemmule.infer.runners.protocol import LogitsRequest, ScheduledChunk, StepOutput
from gemmule.infer.runners.torch_runner import TorchRunner, step_output
from gemmule.model.gemma import Gemma


class NamedTokenizer(FakeTokenizer):
    def __init__(self, fingerprint: str = "same") -> None:
        self.fingerprint = fingerprint


class Guesser:
    """Says anything, now and then what is right."""

    def __init__(self, right: float = 0.6) -> None:
        self.rng, self.right = random.Random(0), right

    def check(self, tokenizer: Any) -> None:
        """Fits all."""

    def propose(
        self, requests: Sequence[GenerationState], counts: Sequence[int]
    ) -> list[list[int]]:
        return [[self.rng.randrange(WORDS) for _ in range(self.rng.randint(0, n))] for n in counts]

    def forget(self, sequence_id: int) -> None:
        """Knows nothing."""

    reset = weights_changed = forget  # type: ignore[assignment]


def drafter(kind: str) -> Any:
    if kind == "lookup":
        return NgramDrafter()
    if kind == "model":  # of the same weights: nearly always right
        small: Any = ModelDrafter(FakeRunner(), NamedTokenizer(), cache_bytes=24 * 1024)  # type: ignore[arg-type]
        return small
    return Guesser()


@pytest.mark.parametrize("kind", ["lookup", "model", "anything"])
@pytest.mark.parametrize("cache_tokens", [320, 4000])
def test_every_request_gets_what_it_gets_without(kind: str, cache_tokens: int) -> None:
    rng = random.Random(11)
    some = requests(rng, 200)
    some += [with_every_setting(rng, request, WORDS, [1]) for request in requests(rng, 100)]
    speculation = Speculation(drafter(kind), always=True)
    tokenizer: Any = NamedTokenizer()
    e = Engine(FakeRunner(), tokenizer, cache_tokens=cache_tokens, speculation=speculation)
    left = e.submit(Request([3, 4], SamplingParams(max_new_tokens=100, seed=1)))
    e.step()
    e.step()
    e.cancel(left)
    got = e.complete(some)
    samples = [sample for request in some for sample in alone(request)]
    for completion, request in zip(got, samples, strict=True):
        assert without_log_probs(completion) == expected(request)
        if request.params.logprobs is not None:
            assert completion.logprobs is not None
            assert [t.id for t in completion.logprobs] == list(completion.ids)
    assert sum(completion.finish_reason == "error" for completion in got) > 3
    e.step()
    assert_nothing_is_left(e)
    assert speculation.drafted > 300
    assert speculation.num_requests == 0
    if kind == "model":
        assert speculation.accepted > 0.75 * speculation.drafted  # the rest: answers that ended
        model = speculation.draft_model
        assert isinstance(model, ModelDrafter)
        assert (model.num_requests, model.allocated_pages) == (0, 0)
    else:
        assert 0 < speculation.accepted < speculation.drafted


def test_a_good_draft_saves_steps() -> None:
    some = [
        Request([5, 6, 7], SamplingParams(temperature=0.8, seed=seed, max_new_tokens=60))
        for seed in range(100)
    ]
    request = next(r for r in some if len(expected(r).ids) == 60)
    steps = {}
    for kind in ("model", ""):
        runner, tokenizer = FakeRunner(), NamedTokenizer()
        speculation = Speculation(drafter(kind), always=True) if kind else None
        e = Engine(runner, tokenizer, cache_tokens=4000, speculation=speculation)  # type: ignore[arg-type]
        assert e.complete([request]) == [expected(request)]
        steps[kind] = runner.steps
    assert steps["model"] < steps[""] / 4


class Markov:
    """Logits that depend on the last token alone, of a tiny vocabulary."""

    max_step_tokens, page_bytes, device = 64, 64, torch.device("cpu")
    cache_format = "float32"

    def __init__(self, seed: int) -> None:
        self.config = FakeRunner().config.model_copy(update={"vocab_size": 5})
        self.logits = torch.randn(5, 5, generator=torch.Generator().manual_seed(seed))

    def allocate(self, pages: int) -> None:
        """Remembers nothing."""

    def step(self, chunks: Sequence[ScheduledChunk]) -> list[list[StepOutput]]:
        return [[self.predict(c, request) for request in c.logits] for c in chunks]

    def predict(self, chunk: ScheduledChunk, request: LogitsRequest) -> StepOutput:
        return step_output(request, self.logits[chunk.tokens[request.index]])


class FiveWords(NamedTokenizer):
    vocab_size = 5
    stop_ids = ()  # type: ignore[assignment]


@pytest.mark.parametrize("kind", ["lookup", "model"])
@pytest.mark.parametrize(
    "settings",
    [{"temperature": 1.0, "top_p": 1.0}, {"temperature": 1.3, "top_k": 3, "top_p": 0.9},
     {"temperature": 1.5, "top_p": 0.97, "min_p": 0.1}],
    ids=str,
)  # fmt: skip
def test_draws_follow_the_models_distribution(kind: str, settings: dict[str, Any]) -> None:
    tokenizer: Any = FiveWords()
    target: Any = Markov(1)
    small: Any = ModelDrafter(Markov(2), tokenizer, cache_bytes=64 * 64)  # type: ignore[arg-type]
    speculation = Speculation(small if kind == "model" else NgramDrafter(), always=True)
    e = Engine(target, tokenizer, cache_tokens=4000, speculation=speculation)
    params = SamplingParams(max_new_tokens=120, seed=17, **settings)
    done = e.complete([Request([0, 1, 2], params, row) for row in range(40)])
    assert 0.05 < speculation.accepted / speculation.drafted < 0.95
    pairs = Counter((a, b) for c in done for a, b in zip(c.ids, c.ids[1:], strict=False))
    chi, freedom = 0.0, 0
    for last in range(5):
        allowed = probabilities(target.logits[last], params)
        total = sum(pairs[last, word] for word in range(5))
        for word in range(5):
            if allowed[word] == 0:
                assert pairs[last, word] == 0
            elif total * float(allowed[word]) > 5:
                mean = total * float(allowed[word])
                chi += (pairs[last, word] - mean) ** 2 / mean
                freedom += 1
        freedom -= 1
    assert freedom > 4
    assert chi < freedom + 4 * (2 * freedom) ** 0.5


@pytest.mark.parametrize("settings", [{"temperature": 0.0}, {"temperature": 0.8, "seed": 5}])
@pytest.mark.parametrize("kind", ["lookup", "model"])
def test_a_real_model_with_a_smaller_draft(
    lm: LanguageModel, kind: str, settings: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    small = Gemma(lm.config.model_copy(update={"num_hidden_layers": 1, "sliding_window": 5}))
    guesses: DraftModel = NgramDrafter()
    if kind == "model":
        guesses = ModelDrafter(TorchRunner(small), lm.tokenizer)
    speculation = Speculation(guesses, always=True)
    e = Engine(TorchRunner(lm.model), lm.tokenizer, speculation=speculation)
    prompts = [lm.tokenizer.encode(p, bos=True) for p in ("def def def def", "x", "the text is")]
    params = SamplingParams(max_new_tokens=40, **settings)
    plain = Engine(TorchRunner(lm.model), lm.tokenizer)
    some = [Request(prompt, params, row) for row, prompt in enumerate(prompts)]
    assert e.complete(some) == plain.complete(some)
    assert speculation.drafted > 10


def test_a_draft_with_another_tokenizer_is_refused() -> None:
    guesses: Any = ModelDrafter(FakeRunner(), NamedTokenizer("other"), cache_bytes=9999)  # type: ignore[arg-type]
    for tokenizer in (NamedTokenizer(), None):
        with pytest.raises(TokenizerError, match="another tokenizer"):
            Engine(FakeRunner(), tokenizer, speculation=Speculation(guesses))  # type: ignore[arg-type]


def test_lookup_says_what_followed_last_time() -> None:
    lookup = NgramDrafter()

    def ask(tokens: list[int], count: int) -> list[int]:
        request = Request(tokens, SamplingParams())
        state = GenerationState(0, request, None, remaining=100, vocab_size=ROWS, num_logits=ROWS)
        return lookup.propose([state], [count])[0]

    tokens = [1, 2, 3, 4, 5, 9, 2, 3, 7]
    assert ask(tokens, 3) == []
    assert ask([*tokens, 2, 3], 4) == [7, 2, 3, 7]  # the last time, and on with itself
    assert ask([*tokens, 2, 3, 4], 2) == [5, 9]  # three tokens tell more than two
    lookup.forget(0)
    assert ask([6], 3) == ask([6, 6], 3) == []
    assert ask([6, 6, 6], 3) == [6, 6, 6]


def test_guessing_goes_on_only_where_it_measures_faster() -> None:
    now = 0.0

    def run(speculation: Speculation, seconds: dict[bool, float], steps: int) -> list[bool]:
        nonlocal now
        modes = []
        for _ in range(steps):
            speculation.propose([])
            mode = speculation.active
            modes.append(mode)
            now += seconds[mode]
            speculation.measure(2, 4 if mode else 2)
        return modes

    slow = Speculation(NgramDrafter(), clock=lambda: now)
    modes = run(slow, {False: 1.0, True: 2.0}, 300)  # twice the tokens in twice the time
    assert sum(modes) == 12
    assert not modes[-1]
    fast = Speculation(NgramDrafter(), clock=lambda: now)
    assert all(run(fast, {False: 1.0, True: 1.5}, 300)[30:])
    # It is tried again now and then, and when there are many more rows.
    assert sum(run(fast, {False: 1.0, True: 3.0}, 800)[420:]) < 100
    fast.measure(9, 9)
    assert not fast.decided
