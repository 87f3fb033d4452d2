"""Adapters that are broken, of another kind or for another model: one clear error each."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from gemmule.checkpoints.adapters.config import read_config
from gemmule.checkpoints.hf.writer import save_model
from gemmule.checkpoints.load import open_checkpoint
from gemmule.errors import CheckpointError, ConfigError
from gemmule.model.tokenizer import Tokenizer
from models import random_model, tiny_config
from peft_adapters import QUERY, edit_config, edit_weights, train_adapter

MERGE = r"merge it with peft \(merge_and_unload, then save_pretrained\)"


@pytest.fixture
def adapter(saved: Path, tmp_path: Path) -> Path:
    """A sound adapter to damage."""
    return train_adapter(saved, tmp_path / "adapter")


def load(folder: Path, base: Path | None = None) -> None:
    with open_checkpoint(folder, str(base) if base else None) as checkpoint:
        checkpoint.load()


# --- the config ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, f"an adapter of type 'IA3'; only LoRA and DoRA .* {MERGE}"),
        ({"peft_type": "LOHA"}, f"an adapter of type 'LOHA'.* {MERGE}"),
        ({"peft_type": "VERA"}, f"an adapter of type 'VERA'.* {MERGE}"),
        ({"peft_type": "OFT"}, f"an adapter of type 'OFT'.* {MERGE}"),
        ({"peft_type": "ADALORA"}, f"an adapter of type 'ADALORA'.* {MERGE}"),
        ({"peft_type": "PREFIX_TUNING"}, "'PREFIX_TUNING'.* run it with peft: it cannot be merged"),
        ({"peft_type": "PROMPT_TUNING"}, "'PROMPT_TUNING'.* it cannot be merged"),
        ({"peft_type": None}, "peft_type is None; expected 'LORA'"),
        ({"peft_type": ["LORA"]}, r"peft_type is \['LORA'\]; expected 'LORA'"),
        ({"task_type": "SEQ_CLS"}, "task_type is 'SEQ_CLS'; only adapters of language models"),
        ({"alora_invocation_tokens": [5]}, "activated LoRA: run it with peft: it cannot be merged"),
        ({"layer_replication": [[0, 2], [1, 3]]}, f"layer replication: {MERGE}"),
        ({"lora_bias": True}, "does not implement biases: Gemma 2 has none"),
        ({"target_parameters": ["mlp.up_proj.weight"]}, f"of single parameters: {MERGE}"),
        ({"use_qalora": True}, f"QA-LoRA: {MERGE}"),
        ({"kasa_config": {"svd_rank": 2}}, f"KaSA: {MERGE}"),
        ({"init_lora_weights": "pissa_niter_4"}, "path_initial_model_for_weight_conversion, or "),
        ({"init_lora_weights": "olora"}, "which also changed the base's weights"),
        ({"r": "8"}, "r is '8'; expected a whole number from 1 on"),
        ({"r": 0}, "r is 0; expected a whole number"),
        ({"r": True}, "r is True; expected a whole number"),
        ({"r": 5}, r"the lora_A of model\.layers\.0.* is \[4, 32\], and .* says rank 5"),
        ({"lora_alpha": float("nan")}, "lora_alpha is nan; expected a finite number"),
        ({"lora_alpha": None}, "lora_alpha is None; expected a finite number"),
        ({"use_dora": "yes"}, "use_dora is 'yes'; expected true or false"),
        ({"use_dora": True}, "lacks the magnitudes of .* says DoRA: download or save it again"),
        ({"rank_pattern": {"q_proj": 3}}, "says rank 3: the two belong to different adapters"),
        ({"rank_pattern": {"q_proj": "4"}}, "rank_pattern is .* expected an object"),
        ({"alpha_pattern": {"(q_proj": 4}}, r"has the pattern '\(q_proj', which is not a regular"),
        ({"alpha_pattern": {"(.*.*)*x": 4}}, r"or too complex a one; "),
        ({"target_modules": ["k_proj"]}, "is not among the target_modules of adapter_config.json"),
        ({"target_modules": {"q_proj": 1}}, "target_modules is .* expected names, or a pattern"),
        ({"layers_to_transform": [1]}, r"weights for model\.layers\.[02]\..* not among"),
        ({"layers_to_transform": "0"}, "layers_to_transform is '0'; expected numbers of layers"),
        ({"trainable_token_indices": 3}, "trainable_token_indices is 3; expected token ids"),
        ({"base_model_name_or_path": 3}, "path is 3; expected printable text or null"),
        ({"base_model_name_or_path": None}, r"what its base is\. To name it: .*--base MODEL"),
        ({"base_model_name_or_path": "a\0b"}, r"is 'a\\x00b'; expected printable text or null"),
    ],
)  # fmt: skip
def test_configs(adapter: Path, changes: dict[str, Any], message: str) -> None:
    edit_config(adapter, **changes)
    with pytest.raises(CheckpointError, match=message) as e:
        load(adapter)
    assert str(adapter) in str(e.value)


def test_settings_that_a_newer_peft_wrote_are_ignored_and_told(adapter: Path) -> None:
    edit_config(adapter, **{"use\x1b_everything": True, "another": None})
    with open_checkpoint(adapter) as checkpoint:
        assert checkpoint.notes == (
            "settings of the adapter that gemmule does not know and ignores: 'another', "
            "'use\\x1b_everything'",
        )


@pytest.mark.parametrize("content", ["", "{", "[1]", "\udcff", "[" * 100_000, '"LORA"'])
def test_configs_that_are_none(adapter: Path, content: str) -> None:
    (adapter / "adapter_config.json").write_text(content, errors="surrogateescape")
    with pytest.raises(CheckpointError, match=r"adapter_config\.json"):
        load(adapter)


def test_what_is_left_out_has_pefts_defaults(adapter: Path) -> None:
    (adapter / "adapter_config.json").write_text('\ufeff{"peft_type": "LORA"}')
    config = read_config(adapter)
    assert (config.r, config.alpha, config.scale("x"), config.base) == (8, 8, 1, None)


# --- the weights --------------------------------------------------------------------------------


Damage = Callable[[Path], object]


def changed(name: str, change: Callable[[torch.Tensor], torch.Tensor | None]) -> Damage:
    def damage(folder: Path) -> None:
        tensor = load_file(folder / "adapter_model.safetensors")[name]
        edit_weights(folder, {name: change(tensor)})

    return damage


def added(name: str, *shape: int) -> Damage:
    return lambda folder: edit_weights(folder, {name: torch.zeros(shape)})


def replaced(content: bytes) -> Damage:
    return lambda folder: (folder / "adapter_model.safetensors").write_bytes(content)


def cut(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def overflowing(folder: Path) -> None:
    factors = {f"{QUERY}.lora_{x}.weight": shape for x, shape in (("A", (4, 32)), ("B", (64, 4)))}
    edit_weights(folder, {name: torch.full(shape, 1e30) for name, shape in factors.items()})


def emptied(folder: Path) -> None:
    edit_weights(folder, dict.fromkeys(load_file(folder / "adapter_model.safetensors")))


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 2\n"
_LAYER = "base_model.model.model.layers"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (changed(f"{QUERY}.lora_B.weight", lambda _: None), "lacks the lora_B of model.layers.0"),
        (changed(f"{QUERY}.lora_A.weight", lambda _: None), "lacks the lora_A of model.layers.0"),
        (changed(f"{QUERY}.lora_B.weight", lambda t: t[:, :3].clone()), "no product of rank 4"),
        (changed(f"{QUERY}.lora_B.weight", lambda t: t[0].clone()), "no product of rank 4"),
        (changed(f"{QUERY}.lora_B.weight", lambda t: t[:60].clone()), r"q_proj of \[60, 32\], and"),
        (changed(f"{QUERY}.lora_A.weight", lambda t: t[:, :5].clone()), r"is \[64, 32\]: give the"),
        (changed(f"{QUERY}.lora_A.weight", lambda t: t * torch.nan), r"lora_A\.weight holds NaN"),
        (changed(f"{QUERY}.lora_B.weight", lambda t: t * torch.inf), "holds NaN or Inf"),
        (changed(f"{QUERY}.lora_B.weight", lambda t: t.int()), "is stored as I32; supported are"),
        (overflowing, "holds NaN or Inf"),
        (added(f"{QUERY}.lora_magnitude_vector", 64), "has the magnitudes of .* says LoRA"),
        (added(f"{QUERY}.lora_diag", 4), "KaSA is not implemented"),
        (added(f"{QUERY}.lora_B.bias", 64), "lora_B.bias': Gemma 2 has no biases"),
        (added(f"{QUERY}.weight", 64, 32), "lora_A and lora_B and weight .* exclude each other"),
        (added(f"{QUERY}.hada_w1_a", 4, 4), "which is not part of a LoRA or DoRA adapter"),
        (added("prompt_embeddings", 4, 32), "trained prompts cannot be merged"),
        (added("base_model.model.score.weight", 2, 32), "a classifier is not a language model"),
        (added(f"{_LAYER}.9.mlp.up_proj.lora_A.weight", 4, 32), r"changes model\.layers\.9\.mlp"),
        (added(f"{_LAYER}.0.mlp.up_proj.weight", 40, 32), r"for a model.* of \[40, 32\], and"),
        (added("base_model.model.model.norm.weight", 31), r"model\.norm of \[31\], and that of"),
        (added("base_model.model.model.embed_tokens.base_layer.weight", 520, 31), r"\[520, 31\]"),
        (added(f"{QUERY}.token_adapter.trainable_tokens_delta", 1, 32), "trained tokens in"),
        (added("something", 1), "holds 'something', which is not part of"),
        (added(f"{QUERY}.lora_A.default.weight", 4, 32), "the lora_A of .* is stored twice"),
        (cut, "is not a readable safetensors file, or was cut short"),
        (emptied, "holds no tensors"),
        (replaced(b""), "cannot be read, or was cut short"),
        (replaced(POINTER), "adapter_model.safetensors is a Git LFS pointer.*: run git lfs pull"),
        (lambda folder: (folder / "adapter_model.safetensors").rename(folder / "adapter_model.pt"),
         r"has no adapter_model\.safetensors or adapter_model\.bin; it has adapter_model\.pt"),
    ],
)  # fmt: skip
def test_weights(adapter: Path, damage: Damage, message: str) -> None:
    damage(adapter)
    with pytest.raises(CheckpointError, match=message) as e:
        load(adapter)
    assert str(adapter) in str(e.value)


@pytest.mark.parametrize("shape", [(60,), (1, 64), (64, 1)])
def test_magnitudes_of_another_shape(saved: Path, tmp_path: Path, shape: tuple[int, ...]) -> None:
    folder = train_adapter(saved, tmp_path / "adapter", use_dora=True)
    edit_weights(folder, {f"{QUERY}.lora_magnitude_vector": torch.ones(shape)})
    with pytest.raises(CheckpointError, match=r"DoRA's magnitudes of .* expected \[64\]"):
        load(folder)


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ([5, 520], r"has a trained token 520; its base .* has 520 tokens: give the base"),
        ([5], r"are \[2, 32\]; adapter_config\.json names 1 token ids"),
        ([5, 5], "names 1 token ids"),
    ],
)
def test_trained_tokens(saved: Path, tmp_path: Path, indices: list[int], message: str) -> None:
    folder = train_adapter(saved, tmp_path / "adapter", trainable_token_indices=[5, 6])
    edit_config(folder, trainable_token_indices=indices)
    with pytest.raises(CheckpointError, match=message):
        load(folder)


def test_modules_that_were_not_saved_are_told(adapter: Path) -> None:
    edit_weights(adapter, {f"{QUERY}.lora_{x}.weight": None for x in "AB"})
    with open_checkpoint(adapter) as checkpoint:
        assert checkpoint.notes == (
            "the adapter's config names 1 modules that its file has no weights for, which stay as "
            "in the base: model.layers.0.self_attn.q_proj",
        )


@pytest.mark.parametrize("config", [True, False])
def test_a_config_without_weights(saved: Path, adapter: Path, config: bool) -> None:
    (adapter / "adapter_model.safetensors").unlink()
    if config:
        shutil.copy(saved / "config.json", adapter)
    with pytest.raises(CheckpointError, match=r"has no adapter_model.* it has no weights"):
        load(adapter)


def test_mlx(adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").rename(adapter / "adapters.safetensors")
    (adapter / "adapter_config.json").write_text('{"fine_tune_type": "lora", "num_layers": 16}')
    with pytest.raises(CheckpointError, match=r"an adapter of MLX, .* with mlx_lm\.fuse"):
        load(adapter)


# --- torch files --------------------------------------------------------------------------------


def as_bin(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_model.safetensors"
    torch.save(load_file(path) | changes, folder / "adapter_model.bin")
    path.unlink()


def test_a_bin_file_holds_the_same(adapter: Path) -> None:
    with open_checkpoint(adapter) as checkpoint:
        expected = checkpoint.load().state_dict()
    as_bin(adapter)
    with open_checkpoint(adapter) as checkpoint:
        for name, weight in checkpoint.load().state_dict().items():
            assert torch.equal(weight, expected[name])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.zeros(4, 32, dtype=torch.int8), "is not stored as floats"),
        (torch.zeros(4, 32, dtype=torch.int32), "is stored as int32"),
        (print, "code in addition to weights"),
        (3, "is of type int; expected tensors by name"),
    ],
)
def test_bin_files_of_something_else(adapter: Path, value: object, message: str) -> None:
    as_bin(adapter, **{f"{QUERY}.lora_A.weight": value})
    with pytest.raises(CheckpointError, match=message):
        load(adapter)


# --- the base -----------------------------------------------------------------------------------


def test_without_its_base_it_says_what_it_is(
    adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    edit_config(adapter, base_model_name_or_path="/models/gemma")
    with pytest.raises(
        CheckpointError,
        match=r"adapter is a LoRA adapter of rank 4 for /models/gemma \(1,920 parameters in "
        r"q_proj, v_proj\), and /models/gemma is not here: nothing at /models/gemma.*If it is "
        r"somewhere else: .* convert .*adapter OUT --to hf --base MODEL",
    ):
        load(adapter)


def test_a_base_of_another_shape(adapter: Path, tmp_path: Path, tokenizer: Tokenizer) -> None:
    other = tmp_path / "other"
    save_model(random_model(tiny_config(vocab_size=520)), tokenizer, other)
    with pytest.raises(
        CheckpointError, match=r"that of its base .*other is \[32, 32\]: give the base "
    ):
        load(adapter, other)


def test_a_base_that_is_no_gemma(saved: Path, adapter: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(saved, tmp_path / "other"))
    (other / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(CheckpointError, match=r"the base of the adapter .*llama"):
        load(adapter, other)


def test_an_adapter_of_an_adapter(saved: Path, adapter: Path, tmp_path: Path) -> None:
    second = train_adapter(saved, tmp_path / "second")
    for base in (adapter, second):
        edit_config(second, base_model_name_or_path=str(base))
        with pytest.raises(CheckpointError, match="is an adapter itself: merge that first"):
            load(second)


def test_a_base_for_a_whole_model(saved: Path) -> None:
    with pytest.raises(ConfigError, match="is a whole model, not an adapter: leave out its base"):
        load(saved, saved)
