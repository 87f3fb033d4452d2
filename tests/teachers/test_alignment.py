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
from gemmule.teachers.any_tokenizer import AnyTokenizer, OwnTokenizer, TransformersTokenizer
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
) -> dict[str, AnyTokenizer]:
    folder = tmp_path_factory.mktemp("tokenizers")
    other_pieces.save(folder / "spm")
    return {
        "same": OwnTokenizer(pieces),
        "own": OwnTokenizer(other_pieces),
        "spm": TransformersTokenizer("x", load_tokenizer(folder / "spm")),
        "bytes": TransformersTokenizer("x", load_tokenizer(byte_level(folder / "bytes"))),
    }


def check(ids: list[int], student: AnyTokenizer, teacher: AnyTokenizer) -> int:
    """Every span covers the same bytes to both, and cannot be cut; returns how many there are."""
    aligned = align(ids, student, teacher)
    assert len(aligned.student_spans) == len(ids)
    assert len(aligned.teacher_spans) == len(aligned.teacher_ids)
    ours, theirs = student.token_bytes(ids), teacher.token_bytes(aligned.teacher_ids)
    for span in range(aligned.spans):
        mine = [p for p, s in zip(ours, aligned.student_spans, strict=True) if s == span]
        other = [p for p, s in zip(theirs, aligned.teacher_spans, strict=True) if s == span]
        assert b"".join(mine) == b"".join(other)
        ends = [{len(b"".join(part[: i + 1])) for i in range(len(part))} for part in (mine, other)]
        assert len(ends[0] & ends[1]) == 1
    return aligned.spans


@pytest.mark.parametrize("kind", ["same", "own", "spm", "bytes"])
def test_spans_are_the_same_bytes(kind: str, others: dict[str, AnyTokenizer]) -> None:
    student, teacher = others["same"], others[kind]
    ids = [2, *student.encode(TEXT), 1]
    count = check(ids, student, teacher)
    assert count >= 10
    aligned = align(ids, student, teacher)
    if kind == "same":
        assert aligned.teacher_ids == ids
        assert count == len(ids) - 1
    assert aligned.student_spans[0] == NO_SPAN
    assert (
        aligned.student_spans[-1] == aligned.teacher_spans[-1] == count - 1
    )  # the end is an event
    if kind == "bytes":  # nothing comes before its first token
        assert aligned.teacher_spans[0] == NO_SPAN
    else:
        assert aligned.teacher_ids[0] == 2
        assert aligned.student_spans[1] == 0


@pytest.mark.parametrize("kind", ["same", "own", "bytes"])
def test_parts_cut_anywhere(kind: str, others: dict[str, AnyTokenizer]) -> None:
    """Sequences begin and end within words and characters."""
    student, teacher = others["same"], others[kind]
    ids = [2, *student.encode(TEXT), 1]
    for start in range(0, len(ids), 3):
        for stop in range(start + 1, len(ids), 5):
            check(ids[start:stop], student, teacher)
            aligned = align(ids[start:stop], student, teacher)
            assert aligned.student_spans[0] == NO_SPAN  # nothing comes before it


def test_longer_than_the_context_is_left_out(others: dict[str, AnyTokenizer]) -> None:
    ids = [2, *others["same"].encode(TEXT), 1]
    whole = align(ids, others["same"], others["own"])
    cut = align(ids, others["same"], others["own"], max_tokens=12)
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
    with pytest.raises(TokenizerError, match="changes text before it splits it"):
        TransformersTokenizer("x", load_tokenizer(folder))


def test_batches(prepared: Path, others: dict[str, AnyTokenizer]) -> None:
    dataset = Dataset.open(prepared)
    batches = [b for b in eval_batches(dataset.split("train"), 4, 24) if b.doc_ids_BT.max() >= 2]
    batch = batches[0]
    student, teacher = others["same"], others["own"]
    aligned = align_batch(batch, student, teacher)
    assert aligned.student_span_BT.shape == batch.tokens_BT.shape
    assert aligned.teacher_span_BU.shape == aligned.teacher.tokens_BT.shape
    for side, spans_BT, who in (
        (batch, aligned.student_span_BT, student),
        (aligned.teacher, aligned.teacher_span_BU, teacher),
    ):
        assert bool((side.labels_BT[spans_BT != NO_SPAN] != IGNORED).all())
        assert set(spans_BT[spans_BT != NO_SPAN].tolist()) == set(range(aligned.spans))
        assert who is not None
    for span in range(aligned.spans):
        texts = [
            b"".join(who.token_bytes(side.labels_BT[spans == span].tolist()))
            for side, spans, who in (
                (batch, aligned.student_span_BT, student),
                (aligned.teacher, aligned.teacher_span_BU, teacher),
            )
        ]
        assert texts[0] == texts[1]


@pytest.mark.parametrize("kind", ["same", "own"])
def test_spans_with_a_masked_token_do_not_count(
    prepared: Path, others: dict[str, AnyTokenizer], kind: str
) -> None:
    batch = next(iter(eval_batches(Dataset.open(prepared).split("train"), 4, 24)))
    whole = align_batch(batch, others["same"], others[kind])
    masked_BT = torch.rand(batch.labels_BT.shape, generator=torch.Generator().manual_seed(0)) < 0.2
    # The label of a document's last token decides how far its text goes.
    masked_BT[:, :-1] &= batch.doc_ids_BT[:, 1:] == batch.doc_ids_BT[:, :-1]
    masked_BT[:, -1] = False
    labels_BT = torch.where(masked_BT, IGNORED, batch.labels_BT)
    aligned = align_batch(
        Batch(batch.tokens_BT, labels_BT, batch.doc_ids_BT), others["same"], others[kind]
    )
    gone = set(whole.student_span_BT[masked_BT].tolist()) - {NO_SPAN}
    assert 0 < len(gone) < whole.spans
    assert aligned.spans == whole.spans - len(gone)
    assert torch.equal(aligned.teacher.tokens_BT, whole.teacher.tokens_BT)
    left = [span for span in range(whole.spans) if span not in gone]
    for ours, theirs in (
        (aligned.student_span_BT, whole.student_span_BT),
        (aligned.teacher_span_BU, whole.teacher_span_BU),
    ):
        number = torch.full((whole.spans + 1,), NO_SPAN)  # the last for NO_SPAN itself
        number[left] = torch.arange(len(left))
        assert torch.equal(ours, number[theirs])


def test_the_same_tokenizer_gives_every_token_a_span(
    prepared: Path, others: dict[str, AnyTokenizer]
) -> None:
    batch = next(iter(eval_batches(Dataset.open(prepared).split("train"), 4, 24)))
    aligned = align_batch(batch, others["same"], others["same"])
    counts = batch.labels_BT != IGNORED
    assert torch.equal(aligned.student_span_BT != NO_SPAN, counts)
    assert torch.equal(aligned.teacher.labels_BT[aligned.teacher_span_BU != NO_SPAN],
                       batch.labels_BT[counts])  # fmt: skip
    assert isinstance(aligned.teacher, Batch)


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
