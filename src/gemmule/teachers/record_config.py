"""Settings of a recording."""

from pathlib import Path
from typing import Self

import pydantic
from pydantic import Field

from gemmule.config import ModelName
from gemmule.runtime.config import RuntimeConfig
from gemmule.teachers.endpoint import REQUESTS
from gemmule.teachers.target_spec import TargetSpec

UNIT = 128
"""Sequences that belong to the same part, and to one shard at most."""


class RecordConfig(RuntimeConfig):
    """Settings of a recording.

    Attributes:
        teacher: run, HF-layout folder, hub id, or base address of an OpenAI-compatible server.
        data: folder made by `gemmule data`.
        targets: what is kept of each distribution.
        seq_len: tokens per sequence; students train with the same.
        tokens: number of tokens to record, from the start of the corpus, rounded up to whole
            sequences; None: all.
        batch_size: sequences per batch.
        seed: seed of the draws.
        shard_minutes: longest time between two shards, minutes.
        part: which part to record, of how many: "2/4" is the second of four.
        served: the server's name for the model; None: the first that it lists.
        requests: number of concurrent requests to the server.
        int8: quantize the teacher's linear layers, except the head, to int8: for CPUs with VNNI.
    """

    teacher: ModelName
    data: Path
    targets: TargetSpec = TargetSpec()
    seq_len: int = Field(default=256, gt=0)
    tokens: int | None = Field(default=None, gt=0)
    batch_size: int = Field(default=8, gt=0)
    seed: int = Field(default=0, ge=0, lt=2**63)
    shard_minutes: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    part: str = "1/1"
    served: str | None = None
    requests: int = Field(default=REQUESTS, ge=1, le=256)
    int8: bool = False

    @pydantic.model_validator(mode="after")
    def _part_is_one_of(self) -> Self:
        which, _, of = self.part.partition("/")
        if not (which.isdigit() and of.isdigit() and 1 <= int(which) <= int(of)):
            raise ValueError(f"part {self.part!r}: write which of how many, as in 2/4")
        return self

    def includes(self, unit: int) -> bool:
        """Whether a unit of sequences belongs to this part."""
        which, _, of = self.part.partition("/")
        return unit % int(of) == int(which) - 1
