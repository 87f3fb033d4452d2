"""The engine with a thread: callbacks, a bounded queue, cancellation, shutdown, failure."""

import asyncio
import itertools
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import pytest
from constraints import PlainConstraint, alone
from fake_runner import WORDS, FakeRunner, FakeTokenizer, expected
from test_engine import plain_score, requests, without_log_probs

from gemmule.errors import ConfigError, EngineClosedError, EngineDeadError, QueueFullError
from gemmule.infer.async_driver import AsyncEngine
from gemmule.infer.core.constraint import TokenConstraint
from gemmule.infer.core.request import Completion, PromptProgress, Request, RequestOutput
from gemmule.infer.core.sampling import SamplingParams
from gemmule.infer.core.speculative import NgramDrafter, Speculation
from gemmule.infer.language_model import LanguageModel
from gemmule.infer.runners.protocol import ScheduledChunk
from gemmule.infer.step_loop import StepReport

TOKENIZER: Any = FakeTokenizer()
LONG = SamplingParams(temperature=0.0, max_new_tokens=100)
WAIT = 30  # seconds


class Gate(FakeRunner):
    """A runner whose steps wait until they are let through."""

    def __init__(self) -> None:
        super().__init__()
        self.entered, self.open = threading.Semaphore(0), threading.Semaphore(0)
        self.failure: Exception | None = None
        self.chunks: Sequence[ScheduledChunk] = ()  # of the last step

    def step(self, chunks: Any) -> Any:
        self.chunks = chunks
        self.entered.release()
        assert self.open.acquire(timeout=WAIT)
        if self.failure is not None:
            raise self.failure
        return super().step(chunks)

    def let(self, steps: int) -> None:
        """Lets steps through, one after the other."""
        for _ in range(steps):
            assert self.entered.acquire(timeout=WAIT)
            self.open.release()

    def enter(self) -> None:
        """Waits until the next step has begun."""
        assert self.entered.acquire(timeout=WAIT)


class Collector:
    """Callbacks that keep outputs and wait for the last."""

    def __init__(self) -> None:
        self.outputs: dict[str, list[RequestOutput]] = {}
        self.threads: set[str] = set()
        self._condition = threading.Condition()

    def __call__(self, name: str) -> Callable[[RequestOutput], None]:
        def on_output(output: RequestOutput) -> None:
            with self._condition:
                self.outputs.setdefault(name, []).append(output)
                self.threads.add(threading.current_thread().name)
                self._condition.notify_all()

        return on_output

    def last(self, name: str) -> RequestOutput:
        """The last output of a request, once it has come."""
        with self._condition:
            assert self._condition.wait_for(
                lambda: name in self.outputs and self.outputs[name][-1].finished, WAIT
            )
            return self.outputs[name][-1]

    def completion(self, name: str) -> Completion:
        """The completion in it."""
        completion = self.last(name).completion
        assert completion is not None
        return completion


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.fixture
def gate() -> Iterator[Gate]:
    runner = Gate()
    yield runner
    for _ in range(1000):
        runner.open.release()


def test_requests_of_many_threads_get_what_each_gets_alone() -> None:
    collect, asked = Collector(), {}
    rng_cancelled: set[str] = set()
    with AsyncEngine(FakeRunner(), TOKENIZER, cache_tokens=320, max_waiting=10_000) as engine:

        def ask(seed: int) -> None:
            rng = random.Random(seed)
            for i, request in enumerate(requests(rng, 40)):
                name = f"{seed}:{i}"
                asked[name] = request
                request_id = engine.submit(request, collect(name))
                if rng.random() < 0.2:
                    rng_cancelled.add(name)
                    engine.cancel(request_id)

        threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(asked) == 160
    assert collect.threads == {"gemmule-engine"}
    for name, request in asked.items():
        completion, right = collect.completion(name), expected(request)
        assert "".join(output.text for output in collect.outputs[name]) == completion.text
        assert sum(output.finished for output in collect.outputs[name]) == 1
        if completion.finish_reason == "cancelled":
            assert name in rng_cancelled
            assert right.text.startswith(completion.text)
        else:
            assert without_log_probs(completion) == right
    pool = engine.stats().pool
    assert (pool.allocated, pool.cached + pool.free) == (0, pool.size)


