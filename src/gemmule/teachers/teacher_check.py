"""`gemmule teacher-check`: whether a teacher knows a text, and how fast it is, before recording.

The teacher predicts some of the validation documents, which no student trains on. Its loss is
compared with that of counting (data/trigrams.py): a student learns about as much from the training
text by itself, or more, so a teacher that is not clearly ahead has nothing to teach.
"""

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from gemmule.config import ModelName
from gemmule.console import ProgressBar, duration
from gemmule.data.batch import Batch
from gemmule.data.dataset import Dataset
from gemmule.data.packed_text import eval_batches
from gemmule.data.trigrams import Trigrams
from gemmule.errors import ConfigError
from gemmule.losses.labels import IGNORED
from gemmule.runtime import device, memory
from gemmule.runtime.config import RuntimeConfig
from gemmule.stats import student_mean
from gemmule.teachers import precision
from gemmule.teachers.open import is_address, open_teacher
from gemmule.teachers.teacher import LocalTeacher

SPLIT = "validation"
_COUNTED = 20_000_000  # training tokens that are counted: some seconds
_LEAST = 3  # training tokens that can be counted at all


class CheckConfig(RuntimeConfig):
    """Settings of a check.

    Attributes:
        teacher: run, HF-layout folder, GGUF file or hub id.
        data: folder made by `gemmule data`.
        tokens: approximate number of validation tokens that the teacher predicts.
        seq_len: tokens per sequence.
        batch_size: sequences per batch.
        int8: quantize the teacher's linear layers, except the head, to int8.
    """

    teacher: ModelName
    data: Path
    tokens: int = Field(default=8192, gt=0)
    seq_len: int = Field(default=256, gt=0)
    batch_size: int = Field(default=8, gt=0)
    int8: bool = False


def check(config: CheckConfig) -> dict[str, Any]:
    """Measures a teacher on the validation split of some data.

    Returns:
        JSON-able: the teacher's description, precision, tokens, tokens_per_second,
        seconds_to_record (the training split at that rate), nats_per_token, bits_per_byte,
        trigrams_bits_per_byte, ahead (of the trigrams, bits per byte with a 95% interval over
        sequences), dropped_probability (of a teacher with more tokens than the data, else None),
        and knows_the_text, whether that interval is above 0.

    Raises:
        UserError: when a setting, the data or the teacher cannot be used.
    """
    if is_address(config.teacher):
        raise ConfigError(
            f"{config.teacher} is a server, which gives only the most likely tokens: give a model "
            "that runs on this machine"
        )
    dataset = Dataset.open(config.data)
    teacher = open_teacher(config.teacher, dataset, config.seq_len)
    memory.keep_freed_memory()
    flops = teacher.forward_flops_per_token(config.seq_len) * config.tokens
    config = device.resolve(config, flops)
    precision.check_int8(config.int8, config.device)
    about = teacher.describe()  # of the weights as they are stored
    precision.prepare(teacher, config, int8=config.int8, tokens=config.batch_size * config.seq_len)
    scores = _Scores(config, teacher, dataset)
    scores.run()
    return {"teacher": about, **scores.report()}


