"""The engine over a runner that shows any stale page, wrong position or mixed-up sequence."""

import dataclasses
import math
import random
import threading
import time
from collections import Counter
from typing import Any

import pytest
import torch
from constraints import alone, with_every_setting
from fake_runner import WINDOW, WORDS, FakeRunner, FakeTokenizer, History, expected

from gemmule.errors import ConfigError, EngineDeadError
from gemmule.infer.core import cache_size
from gemmule.infer.core.pages import PagePool, PageTable, max_pages
from gemmule.infer.core.request import Completion, Request, RequestOutput, Score, TokenLogProb
from gemmule.infer.core.sampling import SamplingParams
from gemmule.infer.driver import Engine
from gemmule.infer.runners.protocol import PAGE, StepOutput
from gemmule.runtime import memory

TOKENIZER: Any = FakeTokenizer()


def engine(cache_tokens: int = 320, **more: Any) -> Engine:
    return Engine(FakeRunner(**more), TOKENIZER, cache_tokens=cache_tokens)


def params(rng: random.Random, most: int) -> SamplingParams:
    letters = "".join(chr(97 + i) for i in range(2, WORDS))
    return SamplingParams(
        max_new_tokens=rng.choice([0, *[rng.randint(1, most)] * 9]),
        temperature=rng.choice([0.0, 0.0, 0.3, 1.0]),
        top_k=rng.choice([None, 1, 5, 26, 27, 40]),
        top_p=rng.choice([1.0, 0.9, 0.5]),
        min_p=rng.choice([0.0, 0.0, 0.2]),
        seed=rng.randrange(2**40),
        repetition_penalty=rng.choice([1.0, 1.0, 1.0, 1.3]),
        logprobs=rng.choice([None, None, None, 0, 3]),
        stop=rng.choice([(), (), ("".join(rng.choices(letters, k=2)), "zz")]),
    )


def requests(rng: random.Random, count: int) -> list[Request]:
    """Prompts that often share a prefix, up to any place in a page."""
    stems = [[rng.randrange(2, WORDS) for _ in range(rng.randint(20, 120))] for _ in range(12)]
    made = []
    for _ in range(count):
        stem = rng.choice(stems)
        prompt = stem[: rng.choice([rng.randint(0, len(stem)), rng.randint(0, 30)])]
        prompt += [rng.randrange(2, WORDS) for _ in range(rng.choice([0, 1, 3, 20]))]
        if prompt and rng.random() < 0.2:  # pages of the same tokens after another beginning
            prompt[0] = 0
        made.append(Request(prompt or [2], params(rng, 30), rng.randrange(3)))
    return made


def assert_nothing_is_left(e: Engine) -> None:
    stats = e.stats()
    pool = stats.pool
    assert not e.busy
    assert (stats.running, stats.waiting) == (0, 0)
    assert pool.allocated == 0
    assert pool.cached == pool.hashed <= pool.size
    assert pool.cached + pool.free == pool.size
    assert e.step() == []


def without_log_probs(completion: Completion) -> Completion:
    return dataclasses.replace(completion, logprobs=None, stop_logprob=None)


Key = tuple[int, int]  # a request's id and the number of the sample


class Collected:
    """What came of requests, by their samples."""

    def __init__(self) -> None:
        self.requests: dict[int, Request] = {}
        self.text: dict[Key, str] = {}
        self.drawn: dict[Key, list[int]] = {}
        self.scores: dict[Key, tuple[TokenLogProb, ...]] = {}
        self.done: dict[Key, Completion] = {}
        self.finished: set[int] = set()

    def add(self, number: int, request: Request) -> None:
        self.requests[number] = request
        for key in self.keys(number):
            self.text[key], self.drawn[key], self.scores[key] = "", [], ()

    def keys(self, number: int) -> list[Key]:
        return [(number, sample) for sample in range(self.requests[number].params.n)]

    def take(self, output: RequestOutput) -> None:
        key = number, _ = output.request_id, output.sample
        self.text[key] += output.text
        self.drawn[key] += output.ids
        self.scores[key] += output.prompt_logprobs
        if output.completion:
            assert key not in self.done
            self.done[key] = output.completion
            assert output.finished == all(key in self.done for key in self.keys(number))
            if output.finished:
                self.finished.add(number)

    def check(self, cancelled: set[int]) -> Counter[str]:
        """Compares all with the definition; returns how often each finish reason came."""
        ended: Counter[str] = Counter()
        for number, request in self.requests.items():
            for key, wanted in zip(self.keys(number), alone(request), strict=True):
                completion, right = self.done[key], expected(wanted)
                ended[completion.finish_reason] += 1
                assert self.text[key] == completion.text
                assert self.scores[key] == (completion.prompt_logprobs or ())
                if completion.finish_reason == "cancelled":
                    assert number in cancelled
                    assert right.text.startswith(completion.text)
                    assert right.ids[: len(completion.ids)] == completion.ids
                    continue
                assert without_log_probs(completion) == right
                drawn = tuple(self.drawn[key])
                stopped = completion.finish_reason == "stop" and len(drawn) > len(completion.ids)
                assert drawn == completion.ids + (1,) * stopped
        return ended


