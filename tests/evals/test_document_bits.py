"""Each document's bits per byte, by a model, kept from one call to the next."""

import math
from pathlib import Path
from typing import Any

import pytest

from gemmule.checkpoints.hf.writer import save_model
from gemmule.data.quality.teacher_bits import TeacherBits
from gemmule.data.sources import Document
from gemmule.errors import ConfigError, DataError
from gemmule.evals import document_bits
from gemmule.evals.document_bits import RESPONSES, score_documents
from gemmule.evals.eval_target import EvalTarget, open_target
from gemmule.model.tokenizer import Tokenizer
from models import random_model

TEXTS = ["the sea said the captain", "never old wind", "the captain never said", "a ship " * 100]


@pytest.fixture(scope="module")
def model(pieces: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_model(random_model(), pieces, folder)
    return folder


@pytest.fixture
def target(model: Path, tmp_path: Path) -> EvalTarget:
    return open_target(str(model), out=tmp_path / "bits")


def documents(texts: list[str]) -> list[Document]:
    return [Document(f"f#{n}", text) for n, text in enumerate(texts)]


def test_bits_are_those_of_the_text(target: EvalTarget) -> None:
    report = score_documents(target, documents([*TEXTS, " ", TEXTS[0]]), tokens=1000)
    bits = TeacherBits.open(target.folder)
    assert len(bits) == report["documents"] == 4
    for text in TEXTS[:3]:
        expected = -math.fsum(target.lm.score(text)) / math.log(2) / len(text)
        assert bits.of(text) == pytest.approx(expected, rel=1e-6)
    context = target.lm.config.max_position_embeddings
    ids = target.lm.tokenizer.encode(TEXTS[3], bos=True)[:context]
    begun = target.lm.tokenizer.decode(ids[1:])
    expected = -math.fsum(target.lm.score(begun)) / math.log(2) / len(begun)
    assert bits.of(TEXTS[3]) == pytest.approx(expected, rel=1e-6)
    assert bits.of("another text") is None
    assert sum(band["documents"] for band in report["bands"]) == 4
    assert not (target.folder / RESPONSES).exists()


def test_a_stopped_call_goes_on(target: EvalTarget, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(document_bits, "_AT_ONCE", 2)
    score = document_bits._score
    calls: list[int] = []

    def stopping(*arguments: Any) -> None:
        calls.append(len(arguments[1]))
        if len(calls) == 2:
            raise KeyboardInterrupt
        score(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(document_bits, "_score", stopping)
        with pytest.raises(KeyboardInterrupt):
            score_documents(target, documents(TEXTS))
    scored: list[int] = []
    stream = target.lm.score_continuations

    def counted(groups: Any) -> Any:
        scored.append(len(groups))
        return stream(groups)

    monkeypatch.setattr(target.lm, "score_continuations", counted)
    report = score_documents(target, documents(TEXTS))
    assert scored == [2]
    again = score_documents(target, documents([*TEXTS, "the old ship"]))
    assert scored == [2, 1]  # what was scored before stays
    assert again["documents"] == report["documents"] + 1
    with pytest.raises(ConfigError, match="scores of another model, or with other settings"):
        score_documents(target, documents(TEXTS), tokens=8)
    with pytest.raises(ConfigError, match="at least 2"):
        score_documents(target, documents(TEXTS), tokens=1)
    with pytest.raises(DataError, match="no document to score"):
        score_documents(target, documents([" "]))
