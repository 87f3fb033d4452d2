"""What a file is, told by its first bytes and not by its name."""

import io
import os
import pickle
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from gemmule.checkpoints.checkpoint import weights_fingerprint
from gemmule.checkpoints.convert import convert
from gemmule.checkpoints.file_kinds import kind_of
from gemmule.checkpoints.load import load_model, open_checkpoint
from gemmule.errors import CheckpointError
from models import random_model


def zipped(*names: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")
    return out.getvalue()


def torch_saved() -> bytes:
    out = io.BytesIO()
    torch.save({"x": torch.zeros(2)}, out)
    return out.getvalue()


def npz() -> bytes:
    out = io.BytesIO()
    np.savez(out, x=np.zeros(2))
    return out.getvalue()


SAFETENSORS = (2).to_bytes(8, "little") + b"{}"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"


@pytest.mark.parametrize(
    ("data", "format"),
    [
        (b"GGUF\3\0\0\0", "gguf"),
        (SAFETENSORS, "hf"),
        (torch_saved(), "torch"),
        (npz(), "npz"),
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "torch"),  # its reader refuses it by name
    ],
)
@pytest.mark.parametrize("name", ["sha256-0f", "M.GGUF", "model.ckpt", "x.safetensors", "a.bin"])
def test_content_decides_whatever_the_name(
    tmp_path: Path, data: bytes, format: str, name: str
) -> None:
    (tmp_path / name).write_bytes(data)
    kind = kind_of(tmp_path / name)
    assert kind is not None
    assert kind.format == format


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("x", LFS, "is a Git LFS pointer, not the file itself: run git lfs pull"),
        ("x", b"", "is an empty file: download it again"),
        ("x", b"FUGG\0\0\0\3", "is a byte-swapped GGUF file: convert the original model"),
        ("ggml-model.bin", b"lmgg\1\0", "is a GGML file from before GGUF"),
        ("ggml-model.bin", b"tjgg\1\0", "is a GGJT file from before GGUF"),
        ("lora.bin", b"algg\1\0", "is a LoRA adapter in GGLA"),
        ("tf_model.h5", b"\x89HDF\r\n\x1a\n", "is an HDF5 file .*load it with transformers"),
        (
            "flax_model.msgpack",
            b"\x82",
            r"is Flax weights \(\.msgpack\): load it with transformers",
        ),
        ("model.onnx", b"\x08\x07", "is an ONNX file: give the model that it was made from"),
        ("m.tflite", b"\x1c\0\0\0TFL3", r"is a TensorFlow Lite file \(\.tflite\)"),
        ("gemma.task", zipped("TF_LITE_PREFILL_DECODE", "TOKENIZER"), r"is a MediaPipe bundle"),
        ("m.litertlm", b"LITERTLM\1", r"is a LiteRT-LM file"),
        ("m.keras", zipped("config.json", "model.weights.h5"), r"is a Keras model"),
        ("m.pt", zipped("m/data.pkl", "m/constants.pkl"), "is a TorchScript program"),
        ("m.zip", zipped("README.md"), "is a zip archive without weights: unpack it"),
        ("m.tar.gz", b"\x1f\x8b\x08", "is a gzip file: unpack it"),
        ("m.tar", b"\0" * 257 + b"ustar", "is a tar archive: unpack it"),
        ("m.gguf.zst", b"\x28\xb5\x2f\xfd", "is a Zstandard file: unpack it"),
        ("x.npy", b"\x93NUMPY\1\0", "is a single numpy array"),
        ("m.pkl", pickle.dumps({"a": 1}, protocol=4), "is a Python pickle: write it with torch"),
        ("m.safetensors", b"<!DOCTYPE html><html>", "is a web page, not the file it is named"),
        ("imatrix.dat", b"\1\0\0\0\x20\0\0\0", "is an importance matrix of llama.cpp"),
        ("__0_0.distcp", b"\1\2\3", "dcp_to_torch FOLDER model.pt"),
        ("model.pte", b"\1\2\3", "is an ExecuTorch program"),
        ("notes.txt", b"hello", "is not a kind of file that can be loaded; expected a run"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(tmp_path / name)


@pytest.mark.parametrize("name", ["model.onnx", "flax_model.msgpack", "tf_model.h5", "a.distcp"])
def test_a_folder_that_holds_nothing_else(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\1\2\3\4")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=rf"{name} is .*(?:give|load|run)"):
        open_checkpoint(tmp_path)


def test_a_checkpoint_of_deepspeed(tmp_path: Path) -> None:
    (tmp_path / "zero_to_fp32.py").write_text("")
    (tmp_path / "global_step9").mkdir()
    with pytest.raises(CheckpointError, match=r"is a checkpoint of DeepSpeed: run zero_to_fp32"):
        open_checkpoint(tmp_path)


def test_a_sharded_checkpoint_of_fsdp(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model_fsdp_0").mkdir()
    (tmp_path / "pytorch_model_fsdp_0" / "__0_0.distcp").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"__0_0\.distcp is .*torch.distributed.*"):
        open_checkpoint(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    with pytest.raises(CheckpointError, match="is not a regular file"):
        open_checkpoint(tmp_path / "pipe.gguf")
    with pytest.raises(CheckpointError, match="no model in"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["sha256-0f3c", "M.GGUF", "model.bin"])
def test_a_gguf_file_of_any_name_loads(saved: Path, tmp_path: Path, name: str) -> None:
    pytest.importorskip("gguf")
    convert(saved, tmp_path / "out", "gguf", "F32", verify=False)
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    shutil.move(tmp_path / "out/model.gguf", blobs / name)
    (blobs / "sha256-license").write_text("terms")
    for path in (blobs / name, blobs):
        model, _ = load_model(path)
        assert model.config.hidden_size == random_model().config.hidden_size


def test_a_gguf_beside_its_image_encoder_and_importances(saved: Path, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    convert(saved, tmp_path / "out", "gguf", "F32", verify=False)
    for name in ("mmproj-model-f16.gguf", "imatrix.gguf", "model.imatrix"):
        (tmp_path / "out" / name).write_bytes(b"GGUF\3\0\0\0")
    load_model(tmp_path / "out")


def test_a_ckpt_under_another_name_loads(saved: Path, tmp_path: Path) -> None:
    convert(saved, tmp_path / "out", "gemma_pytorch", verify=False)
    shutil.move(tmp_path / "out/model.ckpt", tmp_path / "out/weights.zip")
    model, _ = load_model(tmp_path / "out/weights.zip")
    assert weights_fingerprint(model) == weights_fingerprint(random_model())
