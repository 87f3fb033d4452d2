"""Several models: names, one at a time or all that fit, and requests for them in turn."""

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from gemmule.errors import CheckpointError, ConfigError, MissingTokenizerError
from gemmule.infer.core.request import Completion, RequestOutput, RequestTimes
from gemmule.infer.language_model import LanguageModel
from gemmule.runtime import memory
from gemmule.serve.api_errors import ApiError
from gemmule.serve.model_source import ModelSource, parse_sources
from gemmule.serve.queue_rate import QueueRate
from gemmule.serve.served_models import ServedModels
from gemmule.serve.settings import ServeSettings


class Loads:
    """Sources of models whose loading is counted and can be held up."""

    def __init__(self, lm: LanguageModel) -> None:
        self.lm, self.order = lm, list[str]()
        self.go = threading.Event()
        self.go.set()
        self.fail: set[str] = set()

    def source(self, name: str, size: int = 10) -> ModelSource:
        def load() -> LanguageModel:
            assert self.go.wait(10)
            self.order.append(name)
            if name in self.fail:
                raise CheckpointError(f"/secret/path/{name} is damaged")
            return self.lm

        return ModelSource((name,), load, self.lm.config, size)

    def models(self, names: str, *, keep_all: bool = False, **settings: object) -> ServedModels:
        chosen = ServeSettings(**settings)  # type: ignore[arg-type]
        return ServedModels([self.source(name) for name in names], chosen, keep_all=keep_all)


@pytest.fixture
def loads(lm: LanguageModel) -> Loads:
    return Loads(lm)


def test_one_model_is_in_memory_at_a_time(loads: Loads) -> None:
    async def run() -> None:
        models = loads.models("abc")
        await models.start()
        for name in "abbca":
            async with models.use(name) as served:
                assert served.name == name
                assert [s.name for s in models.loaded] == [name]
        assert [info["gemmule"]["loaded"] for info in models.infos()] == [True, False, False]
        await models.stop()

    asyncio.run(run())
    assert loads.order == ["a", "b", "c", "a"]


def test_a_model_in_use_is_waited_for(loads: Loads) -> None:
    """It is unloaded after its last request; those that come meanwhile wait for their turn."""

    async def run() -> None:
        models = loads.models("ab")
        await models.start()
        order: list[str] = []

        async def use(name: str) -> None:
            async with models.use(name):
                order.append(name)

        async with models.use("a") as first:
            tasks = [asyncio.create_task(use(name)) for name in "bab"]
            await asyncio.sleep(0.1)
            assert order == []
            assert not first.engine.closing
        await asyncio.gather(*tasks)
        assert order == ["b", "a", "b"]
        await models.stop()

    asyncio.run(run())


