"""Weights under the names that people have them: found, or their absence told."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from gemmule.checkpoints.checkpoint import weights_fingerprint
from gemmule.checkpoints.convert import convert
from gemmule.checkpoints.describe import describe
from gemmule.checkpoints.load import load_model, open_checkpoint
from gemmule.checkpoints.weight_files import find_weights
from gemmule.errors import CheckpointError
from gemmule.model.config import preset
from gemmule.model.gemma import Gemma
from models import random_model

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 9\n"
Weights = dict[str, torch.Tensor]


@pytest.fixture
def bare(saved: Path, tmp_path: Path) -> Path:
    """The model's folder without its weights."""
    folder = tmp_path / "m"
    shutil.copytree(saved, folder)
    (folder / "model.safetensors").unlink()
    return folder


@pytest.fixture(scope="session")
def weights(saved: Path) -> Weights:
    return load_file(saved / "model.safetensors")


def check_equal(path: Path) -> None:
    model, tokenizer = load_model(path)
    assert weights_fingerprint(model) == weights_fingerprint(random_model())
    assert tokenizer.vocab_size == 512


def notes(path: Path) -> str:
    return " ".join(describe(path)["notes"])


def halves(weights: Weights) -> tuple[Weights, Weights]:
    names = list(weights)
    return {n: weights[n] for n in names[:10]}, {n: weights[n] for n in names[10:]}


def write_index(folder: Path, where: dict[str, str], name: str = "model.safetensors") -> None:
    (folder / f"{name}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


# --- torch's files --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.bin", "weights.pt", "student.pth"])
def test_a_single_torch_file(bare: Path, weights: Weights, name: str) -> None:
    torch.save(weights, bare / name)
    check_equal(bare)
    check_equal(bare / name)
    assert describe(bare)["format"] == "torch"


@pytest.mark.parametrize("key", ["state_dict", "model", "module"])
def test_a_state_dict_under_a_trainer_s_key(bare: Path, weights: Weights, key: str) -> None:
    torch.save({key: weights, "step": 3}, bare / "pytorch_model.bin")
    check_equal(bare)


def test_torch_shards_with_and_without_an_index(bare: Path, weights: Weights) -> None:
    for i, part in enumerate(halves(weights), 1):
        torch.save(part, bare / f"pytorch_model-{i:05}-of-00002.bin")
    check_equal(bare)
    check_equal(bare / "pytorch_model-00002-of-00002.bin")
    first, second = halves(weights)
    names = [f"pytorch_model-{i:05}-of-00002.bin" for i in (1, 2)]
    where = {**dict.fromkeys(first, names[0]), **dict.fromkeys(second, names[1])}
    write_index(bare, where, "pytorch_model.bin")
    check_equal(bare)
    (bare / names[0]).unlink()
    with pytest.raises(CheckpointError, match=r"1 of 2 shards are missing: pytorch_model-00001"):
        open_checkpoint(bare)


def test_a_trainer_s_other_files_are_not_weights(bare: Path, weights: Weights) -> None:
    for name in ("optimizer.pt", "scheduler.pt", "rng_state_0.pth", "training_args.bin"):
        torch.save({"x": torch.zeros(2)}, bare / name)
    with pytest.raises(CheckpointError, match=r"optimizer\.pt does not hold a model's weights"):
        open_checkpoint(bare / "optimizer.pt")
    torch.save(weights, bare / "pytorch_model.bin")
    check_equal(bare)


def test_torch_s_format_before_1_6_is_refused_by_name(bare: Path, weights: Weights) -> None:
    torch.save(weights, bare / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match=r"has written since torch 1\.6.*write it again"):
        open_checkpoint(bare)


def test_safetensors_go_before_torch_s_files(bare: Path, weights: Weights) -> None:
    torch.save({n: w + 1 for n, w in weights.items()}, bare / "pytorch_model.bin")
    save_file(weights, bare / "model.safetensors")
    check_equal(bare)
    assert "left out: pytorch_model.bin, since the safetensors are read" in notes(bare)


def test_weights_under_the_name_of_another_format(bare: Path, weights: Weights) -> None:
    torch.save(weights, bare / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"cut short \(it is a file of torch\.save\)"):
        open_checkpoint(bare)
    (bare / "model.safetensors").rename(bare / "x.bin")
    check_equal(bare / "x.bin")
    save_file(weights, bare / "pytorch_model.bin")
    (bare / "x.bin").unlink()
    with pytest.raises(CheckpointError, match=r"since torch 1\.6 \(it is a safetensors file\)"):
        open_checkpoint(bare)


# --- safetensors under other names ----------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["model-00001-of-00001.safetensors", "weights.safetensors", "model.bf16.safetensors"]
)
def test_one_safetensors_file_of_any_name(bare: Path, weights: Weights, name: str) -> None:
    save_file(weights, bare / name)
    check_equal(bare)
    check_equal(bare / name)


