"""Teachers with more tokens than the data: conditioned on the data's, exactly."""

import ast
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from gemmule.checkpoints.hf.writer import save_model
from gemmule.data.batch import Batch
from gemmule.data.dataset import Dataset
from gemmule.data.packed_text import batch_of
from gemmule.data.prepare import prepare
from gemmule.data.text_trim import Extent, trim_to_text
from gemmule.errors import OutputError, TokenizerError
from gemmule.losses.soft_cap import soft_cap
from gemmule.model.tokenizer import Tokenizer, train_tokenizer
from gemmule.teachers.logit_store import Store
from gemmule.teachers.mapped import MappedTeacher
from gemmule.teachers.open import open_teacher
from gemmule.teachers.record import describe, record, summary
from gemmule.teachers.record_config import RecordConfig
from gemmule.teachers.verify_store import verify
from gemmule.train.config import RunConfig
from gemmule.train.run import run_training
from models import GROUPED, random_model, tiny_config

Foreign = Callable[..., Path]
TEXTS = ["def visit(self, node):\n    return node\n", "class Load(AST):\n    pass\n"]


@pytest.fixture(scope="module")
def full() -> Tokenizer:
    return train_tokenizer([Path(ast.__file__).read_text()], 900)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("code")
    for n in range(60):
        (folder / f"{n}.txt").write_text(f"# {n}\n" + TEXTS[n % 2] * (n % 7 + 2))
    return folder