def test_an_idle_engine_sleeps() -> None:
    runner, collect = FakeRunner(), Collector()
    with AsyncEngine(runner, TOKENIZER, cache_tokens=320) as engine:
        engine.submit(Request([5], SamplingParams(max_new_tokens=3, seed=1)), collect("a"))
        collect.last("a")
        eventually(lambda: engine.stats().running == 0)
        steps, used = runner.steps, time.process_time()
        time.sleep(0.3)
        assert runner.steps == steps
        assert time.process_time() - used < 0.1


def test_the_queue_is_bounded(gate: Gate) -> None:
    collect = Collector()
    engine = AsyncEngine(gate, TOKENIZER, cache_tokens=4000, max_waiting=2, max_running=1)
    engine.submit(Request([5], LONG), collect("running"))
    gate.enter()
    ids = [engine.submit(Request([6], LONG), collect(name)) for name in ("first", "second")]
    with pytest.raises(QueueFullError, match="2 requests are waiting, and at most 2 may wait"):
        engine.submit(Request([7], LONG), collect("refused"))
    assert engine.num_waiting == engine.stats().waiting == 2
    engine.cancel(ids[0])  # makes room at once, though a step is running
    engine.submit(Request([7], LONG), collect("third"))
    gate.open.release()
    assert collect.completion("first").finish_reason == "cancelled"
    gate.enter()
    assert engine.num_waiting == 2
    gate.open.release(1000)
    engine.shutdown(drain=False)
    assert "refused" not in collect.outputs
    with pytest.raises(ConfigError, match="max_waiting is -1; it must be 0 or more"):
        AsyncEngine(FakeRunner(), TOKENIZER, cache_tokens=320, max_waiting=-1)


def test_what_can_start_at_the_next_step_does_not_wait(gate: Gate) -> None:
    """Requests that come during a step, while fewer run than may, are taken without a queue."""
    collect = Collector()
    engine = AsyncEngine(gate, TOKENIZER, cache_tokens=4000, max_waiting=0, max_running=3)
    engine.submit(Request([5], LONG), collect("first"))
    gate.enter()
    for name in ("second", "third"):
        engine.submit(Request([6], LONG), collect(name))
    with pytest.raises(QueueFullError, match="2 requests are waiting, and at most 0 may wait"):
        engine.submit(Request([7], LONG), collect("fourth"))
    with pytest.raises(ConfigError, match="n is 4; at most 3 samples"):
        engine.submit(Request([7], replace(LONG, n=4)), collect("fourth"))
    gate.open.release()
    gate.enter()
    assert engine.stats().running == 3
    with pytest.raises(QueueFullError, match="0 requests are waiting"):
        engine.submit(Request([7], LONG), collect("fourth"))
    gate.open.release(1000)
    engine.shutdown(drain=False)


def test_without_free_pages_nothing_can_start_at_the_next_step(gate: Gate) -> None:
    collect = Collector()
    engine = AsyncEngine(gate, TOKENIZER, cache_tokens=160, max_waiting=1, max_running=30)
    first = engine.submit(Request([5] * 140, replace(LONG, max_new_tokens=5)), collect("first"))
    second = engine.submit(Request([6] * 140, replace(LONG, max_new_tokens=5)), collect("second"))
    gate.let(4)
    gate.enter()
    assert (engine.stats().running, engine.stats().waiting) == (1, 1)
    with pytest.raises(QueueFullError, match="1 requests are waiting, and at most 1 may wait"):
        engine.submit(Request([7], LONG), collect("third"))
    for request in (first, second):
        engine.cancel(request)
    gate.open.release(1000)
    eventually(lambda: engine.stats().running + engine.num_waiting == 0)
    # There is room again, though no step has been planned since.
    engine.submit(Request([7], replace(LONG, n=2)), collect("two"))
    engine.shutdown(drain=False)


