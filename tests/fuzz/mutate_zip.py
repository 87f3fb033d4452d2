"""Damage to zip archives: what their directories claim, and bombs."""

import io
import random
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field

from mutate import Mutation, extreme, fitted, flip, put

_LOCAL, _CENTRAL, _END = b"PK\3\4", b"PK\1\2", b"PK\5\6"
# Where a field stands in an entry of the central directory, and how wide it is.
_FIELDS = {
    "version": (6, 2), "flags": (8, 2), "method": (10, 2), "crc": (16, 4), "packed": (20, 4),
    "unpacked": (24, 4), "name length": (28, 2), "extra length": (30, 2), "comment": (32, 2),
    "disk": (34, 2), "start": (42, 4),
}  # fmt: skip
_NAMES = ("../outside.bin", "/etc/passwd", "", "a\0b", "x" * 60_000, "DATA.PKL", "archive/DATA.pkl",
          "archive/data/0", "archive/version", "C:\\x", "archive//data.pkl", "\u202e", ".npy",
          "embedder/input_embedding.npy", "\x1b[2J")  # fmt: skip


@dataclass
class Member:
    """One file of an archive, and the lies told of it: fields of its directory entry."""

    name: bytes
    data: bytes
    method: int = zipfile.ZIP_STORED
    lies: dict[str, int] = field(default_factory=dict)
    unpacked: int | None = None
    extra: bytes = b""


def read(data: bytes) -> list[Member]:
    """The members as they lie in the file, unpacked; raises whatever zipfile does."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = []
        for m in archive.infolist():
            m.CRC = None  # type: ignore[assignment] (gemmule's own writer leaves them at zero)
            with archive.open(m) as f:  # a bomb is cut short here
                members.append(Member(m.filename.encode(), f.read(2**20), m.compress_type))
        return members


def write(members: list[Member], at: int = 0) -> bytes:
    """An archive of these members, that says of them what it is told to; `at`: bytes before it."""
    body, directory = b"", b""
    for m in members:
        packed = m.data
        if m.method == zipfile.ZIP_DEFLATED and m.unpacked is None:
            deflate = zlib.compressobj(wbits=-15)
            packed = deflate.compress(m.data) + deflate.flush()
        size = len(m.data) if m.unpacked is None else m.unpacked
        common = struct.pack(
            "<HHHHHIIIHH", 20, 0x800, m.method, 0, 0x21, zlib.crc32(m.data), len(packed),
            size % 2**32, len(m.name), len(m.extra),
        )  # fmt: skip
        start = at + len(body)
        body += _LOCAL + common + m.name + m.extra + packed
        entry = _CENTRAL + b"\x14\0" + common + struct.pack("<HHHII", 0, 0, 0, 0, start)
        for name, value in m.lies.items():
            offset, width = _FIELDS[name]
            entry = put(entry, offset, fitted(value, width))
        directory += entry + m.name + m.extra
    end = struct.pack("<HHHHIIH", 0, 0, *[len(members)] * 2, len(directory), at + len(body), 0)
    return body + directory + _END + end


def bomb(mebibytes: int) -> bytes:
    """So many MiB of zeros, deflated into about a thousandth."""
    deflate = zlib.compressobj(9, wbits=-15)
    whole = deflate.compress(bytes(2**20)) + deflate.flush(zlib.Z_FULL_FLUSH)
    return whole * mebibytes + deflate.flush()


def on_members(change: Callable[[random.Random, list[Member]], None]) -> Mutation:
    """A mutation that takes an archive apart, changes a member and puts it together."""

    def mutation(rng: random.Random, data: bytes, other: bytes) -> bytes:
        members = read(data)
        change(rng, members)
        return write(members)

    return mutation


def lie(rng: random.Random, members: list[Member]) -> None:
    member, name = rng.choice(members), rng.choice(list(_FIELDS))
    member.lies[name] = extreme(rng, len(member.data))


def name(rng: random.Random, members: list[Member]) -> None:
    chosen = rng.choice((*_NAMES, rng.choice(members).name.decode()))
    rng.choice(members).name = chosen.encode()[:65535]


def double(rng: random.Random, members: list[Member]) -> None:
    copy = rng.choice(members)
    renamed = copy.name.swapcase() if rng.random() < 0.3 else copy.name
    members.append(Member(renamed, rng.choice(members).data))


def drop(rng: random.Random, members: list[Member]) -> None:
    members.remove(rng.choice(members))


def deflate_bomb(rng: random.Random, members: list[Member]) -> None:
    mebibytes = rng.choice((1, 40, 300, 600))
    chosen = rng.choice(members)
    chosen.data, chosen.method = bomb(mebibytes), zipfile.ZIP_DEFLATED
    chosen.unpacked = rng.choice((mebibytes * 2**20, 0, 100, 2**32 - 1))


def encrypted(rng: random.Random, members: list[Member]) -> None:
    rng.choice(members).lies["flags"] = rng.choice((1, 0x801, 0x41, 8, 0x20))


def method(rng: random.Random, members: list[Member]) -> None:
    chosen = rng.choice(members)
    chosen.unpacked, chosen.method = len(chosen.data), rng.choice((1, 8, 9, 12, 14, 93, 95, 99))


def zip64(rng: random.Random, members: list[Member]) -> None:
    chosen = rng.choice(members)
    values = [extreme(rng, len(chosen.data)) % 2**64 for _ in range(rng.choice((1, 2, 3)))]
    length = rng.choice((8 * len(values), 0, 4, 65535))
    chosen.extra = struct.pack("<HH", 1, length) + b"".join(v.to_bytes(8, "little") for v in values)
    chosen.lies |= dict.fromkeys(("packed", "unpacked", "start")[: len(values)], 2**32 - 1)


def content(rng: random.Random, members: list[Member]) -> None:
    chosen = rng.choice(members)
    chosen.data = flip(rng, chosen.data, b"")


def end_record(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """The counts, sizes and places at the archive's very end."""
    at, width = rng.choice(((4, 2), (6, 2), (8, 2), (10, 2), (12, 4), (16, 4), (20, 2)))
    end = data.rfind(_END)
    return put(data, max(0, end) + at, fitted(extreme(rng, len(data)), width))


def zip64_end(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """A zip64 end record and its locator, with absurd numbers."""
    end = data.rfind(_END)
    if end < 0:
        return flip(rng, data, other)
    numbers = [extreme(rng, end) % 2**64 for _ in range(5)]
    record = b"PK\6\6" + struct.pack(
        "<QHHII4Q", numbers[4], 45, 45, 0, 0, numbers[0], numbers[1], numbers[2], numbers[3]
    )
    locator = b"PK\6\7" + struct.pack("<IQI", 0, rng.choice((end, numbers[4])), 1)
    rest = put(data[end:], 8, b"\xff" * 12)
    return data[:end] + record + locator + rest


ZIP: tuple[Mutation, ...] = (
    *map(on_members, (lie, lie, name, double, drop, deflate_bomb, encrypted, method, zip64)),
    on_members(content),
    end_record,
    zip64_end,
)
