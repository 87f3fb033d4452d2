"""Adapters of peft: loaded merged, equal to peft's own merge; what cannot be is named."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from gemmule.checkpoints.hf.writer import save_model
from gemmule.checkpoints.load import open_checkpoint
from gemmule.errors import CheckpointError
from gemmule.model.gemma import Gemma
from gemmule.model.tokenizer import Tokenizer
from models import TOKENS, random_model
from peft_adapters import (
    Merged,
    edit_weights,
    merged_by_peft,
    train_adapter,
)

EVERY = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def merged_here(folder: Path, base: Path | None = None) -> tuple[Gemma, tuple[str, ...]]:
    with open_checkpoint(folder, str(base) if base else None) as checkpoint:
        return checkpoint.load(), checkpoint.notes


def check_equal(model: Gemma, theirs: Merged, tolerance: float) -> None:
    """Every weight, the head's too."""
    weights = model.state_dict()
    assert weights.keys() == theirs.weights.keys()
    for name, weight in weights.items():
        expected = theirs.weights[name]
        assert weight.dtype == expected.dtype
        bound = tolerance * expected.abs().max()
        assert (weight.float() - expected.float()).abs().max() <= bound, name
    head, embedding = theirs.head.float(), weights["embed_tokens.weight"].float()
    assert (head - embedding).abs().max() <= tolerance * head.abs().max()


def check_same_function(model: Gemma, theirs: Merged) -> None:
    """The logits of the adapter, before anything was merged."""
    with torch.no_grad():
        logits = model(TOKENS)
    assert theirs.before.abs().max() > 5
    assert (logits - theirs.before).abs().max() <= 5e-5


# --- equal to peft's own merge ------------------------------------------------------------------

CASES: dict[str, dict[str, Any]] = {
    "LoRA": {},
    "every matrix": {"target_modules": EVERY, "r": 8},
    "all-linear": {"target_modules": "all-linear"},
    "a pattern": {"target_modules": r".*layers\.[02]\..*\.(q_proj|up_proj)"},
    "rsLoRA": {"use_rslora": True},
    "DoRA": {"target_modules": EVERY, "use_dora": True},
    "DoRA and rsLoRA": {"use_dora": True, "use_rslora": True, "lora_alpha": 16},
    "ranks and alphas": {
        "target_modules": EVERY,
        "rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\.up_proj": 7},
        "alpha_pattern": {"^model.layers.0.self_attn.k_proj": 3, "mlp.down_proj": 32},
    },
    "some layers": {"layers_to_transform": [0, 2], "layers_pattern": "layers"},
    "all but": {"target_modules": EVERY, "exclude_modules": ["v_proj", "layers.1.mlp.up_proj"]},
    "norms": {"modules_to_save": ["norm", "post_attention_layernorm"]},
    "a whole matrix": {"target_modules": ["q_proj", "o_proj"], "modules_to_save": ["o_proj"]},
    "fan in, fan out": {"fan_in_fan_out": True},  # which peft ignores for such a matrix
    "biases of a model without": {"bias": "all"},
    "tokens": {"trainable_token_indices": [106, 3, 511]},
    "tokens by module": {
        "trainable_token_indices": {"model.embed_tokens": [5, 6], "lm_head": [5, 6]}
    },
    "embedding and head": {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
}


@pytest.mark.parametrize("case", CASES)
def test_merged_as_by_peft(saved: Path, tmp_path: Path, case: str) -> None:
    folder = train_adapter(saved, tmp_path / "adapter", **CASES[case])
    theirs = merged_by_peft(saved, folder, TOKENS)
    model, notes = merged_here(folder)
    # The same sums; matrix products of fewer rows may round otherwise.
    check_equal(model, theirs, tolerance=2e-7)
    check_same_function(model, theirs)
    assert notes == ()
    changed = [
        name for name, weight in random_model().state_dict().items()
        if not torch.equal(weight, model.state_dict()[name])
    ]  # fmt: skip
    assert changed


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "config",
    [
        CASES["every matrix"],
        CASES["DoRA"],
        CASES["norms"],
        CASES["tokens"],
        {"target_modules": ["embed_tokens"]},
        {"target_modules": ["embed_tokens"], "use_dora": True},
    ],
)
def test_a_base_in_half_precision_is_merged_in_half_precision(
    tmp_path: Path, tokenizer: Tokenizer, config: dict[str, Any], dtype: torch.dtype
) -> None:
    base = tmp_path / "base"
    save_model(random_model(), tokenizer, base, dtype=dtype)
    folder = train_adapter(base, tmp_path / "adapter", **config)
    theirs = merged_by_peft(base, folder, TOKENS, dtype)
    model, _ = merged_here(folder)
    for name, weight in model.state_dict().items():
        assert weight.dtype == (torch.bfloat16 if dtype == torch.bfloat16 else torch.float32)
        expected = theirs.weights[name].to(weight.dtype)
        # A product on the border between two numbers may be rounded to the other.
        assert (weight != expected).float().mean() < 1e-3, name
        unit = torch.finfo(dtype).eps
        assert ((weight - expected).abs() <= unit * expected.abs() + 1e-7).all(), name