# In each state a request is cancelled, by the length of its prompt.
STATES = {
    "queued": 5, "constraint": 5, "waiting": 100, "prefill": 120, "prompt": 120, "decoding": 5,
    "constrained": 5, "speculating": 5, "samples": 5, "preempted": 30, "done": 5,
}  # fmt: skip
GREEDY = SamplingParams(temperature=0.0, max_new_tokens=60)
CONSTRAINT = PlainConstraint(WORDS, 3)
IN_STATE: dict[str, dict[str, Any]] = {
    "prompt": {"prompt_logprobs": 2},
    "samples": {"n": 3, "temperature": 1.0, "seed": 1},
    "speculating": {"logit_bias": {4: 100}},  # always the same, as the drafter sees
}


def reach(state: str, gate: Gate, engine: AsyncEngine, victim: int) -> None:
    """Brings a request, submitted during the first step, into a state, within a further step."""
    gate.open.release()
    if state == "preempted":
        gate.enter()
        while not engine.stats().preemptions:
            gate.open.release()
            gate.enter()
        assert engine.stats().waiting == 1
        return
    gate.let({"waiting": 1, "prefill": 1, "prompt": 1, "speculating": 3}.get(state, 6))
    gate.enter()
    chunks = [len(chunk.tokens) for chunk in gate.chunks if chunk.sequence_id >= victim]
    if state in ("waiting", "constraint"):
        assert (chunks, engine.num_waiting, engine.stats().running) == ([], 1, 1)
    elif state == "speculating":
        assert chunks[0] > 3
    else:
        one = 47 if state in ("prefill", "prompt") else 1
        assert chunks == [one] * (3 if state == "samples" else 1)


@pytest.mark.parametrize("state", STATES)
def test_cancelling_frees_pages_within_a_step_in_every_state(gate: Gate, state: str) -> None:
    collect, future = Collector(), Future[TokenConstraint]()
    engine = AsyncEngine(
        gate,
        TOKENIZER,
        cache_tokens=160 if state in ("waiting", "preempted") else 4000,
        max_prompt_delay=None,
        speculation=Speculation(NgramDrafter(), always=True) if state == "speculating" else None,
    )
    other = Request([3] * 60, GREEDY)
    engine.submit(other, collect("other"))
    gate.enter()
    params = replace(GREEDY, **IN_STATE.get(state, {}))
    constraint = {"constrained": CONSTRAINT, "constraint": future}.get(state)
    victim = engine.submit(
        Request([4] * STATES[state], params, constraint=constraint), collect("victim")
    )
    if state == "done":
        gate.open.release(1000)
        collect.last("victim")
    elif state != "queued":
        reach(state, gate, engine, victim)
    engine.cancel(victim)
    future.set_result(CONSTRAINT)  # too late
    gate.open.release()
    gate.enter()  # the step after the one in which it was cancelled
    reason = collect.completion("victim").finish_reason
    assert (reason == "cancelled") == (state != "done")
    if state != "done":
        tokens = len(other.prompt) + engine.stats().generated_tokens
        # What is allocated belongs to the other request: at most its pages and those of the window.
        assert engine.stats().pool.allocated <= 2 * -(-tokens // 32)
        assert engine.stats().running + engine.stats().waiting == 1
    gate.open.release(1000)
    assert without_log_probs(collect.completion("other")) == expected(other)
    engine.shutdown()
    assert engine.stats().pool.allocated == 0


def test_a_request_waits_for_its_constraint_without_holding_up_others(gate: Gate) -> None:
    collect, constraint = Collector(), Future[TokenConstraint]()
    params = SamplingParams(temperature=0.8, seed=3, max_new_tokens=20, n=2)
    request = Request([5, 6], params, constraint=PlainConstraint(WORDS, 2, 9))
    engine = AsyncEngine(gate, TOKENIZER, cache_tokens=4000, max_waiting=2, max_running=1)
    engine.submit(replace(request, constraint=constraint), collect("pending"))
    with pytest.raises(QueueFullError, match="2 requests are waiting, and at most 2 may wait"):
        engine.submit(request, collect("refused"))  # its two samples count
    with pytest.raises(ConfigError, match="n is 4; at most 3 samples are taken"):
        engine.submit(replace(request, params=replace(params, n=4)), collect("refused"))
    other = Request([7, 8], SamplingParams(temperature=0.0, max_new_tokens=4))
    engine.submit(other, collect("other"))
    gate.open.release(1000)
    assert collect.completion("other") == expected(other)
    waiter = threading.Thread(target=engine.shutdown)
    waiter.start()  # draining waits for it, too
    eventually(lambda: engine.closing)
    assert engine.num_waiting == 2
    assert request.constraint is not None
    constraint.set_result(request.constraint)  # type: ignore[arg-type]
    waiter.join(WAIT)
    outputs = [o for o in collect.outputs["pending"] if o.completion is not None]
    assert [o.finished for o in outputs] == [False, True]
    done = {output.sample: output.completion for output in outputs}
    assert [done[0], done[1]] == [expected(sample) for sample in alone(request)]
    assert engine.stats().pool.allocated == 0


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (ValueError("line 3 of the grammar"), "could not be made: ValueError: line 3 of the gramm"),
        (PlainConstraint(9, 2), "the constraint's masks are for 9 ids"),
        (None, "could not be made: CancelledError"),
    ],
)
def test_a_constraint_that_cannot_be_made_ends_its_request(result: Any, message: str) -> None:
    collect, constraint = Collector(), Future[TokenConstraint]()
    with AsyncEngine(FakeRunner(), TOKENIZER, cache_tokens=4000) as engine:
        engine.submit(Request([5], LONG, constraint=constraint), collect("a"))
        if result is None:
            constraint.cancel()
        elif isinstance(result, Exception):
            constraint.set_exception(result)
        else:
            constraint.set_result(result)
        output = collect.last("a")
    assert output.completion is not None
    assert output.completion.finish_reason == "error"
    assert message in str(output.error)
    assert output.completion.error is output.error


