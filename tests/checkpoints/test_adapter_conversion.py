"""Adapters on bases of every format and place, converted, and with a tokenizer of their own."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file

from gemmule.checkpoints import verify
from gemmule.checkpoints.adapters.reader import describe_adapter
from gemmule.checkpoints.convert import convert
from gemmule.checkpoints.describe import describe, lines
from gemmule.checkpoints.hf.writer import save_model
from gemmule.checkpoints.load import load_model, load_to_run, open_checkpoint
from gemmule.checkpoints.packed.quantize import quantize_checkpoint
from gemmule.checkpoints.packed.writer import save_quantized
from gemmule.checkpoints.stored_tensor import StoredTensor
from gemmule.errors import TokenizerError
from gemmule.model.tokenizer import Tokenizer, train_tokenizer
from models import DISTINCT, random_model, tiny_config
from peft_adapters import edit_config, edit_weights, train_adapter

Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    """A model with the query scale that llama.cpp takes, so that GGUF keeps its weights."""
    config = tiny_config(DISTINCT, query_pre_attn_scalar=DISTINCT["head_dim"])
    folder = tmp_path_factory.mktemp("saved") / "model"
    save_model(random_model(config), tokenizer, folder)
    return folder


@pytest.fixture
def adapter(saved: Path, tmp_path: Path) -> Path:
    return train_adapter(saved, tmp_path / "adapter", use_dora=True)


def weights(folder: Path, base: Path | None = None) -> Weights:
    with open_checkpoint(folder, str(base) if base else None) as checkpoint:
        return dict(checkpoint.load().state_dict())


def check_equal(got: Weights, expected: Weights) -> None:
    assert got.keys() == expected.keys()
    for name, weight in expected.items():
        assert torch.equal(got[name], weight), name


# --- where the base is --------------------------------------------------------------------------


def test_the_base_in_the_same_folder(saved: Path, adapter: Path) -> None:
    expected = weights(adapter)
    for file in saved.iterdir():
        shutil.copy(file, adapter)
    edit_config(adapter, base_model_name_or_path="google/gemma-2-2b")
    check_equal(weights(adapter), expected)
    assert load_to_run(adapter)[0].state_dict().keys() == expected.keys()


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("base", "runs/adapter/base"),
        ("../base", "runs/base"),
        ("models/base", "models/base"),
        ("/elsewhere/base", "runs/base"),
        ("google/gemma-2-2b", "gemma-2-2b"),
    ],
)
def test_a_base_near_the_adapter(
    saved: Path, adapter: Path, tmp_path: Path, name: str, place: str
) -> None:
    expected = weights(adapter)
    moved = tmp_path / "runs/adapter"
    shutil.copytree(adapter, moved)
    shutil.copytree(saved, tmp_path / place)
    edit_config(moved, base_model_name_or_path=name)
    check_equal(weights(moved), expected)
    with open_checkpoint(moved) as checkpoint:
        assert any(f"its base, {name}, is taken from " in note for note in checkpoint.notes)


def test_an_adapter_in_the_folder_of_its_base(saved: Path, adapter: Path, tmp_path: Path) -> None:
    expected = weights(adapter)
    base = tmp_path / "mine"
    shutil.copytree(saved, base)
    shutil.copytree(adapter, base / "adapter")
    edit_config(base / "adapter", base_model_name_or_path="/lost/mine")
    check_equal(weights(base / "adapter"), expected)


def test_both_from_the_hub(
    saved: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = weights(adapter)
    edit_config(adapter, base_model_name_or_path="org/base", revision="v2")
    asked = []

    def download(repo: str, revision: str | None = None, **_: Any) -> str:
        asked.append((repo, revision))
        return str({"org/base": saved, "org/adapter": adapter}[repo])

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    check_equal(weights(Path("org/adapter")), expected)
    assert list(dict.fromkeys(asked)) == [("org/adapter", None), ("org/base", "v2")]


def test_another_base_is_told(adapter: Path, saved: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(saved, tmp_path / "other"))
    with open_checkpoint(adapter, str(other)) as checkpoint:
        assert checkpoint.notes == (f"merged into {other}; the adapter was trained on {saved}",)


# --- what the base is ---------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["gguf", "gemma_pytorch"])
def test_bases_of_other_formats(saved: Path, adapter: Path, tmp_path: Path, format: str) -> None:
    expected = weights(adapter)
    convert(saved, tmp_path / "base", format, verify=False)
    got = weights(adapter, tmp_path / "base")
    for name, weight in expected.items():  # GGUF adds 1 to norms
        assert (got[name] - weight).abs().max() <= (1e-6 if name.endswith("norm.weight") else 0)


def test_a_quantized_base(saved: Path, adapter: Path, tmp_path: Path) -> None:
    with open_checkpoint(saved) as checkpoint:
        save_quantized(quantize_checkpoint(checkpoint, "int8"), tmp_path / "base")
    base = load_model(saved)[0]
    base.load_state_dict(weights(tmp_path / "base"))
    plain = tmp_path / "plain"
    with open_checkpoint(saved) as checkpoint:
        save_model(base, checkpoint.tokenizer, plain)
    check_equal(weights(adapter, tmp_path / "base"), weights(adapter, plain))
    with open_checkpoint(adapter, str(tmp_path / "base")) as checkpoint:
        assert checkpoint.quantized is None
        assert "the adapter is merged into the dequantized weights of a quantized base" in (
            checkpoint.notes
        )


# --- converted ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("to", "dtype"), [("hf", None), ("gguf", "F32"), ("gemma_pytorch", None), ("hf", "bfloat16")]
)
def test_converted_and_read_again(
    saved: Path,
    adapter: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    to: str,
    dtype: str | None,
) -> None:
    monkeypatch.setattr(verify.peers, "installed", lambda _: None)
    expected = weights(adapter)
    base = Path(shutil.copytree(saved, tmp_path / "base"))
    report = convert(adapter, tmp_path / "out", to, dtype, base=str(base))
    error = report["verified"]["weights"]["relative_error"]
    assert error <= {None: 0, "F32": 1e-7, "bfloat16": 3e-3}[dtype]
    assert report["source"]["format"] == "adapter"
    assert [file["name"] for file in report["source"]["files"]] == [
        "adapter_config.json", "adapter_model.safetensors", "model.safetensors",
    ]  # fmt: skip
    assert report["adapter"]["method"] == "DoRA"
    assert f"merged into {base}; the adapter was trained on {saved}" in report["notes"]
    got = weights(tmp_path / "out")
    for name, weight in expected.items():
        wanted = weight.bfloat16() if dtype == "bfloat16" else weight
        near = 1e-6 if to == "gguf" and name.endswith("norm.weight") else 0
        assert (got[name].float() - wanted.float()).abs().max() <= near


@pytest.mark.parametrize("change", ["adapter", "settings", "base", None])
def test_a_conversion_of_something_that_changed_starts_again(
    saved: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str | None
) -> None:
    base = Path(shutil.copytree(saved, tmp_path / "base"))

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(verify, "compare_weights", stop)
    with pytest.raises(KeyboardInterrupt):
        convert(adapter, tmp_path / "out", "hf", base=str(base))
    monkeypatch.undo()
    match change:
        case "adapter":
            tensors = load_file(adapter / "adapter_model.safetensors")
            edit_weights(adapter, {name: -tensor for name, tensor in tensors.items()})
        case "settings":
            edit_config(adapter, lora_alpha=60)
        case "base":
            base = Path(shutil.copytree(saved, tmp_path / "other"))
    read = []
    rows_as = StoredTensor.rows_as

    def recorded(self: StoredTensor, dtype: torch.dtype) -> Iterator[torch.Tensor]:
        read.append(self.name)
        return rows_as(self, dtype)

    monkeypatch.setattr(StoredTensor, "rows_as", recorded)
    convert(adapter, tmp_path / "out", "hf", base=str(base), verify=False)
    assert len(read) == (35 if change else 0)
    check_equal(weights(tmp_path / "out"), weights(adapter, base))


# --- described ----------------------------------------------------------------------------------


def test_info_says_what_it_is(saved: Path, adapter: Path) -> None:
    about = describe(adapter)
    assert json.loads(json.dumps(about))["adapter"] == about["adapter"]
    assert about["format"] == "adapter"
    assert about["adapter"] == {
        "method": "DoRA",
        "ranks": [4],
        "base": str(saved),
        "parameters": 1920 + 3 * (64 + 32),
        "modules": ["q_proj", "v_proj"],
        "merged_into": str(saved),
    }
    assert about["parameters"]["total"] == describe(saved)["parameters"]["total"]
    shown = dict(lines(about))
    assert shown["adapter"] == (
        f"a DoRA adapter of rank 4 for {saved} (2,208 parameters in q_proj, v_proj)"
    )


def test_several_ranks_in_words() -> None:
    about = {
        "method": "LoRA",
        "ranks": [2, 4, 8],
        "base": None,
        "parameters": 1000,
        "modules": ["up_proj"],
    }
    assert describe_adapter(about) == (
        "a LoRA adapter of rank 2 to 8 (1,000 parameters in up_proj)"
    )


# --- the tokenizer ------------------------------------------------------------------------------


def give_tokenizer(folder: Path, tokenizer: Tokenizer, **config: Any) -> None:
    """As trainers save a tokenizer with an adapter: without the model's config."""
    tokenizer.save(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))


