"""Damage to GGUF files: counts, lengths, types, shapes and places."""

import random
import struct
from dataclasses import dataclass

from mutate import Mutation, extreme, fitted

_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY = 8, 9
_TYPES = (*range(14), 255, 2**31, 2**32 - 1)
_ENCODINGS = (*range(42), 99, 2**31, 2**32 - 1)


@dataclass
class Key:
    name: bytes
    kind: int
    value: bytes  # as it stands in the file

    def packed(self) -> bytes:
        return _sized(self.name) + struct.pack("<I", self.kind) + self.value


@dataclass
class Tensor:
    name: bytes
    dims: list[int]
    kind: int
    offset: int
    count: int | None = None  # of dimensions, where it is a lie

    def packed(self) -> bytes:
        count = len(self.dims) if self.count is None else self.count
        dims = b"".join(fitted(d, 8) for d in self.dims)
        place = struct.pack("<I", self.kind) + fitted(self.offset, 8)
        return _sized(self.name) + struct.pack("<I", count) + dims + place


@dataclass
class Gguf:
    keys: list[Key]
    tensors: list[Tensor]
    data: bytes
    counts: tuple[int, int] | None = None
    alignment: int = 32

    def packed(self) -> bytes:
        tensors, keys = self.counts or (len(self.tensors), len(self.keys))
        head = b"GGUF" + struct.pack("<I", 3) + fitted(tensors, 8) + fitted(keys, 8)
        head += b"".join(k.packed() for k in self.keys)
        head += b"".join(t.packed() for t in self.tensors)
        return head + bytes(-len(head) % self.alignment) + self.data


def _sized(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def parse(data: bytes) -> Gguf:
    """Takes a sound file apart; raises ValueError for one that is not."""
    at = 8

    def take(form: str) -> int:
        nonlocal at
        if at + struct.calcsize(form) > len(data):
            raise ValueError
        at += struct.calcsize(form)
        return int(struct.unpack_from(form, data, at - struct.calcsize(form))[0])

    def text() -> bytes:
        nonlocal at
        length = take("<Q")
        if length > len(data) - at:
            raise ValueError
        at += length
        return data[at - length : at]

    def skip(kind: int) -> None:
        nonlocal at
        if kind == _STRING:
            text()
        elif kind == _ARRAY:
            inner, count = take("<I"), take("<Q")
            if count > len(data) or inner == _ARRAY:
                raise ValueError
            for _ in range(count):
                skip(inner)
        elif kind in _SIZES:
            at += _SIZES[kind]
        else:
            raise ValueError

    tensors, keys = take("<Q"), take("<Q")
    if tensors + keys > len(data):
        raise ValueError
    parsed = Gguf([], [], b"")
    for _ in range(keys):
        name, kind, start = text(), take("<I"), at
        skip(kind)
        parsed.keys.append(Key(name, kind, data[start:at]))
    for _ in range(tensors):
        name, count = text(), take("<I")
        if count > 8:
            raise ValueError
        dims = [take("<Q") for _ in range(count)]
        parsed.tensors.append(Tensor(name, dims, take("<I"), take("<Q")))
    parsed.data = data[at + -at % 32 :]
    return parsed


def structure(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """One key, tensor or count becomes an odd one."""
    file = parse(data)
    key, tensor = rng.choice(file.keys), rng.choice(file.tensors)
    rng.choice((_counts, _key, _key, _key, _tensor, _tensor, _tensor))(rng, file, key, tensor)
    return file.packed()


def _counts(rng: random.Random, file: Gguf, key: Key, tensor: Tensor) -> None:
    tensors, keys = len(file.tensors), len(file.keys)
    file.counts = rng.choice(((extreme(rng, tensors), keys), (tensors, extreme(rng, keys))))


def _key(rng: random.Random, file: Gguf, key: Key, tensor: Tensor) -> None:
    width = _SIZES.get(key.kind, 8)
    match rng.randrange(12):
        case 0:
            file.keys.remove(key)
        case 1:
            file.keys.append(Key(key.name, key.kind, rng.choice(file.keys).value))
        case 2:
            key.kind = rng.choice(_TYPES)
        case 3 | 4:
            key.value = (
                fitted(extreme(rng, int.from_bytes(key.value[:width], "little")), width)
                + (key.value[width:])
            )
        case 5:  # arrays in arrays
            depth = rng.choice((1, 4, 2000, 50_000))
            inner = struct.pack("<IQ", _ARRAY, 1) * depth + struct.pack("<IQ", 4, 0)
            key.kind, key.value = _ARRAY, inner
        case 6:
            numbers = struct.pack("<IQ", rng.choice(_TYPES), extreme(rng) % 2**64)
            key.kind, key.value = _ARRAY, numbers + rng.choice((b"", key.value))
        case 7:
            key.name = rng.choice(
                (b"", b"\xff\xfe", b"x" * 70_000, rng.choice(file.keys).name, b"\0")
            )
        case 8:
            value, length = rng.choice(((b"4", 2**20), (rng.randbytes(20), 1), (b"", 0)))
            key.kind, key.value = _STRING, _sized(value * length)
        case 9:
            file.alignment = rng.choice((1, 2, 8, 64, 4096))
            number = rng.choice((file.alignment, 0, 3, 2**31, 2**32 - 1))
            file.keys.append(
                Key(b"general.alignment", rng.choice((4, 4, 5, 10)), fitted(number, 8))
            )
        case 10:
            key.kind, key.value = 6, rng.choice((b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\1\0\0\0"))
        case _:
            part = rng.randrange(len(key.value) + 1)
            key.value = key.value[:part] + rng.randbytes(rng.choice((1, 4, 8))) + key.value[part:]


def _tensor(rng: random.Random, file: Gguf, key: Key, tensor: Tensor) -> None:
    other = rng.choice(file.tensors)
    match rng.randrange(11):
        case 0:
            file.tensors.remove(tensor)
        case 1:
            tensor.name = other.name
        case 2:
            tensor.kind = rng.choice(_ENCODINGS)
        case 3:
            tensor.offset = extreme(rng, other.offset)
        case 4:
            tensor.offset = other.offset
        case 5 if tensor.dims:
            tensor.dims[rng.randrange(len(tensor.dims))] = extreme(rng, tensor.dims[0])
        case 6:
            tensor.dims = rng.choice(
                (
                    [],
                    [0],
                    [1],
                    tensor.dims[::-1],
                    [*tensor.dims, 1],
                    [1] * 5,
                    [2**32, 2**32],
                    [2**63, 2],
                )
            )
        case 7:
            tensor.count = rng.choice((0, 1, 5, 255, 2**31, 2**32 - 1))
        case 8:
            tensor.name = rng.choice(
                (b"", b"\xff", b"x" * 70_000, b"blk.999999999.attn_q.weight", b"\x1b[2J", b"\0")
            )
        case 9:  # numbers or scales that are NaN or infinite
            at = tensor.offset + rng.randrange(4) * 2
            odd = rng.choice((b"\xff\xff", b"\0\x7c", b"\0\x7e", b"\0\0\x80\x7f", b"\xff" * 34))
            file.data = file.data[:at] + odd + file.data[at + len(odd) :]
        case _:
            file.data = file.data[: rng.randrange(len(file.data) + 1)]


def version(rng: random.Random, data: bytes, other: bytes) -> bytes:
    number = rng.choice((0, 1, 2, 4, 3 << 24, 2**32 - 1))
    return rng.choice((b"GGUF", b"FUGG", b"GGML")) + struct.pack("<I", number) + data[8:]


GGUF: tuple[Mutation, ...] = (structure,) * 9 + (version,)
