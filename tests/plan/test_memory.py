"""Counting memory, and the largest batch."""

import subprocess
import sys

import numpy as np
import pytest

from gemmule.model.config import GemmaConfig, preset
from gemmule.plan import memory
from gemmule.plan.memory import StepShape, counted_bytes, largest_rows, predict_peak

# Peaks of whole training processes, MB of 2^20 bytes, as measured on two cores (docs/plan.md):
# preset, rows, tokens, compiled, whether distilled from preset 3m.
MEASURED = {
    ("1m", 8, 256, False, False): 776,
    ("1m", 16, 256, False, False): 964,
    ("1m", 32, 256, False, False): 1383,
    ("3m", 8, 256, False, False): 1091,
    ("3m", 16, 256, False, False): 1487,
    ("1m", 8, 512, False, False): 1031,
    ("1m", 16, 256, True, False): 926,
    ("1m", 32, 256, True, False): 1227,
    ("3m", 16, 256, True, False): 1290,
    ("1m", 16, 256, True, True): 936,
}
BASES = {(False, False): 776, (True, False): 762, (True, True): 814}  # of 1m at 8 x 256


def sized(name: str) -> GemmaConfig:
    return preset(name, vocab_size=4096)


@pytest.mark.parametrize("case", MEASURED, ids=str)
def test_other_shapes_follow_from_one_measured(case: tuple[str, int, int, bool, bool]) -> None:
    name, rows, seq_len, compiled, distilled = case
    teacher = sized("3m") if distilled else None
    at = StepShape(sized("1m"), 8, 256, compiled, teacher=teacher)
    wanted = StepShape(sized(name), rows, seq_len, compiled, teacher=teacher)
    peak = predict_peak(BASES[compiled, distilled] * 2**20, at, wanted)
    assert peak == pytest.approx(MEASURED[case] * 2**20, rel=0.1)


def test_what_is_counted_grows_with_all_that_costs_memory() -> None:
    plain = counted_bytes(StepShape(sized("1m"), 8, 256, False))
    assert counted_bytes(StepShape(sized("1m"), 16, 256, False)) > 1.5 * plain
    assert counted_bytes(StepShape(sized("1m"), 8, 512, False)) > 1.5 * plain
    assert counted_bytes(StepShape(sized("1m"), 8, 256, True)) < plain
    assert counted_bytes(StepShape(sized("1m"), 8, 256, False, half=True)) < plain
    taught = counted_bytes(StepShape(sized("1m"), 8, 256, False, teacher=sized("3m")))
    assert taught > plain + 4 * sized("3m").parameters


def test_large_models_are_mostly_their_states() -> None:
    big = sized("1b")
    counted = counted_bytes(StepShape(big, 1, 16, True))
    assert 12 * big.non_embedding_parameters < counted < 30 * big.parameters


def test_keys_of_a_window() -> None:
    # Two blocks of 128 queries: the first meets 128 keys, the second 255 with a window of 128.
    assert memory._keys(256, None) == (128 * 128 + 128 * 256) / 256
    assert memory._keys(256, 128) == (128 * 128 + 128 * 255) / 256
    assert memory._keys(24, 8) == 24


def test_the_largest_batch_leaves_a_margin() -> None:
    assert largest_rows(lambda rows: 100.0 + 10 * rows, 1000.0) == 80
    assert largest_rows(lambda rows: 950.0 + rows, 1000.0) == 0
    assert largest_rows(lambda rows: 0.0, 1.0, max_rows=64) == 64


def test_a_large_parent_does_not_count() -> None:
    """A new process's peak is its own, whatever started it."""
    ours = np.ones(100_000_000)  # 800 MB
    code = "import torch; from gemmule.runtime import memory; print(memory.peak())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 50e6 < int(done.stdout) < ours.nbytes