def test_without_one_the_bases_is_used(adapter: Path, tokenizer: Tokenizer) -> None:
    assert load_model(adapter)[1].fingerprint == tokenizer.fingerprint


def test_a_chat_format_without_a_tokenizer(adapter: Path, tokenizer: Tokenizer) -> None:
    """transformers writes a generation_config.json with an adapter, and no tokenizer."""
    (adapter / "generation_config.json").write_text('{"eos_token_id": [1, 300]}')
    (adapter / "chat_template.jinja").write_text("{{ messages[0].content }}")
    own = load_model(adapter)[1]
    assert own.chat_format == ("{{ messages[0].content }}", (1, 300))
    assert own.fingerprint == tokenizer.fingerprint


def test_its_own_comes_first_with_the_stop_ids_of_both(
    saved: Path, adapter: Path, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    give_tokenizer(adapter, tokenizer.with_chat_format(template, (1, 107)), eos_token="<unused5>")
    base = Path(shutil.copytree(saved, tmp_path / "base"))
    (base / "generation_config.json").write_text('{"eos_token_id": [1, 300]}')
    with open_checkpoint(adapter, str(base)) as checkpoint:
        own = checkpoint.tokenizer
    assert own.chat_template == template
    unused = tokenizer.encode("<unused5>", control=True)
    assert own.stop_ids == (1, 107, 300, *unused)
    (adapter / "generation_config.json").write_text('{"eos_token_id": 7}')
    with open_checkpoint(adapter, str(base)) as checkpoint:
        assert checkpoint.tokenizer.stop_ids == (7,)


def test_more_tokens_than_rows(
    saved: Path, adapter: Path, text_folder: Path, tmp_path: Path
) -> None:
    texts = [p.read_text() for p in sorted(text_folder.iterdir())]
    give_tokenizer(adapter, train_tokenizer([*texts, "".join(map(chr, range(300, 400)))], 530))
    with (
        open_checkpoint(adapter) as checkpoint,
        pytest.raises(
            TokenizerError, match=r"adapter has 530 tokens, and the embedding .* 520 rows"
        ),
    ):
        _ = checkpoint.tokenizer
