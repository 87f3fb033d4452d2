"""The kinds of hostile file by name, and what fuzzing found, each as small as it gets."""

import json
import os
import shutil
import struct
from pathlib import Path
from typing import Any

import mutate_zip
import pytest
import targets
from mutate import pack, unpack
from mutate_pickle import CALLS, MARK, STRUCTURES
from sentencepiece import sentencepiece_model_pb2

from gemmule.errors import CheckpointError, TokenizerError, UserError
from gemmule.model.spm_model import BYTE, CONTROL, NORMAL, UNUSED
from gemmule.model.tokenizer import Tokenizer, train_tokenizer


def sound(target: targets.Target, file: int = 0) -> bytes:
    part = unpack(target.seeds[0], len(target.files))[file]
    assert part is not None
    return part


def refusal(target: targets.Target, folder: Path, *parts: bytes | None) -> str:
    """What the reader says of these files; they must not load."""
    target.prepare(folder)
    assert target.run(folder, target.seeds[0]), "the sound ones load"
    assert not target.run(folder, pack(parts))
    with pytest.raises(UserError) as e:
        target.check(folder)
    return str(e.value)


# --- safetensors ---------------------------------------------------------------------------------


def safetensors(data: bytes, change: Any) -> bytes:
    """The file with its header's entries changed in place by `change`."""
    length = int.from_bytes(data[:8], "little")
    entries = json.loads(data[8 : 8 + length])
    change([entry for name, entry in entries.items() if name != "__metadata__"])
    head = json.dumps(entries).encode()
    return len(head).to_bytes(8, "little") + head + data[8 + length :]


@pytest.mark.parametrize("size", [0, 1, 10**9, 2**32, 2**63 - 1, 2**64 - 1])
def test_header_sizes_beyond_the_file(
    everything: dict[str, targets.Target], tmp_path: Path, size: int
) -> None:
    target = everything["safetensors"]
    data = struct.pack("<Q", size) + sound(target)[8:]
    assert "is not a readable safetensors file, or was cut short" in refusal(target, tmp_path, data)


def overlapping(entries: list[dict[str, Any]]) -> None:
    same = [entry for entry in entries if entry["shape"] == [8]]
    same[1]["data_offsets"] = same[0]["data_offsets"]


def beyond(entries: list[dict[str, Any]]) -> None:
    entries[-1]["data_offsets"] = [2**40, 2**40 + 32]


def negative(entries: list[dict[str, Any]]) -> None:
    entries[0]["data_offsets"][0] = -8


def backwards(entries: list[dict[str, Any]]) -> None:
    entries[0]["data_offsets"].reverse()


def endless(entries: list[dict[str, Any]]) -> None:
    entries[0]["shape"] = [2**62, 2**62]


@pytest.mark.parametrize("change", [overlapping, beyond, negative, backwards, endless])
def test_offsets(everything: dict[str, targets.Target], tmp_path: Path, change: Any) -> None:
    target = everything["safetensors"]
    data = safetensors(sound(target), change)
    assert "is not a readable safetensors file, or was cut short" in refusal(target, tmp_path, data)


def test_a_missing_shard(everything: dict[str, targets.Target], tmp_path: Path) -> None:
    for name in ("safetensors_sharded", "ckpt_sharded"):
        target = everything[name]
        parts = unpack(target.seeds[0], 3)
        message = refusal(target, tmp_path / name, parts[0], None, parts[2])
        assert f"1 of 2 shards are missing: {target.files[1]}" in message


def test_an_index_that_leads_out_of_its_folder(
    everything: dict[str, targets.Target], tmp_path: Path
) -> None:
    target = everything["safetensors_sharded"]
    index, *shards = unpack(target.seeds[0], 3)
    assert index is not None
    (tmp_path / "a.safetensors").write_bytes(shards[0] or b"")
    changed = index.replace(b'"a.safetensors"', b'"../a.safetensors"')
    message = refusal(target, tmp_path / "model", changed, *shards)
    assert "'../a.safetensors' is not a file name in this folder" in message


# --- pickles and archives ------------------------------------------------------------------------


def ckpt_with(data: bytes, pickled: bytes) -> bytes:
    members = mutate_zip.read(data)
    for member in members:
        if member.name.endswith(b"data.pkl"):
            member.data = pickled
    return mutate_zip.write(members)


@pytest.mark.parametrize("call", CALLS, ids=range(len(CALLS)))
def test_a_pickle_with_code_in_it(
    everything: dict[str, targets.Target],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    call: bytes,
) -> None:
    monkeypatch.setenv(f"{MARK}_FILE", str(tmp_path / "ran"))
    monkeypatch.delenv(MARK, raising=False)
    target = everything["ckpt"]
    data = ckpt_with(sound(target), b"\x80\x02" + call + b".")
    refusal(target, tmp_path / "model", data, None)
    assert not (tmp_path / "ran").exists()
    assert MARK not in os.environ


@pytest.mark.parametrize("odd", STRUCTURES, ids=range(len(STRUCTURES)))
def test_a_pickle_that_is_made_to_break_its_reader(
    everything: dict[str, targets.Target], tmp_path: Path, odd: bytes
) -> None:
    target = everything["ckpt"]
    data = ckpt_with(sound(target), b"\x80\x02" + odd + b".")
    refusal(target, tmp_path, data, None)