@pytest.mark.parametrize(("seed", "count"), [(0, 10_000)])
def test_ten_thousand_requests_get_what_each_gets_alone(seed: int, count: int) -> None:
    rng = random.Random(seed)
    e = engine(cache_tokens=320)  # 20 pages; a sequence may need 8
    todo = requests(rng, count)
    for i in range(0, count, 8):
        todo[i] = with_every_setting(rng, todo[i], WORDS, [1])
    collected = Collected()
    cancelled: set[int] = set()
    most_waiting = 0
    while len(collected.finished) < count:
        while todo and rng.random() < 0.6 and len(collected.text) - len(collected.done) < 40:
            request = todo.pop()
            number = e.submit(request)
            collected.add(number, request)
            if rng.random() < 0.02:
                e.cancel(number)
                cancelled.add(number)
        if collected.requests and rng.random() < 0.05:
            number = rng.choice([*collected.requests][-60:])
            e.cancel(number)
            cancelled.add(number)
        most_waiting = max(most_waiting, e.stats().waiting)
        for output in e.step():
            collected.take(output)
    assert_nothing_is_left(e)
    assert e.stats().preemptions > count / 10
    assert most_waiting > 10
    ended = collected.check(cancelled)
    assert ended["stop"] + ended["length"] > 0.8 * count
    assert ended["error"] > 0.001 * count  # a constraint allowed nothing


@pytest.mark.parametrize("max_step_tokens", [1, 2, 7, 512])
@pytest.mark.parametrize("cache_tokens", [144, 4000])
def test_any_step_and_any_pool(max_step_tokens: int, cache_tokens: int) -> None:
    rng = random.Random(max_step_tokens)
    e = engine(cache_tokens, max_step_tokens=max_step_tokens)
    some = requests(rng, 60)
    some += [with_every_setting(rng, request, WORDS, [1]) for request in requests(rng, 60)]
    got = e.complete(some)
    samples = [sample for request in some for sample in alone(request)]
    assert [without_log_probs(c) for c in got] == [expected(sample) for sample in samples]
    assert_nothing_is_left(e)


def free_too_early(self: PageTable, position: int) -> int:
    return max(0, position - WINDOW + 1 + 6) // PAGE


