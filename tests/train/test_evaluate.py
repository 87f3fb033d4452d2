"""Figures on held-out text against a plain float64 computation, document by document."""

import math
from pathlib import Path

import pytest
import torch

from gemmule.data.dataset import Dataset
from gemmule.model.gemma import Gemma
from gemmule.train.evaluate import evaluate
from models import fresh_model, tiny_config


@pytest.fixture(scope="module")
def dataset(prepared: Path) -> Dataset:
    return Dataset.open(prepared)


def build(dataset: Dataset, vocab_size: int) -> Gemma:
    config = tiny_config(
        vocab_size=vocab_size, hidden_size=16, intermediate_size=24, head_dim=8, sliding_window=5,
        max_position_embeddings=4096,
    )  # fmt: skip
    return fresh_model(config, 0)


@pytest.mark.parametrize("spare_rows", [0, 8])
def test_equals_the_plain_computation(dataset: Dataset, spare_rows: int) -> None:
    """Rows longer than every document: each then sees all that came before it in its own text."""
    split = dataset.split("validation")
    model = build(dataset, dataset.tokenizer.vocab_size + spare_rows)
    got = evaluate(model, split, dataset.tokenizer, seq_len=4096, batch_size=3)
    plain = build(dataset, dataset.tokenizer.vocab_size + spare_rows).double()
    nats, count, size = 0.0, 0, 0
    assert split.token_count < 4096  # one row holds all of it
    for i in range(split.document_count):
        ids = torch.from_numpy(split.document(i))
        with torch.no_grad():
            log_p = plain(ids[None, :-1])[0].log_softmax(-1)
        nats -= log_p.gather(1, ids[1:, None]).sum().item()
        count += len(ids) - 1
        size += len(dataset.tokenizer.decode_bytes(ids.tolist()))
    assert got["tokens"] == count
    assert size == split.byte_count
    assert got["nats_per_token"] == pytest.approx(nats / count, rel=1e-5)
    assert got["perplexity"] == pytest.approx(math.exp(nats / count), rel=1e-4)
    assert got["bits_per_byte"] == pytest.approx(nats / math.log(2) / size, rel=1e-5)


def test_batch_size_does_not_matter(dataset: Dataset) -> None:
    model = build(dataset, dataset.tokenizer.vocab_size)
    split = dataset.split("heldout")
    one, five = (
        evaluate(model, split, dataset.tokenizer, seq_len=24, batch_size=b) for b in (1, 5)
    )
    assert one == pytest.approx(five, rel=1e-5)
    # Every token is a target once, but for the first of each document.
    assert one["tokens"] == split.token_count - split.document_count


def test_max_tokens(dataset: Dataset) -> None:
    model = build(dataset, dataset.tokenizer.vocab_size)
    split = dataset.split("validation")
    some = evaluate(model, split, dataset.tokenizer, seq_len=16, max_tokens=64)
    assert 40 < some["tokens"] <= 64
    least = evaluate(model, split, dataset.tokenizer, seq_len=1, max_tokens=1)
    assert least["tokens"] == 1


def test_leaves_no_gradient(dataset: Dataset) -> None:
    model = build(dataset, dataset.tokenizer.vocab_size)
    evaluate(model, dataset.split("validation"), dataset.tokenizer, seq_len=16, max_tokens=64)
    assert all(p.grad is None for p in model.parameters())
