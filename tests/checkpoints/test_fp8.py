"""Weights in fp8 with scales: by matrix, by row and by block, against plain arithmetic."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from gemmule.checkpoints import stored_tensor
from gemmule.checkpoints.describe import describe
from gemmule.checkpoints.hf.writer import save_model
from gemmule.checkpoints.load import load_model, open_checkpoint
from gemmule.checkpoints.safetensors_file import PREFIX
from gemmule.errors import CheckpointError
from gemmule.model.tokenizer import Tokenizer
from models import DISTINCT, random_model, tiny_config

BLOCK = (16, 24)
CONFIGS: dict[str, dict[str, Any]] = {
    "matrix": {"quant_method": "fp8", "activation_scheme": "static"},
    "row": {"quant_method": "fbgemm_fp8"},
    "column": {"quant_method": "compressed-tensors", "format": "float-quantized"},
    "block": {"quant_method": "fp8", "weight_block_size": list(BLOCK)},
}


def scales_of(weight: torch.Tensor, kind: str) -> torch.Tensor:
    """Scales with which the largest number of each part is the largest of fp8."""
    largest = torch.finfo(torch.float8_e4m3fn).max
    if kind == "matrix":
        return (weight.abs().amax() / largest).reshape(())
    if kind in {"row", "column"}:
        return weight.abs().amax(1, keepdim=kind == "column") / largest
    rows, columns = weight.shape
    height, width = BLOCK
    return torch.stack(
        [
            torch.stack(
                [
                    weight[i : i + height, j : j + width].abs().amax() / largest
                    for j in range(0, columns, width)
                ]
            )
            for i in range(0, rows, height)
        ]
    )


def spread(scale: torch.Tensor, kind: str, shape: torch.Size) -> torch.Tensor:
    """A scale for every number, spelled out."""
    if kind == "block":
        return torch.tensor(
            [
                [scale[i // BLOCK[0], j // BLOCK[1]] for j in range(shape[1])]
                for i in range(shape[0])
            ]
        )
    return (scale.reshape(-1, 1) if kind == "row" else scale).expand(shape)


def written(saved: Path, folder: Path, kind: str) -> dict[str, torch.Tensor]:
    """Writes the model with fp8 matrices; returns the numbers they stand for."""
    shutil.copytree(saved, folder)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = CONFIGS[kind]
    (folder / "config.json").write_text(json.dumps(config))
    stored, meant = {}, {}
    for name, weight in load_file(folder / "model.safetensors").items():
        stored[name] = meant[name.removeprefix(PREFIX)] = weight
        if weight.ndim != 2 or "embed" in name:
            continue
        scale = scales_of(weight, kind)
        full = spread(scale, kind, weight.shape)
        stored[name] = (weight / full).to(torch.float8_e4m3fn)
        stored[f"{name}_scale_inv" if kind == "block" else f"{name}_scale"] = scale
        meant[name.removeprefix(PREFIX)] = stored[name].float() * full
        if kind == "matrix":
            stored[name.replace(".weight", ".input_scale")] = torch.tensor(0.5)
    save_file(stored, folder / "model.safetensors")
    return meant


@pytest.mark.parametrize("kind", CONFIGS)
def test_fp8_is_number_times_scale(
    saved: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored_tensor, "CHUNK_BYTES", 5000)  # chunks end within blocks
    meant = written(saved, tmp_path / "m", kind)
    model, _ = load_model(tmp_path / "m")
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, meant[name]), name
    about = describe(tmp_path / "m")
    assert about["stored_as"].keys() == {"F8_E4M3", "F32"}
    assert about["dtype"] == "float32"
    unused = "scales of quantized activations" in " ".join(about["notes"])
    assert unused == (kind == "matrix")


def test_fp8_in_blocks_as_transformers_dequantizes_it(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    transformers = pytest.importorskip("transformers")
    monkeypatch.setattr(sys.modules[__name__], "BLOCK", (128, 128))  # it takes no others
    monkeypatch.setitem(CONFIGS["block"], "weight_block_size", [128, 128])
    config = tiny_config(
        DISTINCT, hidden_size=256, intermediate_size=384, num_hidden_layers=1, head_dim=64
    )
    save_model(random_model(config, std={"": 0.05}), tokenizer, tmp_path / "whole")
    written(tmp_path / "whole", tmp_path / "m", "block")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "m",
        quantization_config=transformers.FineGrainedFP8Config(dequantize=True),
        dtype=torch.float32,
    ).state_dict()
    model, _ = load_model(tmp_path / "m")
    for name, weight in model.state_dict().items():
        assert torch.equal(theirs[PREFIX + name].float(), weight), name


def test_fp8_without_scales(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path / "m")
    path = tmp_path / "m/model.safetensors"
    weights = {n: w.to(torch.float8_e5m2) for n, w in load_file(path).items()}
    save_file(weights, path)
    model, _ = load_model(tmp_path / "m")
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, weights[PREFIX + name].float())


def test_scales_that_do_not_fit(saved: Path, tmp_path: Path) -> None:
    written(saved, tmp_path / "m", "row")
    path = tmp_path / "m/model.safetensors"
    weights = load_file(path)
    name = "model.layers.0.mlp.up_proj.weight_scale"
    save_file(weights | {name: torch.ones(3)}, path)
    with pytest.raises(CheckpointError, match=r"up_proj\.weight_scale has the shape \[3\]; a weig"):
        open_checkpoint(tmp_path / "m")


def test_a_scale_that_is_not_finite(saved: Path, tmp_path: Path) -> None:
    written(saved, tmp_path / "m", "matrix")
    path = tmp_path / "m/model.safetensors"
    name = "model.layers.0.mlp.up_proj.weight_scale"
    save_file(load_file(path) | {name: torch.tensor(float("inf"))}, path)
    with pytest.raises(CheckpointError, match="holds NaN or Inf"):
        load_model(tmp_path / "m")
