"""GGUF headers: whatever a file claims, reading it ends soon, in little memory and clearly."""

import struct
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from gemmule.checkpoints.gguf.header import parse_header
from gemmule.checkpoints.gguf.reader import open_gguf
from gemmule.errors import CheckpointError

HUGE = 2**62


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def key(name: str, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def tensor(name: str = "t", dims: tuple[int, ...] = (32,), kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def file(
    keys: tuple[bytes, ...] = (),
    tensors: tuple[bytes, ...] = (),
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    counts: tuple[int, int] | None = None,
    data: int = 128,
) -> bytes:
    """A file with whatever is claimed."""
    counts = counts or (len(tensors), len(keys))
    head = magic + struct.pack("<IQQ", version, *counts) + b"".join(keys + tensors)
    return head + b"\0" * (-len(head) % 32 + data)


ALIGN = "general.alignment"
HOSTILE = {
    "empty of meaning": (b"GG", "does not fit in the 2 remaining bytes"),
    "other magic": (file(magic=b"GGML"), r"begins with b'GGML' instead of b'GGUF'"),
    "version 1": (file(version=1), "version 1; versions 2 and 3"),
    "version 4": (file(version=4), "version 4"),
    "version 0": (file(version=0), "version 0"),
    "big-endian": (file(version=3 << 24), "big-endian; only little-endian"),
    "keys": (file(counts=(0, HUGE)), f"claims {HUGE} keys and 0 tensors"),
    "tensors": (file(counts=(HUGE, 0)), f"claims 0 keys and {HUGE} tensors"),
    "some keys": (file(counts=(0, 9000)), "key '' occurs twice|unknown type|does not fit"),
    "key's length": (file((struct.pack("<Q", HUGE),)), f"string of {HUGE} bytes does not fit"),
    "key's size": (file((key("k" * 70_000, 0, b"\1"),)), "70000 bytes is longer than 65535"),
    "key's bytes": (file((text(b"\xff") + b"\0" * 5,)), "a key's name is not UTF-8"),
    "string's length": (file((key("k", 8, struct.pack("<Q", HUGE)),)), "does not fit"),
    "string's bytes": (file((key("k", 8, text(b"\xff")),)), "the value of k is not UTF-8"),
    "type": (file((key("k", 13, b"\1"),)), "unknown type, 13"),
    "strings": (file((key("k", 9, struct.pack("<IQ", 8, HUGE)),)), f"array of {HUGE} strings"),
    "some strings": (
        file((key("k", 9, struct.pack("<IQ", 8, 3) + text("a") + struct.pack("<Q", HUGE)),)),
        "an array of 3 strings, is longer than the remaining bytes",
    ),
    "numbers": (file((key("k", 9, struct.pack("<IQ", 10, HUGE)),)), f"k, {HUGE} numbers, does not"),
    "nested": (file((key("k", 9, struct.pack("<IQIQ", 9, 1, 9, 1)),)), "an array of arrays"),
    "element type": (file((key("k", 9, struct.pack("<IQ", 99, 1)),)), "unknown type, 99"),
    "key twice": (file((key("k", 0, b"\1"), key("k", 0, b"\1"))), "key 'k' occurs twice"),
    "alignment 0": (file((key(ALIGN, 4, struct.pack("<I", 0)),)), "alignment is 0, not a power"),
    "alignment 24": (file((key(ALIGN, 4, struct.pack("<I", 24)),)), "alignment is 24, not"),
    "alignment -8": (file((key(ALIGN, 5, struct.pack("<i", -8)),)), "alignment is -8, not"),
    "alignment 8.0": (file((key(ALIGN, 6, struct.pack("<f", 8)),)), "alignment is 8.0, not"),
    "alignment 2^31": (
        file((key(ALIGN, 4, struct.pack("<I", 2**31)),), (tensor(),)),
        "ends at byte 2147483776 of a file of",
    ),
    "no dims": (file((), (tensor(dims=()),)), "t has 0 dimensions"),
    "five dims": (file((), (tensor(dims=(1,) * 5),)), "t has 5 dimensions; 1 to 4"),
    "dims": (file((), (text("t") + struct.pack("<I", 2**31),)), "has 2147483648 dimensions"),
    "a zero": (file((), (tensor(dims=(8, 0)),)), r"impossible shape \[0, 8\]"),
    "product": (file((), (tensor(dims=(2**32,) * 3),)), "impossible shape"),
    "size": (file((), (tensor(dims=(2**40,)),)), "was cut short"),
    "unknown encoding": (file((), (tensor(kind=999),)), "t is stored as an unknown type, 999"),
    "unsupported": (file((), (tensor(kind=9),)), "stored as Q8_1; supported are F32, F16,"),
    "rows": (file((), (tensor(dims=(40, 2), kind=8),)), "rows of 40, not a multiple of Q8_0's 32"),
    "offset": (file((), (tensor(offset=HUGE),)), "was cut short"),
    "unaligned": (file((), (tensor(dims=(4,), offset=8),)), "begin at a multiple of 32"),
    "overlap": (file((), (tensor("a"), tensor("b", (8,), offset=96))), "b overlaps another"),
    "same place": (file((), (tensor("a"), tensor("b"))), "overlaps another tensor"),
    "tensor twice": (
        file((), (tensor("a", (8,)), tensor("a", (8,), offset=32))),
        "two tensors have the same name",
    ),
    "tensor's name": (file((), (text(b"\xff\xff") + b"\0" * 40,)), "tensor's name is not UTF-8"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_headers(tmp_path: Path, case: str) -> None:
    data, message = HOSTILE[case]
    path = tmp_path / "m.gguf"
    path.write_bytes(data)
    tracemalloc.start()
    try:
        start = time.process_time()
        with pytest.raises(CheckpointError, match=message) as e:
            open_gguf(path)
        assert time.process_time() - start < 1
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()
    assert str(path) in str(e.value)


def test_a_sound_header_of_this_form_is_read() -> None:
    data = file((key(ALIGN, 4, struct.pack("<I", 64)),), (tensor(dims=(4, 8)),), data=200)
    header = parse_header(memoryview(data), "test")
    assert header.metadata == {ALIGN: 64}
    assert header.tensors[0].shape == (8, 4)
    assert header.tensors[0].start % 64 == 0


@pytest.mark.parametrize("version", [2, 3])
def test_values_of_every_type(version: int) -> None:
    forms = {
        0: "B",
        1: "b",
        2: "H",
        3: "h",
        4: "I",
        5: "i",
        6: "f",
        7: "?",
        10: "Q",
        11: "q",
        12: "d",
    }
    values = {k: 0.1 if k in (6, 12) else True if k == 7 else k + 1 for k in forms}
    keys = [key(f"k{k}", k, struct.pack("<" + f, values[k])) for k, f in forms.items()]
    keys += [
        key(f"a{k}", 9, struct.pack("<IQ3" + f, k, 3, *[values[k]] * 3)) for k, f in forms.items()
    ]
    keys += [key("s", 8, text("é")), key("l", 9, struct.pack("<IQ", 8, 2) + text("a") + text(""))]
    metadata = parse_header(memoryview(file(tuple(keys), version=version)), "test").metadata
    for k, value in values.items():
        assert metadata[f"k{k}"] == value  # 0.1 too: a float32 means its shortest decimal
        array = metadata[f"a{k}"]
        assert isinstance(array, np.ndarray)
        assert array.tolist() == pytest.approx([value] * 3)
    assert metadata["s"] == "é"
    assert metadata["l"] == [b"a", b""]


def test_a_header_that_never_ends() -> None:
    data = file((key("k", 9, struct.pack("<IQ", 8, HUGE)),), data=2**25)
    with pytest.raises(CheckpointError, match="would make the header longer than 33554432 bytes"):
        parse_header(memoryview(data), "test")


def test_the_worst_header_ends_soon() -> None:
    """As many empty strings as fit below the limit."""
    count = 2**22 - 100
    data = file((key("k", 9, struct.pack("<IQ", 8, count) + bytes(8 * count)),))
    start = time.process_time()
    assert parse_header(memoryview(data), "test").metadata["k"] == [b""] * count
    assert time.process_time() - start < 8


def test_a_full_vocabulary_is_read_quickly() -> None:
    tokens = b"".join(text(f"piece{i}") for i in range(256_000))
    data = file((
        key("tokens", 9, struct.pack("<IQ", 8, 256_000) + tokens),
        key("scores", 9, struct.pack("<IQ", 6, 256_000) + bytes(4 * 256_000)),
    ))  # fmt: skip
    start = time.process_time()
    metadata = parse_header(memoryview(data), "test").metadata
    assert time.process_time() - start < 1.5
    tokens_read = metadata["tokens"]
    assert isinstance(tokens_read, list)
    assert tokens_read[255_999] == b"piece255999"
