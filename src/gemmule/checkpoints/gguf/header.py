"""Reads the header of a GGUF file: its key/value pairs, and the place of each tensor.

Format: the GGUF specification of the ggml project (docs/gguf.md), versions 2 and 3, little-endian.
A file can claim any count and any length, and readers that trust such a claim hang or run out of
memory. Here no loop or allocation exceeds what the rest of the file can hold, and the size of the
header is limited.
"""

import math
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gemmule.errors import CheckpointError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
# A Gemma 2's header has 288 to 508 tensors, some 30 keys and, with 256,000 tokens, 7 MB.
LARGEST_HEADER = 2**25
_MAX_ENTRIES = 10_000
_MAX_NAME = 2**16 - 1  # bytes in a key's or tensor's name; the specification's limit for keys
_MAX_DIMS = 4
_MAX_COUNT = 2**63 - 1

Value = bool | int | float | str | list[bytes] | npt.NDArray[Any]


@dataclass(frozen=True)
class Encoding:
    """An encoding of numbers: `nbytes` bytes hold `block` consecutive numbers."""

    name: str
    block: int
    nbytes: int


# By ggml's type number (ggml.h, enum ggml_type). Encodings with blocks are quantized.
ENCODINGS = {
    0: Encoding("F32", 1, 4),
    1: Encoding("F16", 1, 2),
    2: Encoding("Q4_0", 32, 18),
    3: Encoding("Q4_1", 32, 20),
    6: Encoding("Q5_0", 32, 22),
    7: Encoding("Q5_1", 32, 24),
    8: Encoding("Q8_0", 32, 34),
    10: Encoding("Q2_K", 256, 84),
    11: Encoding("Q3_K", 256, 110),
    12: Encoding("Q4_K", 256, 144),
    13: Encoding("Q5_K", 256, 176),
    14: Encoding("Q6_K", 256, 210),
    16: Encoding("IQ2_XXS", 256, 66),
    17: Encoding("IQ2_XS", 256, 74),
    18: Encoding("IQ3_XXS", 256, 98),
    19: Encoding("IQ1_S", 256, 50),
    20: Encoding("IQ4_NL", 32, 18),
    21: Encoding("IQ3_S", 256, 110),
    22: Encoding("IQ2_S", 256, 82),
    23: Encoding("IQ4_XS", 256, 136),
    29: Encoding("IQ1_M", 256, 56),
    30: Encoding("BF16", 1, 2),
    34: Encoding("TQ1_0", 256, 54),
    35: Encoding("TQ2_0", 256, 66),
    39: Encoding("MXFP4", 32, 17),
}

