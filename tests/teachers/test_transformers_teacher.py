"""Teachers that transformers runs."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gemmule.data.batch import Batch
from gemmule.data.dataset import Dataset
from gemmule.data.packed_text import eval_batches
from gemmule.errors import (
    CheckpointError,
    ConfigError,
    MissingExtraError,
    OutputError,
    TokenizerError,
)
from gemmule.losses.soft_cap import soft_cap
from gemmule.model.tokenizer import Tokenizer
from gemmule.teachers.gemma import GemmaTeacher
from gemmule.teachers.logit_store import Store
from gemmule.teachers.open import open_foreign_teacher, open_teacher
from gemmule.teachers.record import record
from gemmule.teachers.record_config import RecordConfig
from gemmule.teachers.same_tokenizer import probe_texts
from gemmule.teachers.transformers_model import TransformersTeacher
from gemmule.teachers.verify_store import verify
from gemmule.train.config import RunConfig
from gemmule.train.run import run_training

Foreign = Callable[..., Path]


@pytest.fixture(scope="module")
def dataset(prepared: Path) -> Dataset:
    return Dataset.open(prepared)


def packed(dataset: Dataset) -> Batch:
    """Rows with one document and with many, and a padded one."""
    batches = list(eval_batches(dataset.split("train"), 4, 40))
    many = next(b for b in batches if b.doc_ids_BT.max() >= 3)
    last = batches[-1]
    return Batch(*(torch.cat([getattr(many, n), getattr(last, n)]) for n in (
        "tokens_BT", "labels_BT", "doc_ids_BT"
    )))  # fmt: skip


PACKING = ["llama", "qwen2", "mistral", "gemma2", "gemma3_text"]


@pytest.mark.parametrize("kind", [*PACKING, "mamba"])
def test_documents_are_as_if_alone(kind: str, foreign: Foreign, dataset: Dataset) -> None:
    teacher = TransformersTeacher.open("x", foreign(kind), dataset.tokenizer.vocab_size)
    assert teacher.packs == (kind in PACKING)
    batch = packed(dataset)
    x_BTD = teacher.hidden_states(batch)
    logits_BTV = soft_cap(x_BTD @ teacher.head.weight_VD.T, teacher.head.cap)
    documents = 0
    for row, segments in enumerate(batch.doc_ids_BT):
        for segment in segments.unique().tolist():
            where = segments == segment
            if segment == 0:
                assert not x_BTD[row, where].any()
                continue
            documents += 1
            alone = teacher.model(batch.tokens_BT[row, where][None]).logits[0]
            torch.testing.assert_close(logits_BTV[row, where], alone, rtol=1e-4, atol=1e-4)
    assert documents > len(batch.doc_ids_BT)
    assert (batch.doc_ids_BT == 0).any()


@pytest.mark.parametrize("kind", PACKING)
def test_packed_rows_equal_separate_ones(kind: str, foreign: Foreign, dataset: Dataset) -> None:
    """Hidden states are of size 1 after the last norm; the bound is twice what was measured."""
    teacher = TransformersTeacher.open("x", foreign(kind), dataset.tokenizer.vocab_size)
    batch = packed(dataset)
    together = teacher.hidden_states(batch)
    teacher.packs = False
    separate = teacher.hidden_states(batch)
    torch.testing.assert_close(together, separate, rtol=0, atol=2e-5)


@pytest.mark.parametrize("kind", ["llama", "gemma3_text", "mamba"])
def test_a_sequence_that_begins_within_a_document_is_opened(
    kind: str, foreign: Foreign, dataset: Dataset
) -> None:
    """As its tokenizer opens every text; documents in a row still do not see each other."""
    teacher = open_teacher(str(foreign(kind)), dataset, 40)
    assert isinstance(teacher, TransformersTeacher)
    assert teacher.packs == (kind in PACKING)
    batch, bos = packed(dataset), dataset.tokenizer.bos_id
    x_BTD = teacher.hidden_states(batch)
    assert x_BTD.shape[:2] == batch.tokens_BT.shape
    opened = set()
    for row, segments in enumerate(batch.doc_ids_BT):
        assert not x_BTD[row, segments == 0].any()
        for segment in segments[segments > 0].unique():
            ids = batch.tokens_BT[row, segments == segment]
            within = int(ids[0]) != bos
            opened.add(within)
            alone_1M = torch.cat([torch.tensor([bos] * within, dtype=ids.dtype), ids])[None]
            expected = teacher.model.base_model(alone_1M).last_hidden_state[0, int(within) :]
            torch.testing.assert_close(
                x_BTD[row, segments == segment], expected, rtol=1e-4, atol=1e-4
            )
    assert opened == {True, False}
    assert teacher.describe()["bos"] == "every sequence"  # a store recorded otherwise is another


def test_a_teacher_that_was_not_trained_after_bos_gets_none(
    foreign: Foreign, dataset: Dataset, tmp_path: Path
) -> None:
    folder = shutil.copytree(foreign("llama"), tmp_path / "m")
    path = folder / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "post_processor": None}))
    path = folder / "tokenizer_config.json"
    about = {**json.loads(path.read_text()), "add_bos_token": False}
    about["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(about))
    teacher = open_teacher(str(folder), dataset, 40)
    as_it_is = TransformersTeacher.open("x", folder, dataset.tokenizer.vocab_size)
    batch = packed(dataset)
    assert torch.equal(teacher.hidden_states(batch), as_it_is.hidden_states(batch))
    assert "bos" not in teacher.describe()
    assert teacher.context == 128


def test_packed_rows_would_leak_without_positions(
    foreign: Foreign, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the comparison at the opening sees when a model does not use its masks."""
    run = TransformersTeacher._last_hidden_state
    monkeypatch.setattr(
        TransformersTeacher, "_last_hidden_state", lambda self, tokens, _=None: run(self, tokens)
    )
    teacher = TransformersTeacher.open("x", foreign("llama"), dataset.tokenizer.vocab_size)
    assert not teacher.packs