def match_global_pages_only(self: PageTable, tokens: list[int], limit: int) -> int:
    hashes = self.page_hashes(tokens, limit // PAGE)
    pages = [p for p in (self._pool.find((False, h)) for h in hashes) if p is not None]
    for page in pages:
        self._pool.incref(page)
    self.global_pages += pages
    self.local_pages += [self._pool.allocate() for _ in pages]
    self.computed = len(pages) * PAGE
    self._committed = len(pages)
    return self.computed


def forget_what_was_before(self: PageTable, tokens: list[int], pages: int) -> list[bytes]:
    return [bytes(tokens[i * PAGE : (i + 1) * PAGE]) for i in range(pages)]


def never_counted_twice(self: PagePool, page: int) -> None:
    self._cached.pop(page, None)
    self._refcounts[page] = 1


def cached_while_allocated(self: PagePool) -> int:
    return self.size - len(self._refcounts) + (self.size > 12)


PLANTED: dict[str, tuple[type, str, Any]] = {
    "too early": (PageTable, "first_local", free_too_early),
    "without local pages": (PageTable, "match_prefix", match_global_pages_only),
    "by a page's own tokens": (PageTable, "page_hashes", forget_what_was_before),
    "freed while allocated": (PagePool, "incref", never_counted_twice),
    "one too many": (PagePool, "available", property(cached_while_allocated)),
}


@pytest.mark.parametrize("planted", PLANTED)
def test_a_bug_in_the_pages_would_show(planted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(*PLANTED[planted])
    some = requests(random.Random(5), 150)
    # The last has pages that are there already, but never one after the other.
    greedy = SamplingParams(temperature=0.0, max_new_tokens=20)
    some += [Request([a] * PAGE + [b] * PAGE + [7], greedy) for a, b in ((3, 4), (5, 6), (3, 6))]
    with pytest.raises((AssertionError, KeyError)):
        for cache_tokens in (320, 2000):
            e = engine(cache_tokens=cache_tokens)
            got = [*e.complete(some[:-1]), *e.complete(some[-1:])]
            assert [without_log_probs(c) for c in got] == [expected(r) for r in some]


def test_a_common_prefix_is_computed_once() -> None:
    prompt = [2 + i % 25 for i in range(140)]
    greedy = SamplingParams(temperature=0.0, max_new_tokens=1)
    runner = FakeRunner()
    e = Engine(runner, TOKENIZER, cache_tokens=4000)
    some = [Request([*prompt[:100], 2 + i], greedy) for i in range(20)]
    got = e.complete(some)
    assert runner.tokens == 101 + 19 * 5  # three pages are shared
    assert got == [expected(request) for request in some]
    assert e.complete([Request(prompt, greedy)]) == [expected(Request(prompt, greedy))]
    assert runner.tokens == 101 + 19 * 5 + 44
    e.complete([Request(prompt, greedy)])
    assert runner.tokens == 101 + 19 * 5 + 44 + 12  # four whole pages are kept


def test_decoding_goes_on_beside_a_long_prompt() -> None:
    e = engine(cache_tokens=4000, max_step_tokens=16)
    short = e.submit(Request([2], SamplingParams(temperature=0.0, max_new_tokens=30)))
    e.step()
    e.submit(Request([3] * 150, SamplingParams(temperature=0.0, max_new_tokens=2)))
    for _ in range(8):
        assert [event.request_id for event in e.step()] == [short]


def test_cancelled_requests_say_so_and_give_their_pages_back() -> None:
    e = engine()
    endless = SamplingParams(temperature=0.0, max_new_tokens=100, logprobs=1)
    number = e.submit(Request([5, 6], endless))
    e.cancel(number)
    (event,) = e.step()
    assert event == RequestOutput(number, "", (), completion=Completion("", (), "cancelled", ()))
    number = e.submit(Request([5, 6], endless))
    first = [event for _ in range(3) for event in e.step()]
    e.cancel(number)
    e.cancel(number)
    e.cancel(99)
    (event,) = e.step()
    assert event.completion is not None
    assert event.completion.ids == tuple(i for event in first for i in event.ids)
    assert event.completion.logprobs is not None and len(event.completion.logprobs) == 3
    assert e.step() == []
    assert_nothing_is_left(e)


def test_iterating_and_leaving_early() -> None:
    e = engine()
    request = Request([7, 8, 9], SamplingParams(temperature=1.0, seed=4, max_new_tokens=20))
    other = Request([9], SamplingParams(temperature=1.0, seed=5, max_new_tokens=40))
    left = e.iterate(other)
    events = e.iterate(request)
    assert not e.busy  # nothing begins before the first next
    next(left)
    got = list(events)
    assert got[-1].completion == expected(request)
    assert "".join(event.text for event in got) == expected(request).text
    del left
    e.step()
    assert_nothing_is_left(e)


def test_nothing_is_lost_when_a_step_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    runner: Any = FakeRunner()
    e = Engine(runner, TOKENIZER, cache_tokens=320, max_failed_steps=1000)
    rng = random.Random(3)
    some = requests(rng, 30)
    numbers = [e.submit(request) for request in some]
    original, done = runner.run, {}

    def fails(chunk: Any) -> Any:
        outputs = original(chunk)
        if rng.random() < 0.1:
            runner.pool[:] = 1  # as if another process had been there
            raise RuntimeError("out of memory")
        return outputs

    monkeypatch.setattr(runner, "run", fails)
    failures = 0
    while e.busy:
        try:
            done.update(
                {event.request_id: event.completion for event in e.step() if event.completion}
            )
        except RuntimeError:
            failures += 1
    assert failures > 10
    for number, request in zip(numbers, some, strict=True):
        assert without_log_probs(done[number]) == expected(request)
    assert_nothing_is_left(e)


def test_steps_that_keep_failing_end_in_a_dead_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    runner: Any = FakeRunner()
    e = Engine(runner, TOKENIZER, cache_tokens=320, max_failed_steps=3)
    request = Request([5, 6], SamplingParams(temperature=0.0, max_new_tokens=50))
    e.submit(request)
    followed = e.iterate(request)
    next(followed)

    def fails(chunks: Any) -> Any:
        raise MemoryError("no memory")

    monkeypatch.setattr(runner, "step", fails)
    for _ in range(2):  # a failed step loses nothing, and may be repeated
        with pytest.raises(MemoryError):
            e.step()
    assert e.busy and not e.dead
    monkeypatch.undo()
    e.step()
    monkeypatch.setattr(runner, "step", fails)
    with pytest.raises(KeyboardInterrupt), monkeypatch.context() as patch:
        patch.setattr(runner, "step", lambda chunks: exec("raise KeyboardInterrupt"))
        e.step()  # Ctrl-C is not a failure
    for _ in range(2):
        with pytest.raises(MemoryError):
            e.step()
    with pytest.raises(EngineDeadError, match="in a row: 3, the last with MemoryError: no"):
        e.step()
    assert e.dead and not e.busy
    monkeypatch.undo()  # it stays dead
    for ask in (e.step, lambda: e.complete([request]), lambda: list(followed)):
        with pytest.raises(EngineDeadError, match="MemoryError") as error:
            ask()
        assert isinstance(error.value.__cause__, MemoryError)
    assert e.stats().pool.allocated == 0


def test_complete_says_when_the_engine_died() -> None:
    class Broken(FakeRunner):
        def step(self, chunks: Any) -> Any:
            raise RuntimeError("broken")

    e = Engine(Broken(), TOKENIZER, cache_tokens=320, max_failed_steps=1)
    with pytest.raises(EngineDeadError, match="in a row: 1, the last with RuntimeError: broken"):
        e.complete([Request([5], SamplingParams())])
    with pytest.raises(EngineDeadError, match="broken"):
        e.score([([5], [6])])


def test_completions_count_tokens_and_tell_times() -> None:
    runner = FakeRunner()
    e = Engine(runner, TOKENIZER, cache_tokens=4000)
    prompt = [2 + i % 25 for i in range(100)]
    before = time.monotonic()
    (first,) = e.complete([Request(prompt, SamplingParams(temperature=0.0, max_new_tokens=5))])
    (second,) = e.complete([Request(prompt, SamplingParams(temperature=0.0, max_new_tokens=5))])
    after = time.monotonic()
    assert first == second  # neither counts nor times decide equality
    assert (first.counts.prompt, first.counts.cached) == (100, 0)
    assert (second.counts.prompt, second.counts.cached) == (100, 96)
    stopped = first.finish_reason == "stop"
    assert first.counts.generated == len(first.ids) + stopped
    for completion in (first, second):
        t = completion.times
        assert t.queued is not None and t.scheduled is not None
        assert t.first_token is not None and t.finished is not None
        assert before <= t.queued <= t.scheduled <= t.first_token <= t.finished <= after
    stats = e.stats()
    assert (stats.prompt_tokens, stats.cached_tokens) == (200, 96)
    assert stats.generated_tokens == first.counts.generated + second.counts.generated
    assert stats.steps == runner.steps


def test_what_is_preempted_is_not_counted_as_cached() -> None:
    e = engine(cache_tokens=144)
    params = SamplingParams(temperature=0.0, max_new_tokens=40)
    done = e.complete([Request([2 + i] * 40, params) for i in range(6)])
    assert e.stats().preemptions > 0
    assert [completion.counts.cached for completion in done] == [0] * 6


def test_cancelled_before_it_ran_it_has_no_times() -> None:
    e = engine()
    number = e.submit(Request([5], SamplingParams()))
    e.cancel(number)
    (output,) = e.step()
    assert output.completion is not None
    times = output.completion.times
    assert (times.scheduled, times.first_token) == (None, None)
    assert times.queued is not None and times.finished is not None


def test_changed_weights_drop_what_was_computed_and_nothing_else() -> None:
    class Weights(FakeRunner):
        changes = 0

        def weights_changed(self) -> None:
            self.changes += 1

    runner = Weights()
    e = Engine(runner, TOKENIZER, cache_tokens=4000)
    prompt = [2 + i % 25 for i in range(100)]
    request = Request(prompt, SamplingParams(temperature=0.0, max_new_tokens=5))
    e.complete([request])
    running = e.submit(Request(prompt, SamplingParams(temperature=0.0, max_new_tokens=20)))
    for _ in range(3):
        e.step()
    pool, tokens = runner.pool, runner.tokens
    generated = e.stats().generated_tokens
    e.weights_changed()
    assert (runner.changes, runner.pool is pool) == (1, True)
    assert e.stats().pool.hashed == 0  # nothing of the old weights can be found
    outputs = []
    while e.busy:
        outputs += e.step()
    assert runner.tokens >= tokens + 100  # the prompt was computed again
    done = outputs[-1].completion
    assert done is not None and outputs[-1].request_id == running
    assert without_log_probs(done) == expected(
        Request(prompt, SamplingParams(temperature=0.0, max_new_tokens=20))
    )
    assert e.stats().generated_tokens > generated
    assert e.complete([request]) == [expected(request)]


def test_threads_submit_and_cancel_while_one_steps() -> None:
    e = engine()
    results: dict[int, Completion] = {}
    asked: dict[int, Request] = {}
    stop = threading.Event()

    def step() -> None:
        while not stop.is_set() or e.busy:
            for event in e.step():
                if event.completion:
                    results[event.request_id] = event.completion
            time.sleep(0)

    def ask(seed: int) -> None:
        rng = random.Random(seed)
        for request in requests(rng, 40):
            number = e.submit(request)
            asked[number] = request
            if rng.random() < 0.2:
                e.cancel(number)

    def follow(seed: int) -> None:
        for request in requests(random.Random(seed), 20):
            *_, last = e.iterate(request)
            assert last.completion is not None
            followed.append(without_log_probs(last.completion) == expected(request))

    followed: list[bool] = []
    stepper = threading.Thread(target=step)
    others = [threading.Thread(target=ask, args=(i,)) for i in range(4)]
    others += [threading.Thread(target=follow, args=(i,)) for i in range(10, 12)]
    for thread in (stepper, *others):
        thread.start()
    for thread in others:
        thread.join()
    stop.set()
    stepper.join()
    assert followed == [True] * 40
    assert len(asked) == 160
    for number, request in asked.items():
        if results[number].finish_reason != "cancelled":
            assert without_log_probs(results[number]) == expected(request)
    e.step()
    assert_nothing_is_left(e)


def plain_score(context: list[int], continuation: list[int]) -> Score:
    history, log_probs, greedy = History(), [], []
    for token in context:
        logits = history.push(token)
    for token in continuation:
        log_probs.append(float(logits[token]) - float(logits.logsumexp(-1)))
        greedy.append(int(logits.argmax()) == token)
        logits = history.push(token)
    return Score(tuple(log_probs), tuple(greedy))


@pytest.mark.parametrize("cache_tokens", [160, 4000])
def test_scores_of_continuations_that_share_a_context(cache_tokens: int) -> None:
    rng = random.Random(8)
    pairs = []
    for length in (1, 31, 32, 33, 64, 100):
        context = [rng.randrange(WORDS) for _ in range(length)]
        pairs += [(context, [rng.randrange(WORDS) for _ in range(n)]) for n in (0, 1, 2, 3, 40)]
        pairs += [(context, pairs[-1][1])]  # twice the same
    e = engine(cache_tokens)
    assert e.score(pairs) == [plain_score(*pair) for pair in pairs]
    assert any(any(score.greedy) for score in e.score(pairs))
    assert_nothing_is_left(e)
    if cache_tokens == 4000:
        runner = FakeRunner()
        fresh = Engine(runner, TOKENIZER, cache_tokens=cache_tokens)
        fresh.score([(context[:], [i]) for context in [pairs[-1][0]] for i in range(10)])
        assert runner.tokens == 100 + 9 * 4  # the last, partial page is computed for each


def not_finite(output: StepOutput) -> StepOutput:
    """The same with NaN for every logit."""
    values = {
        name: value * math.nan
        for name, value in vars(output).items()
        if name != "top_ids" and value is not None
    }
    return dataclasses.replace(output, **values)


def test_logits_that_are_no_numbers_end_one_request_and_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runner: Any = FakeRunner()
    e = Engine(runner, TOKENIZER, cache_tokens=320)
    original = runner.run

    def overflows(chunk: Any) -> Any:
        outputs = original(chunk)
        return [not_finite(output) for output in outputs] if chunk.end > 60 else outputs

    monkeypatch.setattr(runner, "run", overflows)
    long = SamplingParams(max_new_tokens=40)
    for more in ({}, {"temperature": 0.0}, {"top_k": 5}, {"logprobs": 2, "temperature": 0.0}):
        settings = dataclasses.replace(long, seed=7, **more)
        short = Request([3, 4], dataclasses.replace(long, seed=8, max_new_tokens=20))
        bad, good = e.complete([Request([5] * 50, settings), short])
        assert bad.finish_reason in ("error", "stop")
        assert good == expected(short)
        ends = [
            c.finish_reason for c in e.complete([Request([i] * 59, settings) for i in range(9)])
        ]
        assert ends.count("error") > 4
    assert_nothing_is_left(e)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], "the prompt is empty"),
        ([2, 29], "the id 29; this model's ids are 0 to 28"),
        ([-1], "the id -1"),
        ([2.5], "not a token id"),
        (["a"], "not a token id"),
        ([None], "not a token id"),
        ("text", "must be a sequence of token ids, got str"),
        (7, "must be a sequence of token ids, got int"),
        (range(10_000_000), "the prompt has 10000000 tokens; this model's context is 160"),
        ([2] * 160, "at most 159"),
    ],
)
def test_hostile_prompts(prompt: Any, message: str) -> None:
    e = engine()
    for ask in (e.submit, e.iterate, lambda request: e.complete([request])):
        with pytest.raises(ConfigError, match=message):
            ask(Request(prompt, SamplingParams()))
    assert_nothing_is_left(e)


