"""A teacher's forward pass with linear layers in int8, against float32, on one thread.

Shapes: the quickstart's teacher (preset 3m, 8 x 256 tokens, without its head), and one layer of a
Gemma 2 2B (1,024 tokens). Weights are random. Times are medians of turns that take each other's
places, eager; `gain` is float32's time over int8's. `operations_per_second` is of the integer
product of the largest layer alone, in 1e9.

    python bench/int8_teacher.py --json bench/results/int8_teacher.json
"""

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gemmule import files
from gemmule.model.config import preset
from gemmule.model.gemma import Block, Gemma, rope_tables
from gemmule.quant.int8_linear import Int8Linear, quantize_linears
from gemmule.runtime import host

Work = Callable[[nn.Module], Tensor]


def teacher(toy: bool) -> tuple[nn.Module, Work]:
    """The quickstart's teacher, and what it does."""
    model = Gemma(preset("1m" if toy else "3m", vocab_size=512 if toy else 4096)).eval()
    ids_BT = torch.randint(4, 512, (1, 32) if toy else (8, 256))
    return model, lambda m: m.hidden_states(ids_BT)  # type: ignore[operator]


def layer(toy: bool) -> tuple[nn.Module, Work]:
    """A layer of a 2B, and what it does."""
    config = preset("1m" if toy else "2b", vocab_size=512)
    block = Block(config, 1).eval()
    for part in block.modules():
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=part.in_features**-0.5)
    tokens = 16 if toy else 1024
    x_BTD = torch.randn(1, tokens, config.hidden_size)
    rope = rope_tables(torch.arange(tokens)[None], config.head_dim, config.rope_theta)
    return block, lambda m: m(x_BTD, rope)


def measured(plain: nn.Module, work: Work, rounds: int) -> dict[str, Any]:
    """Both forms, turn about."""
    rounded = copy.deepcopy(plain)
    quantize_linears(rounded)
    times: dict[str, list[float]] = {"float32": [], "int8": []}
    for turn in range(rounds):
        for name, module in (("float32", plain), ("int8", rounded)):
            if turn == 0 and name == "float32":
                work(module)  # memory is asked for
            began = time.perf_counter()
            work(module)
            times[name].append(time.perf_counter() - began)
    exact, approximate = work(plain), work(rounded)
    medians = {name: statistics.median(values) for name, values in times.items()}
    layers = [m for m in rounded.modules() if isinstance(m, Int8Linear)]
    weight_OI = max((m.weight_OI for m in layers), key=Tensor.numel)
    x_NI = torch.randint(-127, 128, (64, weight_OI.shape[1]), dtype=torch.int8)
    began = time.perf_counter()
    torch._int_mm(x_NI, weight_OI.T)
    rate = 2 * 64 * weight_OI.numel() / (time.perf_counter() - began)
    return {
        "seconds": times,
        "median_seconds": medians,
        "gain": medians["float32"] / medians["int8"],
        "relative_error": float((approximate - exact).norm() / exact.norm()),
        "operations_per_second": rate / 1e9,
    }


@torch.no_grad()
def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--toy", action="store_true", help="small shapes: does it run?")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, default=None)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    report = {
        "machine": host.machine(),
        "versions": host.versions(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": 1,
        "toy": args.toy,
        "teacher": measured(*teacher(args.toy), args.rounds),
        "layer_2b": measured(*layer(args.toy), args.rounds),
    }
    if args.json:
        files.write_json(args.json, report)
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