# Value types by their number in the format.
_STRING, _ARRAY = 8, 9
_LENGTH = struct.Struct("<Q")
_SCALARS: dict[int, np.dtype[Any]] = {
    0: np.dtype("<u1"),
    1: np.dtype("<i1"),
    2: np.dtype("<u2"),
    3: np.dtype("<i2"),
    4: np.dtype("<u4"),
    5: np.dtype("<i4"),
    6: np.dtype("<f4"),
    7: np.dtype("?"),
    10: np.dtype("<u8"),
    11: np.dtype("<i8"),
    12: np.dtype("<f8"),
}


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of the file.

    Attributes:
        name: name in the file.
        shape: shape with the slowest dimension first, the reverse of the order in the file.
        encoding: encoding of the numbers.
        start: offset of the first byte in the file.
    """

    name: str
    shape: tuple[int, ...]
    encoding: Encoding
    start: int

    @property
    def nbytes(self) -> int:
        """Size in the file in bytes."""
        return math.prod(self.shape) // self.encoding.block * self.encoding.nbytes


@dataclass(frozen=True)
class Header:
    """The header of a GGUF file.

    Attributes:
        metadata: values by key; arrays of strings as lists of bytes, other arrays as numpy arrays.
        tensors: the tensors in the order of the file.
        nbytes: size of the header in bytes.
    """

    metadata: dict[str, Value]
    tensors: list[TensorInfo]
    nbytes: int


def parse_header(data: memoryview, source: str) -> Header:
    """Reads and checks the header of a GGUF file.

    Args:
        data: the whole file; nothing after the header is read.
        source: the file, for messages.

    Raises:
        CheckpointError: when it is not a valid GGUF file of version 2 or 3.
    """
    reader = _Reader(data, source)
    _check_version(reader)
    tensor_count, key_count = reader.integer("<Q"), reader.integer("<Q")
    if key_count + tensor_count > _MAX_ENTRIES:
        raise reader.error(f"it claims {key_count} keys and {tensor_count} tensors")
    metadata: dict[str, Value] = {}
    for _ in range(key_count):
        key = reader.name("key")
        if key in metadata:
            raise reader.error(f"key {key!r} occurs twice")
        metadata[key] = reader.value(reader.integer("<I"), key)
    entries = [_read_entry(reader) for _ in range(tensor_count)]
    data_start = _align(reader.at, _alignment(metadata, reader))
    tensors = [
        TensorInfo(name, shape, encoding, data_start + offset)
        for name, shape, encoding, offset in entries
    ]
    _check_places(tensors, _alignment(metadata, reader), len(data), reader)
    return Header(metadata, tensors, reader.at)


class _Reader:
    """Reads values one after another, never past the end of the file or of the largest header."""

    def __init__(self, data: memoryview, source: str) -> None:
        self._data, self._source = data, source
        self._end = min(len(data), LARGEST_HEADER)
        self.at = 0

    def error(self, reason: str) -> CheckpointError:
        """An error for content that no GGUF writer produces."""
        return CheckpointError(
            f"{self._source} is not a valid GGUF file: {reason} (header, byte {self.at}); "
            "download or convert it again"
        )

    def refusal(self, reason: str) -> CheckpointError:
        """An error for a valid file that cannot be read here."""
        return CheckpointError(f"{self._source}: {reason}")

    def expect(self, nbytes: int, what: str) -> None:
        """Checks that the header can hold `nbytes` more bytes."""
        if nbytes <= self._end - self.at:
            return
        if self._end < len(self._data):
            raise self.error(f"{what} would make the header longer than {LARGEST_HEADER} bytes")
        raise self.error(f"{what} does not fit in the {self._end - self.at} remaining bytes")

    def integer(self, form: str) -> int:
        """Reads a little-endian integer; `form` is its struct format."""
        size = struct.calcsize(form)
        self.expect(size, "a number")
        (value,) = struct.unpack_from(form, self._data, self.at)
        self.at += size
        return int(value)

    def string(self, longest: int = LARGEST_HEADER) -> bytes:
        length = self.integer("<Q")
        self.expect(length, f"a string of {length} bytes")
        if length > longest:
            raise self.error(f"a name of {length} bytes is longer than {longest}")
        self.at += length
        return bytes(self._data[self.at - length : self.at])

    def name(self, what: str) -> str:
        """Reads the name of a key or tensor."""
        return self.text(self.string(_MAX_NAME), f"a {what}'s name")

    def text(self, data: bytes, what: str) -> str:
        try:
            return data.decode()
        except UnicodeDecodeError:
            raise self.error(f"{what} is not UTF-8") from None

    def value(self, kind: int, key: str) -> Value:
        """Reads the value of a key/value pair."""
        if kind == _STRING:
            return self.text(self.string(), f"the value of {key}")
        if kind == _ARRAY:
            return self._array(key)
        number = self._numbers(kind, 1, key)[0]
        if isinstance(number, np.float32):
            return float(str(number))  # as it was written: 1e-06, not 9.999999974752427e-07
        scalar: bool | int | float = number.item()
        return scalar

    def _array(self, key: str) -> list[bytes] | npt.NDArray[Any]:
        kind, count = self.integer("<I"), self.integer("<Q")
        if kind == _ARRAY:
            raise self.error(f"{key} is an array of arrays, which Gemma 2 does not use")
        if kind != _STRING:
            return self._numbers(kind, count, key)
        self.expect(8 * count, f"{key}, an array of {count} strings,")
        strings, data, at, end = [], self._data, self.at, self._end
        for _ in range(count):  # like `string`, but fast enough for 256,000 of them
            begin = at + 8
            at = begin + _LENGTH.unpack_from(data, at)[0] if begin <= end else end + 1
            if at > end:
                raise self.error(
                    f"{key}, an array of {count} strings, is longer than the remaining bytes"
                )
            strings.append(bytes(data[begin:at]))
        self.at = at
        return strings

    def _numbers(self, kind: int, count: int, key: str) -> npt.NDArray[Any]:
        dtype = _SCALARS.get(kind)
        if dtype is None:
            raise self.error(f"{key} has values of an unknown type, {kind}")
        self.expect(dtype.itemsize * count, f"{key}, {count} numbers,")
        start, self.at = self.at, self.at + dtype.itemsize * count
        return np.frombuffer(self._data[start : self.at], dtype).copy()


def _check_version(reader: _Reader) -> None:
    reader.expect(8, "the file's first eight bytes")
    magic, version = reader.integer("<I").to_bytes(4, "little"), reader.integer("<I")
    if magic != MAGIC:
        raise reader.error(f"it begins with {magic!r} instead of {MAGIC!r}")
    if version in VERSIONS:
        return
    if version and version % 2**16 == 0:
        raise reader.refusal(
            "the file is big-endian; only little-endian files can be read: convert it with the "
            "gguf package's gguf-convert-endian"
        )
    raise reader.refusal(
        f"the file has version {version}; versions {' and '.join(map(str, VERSIONS))} can be read, "
        "which llama.cpp has written since August 2023: convert the model again"
    )


def _read_entry(reader: _Reader) -> tuple[str, tuple[int, ...], Encoding, int]:
    """Reads the name, shape, encoding and offset of a tensor."""
    name, dims = reader.name("tensor"), reader.integer("<I")
    if not 1 <= dims <= _MAX_DIMS:
        raise reader.error(f"{name} has {dims} dimensions; 1 to {_MAX_DIMS} are possible")
    shape = tuple(reader.integer("<Q") for _ in range(dims))[::-1]
    kind, offset = reader.integer("<I"), reader.integer("<Q")
    if not 0 < math.prod(shape) <= _MAX_COUNT:
        raise reader.error(f"{name} has the impossible shape {list(shape)}")
    encoding = ENCODINGS.get(kind)
    if encoding is None:
        supported = ", ".join(e.name for e in ENCODINGS.values())
        raise reader.refusal(f"{name} is stored as {_kind_name(kind)}; supported are {supported}")
    if shape[-1] % encoding.block:
        raise reader.error(
            f"{name} has rows of {shape[-1]}, not a multiple of {encoding.name}'s {encoding.block}"
        )
    return name, shape, encoding, offset


def _kind_name(kind: int) -> str:
    from gguf import GGMLQuantizationType  # it knows more types than can be read here

    try:
        return GGMLQuantizationType(kind).name
    except ValueError:
        return f"an unknown type, {kind}"


def _alignment(metadata: dict[str, Value], reader: _Reader) -> int:
    value = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if type(value) is not int or value < 1 or value & (value - 1):
        raise reader.error(f"general.alignment is {value!r}, not a power of two")
    return value


def _align(offset: int, alignment: int) -> int:
    return -(-offset // alignment) * alignment


def _check_places(tensors: list[TensorInfo], alignment: int, size: int, reader: _Reader) -> None:
    if len({tensor.name for tensor in tensors}) < len(tensors):
        raise reader.error("two tensors have the same name")
    end = 0
    for tensor in sorted(tensors, key=lambda t: t.start):
        if tensor.start % alignment:
            raise reader.error(f"{tensor.name} does not begin at a multiple of {alignment}")
        if tensor.start < end:
            raise reader.error(f"{tensor.name} overlaps another tensor")
        end = tensor.start + tensor.nbytes
        if end > size:
            raise reader.error(
                f"{tensor.name} ends at byte {end} of a file of {size}: it was cut short"
            )
