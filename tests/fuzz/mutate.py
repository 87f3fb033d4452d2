"""Damaged inputs from sound ones.

An input is a bundle: the bytes of the files a target reads, packed into one row of bytes so that
a fuzzing engine can keep and splice it. A mutation takes a random generator, a file's bytes and
another seed's, and gives new bytes; those that know a format are in mutate_*.py.
"""

import random
import struct
from collections.abc import Callable, Sequence

Mutation = Callable[[random.Random, bytes, bytes], bytes]
Part = bytes | None  # None: the file is missing

LARGEST = 2**20  # bytes of an input
_MISSING = 2**32 - 1
EXTREMES = (0, 1, 2, 127, 128, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**32)
EXTREMES += (2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 1)


def pack(parts: Sequence[Part]) -> bytes:
    """The bundle of these files."""
    packed = b""
    for part in parts:
        packed += struct.pack("<I", _MISSING if part is None else len(part)) + (part or b"")
    return packed


def unpack(data: bytes, count: int) -> list[Part]:
    """The files of a bundle; any bytes at all mean some files."""
    parts: list[Part] = []
    for _ in range(count):
        length = int.from_bytes(data[:4], "little")
        parts.append(None if len(data) < 4 or length == _MISSING else data[4 : 4 + length])
        data = data[4:] if parts[-1] is None else data[4 + length :]
    return parts


def extreme(rng: random.Random, near: int = 0) -> int:
    """An integer that counts and sizes are not expected to be; may be near the right one."""
    if rng.random() < 0.4:
        return near + rng.choice((-8, -1, 1, 2, 8, near))
    return rng.choice((*EXTREMES, -1, -(2**31), -(2**63)))


def fitted(value: int, width: int) -> bytes:
    """The lowest `width` bytes of an integer, little-endian."""
    return (value % 2 ** (8 * width)).to_bytes(width, "little")


def put(data: bytes, at: int, new: bytes) -> bytes:
    """`data` with `new` written over it at `at`."""
    return data[:at] + new + data[at + len(new) :]


def truncate(rng: random.Random, data: bytes, other: bytes) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def flip(rng: random.Random, data: bytes, other: bytes) -> bytes:
    changed = bytearray(data)
    # Headers are small: half of the flips stay near one of the ends.
    span = rng.choice((len(data), min(len(data), 400)))
    for _ in range(rng.choice((1, 1, 2, 4, 16)) if data else 0):
        at = rng.randrange(span)
        changed[at if rng.random() < 0.7 else -1 - at] = rng.choice(
            (0, 255, rng.randrange(256), changed[at] ^ 1 << rng.randrange(8))
        )
    return bytes(changed)


def number(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """Some aligned or unaligned number becomes an extreme one, or the file's size and its like."""
    width = rng.choice((1, 2, 4, 8))
    at = rng.randrange(max(1, min(len(data), rng.choice((64, 400, len(data) or 1)))))
    near = rng.choice((len(data), int.from_bytes(data[at : at + width], "little")))
    return put(data, at, fitted(extreme(rng, near), width))[: len(data)]


def splice(rng: random.Random, data: bytes, other: bytes) -> bytes:
    cut = rng.randrange(len(data) + 1)
    from_other = rng.choice((cut, rng.randrange(len(other) + 1)))
    return data[:cut] + other[from_other:]


def repeat(rng: random.Random, data: bytes, other: bytes) -> bytes:
    start = rng.randrange(len(data) + 1)
    length = rng.choice((1, 4, 8, 40, 300))
    return data[:start] + data[start : start + length] * rng.choice((2, 3, 50)) + data[start:]


def remove(rng: random.Random, data: bytes, other: bytes) -> bytes:
    start = rng.randrange(len(data) + 1)
    return data[:start] + data[start + rng.choice((1, 2, 4, 8, 40)) :]


def pad(rng: random.Random, data: bytes, other: bytes) -> bytes:
    return data + rng.choice((b"\0", b" ", b"\xff", b"PK", data)) * rng.choice((1, 7, 64))


def zeros(rng: random.Random, data: bytes, other: bytes) -> bytes:
    start = rng.randrange(len(data) + 1)
    return put(data, start, rng.choice((b"\0", b"\xff")) * rng.choice((4, 16, 64)))[: len(data)]


PLAIN: tuple[Mutation, ...] = (truncate, flip, number, splice, repeat, remove, pad, zeros)


def mutated(
    rng: random.Random, data: bytes, other: bytes, mutations: Sequence[Sequence[Mutation]]
) -> bytes:
    """A damaged bundle.

    Args:
        rng: decides everything.
        data: the bundle.
        other: another one of the same target, to splice with.
        mutations: of each file's format; files without one get plain bytes' alone.
    """
    parts, others = unpack(data, len(mutations)), unpack(other, len(mutations))
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        i = rng.randrange(len(parts))
        if rng.random() < 0.02:
            parts[i] = None
        elif rng.random() < 0.02:
            parts[i] = parts[rng.randrange(len(parts))]
        else:
            own = mutations[i]
            mutation = rng.choice(own if own and rng.random() < 0.75 else PLAIN)
            try:
                parts[i] = mutation(rng, parts[i] or b"", others[i] or b"")
            except Exception:  # what knows a format can fail in any way on what is damaged already
                parts[i] = flip(rng, parts[i] or b"", b"")
    return pack(parts)[:LARGEST]
