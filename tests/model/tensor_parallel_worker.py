"""One rank of test_tensor_parallel.py: how a model over several ranks differs from one process.

Argument: number of ranks. Prints what was compared as JSON.
"""

import json
import sys

import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from gemmule.errors import ConfigError
from gemmule.losses.divergences import DistillationLoss, Divergence
from gemmule.model.gemma import Gemma
from gemmule.model.tensor_parallel import parallelize
from gemmule.runtime.world import World
from models import GROUPED, random_model, tiny_config

VOCAB = 259  # rows that 2 and 4 ranks hold in uneven parts
TAUGHT = DistillationLoss(Divergence("jsd"), 2.0, 0.3)


def model(seed: int, heads: int = 2) -> Gemma:
    config = tiny_config(GROUPED, vocab_size=VOCAB, num_key_value_heads=heads, num_hidden_layers=2)
    return random_model(config, seed)


def losses(student: Gemma, teacher: Gemma, tokens_BT: Tensor, labels_BT: Tensor) -> list[Tensor]:
    x_ND = student.hidden_states(tokens_BT).flatten(0, 1)
    with torch.no_grad():
        teacher_x_ND = teacher.hidden_states(tokens_BT).flatten(0, 1)
    labels_N = labels_BT.flatten()
    taught, _ = student.head.distillation(x_ND, teacher.head, teacher_x_ND, labels_N, TAUGHT)
    return [student.head.cross_entropy(x_ND, labels_N), taught]


def difference(got: Tensor, expected: Tensor) -> float:
    """Relative."""
    return float((full(got) - expected).norm() / expected.norm())


def full(tensor: Tensor) -> Tensor:
    """Gathered, if it is divided."""
    whole: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return whole


def main(ranks: int) -> None:
    generator = torch.Generator().manual_seed(0)
    tokens, labels = torch.randint(0, VOCAB, (2, 2, 12), generator=generator)
    labels[:, ::5] = -100
    heads = max(ranks, 2)
    with World.from_env("cpu", timeout=60) as world:
        mesh = init_device_mesh("cpu", (ranks,), mesh_dim_names=("tp",))
        whole, parallel = model(0, heads), model(0, heads)
        teacher, parallel_teacher = model(1, heads), model(1, heads).requires_grad_(False)
        parallelize(parallel, mesh)
        parallelize(parallel_teacher, mesh)
        expected = losses(whole, teacher, tokens, labels)
        got = losses(parallel, parallel_teacher, tokens, labels)
        # A teacher that each rank has whole is cut by the head.
        beside = losses(parallel, teacher, tokens, labels)
        sum(expected).backward()
        sum(got).backward()
        pairs = {
            name: (parallel.get_parameter(name).grad, whole.get_parameter(name).grad)
            for name, _ in whole.named_parameters()
        }
        gradients = {name: difference(*pair) for name, pair in pairs.items()}
        squares = [
            torch.stack([t.square().sum() for t in ts])
            for ts in zip(*((full(a) - b, b) for a, b in pairs.values()), strict=True)
        ]
        apart, norm = (float(square.sum().sqrt()) for square in squares)
        with torch.no_grad():
            logits = difference(parallel(tokens), whole(tokens))
        try:
            parallelize(model(0, 1), mesh)
            refused = "accepted"
        except ConfigError as e:
            refused = str(e)
        local = [p.to_local() if hasattr(p, "to_local") else p for p in parallel.parameters()]
        report = {
            "rank": world.rank,
            "held": sum(p.numel() for p in local) / sum(p.numel() for p in whole.parameters()),
            "logits": logits,
            "losses": [difference(a, b) for a, b in zip(got, expected, strict=True)],
            "beside": [difference(a, b) for a, b in zip(beside, expected, strict=True)],
            "values": [x.item() for x in got],
            "gradients": gradients,
            "gradient": apart / norm,
            "refused": refused,
        }
    print(json.dumps(report))


if __name__ == "__main__":
    main(int(sys.argv[1]))
