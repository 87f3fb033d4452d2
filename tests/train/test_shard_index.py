"""The index of DCP's files is read without running what is in it."""

import os
import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict_saver import save

from gemmule.runtime.world import SOLO
from gemmule.train.shard_files import read_shards
from gemmule.train.shard_index import INDEX


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What DCP writes of three tensors."""
    tensors = {
        "model.weight": torch.arange(6.0).view(2, 3),
        "optimizer.weight.step": torch.tensor(3.0),
        "further.noise": torch.ones(4, dtype=torch.bfloat16),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save(tensors, checkpoint_id=tmp_path / "shards", no_dist=True)
    return tmp_path / "shards"


def read(folder: Path) -> dict[str, Any]:
    further = {"noise": torch.zeros(4, dtype=torch.bfloat16)}
    return read_shards(folder, nn.Linear(3, 2, bias=False), further, SOLO)


def test_what_torch_writes_is_read(folder: Path) -> None:
    got = read(folder)
    assert got["model.weight"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert got["optimizer.weight.step"].item() == 3
    assert got["further.noise"].tolist() == [1, 1, 1, 1]


class Hostile:
    """Makes a folder when it is unpickled."""

    def __init__(self, made: Path) -> None:
        self.made = made

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.made),)


def test_an_index_that_would_run_something_is_refused(folder: Path, tmp_path: Path) -> None:
    (folder / INDEX).write_bytes(pickle.dumps(Hostile(tmp_path / "made")))
    with pytest.raises(ValueError, match=r"it names \w+\.mkdir, which no such index does"):
        read(folder)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("content", [b"", b"nonsense", pickle.dumps([1, 2])])
def test_a_damaged_index_is_refused(folder: Path, content: bytes) -> None:
    (folder / INDEX).write_bytes(content)
    with pytest.raises(ValueError, match=INDEX):
        read(folder)
