"""One rank of many, simulated: the real `shard()` on fake tensors over a fake process group.

    with fake_ranks(6144) as world:
        result = simulate(preset("27b"), data_mesh(world, -1, "cpu"))

Nothing is allocated and nothing is sent. What a rank holds is read from its shards, and what it
sends from the collectives of a real training step. torch takes seconds per layer to cut weights for
thousands of ranks, so a step of one layer and one of two give those of a deep model, whose layers
all have the same size; its weights are counted at full depth too. The rank is the first, which
holds the most.
"""

import dataclasses
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.device_mesh import DeviceMesh
from torch.utils._python_dispatch import TorchDispatchMode

from gemmule.errors import ConfigError
from gemmule.model.config import GemmaConfig
from gemmule.model.gemma import Gemma
from gemmule.plan.cluster.layout import Layout
from gemmule.plan.cluster.shapes import Shape
from gemmule.plan.cluster.step import moved
from gemmule.runtime.world import World
from gemmule.train.config import OptimizerConfig
from gemmule.train.optimizers import build_optimizers
from gemmule.train.sharding import local, shard

_TOKENS = 256  # of the step: communication does not depend on them
# Collectives by the operation that torch dispatches: which fields of Simulated have their number
# and their bytes, and which argument is whole.
_KINDS = {
    "_allgather_base_": ("gathers", "gathered", 0),
    "_reduce_scatter_base_": ("scatters", "scattered", 1),
    "allreduce_": ("reductions", "reduced", 0),
}


@dataclass(frozen=True)
class Simulated:
    """One rank.

    Attributes:
        parameters, gradients, states: bytes that it keeps between steps.
        gathers, scatters, reductions: all-gathers, reduce-scatters and all-reduces of one forward
            and backward pass.
        gathered: bytes of the results of all-gathers.
        scattered: bytes of the inputs of reduce-scatters.
        reduced: bytes of the tensors of all-reduces.
    """

    parameters: float
    gradients: float
    states: float
    gathers: float = 0
    scatters: float = 0
    reductions: float = 0
    gathered: float = 0
    scattered: float = 0
    reduced: float = 0


class _FakeWorld(World):
    """The first of many ranks, none of which is there."""

    def __init__(self, size: int) -> None:
        self.size = self.local_size = size


@contextmanager
def fake_ranks(size: int) -> Iterator[World]:
    """A process group of `size` ranks of which this process is the first; collectives do nothing.

    Raises:
        ConfigError: when this torch has no fake process group.
    """
    try:
        from torch.testing._internal.distributed.fake_pg import FakeStore
    except ImportError:
        raise ConfigError("this torch has no fake process group: use torch 2.13") from None
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=size)
    try:
        yield _FakeWorld(size)
    finally:
        dist.destroy_process_group()


def simulate(config: GemmaConfig, mesh: DeviceMesh | None, *, half: bool = True) -> Simulated:
    """What the first rank of a mesh of fake ranks holds, sends and receives.

    Args:
        config: the model.
        mesh: from `data_mesh`; of two dimensions for HSDP. None: one process, which shards nothing.
        half: whether blocks compute in bfloat16.
    """
    one, two = (
        one_step(config.model_copy(update={"num_hidden_layers": n}), mesh, half) for n in (1, 2)
    )
    further = config.num_hidden_layers - 1
    pairs = zip(dataclasses.astuple(one), dataclasses.astuple(two), strict=True)
    result = Simulated(*(a + (b - a) * further for a, b in pairs))
    with torch.device("meta"):
        whole = Gemma(config)
    if mesh is not None:
        shard(whole, mesh, half=half)
    assert _bytes([*whole.parameters()]) == result.parameters, "layers differ in size"
    return result


def one_step(config: GemmaConfig, mesh: DeviceMesh | None, half: bool) -> Simulated:
    """A training step of a whole model on fake tensors: cross-entropy, then AdamW."""
    from torch.distributed.tensor.debug import CommDebugMode  # looks for test libraries

    with FakeTensorMode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of views and hooks on tensors without data
        model = Gemma(config)
        if mesh is not None:
            shard(model, mesh, half=half)
        tokens_BT = torch.zeros(1, _TOKENS, dtype=torch.long)
        with CommDebugMode() as counted, _Collectives() as collectives:
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                x_BTD = model.hidden_states(tokens_BT)
                loss = model.head.cross_entropy(x_BTD.flatten(0, 1), tokens_BT.flatten())
            loss.backward()
        optimizers = build_optimizers(model, OptimizerConfig(name="adamw"))
        for optimizer in optimizers:
            optimizer.step()
        states = [
            value
            for optimizer in optimizers
            for state in optimizer.state.values()
            for value in state.values()
            if value.ndim > 0  # not the number of steps
        ]
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        held = (_bytes([*model.parameters()]), _bytes(gradients), _bytes(states))
    result = Simulated(*held, **collectives.totals)
    seen = sum(counted.get_comm_counts().values())
    assert seen == result.gathers + result.scatters + result.reductions
    return result


def planned(shape: Shape, layout: Layout) -> Simulated:
    """The same by the formulas of `gemmule plan --cluster`."""
    block, root = shape.elements(layout.tensor, layout.shards)
    share = 4 * (shape.layers * block + root)
    bytes_moved = moved(shape, layout)
    units = shape.layers + 1
    return Simulated(
        share, share, 2 * share,
        gathers=2 * shape.layers + 1 if layout.shards > 1 else 0,
        scatters=units if layout.shards > 1 else 0,
        reductions=units if layout.replicas > 1 else 0,
        gathered=bytes_moved.gathered, scattered=bytes_moved.scattered, reduced=bytes_moved.reduced,
    )  # fmt: skip


def _bytes(tensors: Sequence[torch.Tensor]) -> int:
    return sum(local(t).numel() * t.element_size() for t in tensors)


class _Collectives(TorchDispatchMode):
    """Counts collectives and adds up their bytes, by the fields of Simulated."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.totals = {name: 0 for *names, _ in _KINDS.values() for name in names}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func.namespace == "c10d":
            count, moved_bytes, index = _KINDS[func._schema.name.partition("::")[2]]
            whole = args[index]
            tensors = whole if isinstance(whole, list | tuple) else [whole]
            self.totals[count] += 1
            self.totals[moved_bytes] += sum(t.numel() * t.element_size() for t in tensors)
        return func(*args, **(kwargs or {}))
