"""Generations without HTTP: events, cancellation in every state, slow readers, time-outs."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import pytest

from gemmule.errors import ConfigError, QueueFullError
from gemmule.infer.async_driver import AsyncEngine
from gemmule.infer.core.request import Request
from gemmule.infer.core.sampling import SamplingParams
from gemmule.infer.core.speculative import NgramDrafter, Speculation
from gemmule.infer.language_model import LanguageModel
from gemmule.infer.runners.choose import make_runner
from gemmule.quant import native
from gemmule.serve.api_errors import ApiError
from gemmule.serve.dispatcher import StepDispatcher
from gemmule.serve.events import PromptProgress, SampleFinished, TextDelta
from gemmule.serve.generation import ClientGoneError, Generation
from gemmule.serve.settings import ServeSettings

SETTINGS = ServeSettings()
LONG = SamplingParams(max_new_tokens=200, temperature=0.0, ignore_eos=True)


@dataclass
class Served:
    engine: AsyncEngine
    dispatcher: StepDispatcher
    steps: int = 0


@contextlib.asynccontextmanager
async def serving(lm: LanguageModel, **settings: Any) -> AsyncIterator[Served]:
    dispatcher = StepDispatcher(asyncio.get_running_loop())
    runner = make_runner(lm.model)
    engine = AsyncEngine(runner, lm.tokenizer, after_step=dispatcher.after_step, **settings)
    try:
        yield Served(engine, dispatcher)
    finally:
        await asyncio.to_thread(engine.shutdown, drain=False)


class Client:
    """A client that can leave."""

    def __init__(self) -> None:
        self.leave = asyncio.Event()

    async def receive(self) -> Any:
        await self.leave.wait()
        return {"type": "http.disconnect"}


async def never() -> Any:
    """The `receive` of a client that stays."""
    await asyncio.Event().wait()


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        await asyncio.wait_for(test(), 30)

    asyncio.run(limited())


def prompt(lm: LanguageModel, text: str = "the old sea") -> list[int]:
    return lm.tokenizer.encode(text, bos=True)


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


def idle(served: Served) -> bool:
    stats = served.engine.stats()
    return stats.running == stats.waiting == 0 and stats.pool.allocated == 0


def test_events_are_the_completion_in_parts(lm: LanguageModel) -> None:
    params = SamplingParams(max_new_tokens=40, seed=3, n=3, logprobs=2, temperature=1.5)
    requests = [Request(prompt(lm), params), Request(prompt(lm, "red sail"), params)]
    texts, ids, numbers, ends = {}, {}, {}, {}

    async def test() -> None:
        async with serving(lm) as served:
            generation = Generation(served, requests, SETTINGS, stream=True, report_progress=True)
            async with generation:
                async for events in generation.batches(never):
                    for event in events:
                        if isinstance(event, TextDelta):
                            assert event.sample not in ends
                            texts.setdefault(event.sample, []).append(event.text)
                            ids.setdefault(event.sample, []).extend(event.ids)
                            numbers.setdefault(event.sample, []).extend(event.logprobs)
                        elif isinstance(event, PromptProgress):
                            assert event.processed <= event.total
                        elif isinstance(event, SampleFinished):
                            ends[event.sample] = event.completion
            usage = generation.usage()
            assert usage.prompt == sum(len(r.prompt) for r in requests)
            assert usage.generated == sum(c.counts.generated for c in ends.values())

    run(test)
    expected = [c for r in requests for c in lm.complete([r.prompt], params)]
    if native.available():  # otherwise bits depend on how prompts are chunked
        assert [ends[i] for i in range(6)] == expected
    for i, completion in ends.items():
        assert "".join(texts[i]) == completion.text
        assert tuple(ids[i]) == completion.ids
        assert tuple(numbers[i]) == completion.logprobs


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("state", ["queued", "crowded", "decoding", "speculating", "random"])
def test_a_client_that_leaves_frees_its_pages(lm: LanguageModel, stream: bool, state: str) -> None:
    """Also: a queued client that leaves ends no other request."""
    rng = random.Random(7)
    settings: dict[str, Any] = {"cache_tokens": 256} if state == "crowded" else {}
    if state == "speculating":
        settings = {"speculation": Speculation(NgramDrafter(), always=True)}

    async def test() -> None:
        async with serving(lm, **settings) as served:
            other = Generation(served, [Request(prompt(lm), LONG)], SETTINGS, stream=False)
            async with other:
                staying = asyncio.create_task(other.result(never))
                for _ in range(10):
                    client = Client()
                    constraint: Any = Future() if state == "queued" else None
                    request = Request(prompt(lm, "ship captain"), LONG, constraint=constraint)
                    generation = Generation(served, [request], SETTINGS, stream=stream)
                    async with generation:
                        task = asyncio.create_task(generation.result(client.receive))
                        if state == "decoding":
                            await until(lambda: served.engine.stats().running > 0)
                        elif state == "speculating":
                            drafted = served.engine.stats().draft_tokens
                            await until(lambda: served.engine.stats().draft_tokens > drafted)  # noqa: B023
                        elif state == "random":
                            await asyncio.sleep(rng.random() * 0.02)
                        client.leave.set()
                        with pytest.raises(ClientGoneError):
                            await task
                        if not staying.done():
                            await until(lambda: served.engine.stats().waiting == 0)
                (completion,) = await staying
                assert completion.finish_reason == "length"
            await until(lambda: idle(served))

    run(test)


def test_leaving_the_context_cancels(lm: LanguageModel) -> None:
    async def test() -> None:
        async with serving(lm) as served:
            requests = [Request(prompt(lm), LONG)] * 4
            async with Generation(served, requests, SETTINGS, stream=True) as generation:
                async for events in generation.batches(never):
                    if events:
                        break
            await until(lambda: idle(served))

    run(test)


def test_what_comes_while_a_client_is_busy_comes_at_once(lm: LanguageModel) -> None:
    async def test() -> None:
        async with serving(lm) as served:
            request = Request(prompt(lm), LONG)
            async with Generation(served, [request], SETTINGS, stream=True) as generation:
                batches = []
                async for events in generation.batches(never):
                    batches.append(events)
                    if len(batches) == 1:
                        await until(lambda: any(o.finished for o in generation._inbox))
            assert len(batches) == 2
            assert [type(e) for e in batches[1]] == [TextDelta, SampleFinished]

    run(test)


def test_a_reader_that_is_too_slow_is_cut_off(lm: LanguageModel) -> None:
    async def test() -> None:
        async with serving(lm) as served:
            request = Request(prompt(lm), LONG)
            generation = Generation(served, [request], SETTINGS, stream=True, max_behind=20)
            async with generation:
                with pytest.raises(ApiError, match="too slowly"):
                    async for _ in generation.batches(never):
                        await until(lambda: idle(served))
            assert len(generation.completions) == 0

    run(test)


def test_time_outs(lm: LanguageModel) -> None:
    waits: Any = Future()

    async def fails(settings: ServeSettings, constraint: Any, message: str) -> None:
        async with serving(lm) as served:
            request = Request(prompt(lm), LONG, constraint=constraint)
            async with Generation(served, [request], settings, stream=False) as generation:
                with pytest.raises(ApiError, match=message):
                    await generation.result(never)
            await until(lambda: idle(served))

    async def test() -> None:
        await fails(ServeSettings(request_timeout=0.001), None, "as long as this server allows")
        await fails(ServeSettings(queue_timeout=0.001), waits, "without being started")

    run(test)


def test_a_silent_stream_gives_empty_batches(lm: LanguageModel) -> None:
    async def test() -> None:
        async with serving(lm) as served:
            settings = ServeSettings(keepalive_seconds=0.02)
            constraint: Any = Future()
            request = Request(prompt(lm), LONG, constraint=constraint)
            async with Generation(served, [request], settings, stream=True) as generation:
                batches = generation.batches(never)
                assert [await anext(batches) for _ in range(3)] == [[], [], []]

    run(test)


def test_requests_are_refused_before_anything_is_sent(lm: LanguageModel) -> None:
    async def test() -> None:
        async with serving(lm, max_waiting=3, max_running=1) as served:
            requests = [Request(prompt(lm), LONG)] * 60
            with pytest.raises(QueueFullError):
                async with Generation(served, requests, SETTINGS, stream=True):
                    pass
            await until(lambda: idle(served))
            with pytest.raises(ConfigError, match="this model's ids"):
                async with Generation(served, [Request([10**6], LONG)], SETTINGS, stream=True):
                    pass

    run(test)
