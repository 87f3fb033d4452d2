"""Models that are not Gemma 2, and quantized forms that cannot be read, are refused by name."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from gemmule.checkpoints.checkpoint import weights_fingerprint
from gemmule.checkpoints.load import load_model, open_checkpoint
from gemmule.checkpoints.locate import locate
from gemmule.errors import CheckpointError
from gemmule.teachers.open import is_gemma
from models import random_model


def changed(saved: Path, folder: Path, config: dict[str, Any], drop: tuple[str, ...] = ()) -> Path:
    shutil.copytree(saved, folder)
    values = json.loads((folder / "config.json").read_text()) | config
    for name in drop:
        del values[name]
    (folder / "config.json").write_text(json.dumps(values))
    return folder


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as e:
        open_checkpoint(folder)
    message = str(e.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("config", "name", "programs"),
    [
        ({"model_type": "gemma"}, "Gemma 1 or CodeGemma", "transformers and llama.cpp can run it"),
        ({"model_type": "gemma3"}, "Gemma 3 with images, or MedGemma", "llama.cpp can run it"),
        ({"model_type": "gemma3_text"}, "Gemma 3 (model_type", "as a teacher, through"),
        (
            {"model_type": "gemma3_text", "use_bidirectional_attention": True},
            "EmbeddingGemma, which embeds texts", "llama.cpp can run it",
        ),
        ({"model_type": "gemma3n"}, "Gemma 3n", "llama.cpp can run it"),
        ({"model_type": "gemma4"}, "Gemma 4", "llama.cpp can run it"),
        ({"model_type": "recurrent_gemma"}, "RecurrentGemma", "transformers can run it"),
        (
            {"model_type": "paligemma", "text_config": {"model_type": "gemma"}},
            "PaliGemma 1, which takes images", "transformers can run it",
        ),
        (
            {"model_type": "paligemma", "text_config": {"model_type": "gemma2"}},
            "PaliGemma 2, which takes images", "transformers can run it",
        ),
        ({"model_type": "t5gemma"}, "T5Gemma, an encoder and decoder", "transformers can run it"),
        ({"model_type": "shieldgemma2"}, "ShieldGemma 2, a classifier of images", "transformers"),
        ({"model_type": "vaultgemma"}, "VaultGemma", "as a teacher, through transformers"),
        (
            {"model_type": "internvl", "text_config": {"model_type": "gemma2"}},
            "a model of type 'internvl' around a Gemma 2", "transformers can run it",
        ),
        (
            {"model_type": "llama", "architectures": ["LlamaForCausalLM"]},
            "a model of type 'llama' (LlamaForCausalLM)", "as a teacher, through transformers",
        ),
    ],
)  # fmt: skip
def test_other_models_are_named(
    saved: Path, tmp_path: Path, config: dict[str, Any], name: str, programs: str
) -> None:
    message = refusal(changed(saved, tmp_path / "m", config))
    assert f"describes {name}" in message
    assert "only Gemma 2 can be loaded" in message
    assert programs in message
    assert not is_gemma(locate(tmp_path / "m"))


def test_another_model_is_named_before_its_weights_are_missed(saved: Path, tmp_path: Path) -> None:
    folder = changed(saved, tmp_path / "m", {"model_type": "gemma"})
    (folder / "model.safetensors").unlink()
    assert "describes Gemma 1" in refusal(folder)
    torch.save({"x": torch.zeros(2)}, folder / "pytorch_model.bin")
    assert "describes Gemma 1" in refusal(folder)
    assert not is_gemma(locate(folder))


@pytest.mark.parametrize(
    "name",
    ["ShieldGemma", "DataGemma", "Gemma 2 JPN"],  # all are Gemma2ForCausalLM
)
def test_fine_tunes_of_gemma_2_load(saved: Path, tmp_path: Path, name: str) -> None:
    config = {"_name_or_path": name, "torch_dtype": "bfloat16", "transformers_version": "4.42.4"}
    model, _ = load_model(changed(saved, tmp_path / "m", config))
    assert weights_fingerprint(model) == weights_fingerprint(random_model())


def test_a_class_stands_in_for_a_missing_model_type(saved: Path, tmp_path: Path) -> None:
    folder = changed(saved, tmp_path / "m", {}, drop=("model_type",))
    model, _ = load_model(folder)
    assert weights_fingerprint(model) == weights_fingerprint(random_model())
    assert is_gemma(locate(folder))
    without = changed(saved, tmp_path / "n", {}, drop=("model_type", "architectures"))
    assert "no known model: it has no model_type" in refusal(without)


def test_sizes_that_are_floats(saved: Path, tmp_path: Path) -> None:
    hidden = json.loads((saved / "config.json").read_text())["hidden_size"]
    load_model(changed(saved, tmp_path / "m", {"hidden_size": float(hidden)}))
    assert "hidden_size" in refusal(changed(saved, tmp_path / "n", {"hidden_size": hidden + 0.5}))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_none(saved: Path, tmp_path: Path, value: float) -> None:
    """Python writes and reads NaN and Infinity in JSON."""
    assert "rms_norm_eps" in refusal(changed(saved, tmp_path / "m", {"rms_norm_eps": value}))
    folder = changed(saved, tmp_path / "n", {"initializer_range": value})  # not used here
    load_model(folder)


def test_a_byte_order_mark(saved: Path, tmp_path: Path) -> None:
    folder = changed(saved, tmp_path / "m", {})
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text, encoding="utf-8-sig")
    load_model(folder)


# --- quantized forms ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "method"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes, 4 bits"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "bitsandbytes, 8 bits"),
        ({"load_in_4bit": True}, "bitsandbytes, 4 bits"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, "GPTQ, 4 bits"),
        ({"quant_method": "awq", "bits": 4}, "AWQ, 4 bits"),
        ({"quant_method": "compressed-tensors", "format": "pack-quantized"}, "compressed-tensors"),
        ({"quant_method": "torchao", "quant_type": "int4_weight"}, "torchao, int4_weight"),
        ({"quant_method": "hqq"}, "HQQ"),
        ({"quant_method": "exl2", "bits": 4.25}, r"ExLlamaV2 (EXL2), 4.25 bits"),
        ({"quant_method": "aqlm"}, "AQLM"),
        ({"quant_method": "mxfp4"}, "MXFP4"),
        ({"quant_method": "new"}, "the unknown method 'new'"),
        (3, "3"),
    ],
)  # fmt: skip
def test_quantized_forms_are_named_by_the_config(
    saved: Path, tmp_path: Path, config: object, method: str
) -> None:
    message = refusal(changed(saved, tmp_path / "m", {"quantization_config": config}))
    assert f"the weights are quantized ({method}" in message
    assert "Give the model from before it was quantized, or a GGUF file of it" in message


@pytest.mark.parametrize("key", ["quantization_config", "compression_config"])
def test_an_empty_entry_is_no_quantization(saved: Path, tmp_path: Path, key: str) -> None:
    model, _ = load_model(changed(saved, tmp_path / "m", {key: {}}))
    assert weights_fingerprint(model) == weights_fingerprint(load_model(saved)[0])


def test_mlx_is_named(saved: Path, tmp_path: Path) -> None:
    quantization = {"group_size": 64, "bits": 4}
    folder = changed(saved, tmp_path / "m", {"quantization": quantization})
    assert "(MLX, 4 bits in groups of 64)" in refusal(folder)


@pytest.mark.parametrize("torch_file", [False, True])
@pytest.mark.parametrize(
    ("ending", "method"),
    [
        ("weight.absmax", "bitsandbytes, 4 bits"),
        ("weight.quant_state.bitsandbytes__nf4", "bitsandbytes, 4 bits"),
        ("SCB", "bitsandbytes, 8 bits"),
        ("g_idx", "GPTQ"),
        ("qzeros", "GPTQ or AWQ"),
        ("q_scale_max", "ExLlamaV2 (EXL2)"),
        ("trellis", "ExLlamaV3 (EXL3)"),
        ("W_q", "HQQ"),
        ("biases", "MLX"),
        ("weight_packed", "compressed-tensors"),
    ],
)
def test_quantized_forms_are_named_by_the_weights(
    saved: Path, tmp_path: Path, ending: str, method: str, torch_file: bool
) -> None:
    folder = changed(saved, tmp_path / "m", {})
    weights = load_file(folder / "model.safetensors")
    weights[f"model.layers.0.self_attn.q_proj.{ending}"] = torch.zeros(3)
    if torch_file:
        (folder / "model.safetensors").unlink()
        torch.save(weights, folder / "pytorch_model.bin")
    else:
        save_file(weights, folder / "model.safetensors")
    assert f"the weights are quantized ({method})" in refusal(folder)