def test_shutting_down_ends_what_waits_for_a_constraint() -> None:
    collect = Collector()
    engine = AsyncEngine(FakeRunner(), TOKENIZER, cache_tokens=4000)
    for name in ("a", "b"):
        engine.submit(Request([5], LONG, constraint=Future[TokenConstraint]()), collect(name))
    engine.shutdown(timeout=0.01)
    for name in ("a", "b"):
        assert collect.completion(name).finish_reason == "cancelled"


def test_draining_finishes_what_there_is() -> None:
    collect = Collector()
    engine = AsyncEngine(FakeRunner(), TOKENIZER, cache_tokens=320)
    asked = requests(random.Random(2), 20)
    for i, request in enumerate(asked):
        engine.submit(request, collect(str(i)))
    engine.shutdown()
    for i, request in enumerate(asked):
        assert without_log_probs(collect.completion(str(i))) == expected(request)
    with pytest.raises(EngineClosedError, match="shutting down"):
        engine.submit(asked[0], collect("late"))
    engine.shutdown()  # twice does no harm
    engine.cancel(0)


@pytest.mark.parametrize("how", ["now", "timeout", "second", "exception"])
def test_shutting_down_at_once_cancels(gate: Gate, how: str) -> None:
    collect = Collector()
    engine = AsyncEngine(gate, TOKENIZER, cache_tokens=4000)
    engine.submit(Request([5], LONG), collect("running"))
    gate.let(2)
    gate.enter()
    engine.submit(Request([6], LONG), collect("queued"))
    waiter = threading.Thread(target=engine.shutdown)
    if how == "second":
        waiter.start()
        eventually(lambda: engine.closing)
    threading.Timer(0.05, gate.open.release).start()
    if how == "timeout":
        engine.shutdown(timeout=0.01)
    elif how == "exception":
        with pytest.raises(KeyError), engine:
            raise KeyError
    else:
        engine.shutdown(drain=False)
    if how == "second":
        waiter.join(WAIT)
    for name in ("running", "queued"):
        assert collect.completion(name).finish_reason == "cancelled"
    assert engine.stats().pool.allocated == 0


