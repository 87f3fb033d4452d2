"""One rank of a timed exchange, started by torchrun: see processes.py. The first rank prints.

Tensors have the sizes of the model's units, up to a limit beyond which time grows in proportion.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist

from gemmule.model.config import GemmaConfig
from gemmule.model.gemma import Gemma
from gemmule.runtime.world import World

_ROUNDS = 5
_LARGEST = 2**25  # elements of a tensor that is exchanged whole: 128 MiB


def sizes(config: GemmaConfig, sharded: bool) -> list[tuple[int, int]]:
    """Elements of what is exchanged, and how often in a pass: a unit of shards, or a parameter."""
    with torch.device("meta"):
        model = Gemma(config.model_copy(update={"num_hidden_layers": 1}))
    layers, block = config.num_hidden_layers, model.layers[0]
    rest = [model.embed_tokens.weight.numel(), model.norm.weight.numel()]
    if sharded:
        return [(sum(p.numel() for p in block.parameters()), layers), (sum(rest), 1)]
    return [(p.numel(), layers) for p in block.parameters()] + [(n, 1) for n in rest]


def timed(operation: Callable[[], Any], world: World) -> float:
    """Median of a few rounds, after one to warm up."""
    seconds = []
    for _ in range(_ROUNDS + 1):
        world.barrier()
        began = time.perf_counter()
        operation()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:])


def exchange(elements: int, sharded: bool, world: World, gathers: int) -> float:
    """Seconds to exchange a unit: gathered `gathers` times and scattered once, or added up."""
    used = min(elements, _LARGEST)
    share = -(-used // world.size)
    whole = torch.zeros(share * world.size)
    if not sharded:
        seconds = timed(lambda: dist.all_reduce(whole), world)
    else:
        part = torch.zeros(share)
        seconds = gathers * timed(lambda: dist.all_gather_into_tensor(whole, part), world)
        seconds += timed(lambda: dist.reduce_scatter_tensor(part, whole), world)
    return seconds * elements / used


def main(spec: Mapping[str, Any]) -> None:
    """Times a pass of the model and setting of `spec`."""
    sharded = bool(spec["sharded"])
    with World.from_env("cpu", timeout=60) as world:
        total = 0.0
        units = sizes(GemmaConfig.parse(spec["model"]), sharded)
        for index, (elements, times) in enumerate(units):
            gathers = 1 if index == len(units) - 1 else 2  # the root unit stays gathered
            total += times * exchange(elements, sharded, world, gathers)
        mean = world.sum([total])[0] / world.size
        if world.first:
            print(json.dumps({"seconds": mean}))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
