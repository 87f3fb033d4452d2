"""Names of weights from all the wrappers that models are trained in."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from gemmule.checkpoints.checkpoint import weights_fingerprint
from gemmule.checkpoints.describe import describe
from gemmule.checkpoints.load import load_model, open_checkpoint
from gemmule.checkpoints.parameter_names import is_buffer, parameter_name, parameter_names
from gemmule.errors import CheckpointError
from models import random_model

Weights = dict[str, torch.Tensor]
PREFIXES = [
    "", "_orig_mod.", "module.", "model.", "base_model.model.", "_fsdp_wrapped_module.",
    "language_model.", "model.language_model.", "module._orig_mod.", "_orig_mod.module.",
    "base_model.model.model.", "model.model.", "_forward_module.module.",
]  # fmt: skip


def written(saved: Path, folder: Path, weights: Weights, file: str) -> Path:
    shutil.copytree(saved, folder)
    (folder / "model.safetensors").unlink()
    (save_file if file.endswith("safetensors") else torch.save)(weights, folder / file)
    return folder


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("prefix", PREFIXES)
def test_prefixes_are_removed(saved: Path, tmp_path: Path, prefix: str, file: str) -> None:
    weights = load_file(saved / "model.safetensors")
    weights = {prefix + name.removeprefix("model."): w for name, w in weights.items()}
    weights[f"{prefix}lm_head.weight"] = weights[f"{prefix}embed_tokens.weight"].clone()
    folder = written(saved, tmp_path / "m", weights, file)
    model, _ = load_model(folder)
    assert weights_fingerprint(model) == weights_fingerprint(random_model())
    notes = " ".join(describe(folder)["notes"])
    assert (f"removed from the weights' names: {prefix}" in notes) == (prefix not in {"", "model."})


def test_a_compiled_model_has_one_prefix() -> None:
    names = ["_orig_mod.model.norm.weight", "_orig_mod.lm_head.weight"]
    assert parameter_names(dict.fromkeys(names, (2,)), "m").prefixes == ("_orig_mod.",)


def test_what_wrappers_insert_is_removed() -> None:
    stored = "model.layers.3._checkpoint_wrapped_module._orig_mod.mlp.up_proj.weight"
    assert parameter_name(stored) == "layers.3.mlp.up_proj.weight"
    names = parameter_names({stored: (2, 2)}, "m")
    assert names.prefixes == ("_checkpoint_wrapped_module._orig_mod.",)


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_buffers_are_left_out(saved: Path, tmp_path: Path, file: str) -> None:
    weights = load_file(saved / "model.safetensors")
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(8)
    weights["model.rotary_emb.original_inv_freq"] = torch.zeros(8)
    weights["model.position_ids"] = torch.zeros(1, 2, 3, dtype=torch.int64)
    folder = written(saved, tmp_path / "m", weights, file)
    model, _ = load_model(folder)
    assert weights_fingerprint(model) == weights_fingerprint(random_model())


def test_left_out_buffers_are_counted(saved: Path, tmp_path: Path) -> None:
    weights = load_file(saved / "model.safetensors")
    for i in range(3):
        weights[f"model.layers.{i}.self_attn.rotary_emb.inv_freq"] = torch.zeros(8)
    folder = written(saved, tmp_path / "m", weights, "model.safetensors")
    assert "left out: 3 buffers that the config determines, such as model.layers.0" in " ".join(
        describe(folder)["notes"]
    )
    assert not is_buffer("model.norm.weight")


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("score.weight", (2, 64), r"sequence classifier or reward model \(2 labels, score\.weight"),
        ("score.weight", (1, 64), r"reward model \(1 label, score\.weight\).*AutoModelForSequence"),
        ("model.classifier.weight", (5, 64), r"\(5 labels, classifier\.weight\)"),
        ("v_head.summary.weight", (1, 64), r"with a value head \(v_head\.summary\.weight\)"),
        ("value_head.weight", (1, 64), r"with a value head \(value_head\.weight\)"),
        ("model.layers.0.self_attn.q_proj.lora_A.default.weight", (4, 64), "holds an adapter ins"),
    ],
)
def test_other_heads_are_named(
    saved: Path, tmp_path: Path, name: str, shape: tuple[int, ...], message: str, file: str
) -> None:
    weights = load_file(saved / "model.safetensors") | {name: torch.zeros(shape)}
    folder = written(saved, tmp_path / "m", weights, file)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Gemma2ForSequenceClassification", r"sequence classifier .*\(3 labels, Gemma2ForSequence"),
        ("Gemma2ForTokenClassification", r"token classifier .*AutoModelForTokenClassification"),
    ],
)
def test_a_classifier_is_named_by_its_config(
    saved: Path, tmp_path: Path, name: str, message: str
) -> None:
    shutil.copytree(saved, tmp_path / "m")
    config = json.loads((saved / "config.json").read_text())
    config |= {"architectures": [name], "id2label": {"0": "a", "1": "b", "2": "c"}}
    (tmp_path / "m/config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(tmp_path / "m")


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_a_name_that_is_written_twice(saved: Path, tmp_path: Path, file: str) -> None:
    weights = load_file(saved / "model.safetensors")
    weights["_orig_mod.model.norm.weight"] = weights["model.norm.weight"].clone()
    folder = written(saved, tmp_path / "m", weights, file)
    with pytest.raises(CheckpointError, match=r"norm\.weight is stored twice, as .* and as "):
        open_checkpoint(folder)


@pytest.mark.parametrize("prefix", ["policy.", "llm.", "transformer.model.", "actor.module."])
def test_any_prefix_that_all_names_share_is_removed(
    saved: Path, tmp_path: Path, prefix: str
) -> None:
    weights = load_file(saved / "model.safetensors")
    folder = written(
        saved, tmp_path / "m", {prefix + n: w for n, w in weights.items()}, "model.safetensors"
    )
    assert weights_fingerprint(load_model(folder)[0]) == weights_fingerprint(random_model())
    assert f"removed from the weights' names: {prefix}" in " ".join(describe(folder)["notes"])


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_the_embedding_stored_as_the_head(saved: Path, tmp_path: Path, file: str) -> None:
    weights = load_file(saved / "model.safetensors")
    weights["lm_head.weight"] = weights.pop("model.embed_tokens.weight")
    folder = written(saved, tmp_path / "m", weights, file)
    assert weights_fingerprint(load_model(folder)[0]) == weights_fingerprint(random_model())
    assert "the embedding is stored as lm_head.weight" in " ".join(describe(folder)["notes"])


def test_names_of_two_models_are_refused_by_info_too(saved: Path, tmp_path: Path) -> None:
    weights = load_file(saved / "model.safetensors")
    both = {f"{who}.{n}": w.clone() for who in ("policy", "critic") for n, w in weights.items()}
    folder = written(saved, tmp_path / "m", both, "model.safetensors")
    for read in (load_model, describe):
        with pytest.raises(CheckpointError, match="other names than a Gemma 2's: "):
            read(folder)
