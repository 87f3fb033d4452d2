"""What is said of a teacher before it is recorded."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gemmule.data.batch import Batch
from gemmule.data.dataset import Dataset
from gemmule.data.packed_text import eval_batches
from gemmule.errors import ConfigError
from gemmule.losses.head import Head
from gemmule.losses.labels import IGNORED
from gemmule.teachers import teacher_check
from gemmule.teachers.teacher import LocalTeacher
from gemmule.teachers.teacher_check import CheckConfig, check, describe

SURE = 0.9  # probability that the oracle gives to the next token


class Oracle(LocalTeacher):
    """Knows the next token: its hidden state is the label's one-hot vector."""

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size_, self.model = vocab_size, torch.nn.Identity()
        gap = math.log(SURE / (1 - SURE) * (vocab_size - 1))
        self._head = Head(gap * torch.eye(vocab_size))

    @property
    def vocab_size(self) -> int:
        return self.vocab_size_

    @property
    def head(self) -> Head:
        return self._head

    def hidden_states(self, batch: Batch) -> Tensor:
        one_hot = torch.nn.functional.one_hot(batch.labels_BT.clamp(min=0), self.vocab_size_)
        return one_hot.float()

    @property
    def context(self) -> int | None:
        return None

    def forward_flops_per_token(self, seq_len: int) -> float:
        return 1.0

    def describe(self) -> dict[str, Any]:
        return {"parameters": 1}


def config(prepared: Path, **changes: Any) -> CheckConfig:
    values = {"teacher": "x", "data": prepared, "seq_len": 32, "tokens": 600, "compile": False}
    return CheckConfig.parse({**values, "dtype": "float32", "threads": 1, **changes})


def test_a_teacher_that_knows_the_text(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = Dataset.open(prepared)
    oracle = Oracle(dataset.tokenizer.vocab_size)
    monkeypatch.setattr(teacher_check, "open_teacher", lambda *_: oracle)
    report = check(config(prepared))
    assert report["knows_the_text"]
    assert report["nats_per_token"] == pytest.approx(-math.log(SURE), rel=1e-4)
    batches = list(eval_batches(dataset.split("validation"), 8, 32, 600))
    labels = torch.cat([b.labels_BT[b.labels_BT != IGNORED] for b in batches])
    assert report["tokens"] == len(labels)
    size = int(dataset.tokenizer.token_bytes()[labels.numpy()].sum())
    bits = -math.log2(SURE) * len(labels) / size
    assert report["bits_per_byte"] == pytest.approx(bits, rel=1e-4)
    gap = report["trigrams_bits_per_byte"] - report["bits_per_byte"]
    assert report["ahead"]["mean"] == pytest.approx(gap, rel=1e-9)
    assert report["seconds_to_record"] > 0
    assert "it knows this text" in dict(describe(report))["verdict"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_random_teacher_does_not(
    dtype: str, prepared: Path, foreign: Callable[..., Path]
) -> None:
    report = check(config(prepared, teacher=str(foreign("llama")), dtype=dtype))
    assert not report["knows_the_text"]
    assert report["ahead"]["mean"] < 0
    assert report["dropped_probability"] is None
    shown = dict(describe(report))
    assert "LlamaForCausalLM" in shown["teacher"]
    assert dtype in shown["teacher"]
    assert "does not know this text" in shown["verdict"]


def test_a_server_cannot_be_checked(prepared: Path) -> None:
    with pytest.raises(ConfigError, match="is a server"):
        check(config(prepared, teacher="http://127.0.0.1:1/v1"))


def test_one_sequence_is_no_measurement(prepared: Path, foreign: Callable[..., Path]) -> None:
    """It has no interval; a width of zero would call any lead certain."""
    with pytest.raises(ConfigError, match="one sequence of 32 tokens"):
        check(config(prepared, teacher=str(foreign("llama")), tokens=32))