@pytest.mark.parametrize("kind", ["llama", "gemma3_text"])
def test_stored_in_bfloat16_it_is_what_autocast_makes_of_it(
    kind: str, foreign: Foreign, dataset: Dataset
) -> None:
    teacher = TransformersTeacher.open("x", foreign(kind), dataset.tokenizer.vocab_size)
    batch = packed(dataset)
    with torch.autocast("cpu", torch.bfloat16):
        before = teacher.hidden_states(batch)
        head = teacher.head.logits(before)
        teacher.store_bfloat16()
        after = teacher.hidden_states(batch)
    assert torch.equal(before, after)
    assert torch.equal(teacher.head.as_dtype(torch.bfloat16).logits(after), head)
    stored = [p.dtype for p in teacher.model.parameters() if p.dim() == 2]
    assert stored.count(torch.bfloat16) == 7 * 3
    assert teacher.head.weight_VD.dtype == torch.float32


def test_a_gemma_is_the_same_to_both(foreign: Foreign, dataset: Dataset, tmp_path: Path) -> None:
    folder = shutil.copytree(foreign("gemma2"), tmp_path / "m")
    dataset.tokenizer.save(folder)
    theirs = TransformersTeacher.open("x", folder, dataset.tokenizer.vocab_size)
    ours = open_teacher(str(folder), dataset, 40)
    assert isinstance(ours, GemmaTeacher)
    batch = packed(dataset)
    real = batch.doc_ids_BT > 0
    logits = [
        soft_cap(t.hidden_states(batch)[real] @ t.head.weight_VD.T, t.head.cap)
        for t in (ours, theirs)
    ]
    torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-4)


def test_open_finds_the_kind_and_the_padding(foreign: Foreign, dataset: Dataset) -> None:
    teacher = open_teacher(str(foreign("llama")), dataset, 40)
    assert isinstance(teacher, TransformersTeacher)
    assert teacher.vocab_size == 512
    assert len(teacher.head.weight_VD) == 528
    entry = teacher.describe()
    assert entry["backend"] == "transformers"
    assert entry["architecture"] == "LlamaForCausalLM"
    assert teacher.forward_flops_per_token(40) > 2 * 3 * 3 * 32 * 48
    assert teacher.context == 127  # and <bos>
    assert open_foreign_teacher(str(foreign("llama")), 40).describe() == entry


def test_a_short_context_is_refused(foreign: Foreign, dataset: Dataset) -> None:
    with pytest.raises(ConfigError, match="longer than the teacher's context of 127"):
        open_teacher(str(foreign("llama")), dataset, 128)


def test_another_tokenizer_is_refused(
    foreign: Foreign, dataset: Dataset, other_pieces: Tokenizer
) -> None:
    folder = foreign("llama", tokenizer=other_pieces)
    with pytest.raises(TokenizerError, match=r"encodes .* as \[.*--cross-tokenizer"):
        open_teacher(str(folder), dataset, 40)


