"""`gemmule info` of what cannot be loaded: what it is, then why not, exit status 2."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from gemmule.checkpoints.describe import describe
from gemmule.checkpoints.identify import identify, lines
from gemmule.cli import app, main
from gemmule.errors import CheckpointError
from gemmule.files import LFS_POINTER
from models import random_model

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"


def rows(path: Path) -> dict[str, str]:
    about = identify(path)
    assert about is not None
    return dict(lines(about))


def test_another_architecture(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path / "m")
    config = json.loads((saved / "config.json").read_text())
    (tmp_path / "m/config.json").write_text(json.dumps(config | {"model_type": "gemma3_text"}))
    about = identify(tmp_path / "m")
    assert about is not None
    assert about["architecture"] == "gemma3_text"
    assert about["parameters"] == sum(p.numel() for p in random_model().parameters())
    assert about["files"]["model.safetensors"] == (saved / "model.safetensors").stat().st_size
    assert rows(tmp_path / "m")["what it is"] == (
        "a model in Hugging Face's layout, with a safetensors file"
    )


def test_an_untied_head(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path / "m")
    weights = load_file(saved / "model.safetensors")
    head = weights["model.embed_tokens.weight"] + 1
    save_file(weights | {"lm_head.weight": head}, tmp_path / "m/model.safetensors")
    with pytest.raises(CheckpointError, match=r"lm_head\.weight differs from the embedding"):
        describe(tmp_path / "m")
    assert rows(tmp_path / "m")["architecture"] == "gemma2"


def test_a_quantized_form(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path / "m")
    config = json.loads((saved / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (tmp_path / "m/config.json").write_text(json.dumps(config))
    assert rows(tmp_path / "m")["quantization"] == "GPTQ, 4 bits"


def test_an_adapter(tmp_path: Path) -> None:
    adapter = {"peft_type": "LORA", "base_model_name_or_path": "google/gemma-2-2b"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(adapter))
    shown = rows(tmp_path)
    assert shown["what it is"] == "a folder with an adapter of peft (LORA)"
    assert shown["base model"] == "google/gemma-2-2b"


def test_a_gguf_of_another_architecture(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    import numpy as np

    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "gemma3")
    writer.add_tensor("token_embd.weight", np.zeros((4, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    shown = rows(tmp_path / "m.gguf")
    assert shown["what it is"] == "a GGUF file"
    assert shown["architecture"] == "gemma3"
    assert (shown["tensors"], shown["numbers in them"]) == ("1", "128")


@pytest.mark.parametrize(
    ("name", "data", "what"),
    [
        ("m.gguf", LFS, "a Git LFS pointer, not the file itself"),
        ("m.gguf", b"GGUF\3\0\0\0", "a GGUF file"),  # and nothing in it that can be read
        ("m.onnx", b"\x08", "an ONNX file"),
        ("notes.txt", b"hello", None),
    ],
)
def test_files(tmp_path: Path, name: str, data: bytes, what: str | None) -> None:
    (tmp_path / name).write_bytes(data)
    about = identify(tmp_path / name)
    assert (about and about["kind"]) == what


def test_nothing_to_tell(tmp_path: Path) -> None:
    assert identify(tmp_path) is None
    assert identify(tmp_path / "none") is None
    assert identify("org/name") is None
    assert identify("a\0b") is None


@pytest.mark.parametrize("as_json", [False, True])
def test_the_command(tmp_path: Path, as_json: bool, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "m.gguf").write_bytes(LFS)
    with pytest.raises(SystemExit) as e:
        main(["info", str(tmp_path / "m.gguf"), *(["--json"] if as_json else [])])
    assert e.value.code == 2
    out, error = capsys.readouterr()
    assert error.endswith(f"m.gguf is {LFS_POINTER}\n")
    if as_json:
        about = json.loads(out)
        assert about["loads"] is False
        assert "run git lfs pull" in about["problem"]


def test_a_model_that_loads_says_so(saved: Path) -> None:
    done = CliRunner().invoke(app, ["info", str(saved), "--json"])
    assert done.exit_code == 0
    assert json.loads(done.stdout)["loads"] is True
