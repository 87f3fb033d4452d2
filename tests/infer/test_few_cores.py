"""More threads than cores: answers come, with the same bits."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from gemmule.quant import native

TESTS = Path(__file__).parents[1]
SCRIPT = textwrap.dedent(
    """
    import os, sys
    sys.path[:0] = [sys.argv[1], sys.argv[1] + "/infer"]
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores if sys.argv[2] == "all" else cores[:1])
    import torch
    from gemmule.infer.core.request import Request
    from gemmule.infer.core.sampling import SamplingParams
    from gemmule.infer.driver import Engine
    from gemmule.infer.runners.native_runner import NativeRunner
    from models import GROUPED, random_model, tiny_config

    config = tiny_config(GROUPED, vocab_size=544, max_position_embeddings=256)
    engine = Engine(NativeRunner(random_model(config, 3), threads=int(sys.argv[3])))
    params = SamplingParams(max_new_tokens=40, temperature=1.0, seed=1)
    asked = [Request([i, 5, 6], params) for i in range(2, 8)]
    print([completion.ids for completion in engine.complete(asked)])
    """
)


def ids_with(cores: str, threads: int) -> str:
    command = [sys.executable, "-c", SCRIPT, str(TESTS), cores, str(threads)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    # Threads that only spun would wait for the scheduler's turn at every product: many minutes.
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=240, env=environment
    )
    return done.stdout


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs affinity masks")
@pytest.mark.skipif(not native.available(), reason="the kernels are not installed")
def test_more_threads_than_the_affinity_mask_has_cores() -> None:
    assert ids_with("one", 4) == ids_with("all", 1)