def test_equal_ids_of_these_texts_are_not_enough(
    foreign: Foreign, dataset: Dataset, tmp_path: Path
) -> None:
    """A piece that no probe uses, under another name."""
    folder = shutil.copytree(foreign("llama"), tmp_path / "m")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocab = tokenizer["model"]["vocab"]
    used = {i for text in probe_texts(dataset) for i in dataset.tokenizer.encode(text)}
    merged = {piece for pair in tokenizer["model"]["merges"] for piece in (*pair, "".join(pair))}
    piece = next(p for p, i in vocab.items() if i not in used and p not in merged and i >= 217)
    vocab[piece + "Q"] = vocab.pop(piece)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(TokenizerError, match=r"is '.*Q' in it"):
        open_teacher(str(folder), dataset, 40)


@pytest.mark.parametrize(
    ("kind", "changes", "match"),
    [
        ("cohere", {"logit_scale": 0.25}, r"scales the logits \(logit_scale\)"),
        ("granite", {"logits_scaling": 4.0}, r"scales the logits \(logits_scaling\)"),
        ("phi", {}, "its head has a bias"),
    ],
)
def test_other_heads_are_refused(
    kind: str, changes: dict[str, Any], match: str, foreign: Foreign, dataset: Dataset
) -> None:
    with pytest.raises(CheckpointError, match=match):
        open_teacher(str(foreign(kind, **changes)), dataset, 40)


def test_a_cut_off_file_is_refused(foreign: Foreign, dataset: Dataset, tmp_path: Path) -> None:
    folder = shutil.copytree(foreign("llama"), tmp_path / "m")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="transformers cannot load"):
        open_teacher(str(folder), dataset, 40)


def test_pickled_weights_and_foreign_code_are_refused(
    foreign: Foreign, dataset: Dataset, tmp_path: Path
) -> None:
    folder = shutil.copytree(foreign("llama"), tmp_path / "m")
    torch.save({}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="transformers cannot load"):
        open_teacher(str(folder), dataset, 40)
    config = json.loads((folder / "config.json").read_text())
    config["model_type"] = "mine"
    config["auto_map"] = {"AutoConfig": "mine.C", "AutoModelForCausalLM": "mine.M"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "mine.py").write_text("raise SystemExit('ran')")
    with pytest.raises(CheckpointError):
        open_teacher(str(folder), dataset, 40)


def test_without_transformers(
    foreign: Foreign, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtraError, match=r"gemmule\[teachers\]"):
        open_teacher(str(foreign("llama")), dataset, 40)


@pytest.mark.usefixtures("no_meter")
def test_recorded_and_learnt_from(
    foreign: Foreign, prepared: Path, tiny: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    folder = foreign("llama")
    settings = RecordConfig.parse(
        {"teacher": str(folder), "data": prepared, "seq_len": 24, "tokens": 240, "compile": False,
         "dtype": "float32", "threads": 1, "targets": {"kind": "top_k_tail", "k": 9}}
    )  # fmt: skip
    record(settings, tmp_path / "store")
    store = Store.open(tmp_path / "store")
    assert store.manifest["teacher"]["backend"] == "transformers"
    assert store.vocab_size == 512
    assert verify(tmp_path / "store", tokens=100)["ok"]
    config = RunConfig.parse(tiny(objective={"teacher": str(folder)}, steps=2))
    result = run_training(config, tmp_path / "run")
    assert result["nats_per_token"] > 0
    with pytest.raises(ConfigError, match="record it first"):
        run_training(
            RunConfig.parse(tiny(objective={"teacher": "http://127.0.0.1:1/v1"}, steps=2)),
            tmp_path / "no",
        )


@pytest.mark.usefixtures("no_meter")
def test_a_store_without_bos_is_another(
    foreign: Foreign, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As stores were before sequences were opened: not continued, and not called unfaithful."""
    settings = RecordConfig.parse(
        {"teacher": str(foreign("llama")), "data": prepared, "seq_len": 24, "tokens": 48,
         "compile": False, "dtype": "float32", "threads": 1}
    )  # fmt: skip
    with monkeypatch.context() as before:
        before.setattr("gemmule.teachers.open.bos_before_text", lambda _: None)
        record(settings, tmp_path / "store")
    with pytest.raises(OutputError, match="bos: None there, every sequen"):
        record(settings, tmp_path / "store")
    with pytest.raises(CheckpointError, match="without <bos>"):
        verify(tmp_path / "store", tokens=48)
