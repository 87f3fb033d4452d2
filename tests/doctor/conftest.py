"""A healthy small model, in this process and behind a loopback server that speaks completions."""

import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from fake_server import Server, felt_model

from gemmule.checkpoints.hf.writer import save_model
from gemmule.infer.language_model import LanguageModel, load
from gemmule.model.tokenizer import Tokenizer, train_tokenizer


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """The models are so small that more threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train_tokenizer([Path(textwrap.__file__).read_text()], 540)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> str:
    path = tmp_path_factory.mktemp("doctor") / "model"
    save_model(felt_model(), tokenizer, path)
    return str(path)


@pytest.fixture(scope="session")
def lm(folder: str) -> LanguageModel:
    return load(folder)


@pytest.fixture(scope="session")
def _server(lm: LanguageModel) -> Iterator[Server]:
    server = Server(lm)
    thread = threading.Thread(target=server.http.serve_forever, daemon=True)
    thread.start()
    yield server
    server.http.shutdown()
    server.http.server_close()
    thread.join()


@pytest.fixture
def server(_server: Server) -> Server:
    _server.reset()
    return _server
