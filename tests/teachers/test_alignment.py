"""Two tokenizers' cuts of one text."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gemmule.data.batch import Batch
from gemmule.data.dataset import Dataset
from gemmule.data.packed_text import eval_batches
from gemmule.errors import ConfigError, TokenizerError
from gemmule.losses.labels import IGNORED
from gemmule.losses.span_likelihood import NO_SPAN
from gemmule.model.tokenizer import Tokenizer
from gemmule.teachers.alignment import _whole_characters, align, align_batch
from gemmule.teachers.pieces import OwnPieces, Pieces, TransformersPieces
from gemmule.teachers.transformers_model import load_tokenizer
from gemmule.train.config import RunConfig
from gemmule.train.run import run_training

TEXT = "the captain said: naïve 日本語 🙂\n\tdef add(a, b):  return a + 12345"


def byte_level(folder: Path, **changes: Any) -> Path:
    """A byte-level BPE as GPT-2's, trained on the spot, without <bos>."""
    from tokenizers import Tokenizer as HFTokenizer
    from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = HFTokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if changes.get("lower"):
        tokenizer.normalizer = normalizers.Lowercase()
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=["<end>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator([TEXT, "the captain said never to sail the wind"] * 9, trainer)
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<end>"}'
    )
    return folder


@pytest.fixture(scope="module")
def others(
    pieces: Tokenizer, other_pieces: Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Pieces]:
    folder = tmp_path_factory.mktemp("tokenizers")
    other_pieces.save(folder / "spm")
    return {
        "same": OwnPieces(pieces),
        "own": OwnPieces(other_pieces),
        "spm": TransformersPieces("x", load_tokenizer(folder / "spm")),
        "bytes": TransformersPieces("x", load_tokenizer(byte_level(folder / "bytes"))),
    }


def check(ids: list[int], student: Pieces, teacher: Pieces) -> int:
    """Every span covers the same bytes to both, and cannot be cut; returns how many there are."""
    alignment = align(ids, student, teacher)
    assert len(alignment.student_spans) == len(ids)
    assert len(alignment.teacher_spans) == len(alignment.teacher_ids)
    ours, theirs = student.pieces(ids), teacher.pieces(alignment.teacher_ids)
    for span in range(alignment.spans):
        mine = [p for p, s in zip(ours, alignment.student_spans, strict=True) if s == span]
        other = [p for p, s in zip(theirs, alignment.teacher_spans, strict=True) if s == span]
        assert b"".join(mine) == b"".join(other)
        ends = [{len(b"".join(part[: i + 1])) for i in range(len(part))} for part in (mine, other)]
        assert len(ends[0] & ends[1]) == 1
    return alignment.spans


@pytest.mark.parametrize("kind", ["same", "own", "spm", "bytes"])
def test_spans_are_the_same_bytes(kind: str, others: dict[str, Pieces]) -> None:
    student, teacher = others["same"], others[kind]
    ids = [2, *student.encode(TEXT), 1]
    count = check(ids, student, teacher)
    assert count >= 10
    alignment = align(ids, student, teacher)
    if kind == "same":
        assert alignment.teacher_ids == ids
        assert count == len(ids) - 1
    assert alignment.student_spans[0] == NO_SPAN
    assert (
        alignment.student_spans[-1] == alignment.teacher_spans[-1] == count - 1
    )  # the end is an event
    if kind == "bytes":  # nothing comes before its first token
        assert alignment.teacher_spans[0] == NO_SPAN
    else:
        assert alignment.teacher_ids[0] == 2
        assert alignment.student_spans[1] == 0


@pytest.mark.parametrize("kind", ["same", "own", "bytes"])
def test_parts_cut_anywhere(kind: str, others: dict[str, Pieces]) -> None:
    """Windows begin and end within words and characters."""
    student, teacher = others["same"], others[kind]
    ids = [2, *student.encode(TEXT), 1]
    for start in range(0, len(ids), 3):
        for stop in range(start + 1, len(ids), 5):
            check(ids[start:stop], student, teacher)
            alignment = align(ids[start:stop], student, teacher)
            assert alignment.student_spans[0] == NO_SPAN  # nothing comes before it


def test_longer_than_the_context_is_left_out(others: dict[str, Pieces]) -> None:
    ids = [2, *others["same"].encode(TEXT), 1]
    whole = align(ids, others["same"], others["own"])
    cut = align(ids, others["same"], others["own"], longest=12)
    assert cut.teacher_ids == whole.teacher_ids[:12]
    assert 0 < cut.spans < whole.spans
    assert cut.student_spans[-1] == NO_SPAN


