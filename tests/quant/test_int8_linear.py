"""Linear layers in int8 against the plain version and against fp32."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from gemmule.quant.int8_linear import Int8Linear, quantize_linears, quantized, speed

BENCH = Path(__file__).parents[2] / "bench" / "int8_teacher.py"


def layer(inputs: int, outputs: int, bias: bool = False) -> nn.Linear:
    linear = nn.Linear(inputs, outputs, bias=bias)
    with torch.no_grad():
        linear.weight.copy_(torch.randn(outputs, inputs) * torch.rand(outputs, 1) * 3)
    return linear


@pytest.mark.parametrize("seed", range(12))
def test_fast_and_plain_agree(seed: int) -> None:
    """Odd sizes, single tokens, more dimensions, a bias."""
    torch.manual_seed(seed)
    pick = random.Random(seed)
    inputs, outputs = pick.randint(1, 300), pick.randint(1, 300)
    shape = [pick.randint(1, 9) for _ in range(pick.randint(1, 3))]
    quant = Int8Linear(layer(inputs, outputs, bias=bool(seed % 2)))
    x = torch.randn(*shape, inputs) * 10 ** pick.uniform(-6, 6)
    torch.testing.assert_close(
        quant(x), quant.plain(x), rtol=1e-5, atol=1e-6 * float(x.abs().max())
    )
    assert quant(x).shape == (*shape, outputs)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_sums_do_not_saturate(sign: int) -> None:
    """Pairs of products past 16 bits, where instructions older than VNNI saturate."""
    ones = nn.Linear(4096, 48, bias=False)
    with torch.no_grad():
        ones.weight.fill_(1.0)
    x = torch.full((20, 4096), float(sign))
    torch.testing.assert_close(Int8Linear(ones)(x), torch.full((20, 48), 4096.0 * sign))


def test_close_to_fp32() -> None:
    torch.manual_seed(0)
    plain = layer(256, 128, bias=True)
    x = torch.randn(40, 256)
    error = (Int8Linear(plain)(x) - plain(x)).norm() / plain(x).norm()
    assert 1e-4 < error < 0.02


def test_a_row_of_zeros_stays_zero() -> None:
    q, scale = quantized(torch.zeros(2, 5))
    assert not q.any()
    assert bool((scale > 0).all())


def test_half_precision_comes_back_in_its_dtype() -> None:
    quant = Int8Linear(layer(32, 16))
    assert quant(torch.randn(3, 32, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_replaces_all_but_the_head() -> None:
    head = nn.Linear(8, 20, bias=False)
    network = nn.Sequential(nn.Linear(8, 8), nn.Sequential(nn.GELU(), nn.Linear(8, 8)), head)
    assert quantize_linears(network, keep=head.weight) == 2
    assert network[2] is head
    assert network(torch.randn(2, 8)).shape == (2, 20)
    assert isinstance(network[0], Int8Linear)
    assert 0 < speed(network, 64) < 1000


def test_the_benchmark_runs(tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    command = [sys.executable, str(BENCH), "--toy", "--rounds=1", f"--json={out}"]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    report = json.loads(out.read_text())
    for name in ("teacher", "layer_2b"):
        assert report[name]["gain"] > 0
        assert 0 < report[name]["relative_error"] < 0.1
