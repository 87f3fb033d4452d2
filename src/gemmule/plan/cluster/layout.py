"""How a run is spread over the devices of a cluster."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from gemmule.plan.cluster.devices import Cluster
from gemmule.plan.cluster.shapes import Shape

Recompute = Literal["none", "selective", "full"]
MAX_MICRO_BATCH = 64


@dataclass(frozen=True)
class Layout:
    """Parallelism and what is kept for the backward pass.

    The devices form a grid: pipeline x replicas x shards x tensor.

    Attributes:
        shards: ranks that FSDP cuts the weights and states over, those of `context` included.
        replicas: groups of `shards` with a copy each (HSDP); 1: plain FSDP.
        tensor, context, pipeline: degrees of tensor, context and pipeline parallelism.
        micro_batch: sequences per replica of the model in one forward and backward pass.
        accumulate: passes per optimizer step.
        recompute: what the backward pass computes again: nothing, everything but attention and
            every second matrix product ("selective", torchtitan's per-op policy), or whole blocks.
        compiled: whether element-wise operations are fused.
        dtype: data type of the blocks' matrix products.
        float8_gather: whether float8 weights are gathered in that type.
        keep_gathered: whether gathered weights stay for the backward pass (ZeRO-2).
        async_tensor: whether tensor-parallel communication overlaps with matrix products.
        ring: whether context parallelism passes keys and values around in a ring, rather than
            gathering them.
        microbatches: pieces that a pipeline cuts `micro_batch` into.
        virtual: interleaved stages per pipeline rank.
        logit_bytes: bytes per logit at the peak of the loss; 0 for a chunked head.
        root_bytes: bytes per element in which embedding and head are gathered, and their gradient
            kept: gemmule gathers them in fp32.
    """

    shards: int = 1
    replicas: int = 1
    tensor: int = 1
    context: int = 1
    pipeline: int = 1
    micro_batch: int = 1
    accumulate: int = 1
    recompute: Recompute = "none"
    compiled: bool = True
    dtype: str = "bfloat16"
    float8_gather: bool = False
    keep_gathered: bool = False
    async_tensor: bool = False
    ring: bool = False
    microbatches: int = 1
    virtual: int = 1
    logit_bytes: float = 0.0
    root_bytes: float = 2.0

    @property
    def model_ranks(self) -> int:
        """Devices that share one sequence."""
        return self.tensor * self.context * self.pipeline

    @property
    def data_ranks(self) -> int:
        """Groups that read different sequences."""
        return self.shards * self.replicas // self.context

    @property
    def devices(self) -> int:
        """Devices of the whole grid."""
        return self.shards * self.replicas * self.tensor * self.pipeline

    @property
    def sequences(self) -> int:
        """Sequences per optimizer step."""
        return self.data_ranks * self.micro_batch * self.accumulate

    @property
    def text(self) -> str:
        """For tables: FSDP 64 x TP 8, micro-batch 2 x 4, full recomputation."""
        parts = [f"HSDP {self.replicas} x {self.shards}" if self.replicas > 1
                 else f"FSDP {self.shards}"]  # fmt: skip
        parts += [
            f"{name} {degree}"
            for name, degree in (("TP", self.tensor), ("CP", self.context), ("PP", self.pipeline))
            if degree > 1
        ]
        more = f" x {self.accumulate}" if self.accumulate > 1 else ""
        kept = "no" if self.recompute == "none" else self.recompute
        return f"{' x '.join(parts)}, micro-batch {self.micro_batch}{more}, {kept} recomputation"


def candidates(shape: Shape, cluster: Cluster, sequences: int, dtype: str) -> Iterator[Layout]:
    """Layouts that use all devices: FSDP2 or HSDP, tensor parallelism within a group of devices.

    Pipeline and context parallelism are left to other engines: the models are those of Gemma 2's
    sizes, and sequences have 8,192 tokens.

    Args:
        shape: the model.
        cluster: the devices.
        sequences: wanted sequences per optimizer step; layouts come as near as they can from below.
        dtype: data type of the matrix products.
    """
    tensor = 1
    while tensor <= min(8, cluster.device.fast_size, cluster.count):
        if shape.kv_heads % tensor == 0 and cluster.count % tensor == 0:
            data = cluster.count // tensor
            for shards in _shard_counts(data, max(1, cluster.device.fast_size // tensor)):
                micro = 1
                while micro <= MAX_MICRO_BATCH and micro * data <= max(sequences, data):
                    accumulate = max(1, sequences // (micro * data))
                    for recompute in ("none", "selective", "full"):
                        yield Layout(
                            shards=shards, replicas=data // shards, tensor=tensor,
                            micro_batch=micro, accumulate=accumulate, recompute=recompute,
                            dtype=dtype, float8_gather=dtype == "float8", root_bytes=4.0,
                        )  # fmt: skip
                    micro *= 2
        tensor *= 2


def _shard_counts(data: int, group: int) -> list[int]:
    """All ranks, and what HSDP allows: one group of devices, or eight, sixty-four of them."""
    counts = {data}
    counts |= {n for n in (group, 8 * group, 64 * group) if n < data and data % n == 0}
    return sorted(counts, reverse=True)
