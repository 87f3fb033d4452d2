"""Split GGUF files, and GGUF files that hold something other than a Gemma 2."""

import struct
from pathlib import Path
from typing import Any

import gguf
import pytest
from gguf import GGUFReader, GGUFWriter

from gemmule.checkpoints.checkpoint import weights_fingerprint
from gemmule.checkpoints.convert import convert
from gemmule.checkpoints.describe import describe
from gemmule.checkpoints.load import load_model, open_checkpoint
from gemmule.checkpoints.locate import locate
from gemmule.errors import CheckpointError

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"


@pytest.fixture(scope="session")
def whole(saved: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "out"
    convert(saved, out, "gguf", "F32", verify=False)
    return out / "model.gguf"


def split(whole: Path, folder: Path, count: int = 3, **keys: Any) -> list[Path]:
    """The parts as llama-gguf-split writes them: the first has the model's keys."""
    folder.mkdir(exist_ok=True)
    reader, paths = GGUFReader(whole), []
    for number in range(count):
        path = folder / f"m-{number + 1:05}-of-{count:05}.gguf"
        writer = GGUFWriter(path, "gemma2")
        for field in reader.fields.values() if number == 0 else ():
            if field.name.startswith("GGUF.") or field.name == "general.architecture":
                continue
            kind = field.types[0]
            inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), kind, inner)
        writer.add_uint16("split.no", keys.get("no", number))
        writer.add_uint16("split.count", keys.get("claimed", count))
        writer.add_int32("split.tensors.count", keys.get("tensors", len(reader.tensors)))
        for tensor in reader.tensors[number::count]:
            writer.add_tensor(tensor.name, tensor.data)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        paths.append(path)
    return paths


def test_any_part_or_the_folder_loads_the_whole(whole: Path, tmp_path: Path) -> None:
    parts = split(whole, tmp_path / "split")
    expected, tokenizer = load_model(whole)
    for path in (*parts, tmp_path / "split", tmp_path):
        model, theirs = load_model(path)
        assert weights_fingerprint(model) == weights_fingerprint(expected)
        assert theirs.fingerprint == tokenizer.fingerprint
    assert len(describe(parts[1])["files"]) == 3


def test_missing_parts_are_named(whole: Path, tmp_path: Path) -> None:
    parts = split(whole, tmp_path)
    parts[0].unlink()
    parts[2].unlink()
    message = r"2 of 3 parts of m are missing: m-00001-of-00003\.gguf, m-00003-of-00003\.gguf"
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(parts[1])


def test_a_part_that_is_a_git_lfs_pointer(whole: Path, tmp_path: Path) -> None:
    parts = split(whole, tmp_path)
    parts[1].write_bytes(LFS)
    with pytest.raises(CheckpointError, match=r"m-00002-of-00003\.gguf is a Git LFS pointer"):
        open_checkpoint(parts[0])


def test_a_part_under_another_name(whole: Path, tmp_path: Path) -> None:
    part = split(whole, tmp_path)[0].rename(tmp_path / "first.gguf")
    with pytest.raises(
        CheckpointError, match=r"one of 3 parts .*rename them to NAME-00001-of-0000"
    ):
        open_checkpoint(part)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"no": 1}, r"m-00001-of-00003\.gguf is not part 1 of 3 by its keys"),
        ({"claimed": 4}, "one of 4 parts of a model, and its name does not tell"),
        ({"tensors": 7}, "and should hold 7: they are not of one model"),
    ],
)
def test_parts_that_do_not_belong_together(
    whole: Path, tmp_path: Path, keys: dict[str, int], message: str
) -> None:
    parts = split(whole, tmp_path, **keys)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(parts[0])


def test_parts_of_two_models_in_one_folder(whole: Path, tmp_path: Path) -> None:
    for path in split(whole, tmp_path):
        path.with_name(path.name.replace("m-", "n-")).write_bytes(path.read_bytes())
    with pytest.raises(CheckpointError, match=r"several models: name one, such as .*m-00001-of-0"):
        locate(tmp_path)


# --- what is not a model of ours ------------------------------------------------------------------


def other(path: Path, architecture: str, **keys: str) -> Path:
    writer = GGUFWriter(path, architecture)
    for name, value in keys.items():
        writer.add_string(name.replace("__", "."), value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(
    ("architecture", "keys", "message"),
    [
        ("gemma", {}, r"describes Gemma 1 or CodeGemma .*'gemma'.*llama\.cpp can run it"),
        ("gemma3", {}, r"describes Gemma 3 or MedGemma \(general\.architecture 'gemma3'\)"),
        ("gemma3n", {}, "describes Gemma 3n"),
        ("gemma-embedding", {}, "describes EmbeddingGemma"),
        ("llama", {}, r"a model of another architecture \(general\.architecture 'llama'\)"),
        ("gemma2", {"general__type": "adapter"}, "is a LoRA adapter for llama.cpp.*export-lora"),
        ("clip", {"general__type": "mmproj"}, "is an image encoder for llama.cpp"),
        ("clip", {}, "describes an image encoder"),
        ("gemma2", {"general__type": "imatrix"}, "is an importance matrix of llama.cpp"),
        ("gemma2", {"general__type": "model"}, "holds a vocabulary and no weights"),
    ],
)
def test_other_gguf_files_are_named(
    tmp_path: Path, architecture: str, keys: dict[str, str], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(other(tmp_path / "m.gguf", architecture, **keys))


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (b"GGUF" + struct.pack(">I", 3), "is big-endian.*gguf-convert-endian"),
        (b"GGUF" + struct.pack("<I", 1), "the file has version 1; versions 2 and 3 can be read"),
    ],
)
def test_other_versions_are_named(tmp_path: Path, head: bytes, message: str) -> None:
    (tmp_path / "m.gguf").write_bytes(head + bytes(40))
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(tmp_path / "m.gguf")