def test_chunks_of_any_size_make_the_same_matrix(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = train_adapter(
        saved, tmp_path / "adapter", target_modules=["q_proj", "embed_tokens"], use_dora=True
    )
    at_once = merged_here(folder)[0]
    monkeypatch.setattr("gemmule.checkpoints.stored_tensor.CHUNK_BYTES", 3 * 32 * 4)
    for name, weight in merged_here(folder)[0].state_dict().items():
        expected = at_once.state_dict()[name]
        assert (weight - expected).abs().max() <= 2e-7 * expected.abs().max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_an_adapter_in_half_precision_is_computed_in_float32(
    saved: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    folder = train_adapter(saved, tmp_path / "adapter")
    tensors = load_file(folder / "adapter_model.safetensors")
    edit_weights(folder, {name: tensor.to(dtype) for name, tensor in tensors.items()})
    check_equal(merged_here(folder)[0], merged_by_peft(saved, folder, TOKENS), tolerance=2e-7)


def test_names_of_older_versions_and_of_wrappers(saved: Path, tmp_path: Path) -> None:
    folder = train_adapter(saved, tmp_path / "adapter", use_dora=True)
    expected = merged_here(folder)[0].state_dict()
    tensors = load_file(folder / "adapter_model.safetensors")
    renamed: dict[str, torch.Tensor | None] = dict.fromkeys(tensors)
    for name, tensor in tensors.items():
        old = name.replace(".weight", ".default.weight").replace("vector", "vector.default.weight")
        renamed[old.replace("model.layers", "_orig_mod.model.layers")] = tensor
    edit_weights(folder, renamed)
    for name, weight in merged_here(folder)[0].state_dict().items():
        assert torch.equal(weight, expected[name])


# --- the embedding, which is also the head ------------------------------------------------------


@pytest.mark.parametrize("config", [{}, {"use_dora": True}])
def test_an_embedding_is_merged_as_by_peft_and_takes_the_head_with_it(
    saved: Path, tmp_path: Path, config: dict[str, Any]
) -> None:
    targets = ["q_proj", "embed_tokens"]
    folder = train_adapter(saved, tmp_path / "adapter", target_modules=targets, **config)
    model, notes = merged_here(folder)
    check_equal(model, merged_by_peft(saved, folder, TOKENS), tolerance=5e-7)
    assert any("without the head; merged, as in peft's merge_and_unload" in note for note in notes)


def test_an_adapter_of_both_that_peft_ties(saved: Path, tmp_path: Path) -> None:
    """What the adapter computes: peft's merge adds the one product twice."""
    folder = train_adapter(
        saved, tmp_path / "adapter", target_modules=["embed_tokens"], ensure_weight_tying=True
    )
    check_same_function(merged_here(folder)[0], merged_by_peft(saved, folder, TOKENS))


@pytest.mark.parametrize(
    "config",
    [
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": ["embed_tokens", "lm_head"]},
        {"modules_to_save": ["embed_tokens"]},
        {"modules_to_save": ["lm_head"]},
        {"modules_to_save": ["embed_tokens", "lm_head"]},
        {"trainable_token_indices": {"lm_head": [5, 6]}},
        {"trainable_token_indices": {"embed_tokens": [5, 6], "lm_head": [5, 7]}},
        {
            "target_modules": ["embed_tokens"],
            "ensure_weight_tying": True,
            "use_dora": True,
        },
    ],
)
def test_an_untied_head_is_refused(saved: Path, tmp_path: Path, config: dict[str, Any]) -> None:
    folder = train_adapter(saved, tmp_path / "adapter", **config)
    with pytest.raises(CheckpointError, match="untied head: the adapter"):
        merged_here(folder)


def test_an_embedding_that_is_larger_than_the_base(saved: Path, tmp_path: Path) -> None:
    folder = train_adapter(saved, tmp_path / "adapter", rows=526)
    model, _ = merged_here(folder)
    assert model.config.vocab_size == 526
    check_equal(model, merged_by_peft(saved, folder, TOKENS, rows=526), tolerance=2e-7)


def test_new_tokens_that_were_trained_alone(saved: Path, tmp_path: Path) -> None:
    folder = train_adapter(
        saved, tmp_path / "adapter", rows=526, trainable_token_indices=[520, 525]
    )
    check_equal(merged_here(folder)[0], merged_by_peft(saved, folder, TOKENS, rows=526), 2e-7)


def test_a_base_that_stores_its_head_too(saved: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(saved, tmp_path / "base"))
    folder = train_adapter(base, tmp_path / "adapter", trainable_token_indices=[7])
    expected = merged_here(folder)[0].state_dict()
    weights = load_file(base / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, base / "model.safetensors")
    assert torch.equal(merged_here(folder)[0].embed_tokens.weight, expected["embed_tokens.weight"])
    weights["lm_head.weight"][100] += 1
    save_file(weights, base / "model.safetensors")
    with pytest.raises(CheckpointError, match="differs from the embedding"):
        merged_here(folder)