@pytest.fixture(scope="module")
def dataset(full: Tokenizer, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    trimmed = trim_to_text(full, folder).trimmed
    assert trimmed.tokenizer.vocab_size < full.vocab_size
    return prepare(folder, trimmed.tokenizer, tmp_path_factory.mktemp("data") / "data")


@pytest.fixture(scope="module", params=["gemmule", "llama", "gemma2"])
def teacher(
    request: pytest.FixtureRequest, full: Tokenizer, foreign: Foreign,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:  # fmt: skip
    if request.param == "llama":
        return foreign("llama", 928, full)
    folder = tmp_path_factory.mktemp("gemma") / "model"
    shape = tiny_config(GROUPED, vocab_size=928 if request.param == "gemma2" else 900)
    save_model(random_model(shape, seed=1, std={"": 0.3}), full, folder)
    return folder


def teacher_ids(dataset: Dataset, full: Tokenizer) -> torch.Tensor:
    ids = {piece.text: i for i, piece in enumerate(full.pieces)}
    return torch.tensor([ids[piece.text] for piece in dataset.tokenizer.pieces])


def test_the_distribution_is_conditioned_on_the_datas_tokens(
    teacher: Path, dataset: Dataset, full: Tokenizer
) -> None:
    mapped = open_teacher(str(teacher), dataset, 32)
    assert isinstance(mapped, MappedTeacher)
    ids_V = teacher_ids(dataset, full)
    assert mapped.vocab_size == len(ids_V) == mapped.head.num_logits
    assert torch.equal(mapped.vocabulary.ids_V, ids_V)
    batch = batch_of(dataset.split("train"), torch.arange(3).numpy(), 32)
    inner = mapped.teacher
    with torch.no_grad():
        x_BTD = mapped.hidden_states(batch)
        whole = soft_cap(x_BTD @ inner.head.real_VD.T, inner.head.cap).double().softmax(-1)
        expected = whole[..., ids_V] / whole[..., ids_V].sum(-1, keepdim=True)
        p_BTV = mapped.head.logits(x_BTD).double().softmax(-1)
    torch.testing.assert_close(p_BTV, expected, rtol=1e-5, atol=1e-9)
    dropped = mapped.vocabulary.dropped_probability(x_BTD[0], inner.head)
    expected_mass = 1 - whole[0][:, ids_V].sum(-1)
    torch.testing.assert_close(dropped.double(), expected_mass, rtol=1e-4, atol=1e-6)


def test_the_teacher_reads_its_own_ids_after_a_bos(
    teacher: Path, dataset: Dataset, full: Tokenizer
) -> None:
    """As it was trained: also where a sequence begins within a document."""
    mapped = open_teacher(str(teacher), dataset, 32)
    assert isinstance(mapped, MappedTeacher)
    batch = batch_of(dataset.split("train"), torch.arange(4).numpy(), 32)
    own_BT = teacher_ids(dataset, full)[batch.tokens_BT]
    assert full.decode(own_BT[0]) == dataset.tokenizer.decode(batch.tokens_BT[0])
    with torch.no_grad():
        x_BTD = mapped.hidden_states(batch)
        assert x_BTD.shape[:2] == batch.tokens_BT.shape
        begins = set()
        for own_T, doc_ids_T, x_TD in zip(own_BT, batch.doc_ids_BT, x_BTD, strict=True):
            for n in doc_ids_T.unique():
                ids = own_T[doc_ids_T == n]
                within = int(ids[0]) != full.bos_id
                begins.add(within)
                bos = [torch.tensor([full.bos_id])] if within else []
                tokens_1M = torch.cat([*bos, ids])[None]
                alone = Batch(tokens_1M, tokens_1M, torch.ones_like(tokens_1M))
                expected = mapped.teacher.hidden_states(alone)[0, int(within) :]
                torch.testing.assert_close(x_TD[doc_ids_T == n], expected, rtol=1e-4, atol=1e-5)
    assert begins == {True, False}
    assert mapped.describe()["bos"] == "every sequence"


def test_it_is_recorded_verified_and_learned_from(
    teacher: Path, dataset: Dataset, tmp_path: Path
) -> None:
    config = RecordConfig.parse(
        {"teacher": str(teacher), "data": dataset.path, "seq_len": 32, "tokens": 1500}
    )
    result = record(config, tmp_path / "store")
    dropped = result["dropped_probability"]
    assert 0 < dropped["mean"] <= dropped["maximum"] <= 1
    assert dropped["tokens"] > 10
    assert "dropped probability" in dict(describe(result))
    store = Store.open(tmp_path / "store")
    assert summary(store)["dropped_probability"] == dropped
    assert store.vocab_size == dataset.tokenizer.vocab_size
    assert verify(tmp_path / "store", tokens=300)["ok"]
    settings = {
        "steps": 2,
        "data": {"path": dataset.path, "seq_len": 32, "batch_size": 4},
        "model": {"preset": "1m", "hidden_size": 16, "num_hidden_layers": 1},
        "runtime": {"compile": False},
    }
    for n, objective in enumerate(({"teacher": str(teacher)}, {"targets": tmp_path / "store"})):
        run = RunConfig.parse({**settings, "objective": {"kind": "distill", **objective}})
        assert run_training(run, tmp_path / f"run{n}")["train_tokens"] == 256
    manifest = json.loads((tmp_path / "run0" / "manifest.json").read_text())
    assert manifest["parent"]["vocabulary"]["kept"] == dataset.tokenizer.vocab_size


def test_a_store_recorded_with_another_map_is_another(
    full: Tokenizer, folder: Path, dataset: Dataset, teacher: Path, tmp_path: Path
) -> None:
    config = RecordConfig.parse(
        {"teacher": str(teacher), "data": dataset.path, "seq_len": 32, "tokens": 200}
    )
    record(config, tmp_path / "store")
    size = dataset.tokenizer.vocab_size + 20
    larger = trim_to_text(full, folder, Extent(size=size)).trimmed
    other = prepare(folder, larger.tokenizer, tmp_path / "other")
    with pytest.raises(
        OutputError, match=r"a record of something else .*vocabulary kept: \d+ there, \d+ now"
    ):
        record(config.model_copy(update={"data": other.path}), tmp_path / "store")


def test_a_teacher_that_splits_text_in_another_way_is_refused(
    foreign: Foreign, dataset: Dataset
) -> None:
    other = train_tokenizer(["the old sea captain said never under the red sail " * 90], 512)
    with pytest.raises(TokenizerError, match="has another tokenizer than the data"):
        open_teacher(str(foreign("llama", 528, other)), dataset, 32)