def test_safetensors_without_a_config(bare: Path, weights: Weights) -> None:
    """As ComfyUI keeps Gemma 2: one file of a published size, with the tokenizer's bytes in it."""
    (bare / "config.json").unlink()
    save_file(weights, bare / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"no config\.json in .*do not match any published"):
        open_checkpoint(bare)
    with torch.device("meta"):
        model = Gemma(preset("2b")).half()
    header = {"spiece_model": {"dtype": "U8", "shape": [9], "data_offsets": [0, 9]}}
    end = 9
    for name, tensor in model.state_dict().items():
        header[f"model.{name}"] = {
            "dtype": "F16", "shape": list(tensor.shape), "data_offsets": [end, end + tensor.nbytes],
        }  # fmt: skip
        end += tensor.nbytes
    text = json.dumps(header).encode()
    with (bare.parent / "gemma_2_2b_fp16.safetensors").open("wb") as f:
        f.write(len(text).to_bytes(8, "little") + text)
        f.truncate(8 + len(text) + end)  # all hole
        path = Path(f.name)
    about = describe(path)
    assert about["published"] == "2b"
    assert "such as spiece_model" in " ".join(about["notes"])


def test_several_files_of_unrelated_names(bare: Path, weights: Weights) -> None:
    for name in ("a.safetensors", "b.safetensors"):
        save_file(weights, bare / name)
    with pytest.raises(CheckpointError, match=r"several other files of weights: name one, such as"):
        open_checkpoint(bare)
    check_equal(bare / "b.safetensors")


def test_numbered_shards_without_an_index(bare: Path, weights: Weights) -> None:
    for i, part in enumerate(halves(weights), 1):
        save_file(part, bare / f"model-{i:05}-of-00004.safetensors")
    missing = (
        r"2 of 4 shards are missing: model-00003-of-00004\.safetensors, "
        r"model-00004-of-00004\.safetensors; download them again"
    )
    with pytest.raises(CheckpointError, match=missing):
        open_checkpoint(bare)
    for i in (3, 4):
        save_file({f"rotary_emb.{i}": torch.zeros(1)}, bare / f"model-{i:05}-of-00004.safetensors")
    check_equal(bare)


def test_shards_in_nested_folders(bare: Path, weights: Weights) -> None:
    (bare / "shards/b").mkdir(parents=True)
    first, second = halves(weights)
    save_file(first, bare / "shards/a.safetensors")
    save_file(second, bare / "shards/b/b.safetensors")
    where = dict.fromkeys(first, "shards/a.safetensors")
    write_index(bare, where | dict.fromkeys(second, "shards/b/b.safetensors"))
    check_equal(bare)


@pytest.mark.parametrize(
    "name", ["../a.safetensors", "shards/../../a", "/a", "a//b", "./a", "", "c:\\a", "a\0", 3, None]
)
def test_an_index_never_leads_out_of_its_folder(bare: Path, weights: Weights, name: object) -> None:
    write_index(bare, dict.fromkeys(weights, name))  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="is not a file name in this folder"):
        open_checkpoint(bare)


# --- indexes --------------------------------------------------------------------------------------


@pytest.fixture
def sharded(bare: Path, weights: Weights) -> Callable[..., None]:
    def write(**more: str) -> None:
        first, second = halves(weights)
        save_file(first, bare / "a.safetensors")
        save_file(second, bare / "b.safetensors")
        where = dict.fromkeys(first, "a.safetensors") | dict.fromkeys(second, "b.safetensors")
        write_index(bare, where | {name.replace("__", "."): file for name, file in more.items()})

    return write


@pytest.mark.parametrize("name", ["lm_head__weight", "model__rotary_emb__inv_freq"])
def test_an_index_names_what_no_model_needs(
    bare: Path, sharded: Callable[..., None], name: str
) -> None:
    sharded(**{name: "a.safetensors"})
    check_equal(bare)
    assert f"the index names {name.replace('__', '.')}, which no shard holds" in notes(bare)


