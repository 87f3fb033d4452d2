"""Damage to the .npy files in an .npz: what their headers claim."""

import random
import struct

from mutate import Mutation
from mutate_zip import Member, on_members

_DESCRS = (
    "'|O'", "'<f4'", "'>f4'", "'<f2'", "'<f8'", "'|V2'", "'|V0'", "'<f16'", "'<U9999999'", "'<M8'",
    "'|S0'", "'<i4'", "''", "None", "[('a', '<f4')]", "[('a', '|O')]", "[]", "('<f4', (3, 3))",
    "'f4,f4'", "'<f4' * 3", "b'<f4'", "'\\x1b[2J'", "'|b1'", "{'names': []}",
)  # fmt: skip
_SHAPES = (
    "()", "(0,)", "(-1,)", "(1, -8)", "(4294967296, 4294967296)", "(9223372036854775807,)",
    "(1" + "0" * 400 + ",)", "(1.0,)", "(True, 8)", "'x'", "None", "[8]", "(8)", "((8,),)",
    "(1,) * 9", "(1," * 40 + ")" * 40, "(" + "1," * 3000 + ")", "-" * 3000 + "1", "(1e3,)",
    "(" + "(" * 4000, "{}", "(8L, 8L)", "(0x" + "f" * 6000 + ",)",
)  # fmt: skip
_ORDERS = ("False", "True", "1", "None", "'C'")


def _split(data: bytes) -> tuple[bytes, bytes]:
    """Header text and numbers of a .npy file."""
    start = 10 + int.from_bytes(data[8:10], "little")
    return data[10:start], data[start:]


def _joined(text: bytes, rest: bytes, version: int = 1) -> bytes:
    form = "<H" if version == 1 else "<I"
    limit = 2**16 - 1 if version == 1 else 2**32 - 1
    return (
        b"\x93NUMPY" + bytes([version, 0]) + struct.pack(form, min(len(text), limit)) + text + rest
    )


def header(rng: random.Random, members: list[Member]) -> None:
    """One entry of a header becomes an odd one."""
    chosen = rng.choice(members)
    text, rest = _split(chosen.data)
    fields = {}
    for key, usual in (("descr", b"'<f4'"), ("fortran_order", b"False"), ("shape", b"(8,)")):
        at = text.find(key.encode()) + len(key) + 3
        stop = text.find(b")" if key == "shape" else b",", at) + (key == "shape")
        fields[key] = text[at:stop] or usual
    key = rng.choice(list(fields))
    odd = {"descr": _DESCRS, "fortran_order": _ORDERS, "shape": _SHAPES}[key]
    fields[key] = rng.choice(odd).encode()
    new = b"{" + b", ".join(b"'%s': %s" % (k.encode(), v) for k, v in fields.items()) + b"}\n"
    chosen.data = _joined(new, rest, rng.choice((1, 1, 2, 3)))


def header_text(rng: random.Random, members: list[Member]) -> None:
    chosen = rng.choice(members)
    text, rest = _split(chosen.data)
    odd = (b"", b"{" * 5000, b"[" * 90 + b"]" * 90, b"__import__('os').system('x')", b"\xff" * 20,
           text + b" " * 20_000, text[::-1], b"{'descr': '<f4'}", text[:-1], b"-" * 9000 + b"1",
           b"(" * 150 + b")" * 150, b"1+" * 3000 + b"1",
           b"{1:" * 90 + b"1" + b"}" * 90)  # fmt: skip
    chosen.data = _joined(rng.choice(odd), rest, rng.choice((1, 2)))


def header_length(rng: random.Random, members: list[Member]) -> None:
    chosen = rng.choice(members)
    version = rng.choice((1, 2, 3, 9, 255))
    length = rng.choice((0, 1, 2**16 - 1, 2**31, 2**32 - 1))
    numbers = struct.pack("<H", length % 2**16) if version == 1 else struct.pack("<I", length)
    chosen.data = (
        b"\x93NUMPY" + bytes([version, rng.choice((0, 0, 1))]) + numbers + chosen.data[10:]
    )


def weights(rng: random.Random, members: list[Member]) -> None:
    """NaN and the like, too few numbers or too many."""
    chosen = rng.choice(members)
    text, rest = _split(chosen.data)
    odd = rng.choice((float("nan"), float("inf"), 3e38))
    bad = struct.pack("<f", odd)
    rest = rng.choice((bad + rest[4:], rest[:-4], rest[:-1], rest + bad, b"", rest * 2))
    chosen.data = _joined(text, rest)


NPZ: tuple[Mutation, ...] = tuple(
    map(on_members, (header, header, header_text, header_length, weights))
)