def test_hostile_scores() -> None:
    e = engine()
    for pair in [([], [3]), ([3], [99]), ([3], "ab"), (5, [3]), ([2], [3] * 200)]:
        with pytest.raises(ConfigError):
            e.score([([2], [3]), pair])  # type: ignore[list-item]
    assert_nothing_is_left(e)


def test_what_can_never_fit_is_refused() -> None:
    e = engine(cache_tokens=96)  # six pages
    with pytest.raises(ConfigError, match=r"149 tokens need \d+ bytes of cache .*\(cache_bytes\)"):
        e.submit(Request([2] * 50, SamplingParams(max_new_tokens=100)))
    with pytest.raises(ConfigError, match="a shorter text"):
        e.score([([2] * 100, [3])])
    request = Request([2] * 50, SamplingParams(max_new_tokens=40, temperature=0.0))
    assert e.complete([request]) == [expected(request)]


@pytest.mark.parametrize(
    "size",
    [{"cache_bytes": 0}, {"cache_bytes": -5}, {"cache_tokens": 0}, {"cache_bytes": 1.5},
     {"cache_tokens": True}, {"cache_bytes": 9999, "cache_tokens": 64}],
)  # fmt: skip
def test_impossible_pools(size: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="cache"):
        Engine(FakeRunner(), TOKENIZER, **size)


def test_without_a_tokenizer_there_is_no_text_to_stop_at() -> None:
    e = Engine(FakeRunner())
    with pytest.raises(ConfigError, match="without a tokenizer"):
        e.submit(Request([2], SamplingParams(stop="x")))
    (done,) = e.complete([Request([2], SamplingParams(max_new_tokens=50, seed=1))])
    assert (done.text, len(done.ids), done.finish_reason) == ("", 50, "length")


def test_the_default_pool_is_bounded_by_memory_and_context(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pages = {}
    for available in (0, 40 * 1024, 2**50):
        monkeypatch.setattr(memory, "available", lambda device, available=available: available)
        pages[available] = cache_size.pages_for(FakeRunner())  # type: ignore[arg-type]
    assert pages == {0: 2, 40 * 1024: 10, 2**50: 16 * max_pages(160, WINDOW)}


def test_on_a_gpu_the_default_pool_is_bounded_by_the_gpu_s_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    on_gpu = FakeRunner()
    on_gpu.device = torch.device("cuda", 1)
    free = {torch.device("cuda", 1): 40 * 1024, torch.device("cuda", 0): 2**50}
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free[device], 2**50))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 0)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 0)
    assert cache_size.pages_for(on_gpu) == 10  # type: ignore[arg-type]