def test_a_step_that_keeps_failing_ends_in_a_dead_engine(gate: Gate) -> None:
    collect = Collector()
    engine = AsyncEngine(gate, TOKENIZER, cache_tokens=4000, max_failed_steps=3)
    engine.submit(Request([5], LONG), collect("running"))
    gate.let(3)
    gate.enter()
    engine.submit(Request([6], LONG), collect("queued"))
    engine.submit_score([2], [3], collect("scored"))
    gate.failure = MemoryError("no memory for a step")
    gate.open.release(10)
    for name in ("running", "queued", "scored"):
        error = collect.last(name).error
        assert isinstance(error, EngineDeadError)
        assert "steps that failed in a row: 3, the last with MemoryError: no memory" in str(error)
        assert isinstance(error.__cause__, MemoryError)
    completion = collect.completion("running")
    assert (completion.finish_reason, len(completion.ids)) == ("error", 3)
    assert engine.dead
    with pytest.raises(EngineDeadError, match="MemoryError"):
        engine.submit(Request([5], LONG), collect("late"))
    engine.shutdown()
    assert engine.stats().pool.allocated == 0
    assert gate.steps == 3


def test_a_failure_that_passes_loses_nothing(gate: Gate) -> None:
    collect = Collector()
    request = Request([5, 6], SamplingParams(temperature=1.0, seed=3, max_new_tokens=12))
    engine = AsyncEngine(gate, TOKENIZER, cache_tokens=4000, max_failed_steps=3)
    engine.submit(request, collect("a"))
    for _ in range(3):
        gate.let(1)
        gate.enter()
        gate.failure = RuntimeError("once")
        gate.open.release()
        gate.enter()
        gate.failure = None
        gate.open.release()
    gate.open.release(1000)
    assert without_log_probs(collect.completion("a")) == expected(request)
    engine.shutdown()


def test_a_callback_that_raises_costs_its_own_request_only() -> None:
    collect = Collector()

    def raises(output: RequestOutput) -> None:
        collect("bad")(output)
        raise ValueError("my fault")

    good = Request([7, 8], SamplingParams(temperature=1.0, seed=5, max_new_tokens=30))
    with AsyncEngine(FakeRunner(), TOKENIZER, cache_tokens=4000) as engine:
        engine.submit(Request([5], LONG), raises)
        engine.submit(good, collect("good"))
    assert len(collect.outputs["bad"]) == 1
    assert without_log_probs(collect.completion("good")) == expected(good)
    assert engine.stats().pool.allocated == 0


def test_callbacks_may_submit_cancel_and_shut_down() -> None:
    collect = Collector()
    engine = AsyncEngine(FakeRunner(), TOKENIZER, cache_tokens=4000)
    follow_up = Request([9], SamplingParams(temperature=0.0, max_new_tokens=4))

    def chained(output: RequestOutput) -> None:
        collect("first")(output)
        if output.finished:
            engine.submit(follow_up, collect("second"))
            engine.shutdown()
        else:
            engine.cancel(output.request_id)

    engine.submit(Request([5], LONG), chained)
    assert collect.completion("first").finish_reason == "cancelled"
    assert without_log_probs(collect.completion("second")) == expected(follow_up)


def test_after_step_comes_after_all_callbacks_of_a_step(gate: Gate) -> None:
    seen: list[str] = []
    engine = AsyncEngine(
        gate, TOKENIZER, cache_tokens=4000, after_step=lambda report: seen.append("step")
    )
    request = Request([5], SamplingParams(temperature=0.0, max_new_tokens=3))
    engine.submit(request, lambda output: seen.append("a"))
    gate.enter()
    engine.submit(request, lambda output: seen.append("b"))
    gate.open.release(1000)
    engine.shutdown()
    assert seen[:2] == ["a", "step"]
    assert seen[2:5] in (["a", "b", "step"], ["b", "a", "step"])


