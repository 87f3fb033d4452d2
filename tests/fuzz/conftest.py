"""The fuzzing targets, built once."""

from collections.abc import Iterator

import pytest
import targets
import torch


@pytest.fixture(scope="session")
def everything() -> Iterator[dict[str, targets.Target]]:
    threads = torch.get_num_threads()
    yield targets.build()
    torch.set_num_threads(threads)
