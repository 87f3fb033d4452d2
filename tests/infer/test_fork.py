"""A model that is used before and after fork, as a web server's worker processes use it."""

import multiprocessing
import os
import pickle
import select
import signal
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import gemmule
from gemmule.errors import EngineDeadError
from gemmule.infer.core.request import Request
from gemmule.infer.core.sampling import SamplingParams
from gemmule.infer.driver import Engine
from gemmule.infer.language_model import LanguageModel
from gemmule.infer.runners.batch_runner import BatchRunner
from gemmule.infer.runners.native_runner import NativeRunner
from gemmule.infer.runners.protocol import Runner
from gemmule.infer.runners.torch_runner import TorchRunner
from gemmule.model.gemma import Gemma
from gemmule.model.tokenizer import Tokenizer
from gemmule.quant import native
from models import TINY, random_model, tiny_config

SECONDS = 30  # after which a process that hangs is killed
PROMPT = [2, 17, 40, 99, 7, 300]
GREEDY = SamplingParams(max_new_tokens=12)
RUNNERS: dict[str, Callable[[Gemma], Runner]] = {
    "native": NativeRunner,
    "torch": TorchRunner,
    "batch": BatchRunner,
}


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def lm(pieces: Tokenizer) -> LanguageModel:
    # Matrices large enough for every thread to get a part of each.
    config = tiny_config(TINY, vocab_size=pieces.vocab_size, hidden_size=128, intermediate_size=512)
    return LanguageModel(random_model(config), pieces)


