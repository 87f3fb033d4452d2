"""A tiny model behind the server: in process, and on a port of loopback."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from served import NAME, LiveServer, running
from starlette.testclient import TestClient

from gemmule.checkpoints.hf.writer import save_model
from gemmule.infer.language_model import LanguageModel
from gemmule.model.tokenizer import Tokenizer
from gemmule.serve.app import make_app
from gemmule.serve.served_models import ServedModels
from gemmule.serve.settings import ServeSettings
from models import TINY, random_model, tiny_config


@pytest.fixture(autouse=True)
def _no_meter(no_meter: None) -> None:
    """Servers do not measure energy, unless a test gives them a meter."""


@pytest.fixture(scope="session")
def lm(pieces: Tokenizer) -> LanguageModel:
    """A model with random weights and 256 tokens of context; its text is noise."""
    shape = tiny_config(TINY, vocab_size=pieces.vocab_size, max_position_embeddings=256)
    return LanguageModel(random_model(shape), pieces)


@pytest.fixture
def make_client(lm: LanguageModel) -> Iterator[Callable[..., TestClient]]:
    """make_client(models=None, **settings): a client of an application in this process."""
    with ExitStack() as stack:

        def make(models: dict[str, LanguageModel] | None = None, **settings: Any) -> TestClient:
            chosen = ServeSettings(**settings)
            app = make_app(ServedModels.of(models or {NAME: lm}, chosen), chosen)
            return stack.enter_context(TestClient(app, base_url="http://127.0.0.1"))

        yield make


@pytest.fixture
def client(make_client: Callable[..., TestClient]) -> TestClient:
    """A client of the tiny model with the settings' defaults."""
    return make_client()


@pytest.fixture
def start_server(lm: LanguageModel) -> Iterator[Callable[..., LiveServer]]:
    """start_server(models=None, **settings): a server in a thread, on a port of the system's."""
    with ExitStack() as stack:

        def start(models: dict[str, LanguageModel] | None = None, **settings: Any) -> LiveServer:
            chosen = ServeSettings(port=0, **settings)
            served = ServedModels.of(models or {NAME: lm}, chosen)
            return stack.enter_context(running(served, chosen))

        yield start


@pytest.fixture
def live_server(start_server: Callable[..., LiveServer]) -> LiveServer:
    """The tiny model on a port, with the settings' defaults."""
    return start_server()


@pytest.fixture
def pieces_folder(lm: LanguageModel, tmp_path: Path) -> Path:
    """The tiny model in a folder."""
    folder = tmp_path / "model"
    save_model(lm.model, lm.tokenizer, folder)
    return folder
