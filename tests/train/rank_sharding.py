"""One rank of a sharded model: how it differs from a process alone.

Arguments: ranks of a group that holds a model, and tensor-parallel ranks. The same micro-batches,
one per group of tensor-parallel ranks, go through a whole model one after the other. Prints what
was compared as JSON.
"""

import json
import sys

import torch
from torch import Tensor

from gemmule.model.gemma import Gemma
from gemmule.model.tensor_parallel import parallelize
from gemmule.runtime.world import World
from gemmule.train.config import OptimizerConfig
from gemmule.train.optimizers import build_optimizers
from gemmule.train.sharding import data_mesh, gathered, local, local_square, shard
from gemmule.train.sharding import whole as full
from models import GROUPED, random_model, tiny_config

VOCAB = 259  # rows that 2, 3 and 4 ranks hold in uneven parts
ROWS = 24


def loss(model: Gemma, tokens_BT: Tensor, labels_BT: Tensor) -> Tensor:
    x_BTD = model.hidden_states(tokens_BT)
    return model.head.cross_entropy(x_BTD.flatten(0, 1), labels_BT.flatten()) / ROWS


def difference(sharded: list[Tensor], whole: list[Tensor]) -> float:
    pairs = zip(map(full, sharded), whole, strict=True)
    return max(float((a - b).abs().max()) for a, b in pairs)


def main(degree: int, tensor: int) -> None:
    generator = torch.Generator().manual_seed(0)
    tokens, labels = torch.randint(0, VOCAB, (2, 12, ROWS), generator=generator)
    whole, sharded = (random_model(tiny_config(GROUPED, vocab_size=VOCAB)) for _ in range(2))
    with World.from_env("cpu", timeout=60) as every:
        world = every.in_groups(tensor)
        parts = list(zip(tokens.chunk(world.size), labels.chunk(world.size), strict=True))
        mesh = data_mesh(world, degree, "cpu", tensor)
        if tensor > 1:
            parallelize(sharded, mesh["tp"])
        shard(sharded, mesh)
        held = sum(local(p).numel() for p in sharded.parameters())
        with torch.no_grad(), gathered(sharded):
            logits = sharded.logits(sharded.hidden_states(tokens[:1]))
            whole_logits = whole(tokens[:1])
            same_logits = torch.equal(logits, whole_logits)
        for part in parts:
            loss(whole, *part).backward()
        loss(sharded, *parts[world.rank]).backward()
        gradients = [[p.grad for p in model.parameters()] for model in (sharded, whole)]
        norm = world.sum([local_square(sharded, world)])[0] ** 0.5
        alone = sum(float(g.double().square().sum()) for g in gradients[1] if g is not None) ** 0.5
        apart = difference(*gradients)  # type: ignore[arg-type]
        for model in (sharded, whole):
            for optimizer in build_optimizers(model, OptimizerConfig(learning_rate=0.1)):
                for _ in range(2):
                    optimizer.step()
        result = {
            "logits": float((logits - whole_logits).abs().max()),
            "held": held / sum(p.numel() for p in whole.parameters()),
            "same_logits": same_logits,
            "gradients": apart,
            "norm": norm / alone,
            "weights": difference(list(sharded.parameters()), list(whole.parameters())),
        }
        print(json.dumps(result))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1)
