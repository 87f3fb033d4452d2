"""The doctor examines a checkpoint of every kind that loads."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from gemmule.checkpoints.convert import convert
from gemmule.doctor.examine import run_doctor
from gemmule.doctor.report import FAIL
from gemmule.quantize import quantize

Make = Callable[[str, Path], object]


def torch_file(folder: str, out: Path) -> None:
    shutil.copytree(folder, out)
    torch.save(load_file(out / "model.safetensors"), out / "pytorch_model.bin")
    (out / "model.safetensors").unlink()


def without_tokenizer(folder: str, out: Path) -> None:
    shutil.copytree(folder, out)
    for path in out.glob("tokenizer*"):
        path.unlink()


KINDS: dict[str, Make] = {
    "gguf": lambda folder, out: convert(folder, out, "gguf", "Q8_0", verify=False),
    "ckpt": lambda folder, out: convert(folder, out, "gemma_pytorch", verify=False),
    "torch": torch_file,
    "int8": lambda folder, out: quantize(folder, "int8", out),
    "no tokenizer": without_tokenizer,
}


@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=() if k == "int8" else pytest.mark.slow) for k in KINDS]
)
def test_no_kind_of_file_fails_a_check(folder: str, tmp_path: Path, kind: str) -> None:
    KINDS[kind](folder, tmp_path / "m")
    report = run_doctor(str(tmp_path / "m"))
    assert not [row for row in report.rows if row.result == FAIL]
    assert len(report.rows) > 8