@pytest.mark.parametrize("name", ["ckpt", "npz"])
@pytest.mark.parametrize("claimed", [0, 100, 600 * 2**20, 2**32 - 1])
def test_zip_bombs(
    everything: dict[str, targets.Target], tmp_path: Path, name: str, claimed: int
) -> None:
    target = everything[name]
    members = mutate_zip.read(sound(target))
    members[0].data, members[0].method = mutate_zip.bomb(600), 8
    members[0].unpacked = claimed
    data = mutate_zip.write(members)
    assert len(data) < 2**20
    refusal(target, tmp_path, data, *[None] * (len(target.files) - 1))


# --- GGUF and tokenizers --------------------------------------------------------------------------


@pytest.mark.parametrize("at", [8, 16])  # the number of tensors, of keys
@pytest.mark.parametrize("count", [10**6, 2**32, 2**63 - 1, 2**64 - 1])
def test_gguf_with_absurd_counts(
    everything: dict[str, targets.Target], tmp_path: Path, at: int, count: int
) -> None:
    target = everything["gguf"]
    data = sound(target)
    data = data[:at] + struct.pack("<Q", count) + data[at + 8 :]
    assert "is not a valid GGUF file" in refusal(target, tmp_path, data)


NO_TOKENIZERS = [
    b"", b"\0", b"PK\3\4", b"GGUF\3\0\0\0", b"{}", b"\x0a\xff\xff\xff\xff\x0f", b"x" * 9999,
]  # fmt: skip


@pytest.mark.parametrize("data", NO_TOKENIZERS, ids=range(len(NO_TOKENIZERS)))
def test_a_tokenizer_model_that_is_not_one(
    everything: dict[str, targets.Target], tmp_path: Path, data: bytes
) -> None:
    assert "tokenizer.model" in refusal(everything["tokenizer"], tmp_path, data)


# --- found by fuzzing ----------------------------------------------------------------------------


@pytest.mark.parametrize("step", [b"\x85", b"(", b"q\0", b"N"])
def test_a_pickle_of_a_million_steps(
    everything: dict[str, targets.Target], tmp_path: Path, step: bytes
) -> None:
    target = everything["ckpt"]
    data = ckpt_with(sound(target), b"\x80\x02]" + step * 500_000 + b".")
    assert "a pickle far longer than weights need" in refusal(target, tmp_path, data, None)


@pytest.mark.parametrize("name", ["config", "safetensors_sharded"])
def test_a_number_too_long_to_read(
    everything: dict[str, targets.Target], tmp_path: Path, name: str
) -> None:
    target = everything[name]
    parts = unpack(target.seeds[0], len(target.files))
    assert parts[0] is not None
    parts[0] = parts[0].rstrip()[:-1] + b', "x": ' + b"9" * 5000 + b"}"
    assert "is not readable JSON" in refusal(target, tmp_path, *parts)


def test_messages_hold_what_a_terminal_can_show() -> None:
    """What they quote may come from a hostile file."""
    message = str(CheckpointError("a \x1b[2J b \u202e c \ud800 d\nsea, é 😈"))
    assert message == "a \\x1b[2J b \\u202e c \\ud800 d\nsea, é 😈"
    for character in "x\0\u202e":
        long = str(TokenizerError("begin " + character * 10**6 + " end"))
        assert len(long) < 1600
        assert long.startswith("begin ")
        assert long.endswith(" end")


def edited(tokenizer: Tokenizer, i: int, **fields: Any) -> bytes:
    proto = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    proto.ParseFromString(tokenizer._parsed.data)
    for name, value in fields.items():
        setattr(proto.pieces[i], name, value)
    return bytes(proto.SerializeToString())


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer([Path(shutil.__file__).read_text()], 512)


def test_a_symbol_that_is_marked_as_a_byte(tokenizer: Tokenizer) -> None:
    with pytest.raises(TokenizerError, match="is marked as a byte or as unknown"):
        Tokenizer(edited(tokenizer, 139, type=BYTE))


@pytest.mark.parametrize(("i", "piece"), [(14, "q"), (106, "<start_of_turn>")])
def test_a_control_piece_that_text_could_make(tokenizer: Tokenizer, i: int, piece: str) -> None:
    with pytest.raises(TokenizerError, match=f"'{piece}', id {i}, is not marked as a symbol"):
        Tokenizer(edited(tokenizer, i, piece=piece, type=NORMAL))


@pytest.mark.parametrize("kind", [UNUSED, CONTROL])
def test_a_tokenizer_that_cannot_spell_a_space(tokenizer: Tokenizer, kind: int) -> None:
    at = [piece.text for piece in tokenizer.pieces].index("\u2581")
    with pytest.raises(TokenizerError, match="stands for a single space"):
        Tokenizer(edited(tokenizer, at, type=kind))


def test_a_tokenizer_trained_on_text_without_spaces_can_spell_one() -> None:
    words = [f"{i * i * 7919:x}{chr(97 + i % 26)}" for i in range(4000)]
    trained = train_tokenizer(["\n".join(words)], 512)
    assert trained.decode(trained.encode("a b  c")) == "a b  c"


@pytest.mark.parametrize("dim", ["1" + "0" * 400, str(2**63), "0x" + "f" * 6000])
def test_npz_shapes_that_cannot_be_counted(
    everything: dict[str, targets.Target], tmp_path: Path, dim: str
) -> None:
    target = everything["npz"]
    members = mutate_zip.read(sound(target))
    text = b"{'descr': '<f4', 'fortran_order': False, 'shape': (%s,)}\n" % dim.encode()
    members[0].data = b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text + bytes(64)
    message = refusal(target, tmp_path, mutate_zip.write(members))
    assert "impossible shape" in message or "is no .npy file" in message