class Child:
    """A fork of this process that calls a function and sends back what it returns."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self._read, write = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12: there are threads
            self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
                signal.alarm(SECONDS)  # whatever becomes of the tests
                os.write(write, pickle.dumps(work()))
                status = 0
            except BaseException:
                os.write(write, pickle.dumps(traceback.format_exc()))
            finally:
                os._exit(status)
        os.close(write)

    def result(self) -> Any:
        ready, _, _ = select.select([self._read], [], [], SECONDS)
        if not ready:
            os.kill(self.pid, signal.SIGKILL)
        with os.fdopen(self._read, "rb") as f:
            sent = f.read()
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        assert ready, "the child hangs"
        result = pickle.loads(sent)
        assert status == 0, result
        return result


def ids(lm: LanguageModel) -> list[int]:
    (completion,) = lm.complete([PROMPT], GREEDY)
    return list(completion.ids)


def test_parent_and_children_generate_at_once(lm: LanguageModel) -> None:
    expected = ids(lm)

    def grandchild_too() -> list[list[int]]:
        return [ids(lm), Child(lambda: ids(lm)).result(), ids(lm)]

    children = [Child(grandchild_too) for _ in range(2)]
    assert [ids(lm) for _ in range(2)] == [expected] * 2
    for child in children:
        assert child.result() == [expected] * 3
    assert ids(lm) == expected


def test_without_the_kernels(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMMULE_NATIVE", "0")
    few = SamplingParams(max_new_tokens=4)  # torch's threads are slow where cores are busy
    expected = lm.complete([PROMPT], few)
    child = Child(lambda: lm.complete([PROMPT], few))
    assert lm.complete([PROMPT], few) == expected
    assert child.result() == expected


@pytest.mark.parametrize("name", RUNNERS)
def test_every_runner(lm: LanguageModel, name: str) -> None:
    if name == "native" and not native.available():
        pytest.skip("there are no kernels here")
    engine = Engine(RUNNERS[name](lm.model), lm.tokenizer)

    def score() -> list[float]:
        (score,) = engine.score([(PROMPT[:2], PROMPT[2:] * 4)])
        return list(score.log_probs)

    expected = score()
    child = Child(score)
    assert score() == expected
    assert child.result() == expected


def test_a_model_that_was_not_used_before(lm: LanguageModel) -> None:
    children = [Child(lambda: ids(lm)) for _ in range(2)]
    expected = ids(lm)
    assert [child.result() for child in children] == [expected] * 2


def test_from_another_thread_than_the_one_that_used_it(lm: LanguageModel) -> None:
    expected = ids(lm)
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(Child(lambda: ids(lm)).result()))
    thread.start()
    thread.join(2 * SECONDS)
    assert results == [expected]


def test_while_another_thread_generates(lm: LanguageModel) -> None:
    expected = ids(lm)
    stop, failures = threading.Event(), []

    def generate() -> None:
        while not stop.is_set():
            if ids(lm) != expected:
                failures.append("other ids")

    thread = threading.Thread(target=generate)
    thread.start()
    try:
        for _ in range(5):
            assert Child(lambda: ids(lm)).result() == expected
    finally:
        stop.set()
        thread.join(SECONDS)
    assert not failures


def test_an_engine_in_the_middle_of_a_step_of_another_thread(lm: LanguageModel) -> None:
    in_step, go_on = threading.Event(), threading.Event()

    class Slow(TorchRunner):
        def step(self, chunks: Any) -> Any:
            in_step.set()
            go_on.wait(SECONDS)
            return super().step(chunks)

    engine = Engine(Slow(lm.model), lm.tokenizer)
    thread = threading.Thread(target=lambda: engine.complete([Request(PROMPT, GREEDY)]))
    thread.start()
    assert in_step.wait(SECONDS)

    def use() -> str:
        go_on.set()
        with pytest.raises(EngineDeadError) as e:
            engine.complete([Request(PROMPT, GREEDY)])
        return str(e.value)

    message = Child(use).result()
    go_on.set()
    thread.join(SECONDS)
    assert "forked while another thread ran a step of the engine: make another" in message
    assert engine.complete([Request(PROMPT, GREEDY)])[0].ids == tuple(ids(lm))


def test_requests_of_the_parent_are_not_continued(lm: LanguageModel) -> None:
    ids(lm)
    engine = lm.engine()
    outputs = engine.iterate(Request(PROMPT, GREEDY))
    first = next(outputs)

    def use() -> tuple[bool, list[int]]:
        return lm.engine() is engine, ids(lm)

    assert Child(use).result() == (False, ids(lm))
    rest = [token for output in outputs for token in output.ids]
    assert [*first.ids, *rest] == ids(lm)


def test_an_asynchronous_engine_says_what_to_do(lm: LanguageModel) -> None:
    def one(engine: gemmule.AsyncEngine) -> list[int]:
        done, tokens = threading.Event(), []

        def take(output: Any) -> None:
            tokens.extend(output.ids)
            if output.finished:
                done.set()

        engine.submit(Request(PROMPT, GREEDY), take)
        assert done.wait(SECONDS)
        return tokens

    with lm.async_engine() as engine:
        expected = one(engine)

        def use() -> tuple[str, list[int]]:
            assert engine.dead
            assert engine.stats().waiting == 0
            engine.cancel(3)
            with pytest.raises(EngineDeadError) as e:
                engine.submit(Request(PROMPT, GREEDY), lambda _: None)
            engine.shutdown()
            with lm.async_engine() as own:
                return str(e.value), one(own)

        child = Child(use)
        assert one(engine) == expected
        message, tokens = child.result()
    assert "make an engine in each process, after the fork" in message
    assert tokens == expected


def test_an_asynchronous_engine_whose_lock_is_held(lm: LanguageModel) -> None:
    with lm.async_engine() as engine, engine._condition:
        child = Child(lambda: (engine.stats().waiting, engine.shutdown()))
        assert child.result() == (0, None)


def test_a_child_that_ends_as_any_program_does(lm: LanguageModel) -> None:
    """Its exit frees what it shares with the parent, whose threads it does not have."""
    expected = ids(lm)
    process = multiprocessing.get_context("fork").Process(target=ids, args=(lm,))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        process.start()
    process.join(SECONDS)
    if process.is_alive():
        process.kill()
    assert process.exitcode == 0
    assert ids(lm) == expected


def _ids_of(lm: LanguageModel, threads: int, results: Any) -> None:
    torch.set_num_threads(threads)
    results.put(ids(lm))


def test_a_model_sent_to_a_new_process(lm: LanguageModel) -> None:
    expected = ids(lm)
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=_ids_of, args=(lm, 2, results))
    process.start()
    try:
        assert results.get(timeout=2 * SECONDS) == expected
        process.join(SECONDS)
        assert process.exitcode == 0
    finally:
        process.kill()
        process.join()
        process.close()