def test_steps_are_reported_with_the_tokens_of_each_request(gate: Gate) -> None:
    reports: list[StepReport] = []
    engine = AsyncEngine(
        gate, TOKENIZER, cache_tokens=4000, max_prompt_delay=None, after_step=reports.append
    )
    began = time.monotonic()
    collect = Collector()
    long = engine.submit(Request([5] * 100, GREEDY), collect("long"))
    gate.enter()
    params = SamplingParams(temperature=1.0, max_new_tokens=2, seed=1, n=2)
    engine.submit(Request([6], params), collect("two"))
    gone = engine.submit(Request([7], GREEDY), collect("gone"))
    engine.cancel(gone)
    gate.failure = RuntimeError("once")
    gate.open.release()
    gate.enter()
    gate.failure = None
    assert collect.completion("gone").finish_reason == "cancelled"
    gate.open.release(1000)
    collect.last("long")
    engine.shutdown()
    steps = [dict(report.tokens) for report in reports]
    two = long + 1
    # A failed step, outputs without a step, and the prompt again, from its beginning.
    assert steps[:5] == [{long: 48}, {}, {long: 48}, {long: 48}, {long: 4, two: 2}]
    assert steps[5:7] == [{long: 1, two: 2}, {long: 1}]
    assert began <= reports[0].started
    for one, following in itertools.pairwise(reports):
        assert 0 <= one.seconds <= following.started - one.started
    assert reports[1].seconds == 0


def test_progress_of_a_prompt_is_told_to_those_who_ask() -> None:
    collect = Collector()
    with AsyncEngine(FakeRunner(), TOKENIZER, cache_tokens=4000) as engine:
        for name, asks in (("first", False), ("again", True), ("new", True)):
            prompt = [4 if name == "new" else 3] * 120
            request = Request(prompt, GREEDY, report_progress=asks)
            engine.submit(request, collect(name))
            assert without_log_probs(collect.completion(name)) == expected(request)
    told = {
        name: [o.prompt_progress for o in outputs if o.prompt_progress is not None]
        for name, outputs in collect.outputs.items()
    }
    assert told["first"] == []
    assert told["new"] == [PromptProgress(120, 0, done) for done in (48, 96, 120)]
    assert told["again"] == [PromptProgress(120, 96, 120)]
    assert collect.outputs["again"][0].ids


def test_scores_come_by_callback() -> None:
    collect = Collector()
    with AsyncEngine(FakeRunner(), TOKENIZER, cache_tokens=4000) as engine:
        engine.submit_score([2, 3, 4], [5, 6], collect("score"))
        with pytest.raises(ConfigError, match="the continuation is empty"):
            engine.submit_score([2], [], collect("empty"))
    assert collect.last("score").score == plain_score([2, 3, 4], [5, 6])


def test_iterating_in_an_event_loop() -> None:
    request = Request([7, 8, 9], SamplingParams(temperature=1.0, seed=4, max_new_tokens=20))

    async def run(engine: AsyncEngine) -> None:
        async def follow(wanted: Request) -> Completion | None:
            completion = None
            async for output in engine.iterate(wanted):
                completion = output.completion
            return completion

        both = await asyncio.gather(follow(request), follow(request))
        assert [without_log_probs(c) for c in both if c] == [expected(request)] * 2
        outputs = engine.iterate(Request([5], LONG))
        await anext(outputs)
        await outputs.aclose()  # type: ignore[attr-defined]
        with pytest.raises(ConfigError, match="the prompt is empty"):
            await anext(engine.iterate(Request([], LONG)))

    with AsyncEngine(FakeRunner(), TOKENIZER, cache_tokens=4000) as engine:
        asyncio.run(run(engine))
        eventually(lambda: engine.stats().pool.allocated == 0)
    assert engine.stats().generated_tokens < 2 * 20 + 100


def test_a_language_model_starts_one(lm: LanguageModel) -> None:
    collect = Collector()
    ids = lm.tokenizer.encode("def", bos=True)
    params = SamplingParams(temperature=0.7, seed=1, max_new_tokens=12, logprobs=2)
    with lm.async_engine(max_waiting=4) as engine:
        engine.submit(Request(ids, params), collect("a"))
    assert collect.completion("a") == lm.complete([ids], params)[0]