@pytest.mark.parametrize(
    ("data", "bounds"),
    [
        (b"", (0, 0)), (b"ab", (0, 2)), ("é".encode(), (0, 2)), ("é".encode()[:1], (0, 0)),
        ("é".encode()[1:], (1, 1)), ("a🙂".encode()[:-1], (0, 1)), ("🙂a".encode()[2:], (2, 3)),
        ("日本".encode()[1:-2], (2, 2)), ("日本".encode(), (0, 6)),
    ],
)  # fmt: skip
def test_whole_characters(data: bytes, bounds: tuple[int, int]) -> None:
    assert _whole_characters(data) == bounds


def test_a_tokenizer_that_changes_text_is_refused(tmp_path: Path) -> None:
    folder = byte_level(tmp_path / "t", lower=True)
    with pytest.raises(TokenizerError, match="changes text before it cuts it"):
        TransformersPieces("x", load_tokenizer(folder))


def test_batches(prepared: Path, others: dict[str, Pieces]) -> None:
    dataset = Dataset.open(prepared)
    batches = [b for b in eval_batches(dataset.split("train"), 4, 24) if b.doc_ids_BT.max() >= 2]
    batch = batches[0]
    student, teacher = others["same"], others["own"]
    alignment = align_batch(batch, student, teacher)
    assert alignment.student_span_BT.shape == batch.tokens_BT.shape
    assert alignment.teacher_span_BU.shape == alignment.teacher.tokens_BT.shape
    for side, spans_BT, who in (
        (batch, alignment.student_span_BT, student),
        (alignment.teacher, alignment.teacher_span_BU, teacher),
    ):  # fmt: skip
        assert bool((side.labels_BT[spans_BT != NO_SPAN] != IGNORED).all())
        assert set(spans_BT[spans_BT != NO_SPAN].tolist()) == set(range(alignment.spans))
        assert who is not None
    for span in range(alignment.spans):
        texts = [
            b"".join(who.pieces(side.labels_BT[spans == span].tolist()))
            for side, spans, who in (
                (batch, alignment.student_span_BT, student),
                (alignment.teacher, alignment.teacher_span_BU, teacher),
            )
        ]
        assert texts[0] == texts[1]


def test_the_same_tokenizer_gives_every_token_a_span(
    prepared: Path, others: dict[str, Pieces]
) -> None:
    batch = next(iter(eval_batches(Dataset.open(prepared).split("train"), 4, 24)))
    alignment = align_batch(batch, others["same"], others["same"])
    counts = batch.labels_BT != IGNORED
    assert torch.equal(alignment.student_span_BT != NO_SPAN, counts)
    assert torch.equal(alignment.teacher.labels_BT[alignment.teacher_span_BU != NO_SPAN],
                       batch.labels_BT[counts])  # fmt: skip
    assert isinstance(alignment.teacher, Batch)


@pytest.mark.usefixtures("no_meter")
@pytest.mark.parametrize("kind", ["own", "foreign"])
def test_a_student_learns_across_tokenizers(
    kind: str,
    foreign: Callable[..., Path],
    other_pieces: Tokenizer,
    tiny: Callable[..., dict[str, Any]],
    tmp_path: Path,
) -> None:
    """From a Gemma and from a Llama; the same flag, and the objective in the manifest."""
    folder = foreign("gemma2" if kind == "own" else "llama", tokenizer=other_pieces)
    if kind == "own":
        other_pieces.save(folder)
    settings = tiny(objective={"teacher": str(folder), "alpha": 0.25}, steps=4)
    with pytest.raises(TokenizerError, match="--cross-tokenizer"):
        run_training(RunConfig.parse(settings), tmp_path / "no")
    settings["objective"] |= {"cross_tokenizer": True}
    run_training(RunConfig.parse(settings), tmp_path / "run")
    manifest = (tmp_path / "run" / "manifest.json").read_text()
    assert '"span_likelihoods"' in manifest
    metrics = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert '"spans"' in metrics


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"temperature": 2.0}, "temperature has no meaning"),
        ({"loss": "reverse_kl"}, "loss has no meaning"),
        ({"teacher": None, "targets": "x"}, "needs the teacher itself"),
    ],
)
def test_settings_without_meaning_are_refused(
    tiny: Callable[..., dict[str, Any]], changes: dict[str, Any], match: str
) -> None:
    objective = {"teacher": "x", "cross_tokenizer": True, **changes}
    given = {k: v for k, v in objective.items() if v is not None}
    with pytest.raises(ConfigError, match=match):
        RunConfig.parse(tiny(objective=given))
