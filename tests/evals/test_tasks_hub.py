"""Documents from the hub: stand-ins of this machine are asked in its place."""

import socket
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import huggingface_hub
import pytest

from gemmule.evals.benchmarks import hub
from gemmule.evals.benchmarks.benchmark import Benchmark
from gemmule.evals.benchmarks.lm_eval_tasks import Unavailable, load_tasks
from gemmule.evals.benchmarks.tasks import agieval, arc, piqa

datasets: Any = pytest.importorskip("datasets")
pytest.importorskip("lm_eval")
ARC_E, _ = arc.BENCHMARKS
(PIQA,) = piqa.BENCHMARKS
(AGIEVAL,) = agieval.BENCHMARKS


@pytest.fixture
def asked_anew() -> Iterator[None]:
    hub.unreachable.cache_clear()
    yield
    hub.unreachable.cache_clear()


@pytest.fixture
def nobody(monkeypatch: Any, asked_anew: None) -> None:
    """The hub is a port of this machine on which no one listens."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listening:
        port = listening.getsockname()[1]
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{port}")


@pytest.fixture
def somebody(monkeypatch: Any, asked_anew: None) -> Iterator[None]:
    """A server of this machine, which has nothing, is the hub."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_error(404)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever)
    thread.start()
    port = server.server_address[1]
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{port}")
    yield
    server.shutdown()
    thread.join()
    server.server_close()


def offline() -> tuple[bool, bool]:
    return datasets.config.HF_HUB_OFFLINE, huggingface_hub.constants.HF_HUB_OFFLINE


def test_a_hub_that_cannot_be_reached_is_not_waited_for(nobody: None, monkeypatch: Any) -> None:
    seen = []

    def load_dataset(path: str, **_: Any) -> None:
        seen.append((path, offline()))
        raise ConnectionError(f"Couldn't reach {path!r}\non the Hub")

    before = offline()
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(Unavailable) as e:
        load_tasks(ARC_E)
    # Nothing but the cache may be asked: the libraries would try six times, for half a minute.
    assert seen == [("allenai/ai2_arc", (True, True))]
    assert offline() == before
    assert str(e.value).startswith("not in the hub's cache, and no hub: ")
    assert "refused" in str(e.value)
    assert "\n" not in str(e.value)


def test_what_the_cache_has_needs_no_hub(nobody: None, monkeypatch: Any) -> None:
    rows = datasets.Dataset.from_list([{"goal": "g", "sol1": "a", "sol2": "b", "label": 1}])
    cached = datasets.DatasetDict({"train": rows, "validation": rows})
    monkeypatch.setattr(datasets, "load_dataset", lambda **_: cached)
    loaded = load_tasks(PIQA)
    assert [doc["label"] for doc in loaded.tasks["piqa"].eval_docs] == [1]
    assert loaded.files == ()


def test_a_hub_that_answers_is_used(somebody: None, monkeypatch: Any) -> None:
    seen = []

    def load_dataset(path: str, **_: Any) -> Any:
        seen.append((path, offline()))
        if path.endswith("math"):
            raise ValueError(f"no {path}\nand more of that")
        row = {"query": "q", "choices": ["a", "b"], "gold": [1]}
        return datasets.DatasetDict({"test": datasets.Dataset.from_list([row])})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(Unavailable, match=r"^not from the hub: no hails/agieval-sat-math$"):
        load_tasks(AGIEVAL)
    assert seen[0] == ("hails/agieval-aqua-rat", (False, False))
    fewer = Benchmark(**{**vars(AGIEVAL), "tasks": AGIEVAL.tasks[:2]})
    loaded = load_tasks(fewer)
    assert loaded.notes == ("no examples: the report shows three to five",)
    made = loaded.tasks["agieval_gaokao_english"]
    made.build_all_requests(limit=None)
    assert [i.args for i in made.instances] == [("q", " a"), ("q", " b")]


def test_offline_by_wish_is_said(monkeypatch: Any, asked_anew: None) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert hub.unreachable() == "HF_HUB_OFFLINE is set"
