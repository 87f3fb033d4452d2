"""Damage to JSON, and to the JSON header of safetensors files."""

import json
import random
import struct
from typing import Any

from mutate import Mutation, extreme, fitted, put


class Raw(str):
    """Text that goes into the JSON as it is."""


class Pairs(list[list[Any]]):
    """An object, in which a key may stand twice."""


ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2**31, 2**53 + 1, 2**63, 2**64, 10**30, -(10**30), 0.5, 1e308,
    float("nan"), float("inf"), "", "0", "x" * 3000, "\0", "\u2581", "..", "../outside.bin",
    "/etc/passwd", "a/b", ".", "\x1b[2J", [], [0], [1, 2, 3, 4, 5], {}, [[]], {"": {}},
    Raw("9" * 5000), Raw("1e999"), Raw("-0"), Raw('"\\ud800"'), Raw("[" * 90_000),
    Raw("[" * 900 + "]" * 900), Raw('{"a":' * 3000 + "1" + "}" * 3000),
)  # fmt: skip
_KEYS = ("", "__metadata__", "x", "shape", "\0", "dtype", "model.norm.weight", "lm_head.weight")


def _pairs(pairs: list[tuple[str, Any]]) -> Pairs:
    return Pairs(map(list, pairs))


def parse(data: bytes) -> Any:
    """JSON whose objects are Pairs; raises ValueError or RecursionError."""
    return json.loads(data, object_pairs_hook=_pairs)


def dump(value: Any) -> str:
    """The reverse."""
    if isinstance(value, Raw):
        return value
    if isinstance(value, Pairs):
        return "{" + ",".join(f"{dump(k)}:{dump(v)}" for k, v in value) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(dump, value)) + "]"
    if isinstance(value, dict):
        return json.dumps(value)
    return json.dumps(value)


def _slots(value: Any) -> list[tuple[Any, int]]:
    """Every (container, index) in which a value stands; a pair's value has index 1."""
    slots: list[tuple[Any, int]] = []
    if isinstance(value, Pairs):
        for pair in value:
            slots += [(pair, 1), *_slots(pair[1])]
    elif isinstance(value, list):
        for i, item in enumerate(value):
            slots += [(value, i), *_slots(item)]
    return slots


def _objects(value: Any) -> list[Pairs]:
    inside = [v for _, v in value] if isinstance(value, Pairs) else value
    deeper = [inner for v in inside for inner in _objects(v)] if isinstance(inside, list) else []
    return ([value] if isinstance(value, Pairs) else []) + deeper


def changed(rng: random.Random, value: Any) -> Any:
    """A parsed value with one thing in it changed."""
    slots, objects = _slots(value), [fields for fields in _objects(value) if fields]
    if not slots or not objects:
        return rng.choice(ODD)
    owner, at = rng.choice(slots)
    old, pairs = owner[at], rng.choice(objects)
    match rng.randrange(9):
        case 0 | 1:
            owner[at] = rng.choice(ODD)
        case 2 | 3 if isinstance(old, int | float):
            owner[at] = rng.choice((extreme(rng, int(old)), str(old), [old], old * 0.5, -old))
        case 4:
            del pairs[rng.randrange(len(pairs))]
        case 5:
            key, item = rng.choice(pairs)
            pairs.append([rng.choice((key, *_KEYS)), rng.choice((item, rng.choice(ODD)))])
        case 6:
            rng.choice(pairs)[0] = rng.choice(_KEYS)
        case 7:
            other, there = rng.choice(slots)
            owner[at], other[there] = other[there], old
        case _:
            owner[at] = rng.choice(([old], Pairs([["a", old]]), dump(old)))
    return value


def tree(rng: random.Random, data: bytes, other: bytes) -> bytes:
    return dump(changed(rng, parse(data))).encode(errors="surrogatepass")


def syntax(rng: random.Random, data: bytes, other: bytes) -> bytes:
    at = rng.randrange(len(data) + 1)
    odd = rng.choice((b"{", b"[", b"]", b'"', b"\\", b",", b"\xff", b"1"))
    return data[:at] + odd * rng.choice((1, 1, 5000, 60_000)) + data[at:]


def values(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """As `tree`, of one of the values that a file holds one after the other."""
    text = data.decode(json.detect_encoding(data))
    decoder = json.JSONDecoder(object_pairs_hook=_pairs)
    stream, at = [], 0
    while rest := text[at:].lstrip():
        value, end = decoder.raw_decode(rest)
        stream.append(value)
        at = len(text) - len(rest) + end
    if not stream:
        return dump(rng.choice(ODD)).encode(errors="surrogatepass")
    chosen = rng.randrange(len(stream))
    stream[chosen] = changed(rng, stream[chosen])
    return "\n".join(map(dump, stream)).encode(errors="surrogatepass")


JSON: tuple[Mutation, ...] = (tree, tree, tree, syntax)
JSON_VALUES: tuple[Mutation, ...] = (values, values, values, syntax)


# --- safetensors --------------------------------------------------------------------------------


def _split(data: bytes) -> tuple[bytes, bytes]:
    length = int.from_bytes(data[:8], "little")
    return data[8 : 8 + length], data[8 + length :]


def _joined(header: bytes, data: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header + data


def header(rng: random.Random, data: bytes, other: bytes) -> bytes:
    head, rest = _split(data)
    return _joined(tree(rng, head, other), rest)


def header_length(rng: random.Random, data: bytes, other: bytes) -> bytes:
    near = rng.choice((int.from_bytes(data[:8], "little"), len(data), len(data) - 8))
    return put(data, 0, fitted(extreme(rng, near), 8))


def entry(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """A tensor's dtype, shape or place changed so that it may still look sound."""
    head, rest = _split(data)
    entries = json.loads(head)
    a, b = (rng.choice([v for k, v in entries.items() if "." in k]) for _ in range(2))
    start, stop = a["data_offsets"]
    match rng.randrange(8):
        case 0:
            a["data_offsets"], b["data_offsets"] = b["data_offsets"], a["data_offsets"]
        case 1:
            a["data_offsets"] = b["data_offsets"]
        case 2:
            a["data_offsets"] = [stop, start]
        case 3:
            a["data_offsets"] = [extreme(rng, start), extreme(rng, stop)]
        case 4:
            a["shape"] = a["shape"][::-1]
        case 5:
            a["shape"] = rng.choice(([0], [], [1, *a["shape"]], [2**32, 2**32], [2**63, 2], [-1]))
        case 6:
            a["dtype"] = rng.choice(("F64", "F32", "BF16", "F16", "I32", "U8", "BOOL", "F4", "?"))
        case _:
            a["dtype"], b["dtype"] = "BF16", "F16"
            rest += rest[: rng.choice((2, 4, 64))]
    return _joined(json.dumps(entries).encode(), rest)


def weights(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """NaN, Inf and the like among the numbers."""
    head, rest = _split(data)
    value = rng.choice((float("nan"), float("inf"), -float("inf"), 3e38, 1e-45))
    at = rng.randrange(max(1, len(rest) // 4)) * 4
    return _joined(head, put(rest, at, struct.pack("<f", value))[: len(rest)])


SAFETENSORS: tuple[Mutation, ...] = (header, header, entry, entry, header_length, weights)
