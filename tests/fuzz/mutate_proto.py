"""Damage to a tokenizer.model, which is a protobuf message."""

import random
import struct

from mutate import LARGEST, Mutation, extreme, fitted, flip

Field = tuple[int, int, bytes]  # number, wire type, the value's bytes without a length

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_TEXTS = (
    b"", b"\xff\xfe", b"\xed\xa0\x80", b"x" * 300_000, b"\xe2\x96\x81" * 40, b"\0", b"<0x41>",
    b"<bos>", b"\xf4\x90\x80\x80", b" ", b"\n", b"<0xZZ>",
)  # fmt: skip
_PIECES = 1  # of ModelProto; trainer_spec is 2, normalizer_spec 3


def varint(value: int) -> bytes:
    value %= 2**64
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def _take_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


def parse(data: bytes) -> list[Field]:
    """The message's fields; raises LookupError or ValueError where it is not sound."""
    fields: list[Field] = []
    at = 0
    while at < len(data):
        tag, at = _take_varint(data, at)
        start = at
        match tag & 7:
            case 0:
                _, at = _take_varint(data, at)
            case 1:
                at += 8
            case 2:
                length, start = _take_varint(data, at)
                at = start + length
            case 5:
                at += 4
            case _:
                raise ValueError
        fields.append((tag >> 3, tag & 7, data[start:at]))
    return fields


def packed(fields: list[Field]) -> bytes:
    return b"".join(
        varint(number << 3 | kind) + (varint(len(value)) if kind == _BYTES else b"") + value
        for number, kind, value in fields
    )


def _odd_field(rng: random.Random, old: Field) -> Field:
    number, kind, value = old
    match rng.randrange(7):
        case 0:
            number, kind = rng.choice((number, rng.randrange(1, 60), 2**29 - 1)), rng.randrange(8)
        case 1 | 2 if kind == _VARINT:
            value = varint(extreme(rng, value[0] if value else 0))
        case 1 | 2 if kind == _FIXED32:
            odd = rng.choice((float("nan"), float("inf"), -0.0, 3e38, -1.0))
            value = struct.pack("<f", odd)
        case 3:
            value = b"\xff" * rng.choice((1, 9, 10, 11))
        case 4:
            kind, value = _BYTES, rng.choice(_TEXTS)
        case 5:
            value = value[: rng.randrange(len(value) + 1)]
        case _:
            value = flip(rng, value, b"")
    return number, kind, value


def field(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """A field, or one within a piece or spec, changed, left out, doubled or moved."""
    fields = parse(data)
    # Nearly all are pieces; each kind of field gets its share.
    number = rng.choice(sorted({number for number, _, _ in fields}))
    i = rng.choice([i for i, field in enumerate(fields) if field[0] == number])
    number, kind, value = fields[i]
    match rng.randrange(10):
        case 0:
            del fields[i]
        case 1:
            fields.insert(rng.randrange(len(fields) + 1), fields[i])
        case 2:
            j = rng.randrange(len(fields))
            fields[i], fields[j] = fields[j], fields[i]
        case 3:
            fields[i] = _odd_field(rng, fields[i])
        case 4:
            room = LARGEST // (len(value) + 2)
            fields += [fields[i]] * min(room, rng.choice((1, 500, 20_000)))
        case _:
            try:
                inner = parse(value)
                at = rng.randrange(len(inner))
                inner[at : at + 1] = rng.choice(
                    ([_odd_field(rng, inner[at])], [], [inner[at], _odd_field(rng, inner[at])])
                )
                fields[i] = number, kind, packed(inner)
            except (LookupError, ValueError):
                fields[i] = number, kind, flip(rng, value, b"")
    return packed(fields)


def spec(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """A setting of the trainer, the normaliser, the denormaliser or a self test, added."""
    number = rng.choice((2, 3, 5, 4))
    inner = rng.randrange(1, 60)
    kind = rng.choice((_VARINT, _BYTES, _FIXED32))
    value = {
        _VARINT: varint(extreme(rng)),
        _BYTES: rng.choice((b"", rng.randbytes(12), b"x" * 3000, b"\xff\xff\xff\x7f" + b"\0" * 40)),
        _FIXED32: rng.randbytes(4),
    }[kind]
    return data + packed([(number, _BYTES, packed([(inner, kind, value)]))])


def nested(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """Unknown fields and groups, very deep."""
    depth = rng.choice((10, 120, 5000, 200_000))
    group = varint(rng.choice((9, 200)) << 3 | 3) * depth
    if rng.random() < 0.5:
        group += varint(9 << 3 | 4) * depth
    return data + rng.choice((group, packed([(2, _BYTES, group)]), packed([(1, _BYTES, group)])))


def length(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """A field that claims more bytes than there are, or a varint without an end."""
    claim = rng.choice((varint(extreme(rng, len(data))), b"\xff" * 11, b"\x80" * 10 + b"\1"))
    at = rng.choice((0, len(data)))
    return data[:at] + bytes([rng.choice((0x0A, 0x12, 0x1A))]) + claim + data[at:]


def many(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """A hundred thousand pieces."""
    text = rng.choice((b"", b"a", b"\xe2\x96\x81"))
    piece = packed([(1, _BYTES, text), (2, _FIXED32, fitted(0, 4))])
    return data + packed([(1, _BYTES, piece)]) * rng.choice((100, 100_000))


def score(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """A piece's score or type among the sound ones."""
    fields = parse(data)
    i = rng.choice([i for i, field in enumerate(fields) if field[0] == _PIECES])
    inner = parse(fields[i][2])
    odd = (float("nan"), float("inf"), -float("inf"), 0.0, -1e30)
    change = rng.choice(
        ((2, _FIXED32, struct.pack("<f", rng.choice(odd))), (3, _VARINT, varint(rng.randrange(9))))
    )
    fields[i] = _PIECES, _BYTES, packed([*inner, change])
    return packed(fields)


PROTO: tuple[Mutation, ...] = (field, field, field, spec, spec, nested, length, score, score, many)
