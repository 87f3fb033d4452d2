"""Teachers behind a server, on a loopback one."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_completions import FakeServer

from gemmule.data.batch import Batch
from gemmule.data.dataset import Dataset
from gemmule.data.packed_text import batch_of, sequence_count
from gemmule.errors import ConfigError, TokenizerError
from gemmule.model.gemma import Gemma
from gemmule.model.tokenizer import Tokenizer
from gemmule.teachers import completions
from gemmule.teachers.completions import CompletionServer
from gemmule.teachers.endpoint import EndpointTeacher
from gemmule.teachers.gemma import GemmaTeacher
from gemmule.teachers.logit_store import Store
from gemmule.teachers.record import record
from gemmule.teachers.record_config import RecordConfig
from gemmule.teachers.target_spec import TargetSpec
from gemmule.teachers.verify_store import verify
from models import fresh_model, tiny_config

NO_PAUSES = (0.0, 0.0, 0.0)


@pytest.fixture(scope="module")
def model(pieces: Tokenizer) -> Gemma:
    model = fresh_model(tiny_config(vocab_size=pieces.vocab_size), 0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.2)
        # Bytes of text that has pieces, and control pieces, never come: a text names one id.
        x = model.embed_tokens.weight
        x[:473] = x[:473] * 0.01
    return model


@pytest.fixture(scope="module")
def running(model: Gemma, pieces: Tokenizer) -> Iterator[FakeServer]:
    server = FakeServer(model, pieces)
    thread = threading.Thread(target=server.http.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.http.shutdown()
    server.http.server_close()
    thread.join()


@pytest.fixture
def fake(running: FakeServer, monkeypatch: pytest.MonkeyPatch) -> FakeServer:
    running.reset()
    monkeypatch.setattr(completions, "PAUSES", NO_PAUSES)
    return running


@pytest.fixture(scope="module")
def dataset(prepared: Path) -> Dataset:
    return Dataset.open(prepared)


def opened(fake: FakeServer, dataset: Dataset, **spec: Any) -> EndpointTeacher:
    server = CompletionServer(fake.url, None)
    return EndpointTeacher(server, dataset, TargetSpec(**{"kind": "top_k_tail", "k": 6, **spec}))


def rows(dataset: Dataset) -> Batch:
    split = dataset.split("train")
    windows = np.arange(sequence_count(split, 24))
    documents = batch_of(split, windows, 24).doc_ids_BT.amax(1)
    batch = batch_of(split, np.sort(windows[documents.argsort(descending=True)[:6]]), 24)
    assert batch.doc_ids_BT.max() >= 3  # several documents in one row
    return batch


@pytest.mark.parametrize("dialect", ["vllm", "ids", "text"])
@pytest.mark.parametrize(
    ("kind", "temperature"), [("top_k_tail", 1.0), ("top_k", 1.0), ("top_k", 2.5)]
)
def test_says_what_the_model_says(
    fake: FakeServer, dataset: Dataset, model: Gemma, dialect: str, kind: str, temperature: float
) -> None:
    fake.dialect = dialect
    fake.needs_one = dialect == "text"
    teacher = opened(fake, dataset, kind=kind, temperature=temperature)
    spec = TargetSpec(kind=kind, k=6, temperature=temperature)  # type: ignore[arg-type]
    batch = rows(dataset)
    choices = [spec.choice(0, w) for w in range(6)]
    results = teacher.targets(batch, choices, temperature)
    expected = GemmaTeacher("", model).targets(batch, choices, temperature)
    for row, (a, b) in enumerate(zip(results, expected, strict=True)):
        counts = batch.labels_BT[row] != -100
        for mine, theirs in ((a.ids_NK, b.ids_NK), (a.weight_NK, b.weight_NK)):
            torch.testing.assert_close(mine[counts], theirs[counts], rtol=1e-3, atol=1e-5)
        assert a.temperature == temperature
        assert (a.tail_N is None) == (kind == "top_k")
        if a.tail_N is not None and b.tail_N is not None:
            torch.testing.assert_close(a.tail_N[counts], b.tail_N[counts], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("spec", [{"kind": "sample"}, {"kind": "top_p"}])
def test_needs_the_whole_distribution(
    fake: FakeServer, dataset: Dataset, spec: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match=r"whole distribution.*top_k_tail"):
        EndpointTeacher(CompletionServer(fake.url, None), dataset, TargetSpec(**spec))


def test_a_tail_has_one_temperature(fake: FakeServer, dataset: Dataset) -> None:
    with pytest.raises(ConfigError, match="temperature = 2"):
        opened(fake, dataset, temperature=2.0)


def test_no_more_than_it_gives(fake: FakeServer, dataset: Dataset) -> None:
    fake.most = 5
    with pytest.raises(ConfigError, match=r"greater than max allowed: 5.*Lower --k"):
        opened(fake, dataset)


@pytest.mark.parametrize("dialect", ["vllm", "text"])
def test_another_tokenizer(
    fake: FakeServer, dataset: Dataset, other_pieces: Tokenizer, dialect: str
) -> None:
    fake.dialect, fake.tokenizer = dialect, other_pieces
    with pytest.raises(TokenizerError, match="another tokenizer"):
        opened(fake, dataset)


def test_a_text_of_two_pieces_is_no_id(fake: FakeServer, dataset: Dataset, model: Gemma) -> None:
    fake.dialect = "text"
    teacher = opened(fake, dataset)
    with pytest.raises(TokenizerError, match="has to give ids"):
        teacher._id("\ufffd")
    assert teacher._id("token_id:7") == 7
    assert teacher._id("a") == dataset.tokenizer.encode("a")[0]


def test_a_busy_server_is_asked_again(fake: FakeServer, dataset: Dataset) -> None:
    teacher = opened(fake, dataset)
    fake.busy = 2
    batch = rows(dataset)
    spec = TargetSpec(kind="top_k_tail", k=6)
    assert len(teacher.targets(batch, [spec.choice(0, w) for w in range(6)], 1.0)) == 6


def test_the_key_comes_from_the_environment(
    fake: FakeServer, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(fake, dataset)
    assert fake.keys == {""}
    monkeypatch.setenv(completions.KEY, "abc")
    opened(fake, dataset)
    assert fake.keys == {"", "Bearer abc"}


def settings(fake: FakeServer, prepared: Path, **changes: Any) -> RecordConfig:
    return RecordConfig.parse(
        {"teacher": fake.url, "data": prepared, "seq_len": 24, "tokens": 480, "batch_size": 2,
         "compile": False, "dtype": "float32", "threads": 1,
         "targets": {"kind": "top_k_tail", "k": 5}, **changes}
    )  # fmt: skip


@pytest.mark.usefixtures("no_meter")
def test_recorded_with_a_server_that_goes_away(
    fake: FakeServer, prepared: Path, tmp_path: Path
) -> None:
    config = settings(fake, prepared)
    fake.dead_after = 32
    message = r"does not answer \(HTTP 503.*after 4 attempts.*recorded is kept"
    with pytest.raises(ConfigError, match=message):
        record(config, tmp_path / "a")
    kept = Store.open(tmp_path / "a")
    assert 0 < kept.recorded < 20
    fake.reset()
    result = record(config, tmp_path / "a")
    assert result["missing_tokens"] == 0
    assert result["biased"]
    fake.reset()
    record(config, tmp_path / "b")
    both = [Store.open(tmp_path / name) for name in ("a", "b")]
    assert both[0].identity == both[1].identity
    for window in range(20):
        one, other = (s.read(window) for s in both)
        np.testing.assert_array_equal(one.id_M, other.id_M)
        np.testing.assert_array_equal(one.weight_M, other.weight_M)
    entry = both[0].manifest["teacher"]
    assert entry["backend"] == "openai"
    assert entry["served"] == "served-name"
    with pytest.raises(ConfigError, match="does not give its full distribution"):
        verify(tmp_path / "a")


@pytest.mark.usefixtures("no_meter")
def test_the_address_is_no_part_of_the_identity(
    fake: FakeServer, prepared: Path, tmp_path: Path
) -> None:
    record(settings(fake, prepared, tokens=48), tmp_path / "a")
    elsewhere = fake.url.replace("127.0.0.1", "localhost")
    record(settings(fake, prepared, tokens=96, teacher=elsewhere), tmp_path / "a")
    assert Store.open(tmp_path / "a").recorded == 4


def test_nobody_there(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(completions, "PAUSES", NO_PAUSES)
    config = RecordConfig.parse(
        {"teacher": "http://127.0.0.1:9/v1", "data": prepared, "seq_len": 24,
         "targets": {"kind": "top_k", "k": 5}}
    )  # fmt: skip
    with pytest.raises(ConfigError, match=r"does not answer.*is the server running"):
        record(config, tmp_path / "a")
    assert not (tmp_path / "a").exists()