def test_an_index_names_a_weight_that_no_shard_holds(
    bare: Path, sharded: Callable[..., None]
) -> None:
    sharded(model__layers__9__mlp__up_proj__weight="a.safetensors")
    with pytest.raises(CheckpointError, match=r"the shards lack model\.layers\.9\.mlp\.up_proj"):
        open_checkpoint(bare)


def test_missing_shards_and_what_to_do(bare: Path, sharded: Callable[..., None]) -> None:
    sharded()
    (bare / "a.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"1 of 2 shards are missing: a\.safetensors; down"):
        open_checkpoint(bare)
    (bare / "b.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="2 of 2 shards are missing or empty"):
        open_checkpoint(bare)
    unfinished = bare / ".cache/huggingface/download/a.safetensors.incomplete"
    unfinished.parent.mkdir(parents=True)
    unfinished.write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"a download did not finish \(\.cache/huggingface"):
        open_checkpoint(bare)


def test_a_folder_that_the_hub_s_client_filled(bare: Path, weights: Weights) -> None:
    """What `hf download --local-dir` leaves next to the model changes nothing."""
    state = bare / ".cache/huggingface/download"
    state.mkdir(parents=True)
    (state / "model.safetensors.metadata").write_text("x")
    save_file(weights, bare / "model.safetensors")
    check_equal(bare)
    check_equal(bare.parent)


# --- Git LFS --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "pytorch_model.bin", "model.gguf", "params.npz", "model.ckpt", "m.pth"],
)
def test_git_lfs_pointers_are_named(bare: Path, name: str) -> None:
    (bare / name).write_bytes(LFS)
    for path in (bare, bare / name):
        with pytest.raises(CheckpointError, match=rf"{name} is a Git LFS pointer.*git lfs pull"):
            open_checkpoint(path)


def test_git_lfs_pointers_among_shards(bare: Path, sharded: Callable[..., None]) -> None:
    sharded()
    (bare / "b.safetensors").write_bytes(LFS)
    message = r"1 of 2 shards are Git LFS pointers.*\(b\.safetensors\): run git lfs pull"
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(bare)


def test_a_git_lfs_pointer_for_a_config(bare: Path, weights: Weights) -> None:
    save_file(weights, bare / "model.safetensors")
    (bare / "config.json").write_bytes(LFS)
    with pytest.raises(CheckpointError, match=r"config\.json .*a Git LFS pointer.*git lfs pull"):
        open_checkpoint(bare)


# --- heads ----------------------------------------------------------------------------------------


def with_head(folder: Path, weights: Weights, more: float, tied: bool) -> Path:
    head = weights["model.embed_tokens.weight"] + more
    save_file(weights | {"lm_head.weight": head}, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": tied}))
    return folder


@pytest.mark.parametrize("tied", [True, False])
def test_an_equal_head_is_accepted(bare: Path, weights: Weights, tied: bool) -> None:
    check_equal(with_head(bare, weights, 0.0, tied))


@pytest.mark.parametrize("tied", [True, False])
def test_another_head_is_refused_before_anything_is_written(
    bare: Path, weights: Weights, tied: bool, tmp_path: Path
) -> None:
    with_head(bare, weights, 1.0, tied)
    with pytest.raises(CheckpointError, match=r"lm_head\.weight differs from the embedding"):
        load_model(bare)
    for to in ("hf", "gguf"):
        with pytest.raises(CheckpointError, match=r"lm_head\.weight differs from the embedding"):
            convert(bare, tmp_path / "out", to)
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_a_head_that_is_not_tied_and_not_there(bare: Path, weights: Weights) -> None:
    with_head(bare, weights, 0.0, tied=False)
    for name in ("model.safetensors", "pytorch_model.bin"):
        (bare / "model.safetensors").unlink(missing_ok=True)
        save = save_file if name.endswith("safetensors") else torch.save
        save(weights, bare / name)
        with pytest.raises(CheckpointError, match="the weights hold no lm_head"):
            open_checkpoint(bare)


def test_only_files_that_are_there_are_found(tmp_path: Path) -> None:
    assert find_weights(tmp_path) is None
    (tmp_path / "adapter_model.safetensors").write_bytes(b"x")
    assert find_weights(tmp_path) is None