class _Scores:
    """The losses of both on the same labels, sequence by sequence."""

    def __init__(self, config: CheckConfig, teacher: LocalTeacher, dataset: Dataset) -> None:
        self.config, self.teacher, self.dataset = config, teacher, dataset
        train = dataset.split("train")
        counted = train.read(0, min(len(train), _COUNTED))
        if len(counted) < _LEAST:
            raise ConfigError(f"{dataset.path} has {len(counted)} training tokens: use more text")
        self.trigrams = Trigrams(counted, dataset.tokenizer.vocab_size)
        self.bytes_V = torch.from_numpy(dataset.tokenizer.token_bytes())
        self.nats: list[float] = []  # of each sequence
        self.trigram_nats: list[float] = []
        self.bytes: list[int] = []
        self.labels = 0
        self.timed: list[tuple[int, float]] = []  # tokens and seconds of each batch

    def run(self) -> None:
        """Predicts the validation tokens."""
        config = self.config
        split = self.dataset.split(SPLIT)
        batches = list(eval_batches(split, config.batch_size, config.seq_len, config.tokens))
        total = sum(batch.tokens_BT.numel() for batch in batches)
        done = 0
        with ProgressBar("checking", total, "tok") as bar:
            for batch in batches:
                log_p_BT = self._teacher_log_p(batch)
                self._add(batch, log_p_BT)
                done += batch.tokens_BT.numel()
                bar.update(done)
        if len(self.nats) < 2:
            raise ConfigError(
                f"the {SPLIT} text of {self.dataset.path} gives one sequence of {config.seq_len} "
                "tokens, and an interval takes several: use a smaller seq_len or more text and "
                "tokens"
            )

    @torch.no_grad()
    def _teacher_log_p(self, batch: Batch) -> Tensor:
        moved = batch.to(self.config.device)
        began = time.perf_counter()
        half = self.config.dtype == "bfloat16"
        with torch.autocast(self.config.device, torch.bfloat16, enabled=half):
            x_BTD = self.teacher.hidden_states(moved)
            log_p_N = self.teacher.head.log_likelihoods(
                x_BTD.flatten(0, 1), moved.labels_BT.flatten()
            ).cpu()  # waits for the device
            tokens = int((batch.doc_ids_BT > 0).sum())
            self.timed.append((tokens, time.perf_counter() - began))
            self.teacher.measure_dropped(x_BTD, moved)
        return log_p_N.view_as(batch.labels_BT)

    def _add(self, batch: Batch, log_p_BT: Tensor) -> None:
        tokens_BT = batch.tokens_BT
        # What came before a sequence is not known; its first label has a pair that is never seen.
        before_BT = torch.cat([torch.zeros_like(tokens_BT[:, :1]), tokens_BT[:, :-1]], 1)
        for row, labels_T in enumerate(batch.labels_BT):
            real_T = labels_T != IGNORED
            if not real_T.any():
                continue
            labels, last, before = (
                each[real_T].numpy() for each in (labels_T, tokens_BT[row], before_BT[row])
            )
            counted = self.trigrams.log_probabilities(before, last, labels)
            self.nats.append(-float(log_p_BT[row][real_T].double().sum()))
            self.trigram_nats.append(-float(counted.sum()))
            self.bytes.append(int(self.bytes_V[labels].sum()))
            self.labels += len(labels)

    def report(self) -> dict[str, Any]:
        """What was measured."""
        size = max(1, sum(self.bytes)) * math.log(2)
        mean_size = size / len(self.bytes)
        gaps = np.subtract(self.trigram_nats, self.nats) / mean_size
        ahead = student_mean(gaps.tolist())
        mean, half = ahead["mean"], ahead["half_width"]
        timed = self.timed[1:] or self.timed  # the first batch warms up
        rate = sum(tokens for tokens, _ in timed) / sum(seconds for _, seconds in timed)
        dropped = self.teacher.dropped
        return {
            "dtype": self.config.dtype,
            "int8": self.config.int8,
            "split": SPLIT,
            "tokens": self.labels,
            "tokens_per_second": round(rate, 1),
            "seconds_to_record": round(len(self.dataset.split("train")) / rate, 1),
            "nats_per_token": sum(self.nats) / self.labels,
            "bits_per_byte": sum(self.nats) / size,
            "trigrams_bits_per_byte": sum(self.trigram_nats) / size,
            "ahead": {"mean": mean, "low": mean - half, "high": mean + half},
            "dropped_probability": None
            if dropped is None
            else {
                "mean": dropped.total / max(1, dropped.tokens), "maximum": dropped.maximum,
                "tokens": dropped.tokens,
            },
            "knows_the_text": mean > half,
        }  # fmt: skip


def describe(report: dict[str, Any]) -> list[tuple[str, str]]:
    """A report as label and value of each line to print."""
    teacher, ahead, dropped = report["teacher"], report["ahead"], report["dropped_probability"]
    half = (ahead["high"] - ahead["low"]) / 2
    name = teacher.get("architecture", "Gemma 2")
    kind = "int8" if report["int8"] else report["dtype"]
    rows = [
        ("teacher", f"{name}, {teacher['parameters'] / 1e6:,.0f}M parameters, {kind}"),
        (
            "speed",
            f"{report['tokens_per_second']:,.0f} tokens/s; the training text takes "
            f"{duration(report['seconds_to_record'])}",
        ),
        (
            "loss",
            f"{report['bits_per_byte']:.3f} bits/byte ({report['nats_per_token']:.3f} nats/token) "
            f"on {report['tokens']:,} {report['split']} tokens",
        ),
        (
            "counting",
            f"{report['trigrams_bits_per_byte']:.3f} bits/byte: three tokens in the training text",
        ),
        ("ahead by", f"{ahead['mean']:.3f} ± {half:.3f} bits/byte"),
    ]
    if dropped is not None:
        rows.append(
            (
                "dropped probability",
                f"{dropped['mean']:.2e} a token, at most {dropped['maximum']:.2e}",
            )
        )
    verdict = "it knows this text better than its training part alone tells"
    if not report["knows_the_text"]:
        verdict = (
            "it does not know this text: a student would learn little from it (adapt it to the "
            "text first, or take another)"
        )
    return [*rows, ("verdict", verdict)]