def test_all_that_fit_are_kept_and_the_least_recently_used_leaves(
    loads: Loads, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = [45]
    monkeypatch.setattr(memory, "available", lambda device="cpu": free[0] << 30)
    sources = [loads.source(name, size=10 << 30) for name in "abcd"]  # each needs 15

    def load_and_take(source: ModelSource) -> Callable[[], LanguageModel]:
        def load() -> LanguageModel:
            free[0] -= 15
            return source.load()

        return load

    sources = [ModelSource(s.names, load_and_take(s), s.config, s.size) for s in sources]

    async def run() -> None:
        models = ServedModels(sources, ServeSettings(), keep_all=True)
        unload = models._unload

        async def unload_and_give(served: object) -> None:
            await unload(served)  # type: ignore[arg-type]
            free[0] += 15

        monkeypatch.setattr(models, "_unload", unload_and_give)
        await models.start()
        assert [s.name for s in models.loaded] == ["a", "b", "c"]
        async with models.use("a"):
            pass
        async with models.use("c"):
            async with models.use("d"):  # b was never used
                assert [s.name for s in models.loaded] == ["a", "c", "d"]
            async with models.use("b"):  # a is idle, c is not
                assert [s.name for s in models.loaded] == ["c", "d", "b"]
        await models.stop()

    asyncio.run(run())


def test_a_client_that_leaves_gives_its_turn_back(loads: Loads) -> None:
    async def run() -> None:
        models = loads.models("abc")
        await models.start()
        loads.go.clear()
        contexts = [models.use(name) for name in "bc"]
        tasks = [asyncio.create_task(context.__aenter__()) for context in contexts]
        await asyncio.sleep(0.1)
        for task in tasks:  # b is being loaded, c waits
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        loads.go.set()
        async with models.use("b") as served:
            assert served.users == 1
        assert loads.order == ["a", "b"]
        await models.stop()

    asyncio.run(run())


def test_waiting_for_a_model_is_bounded_in_number_and_time(loads: Loads) -> None:
    async def run() -> None:
        models = loads.models("ab", max_waiting=1, max_running=1, queue_timeout=0.2)
        await models.start()
        statuses = []

        async def use() -> None:
            try:
                async with models.use("b"):
                    pass
            except ApiError as e:
                statuses.append((e.status, bool(e.retry_after)))

        async with models.use("a"):
            first = [asyncio.create_task(use()) for _ in range(2)]
            await asyncio.sleep(0.05)
            await use()
            await asyncio.gather(*first)
        assert statuses == [(429, True), (503, True), (503, True)]
        await asyncio.sleep(0.05)
        await models.stop()

    asyncio.run(run())


def test_a_model_that_cannot_be_loaded_is_an_error_of_its_requests_only(loads: Loads) -> None:
    loads.fail.add("b")

    async def run() -> None:
        models = loads.models("ab")
        await models.start()
        with pytest.raises(ApiError, match="'b' cannot be loaded") as e:
            async with models.use("b"):
                pass
        assert e.value.status == 503
        assert "secret" not in e.value.message
        loads.fail.add("a")  # nothing is in memory now
        with pytest.raises(ApiError, match="'a' cannot be loaded") as e:
            async with models.use("a"):
                pass
        assert e.value.status == 503
        assert "secret" not in e.value.message
        loads.fail.remove("a")
        async with models.use("a"):
            pass
        await models.stop()

    asyncio.run(run())
    assert loads.order == ["a", "b", "a", "a"]


def test_a_model_that_cannot_be_loaded_at_the_start_ends_the_server(loads: Loads) -> None:
    loads.fail.add("b")

    async def run() -> None:
        models = loads.models("ab", keep_all=True)
        with pytest.raises(CheckpointError, match="/secret/path/b is damaged"):
            await models.start()
        await models.stop()

    asyncio.run(run())


def test_names_are_found_or_listed(loads: Loads) -> None:
    models = loads.models("ab")
    assert models.find(None).name == "a"
    with pytest.raises(ApiError, match="there is no model 'x' here; there is: a, b") as e:
        models.find("x")
    assert (e.value.status, e.value.code, e.value.param) == (404, "model_not_found", "model")
    with pytest.raises(ConfigError, match="two models are named 'a'"):
        loads.models("aa")
    with pytest.raises(ConfigError, match="no model to serve"):
        loads.models("")


# The models of a command line.


def test_arguments_are_paths_with_names_or_without(pieces_folder: Path) -> None:
    def names(*arguments: str) -> list[tuple[str, ...]]:
        return [source.names for source in parse_sources(arguments)]

    assert names(str(pieces_folder)) == [("model",)]
    assert names(f"a={pieces_folder}", f"b, c={pieces_folder}/") == [("a",), ("b", "c")]
    source = parse_sources([str(pieces_folder)])[0]
    assert source.load().config == source.config
    assert source.size == 4 * source.config.parameters
    assert source.card is None
    (pieces_folder / "README.md").write_text("# card")
    assert parse_sources([str(pieces_folder)])[0].card == pieces_folder / "README.md"


@pytest.mark.parametrize("argument", ["=x", "a=", "a,=x", "", ",=x"])
def test_arguments_without_a_name_or_path_are_refused(argument: str) -> None:
    with pytest.raises(ConfigError, match="give PATH or NAME=PATH"):
        parse_sources([argument])


def test_models_are_checked_before_any_is_loaded(
    tmp_path: Path, pieces_folder: Path, lm: LanguageModel
) -> None:
    with pytest.raises(CheckpointError):
        parse_sources([str(pieces_folder), str(tmp_path / "none")])
    for name in ("tokenizer.json", "tokenizer.model"):
        (pieces_folder / name).unlink(missing_ok=True)
    with pytest.raises(MissingTokenizerError):
        parse_sources([str(pieces_folder)])


def test_packed_models_are_smaller(pieces_folder: Path, lm: LanguageModel) -> None:
    source = parse_sources([str(pieces_folder)], quantize="int8")[0]
    assert source.quantization == "int8"
    assert lm.config.parameters < source.size < 2 * lm.config.parameters


# Retry-After.


def ended(*, ran: bool = True) -> RequestOutput:
    """The output of a sample that has ended, after it ran or while it waited."""
    times = RequestTimes(queued=0.0, scheduled=1.0 if ran else None)
    return RequestOutput(1, "", (), completion=Completion("", (), "stop", times=times))


def test_retry_after_follows_the_measured_rate() -> None:
    now = [0.0]
    rate = QueueRate(lambda: now[0])
    assert rate.retry_after(10) == 5  # nothing is known yet
    for second in range(20):  # one sample ends each second
        now[0] = float(second)
        rate.observe([RequestOutput(1, "a", (5,)), ended()])
    assert rate.retry_after(10) == pytest.approx(10, abs=1)
    assert rate.retry_after(0) == 1
    assert rate.retry_after(10_000) == 300
    now[0] += 100.0  # too long ago
    assert rate.retry_after(10) == 5


def test_samples_that_never_ran_say_nothing_of_the_rate() -> None:
    rate = QueueRate(lambda: 0.0)
    rate.observe([ended(ran=False)] * 5)
    assert rate.retry_after(10) == 5
