"""Damage to pickles: smuggled code, and structures that break or fill their reader."""

import pickletools
import random
import struct
from collections.abc import Callable
from contextlib import suppress

from mutate import Mutation, extreme, fitted
from mutate_zip import Member, on_members

# What smuggled code would do: leave a mark that the harness looks for after every input.
MARK = "GEMMULE_FUZZ_RAN"
_SHELL = f': > "${MARK}_FILE"'
_PYTHON = f"__import__('os').environ.__setitem__('{MARK}', '1')"


def _text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def call(module: str, function: str, *arguments: bytes) -> bytes:
    """Opcodes that leave module.function(*arguments) on the stack."""
    return f"c{module}\n{function}\n".encode() + b"(" + b"".join(arguments) + b"tR"


CALLS = (
    call("os", "system", _text(_SHELL)),
    call("posix", "system", _text(_SHELL)),
    call("builtins", "eval", _text(_PYTHON)),
    call("builtins", "exec", _text(_PYTHON)),
    call("__builtin__", "eval", _text(_PYTHON)),
    call("subprocess", "Popen", _text(_SHELL), _text("x")),
    call("runpy", "_run_code", _text(_PYTHON), b"}"),
    call("torch.storage", "_load_from_bytes", b"U\x05\x80\x02K\x00."),
    call("torch", "load", _text("/etc/passwd")),
    call("torch.hub", "load", _text("x"), _text("y")),
    call("torch._dynamo.guards", "exec", _text(_PYTHON)),
    call("collections", "OrderedDict", b"]"),
    call("torch", "Size", b"](J\xff\xff\xff\xffK\x02e"),
    call("torch._utils", "_rebuild_parameter", b"N\x89}"),
    call("builtins", "getattr", b"cos\nsystem\n", _text("__call__"), _text(_SHELL)),
    _text("os") + _text("system") + b"\x93" + _text(_SHELL) + b"\x85R",
    b"(" + _text(_SHELL) + b"ios\nsystem\n",
    b"(cos\nsystem\n" + _text(_SHELL) + b"o",
    b"cos\nsystem\n" + _text(_SHELL) + b"\x85\x81",
    b"\x82\x01",
    b"ctorch._utils\n_rebuild_tensor_v2\n(NNNNtR",
    b"ccollections\nOrderedDict\n)R}" + _text("__class__") + b"cos\nsystem\nsb",
)
# A page that would print as a library: every list holds the one before it twice.
_LAUGHS = b"]" + b"".join(b"q%c](h%ch%ce" % (i, i, i) for i in range(40, 90))
# The same of tuples, as a key: its hash takes as long as the page would.
_HASHES = b"})" + b"".join(b"q%c0h%ch%c\x86" % (i, i, i) for i in range(40, 90)) + b"Ns"
STRUCTURES = (
    _LAUGHS,
    _HASHES,
    b"]" + b"\x85" * 60_000,
    b"(" * 60_000,
    b"]" * 3000 + b"a" * 2999,
    b"h\xff",
    b"j\xff\xff\xff\xff",
    b"]r\xff\xff\xff\x7f",
    b"]r\xff\xff\xff\xff",
    b"\x8b\xff\xff\xff\x7f",
    b"\x8b\xff\xff\xff\xff",
    b"\x8a\xff" + b"\x7f" * 255,
    b"X\xff\xff\xff\x7fabc",
    b"\x8d" + b"\xff" * 7 + b"\x7fabc",
    b"\x8e\0\0\0\0\4\0\0\0abc",
    b"T\xff\xff\xff\xffabc",
    b"\x95" + b"\xff" * 8,
    b"\x96\0\0\0\0\1\0\0\0",
    b"I" + b"9" * 5000 + b"\n",
    b"F1e999\n",
    b"Q",
    b"Pstorage\n",
    b"0" * 40,
    b"1",
    b"2222",
    b"\x80\x05",
    b"\x80\xff",
    b"}(NNu",
    b"]N\x85b",
    b"X\4\0\0\0\xff\xfe\xff\xfe",
)
_GLOBALS = (
    b"cos\nsystem\n", b"cbuiltins\neval\n", b"ctorch\nSize\n", b"ctorch\nIntStorage\n",
    b"ctorch\nComplexFloatStorage\n", b"ctorch\nQInt8Storage\n", b"ctorch\nUntypedStorage\n",
    b"ctorch\nnnStorage\n", b"ctorch\nTypedStorage\n", b"ccollections\nOrderedDict\n",
    b"ctorch._utils\n_rebuild_parameter\n", b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ctorch\nDoubleStorage\n", b"ctorch\nBFloat16Storage\n", b"ctorch\nCharStorage\n",
)  # fmt: skip


def _opcodes(pickled: bytes) -> list[tuple[str, int, int]]:
    """(name, start, stop) of each opcode, as far as they can be read."""
    opcodes: list[tuple[str, int]] = []
    with suppress(Exception):  # as in the reader: its parts raise whatever they do
        for op, _, at in pickletools.genops(pickled):
            opcodes.append((op.name, at or 0))
    stops = [at for _, at in opcodes[1:]] + [len(pickled)] * bool(opcodes)
    return [(name, at, stop) for (name, at), stop in zip(opcodes, stops, strict=True)]


def smuggle(rng: random.Random, pickled: bytes) -> bytes:
    """Code or an odd structure, in place of everything, at some opcode, or before the end."""
    extra = rng.choice(rng.choice((CALLS, STRUCTURES)))
    ops = _opcodes(pickled)
    if rng.random() < 0.2 or not ops:
        return b"\x80\x02" + extra + b"."
    at = rng.choice((rng.choice(ops)[1], ops[-1][1]))
    return pickled[:at] + extra + rng.choice((b"0", b"")) + pickled[at:]


def smuggle_config(rng: random.Random, pickled: bytes) -> bytes:
    """The whole beside a "config" that is an odd structure or claims to be one of ours."""
    odd = rng.choice((*STRUCTURES, *CALLS))
    config = rng.choice(
        (odd, b"}(" + _text("model_type") + _text("gemma2") + _text("x") + odd + b"u")
    )
    return pickled[:-1] + _text("config") + config + b"s."


def rename(rng: random.Random, pickled: bytes) -> bytes:
    """Another object where the pickle names one."""
    named = [(at, stop) for name, at, stop in _opcodes(pickled) if name == "GLOBAL"]
    at, stop = rng.choice(named)
    return pickled[:at] + rng.choice(_GLOBALS) + pickled[stop:]


def integers(rng: random.Random, pickled: bytes) -> bytes:
    """An extreme shape, stride, offset or memo index."""
    widths = {"BININT": 4, "BININT1": 1, "BININT2": 2, "BINGET": 1, "LONG_BINGET": 4, "BINPUT": 1}
    ops = [(name, at, stop) for name, at, stop in _opcodes(pickled) if name in widths]
    name, at, stop = rng.choice(ops)
    value = extreme(rng, int.from_bytes(pickled[at + 1 : stop], "little"))
    if name.startswith("BININT") and rng.random() < 0.5:
        return pickled[:at] + b"\x8a\x09" + fitted(value, 9) + pickled[stop:]  # LONG1
    return pickled[: at + 1] + fitted(value, widths[name]) + pickled[stop:]


def strings(rng: random.Random, pickled: bytes) -> bytes:
    """Another tensor's name, storage key or device."""
    ops = [(at, stop) for name, at, stop in _opcodes(pickled) if name == "BINUNICODE"]
    at, stop = rng.choice(ops)
    from_at, from_stop = rng.choice(ops)
    odd = rng.choice(("", "0", "../outside", "x" * 4000, "meta", "cuda:0", "\0", "storage", "\x1b"))
    new = rng.choice((_text(odd), pickled[from_at:from_stop]))
    return pickled[:at] + new + pickled[stop:]


def shuffle(rng: random.Random, pickled: bytes) -> bytes:
    """An opcode left out, doubled or exchanged."""
    ops = _opcodes(pickled)
    (_, a, b), (_, c, d) = rng.choice(ops), rng.choice(ops)
    middle = rng.choice((b"", pickled[a:b] * 2, pickled[c:d], bytes([rng.randrange(256)])))
    return pickled[:a] + middle + pickled[b:]


def _on_pickle(change: Callable[[random.Random, bytes], bytes]) -> Mutation:
    def change_member(rng: random.Random, members: list[Member]) -> None:
        for member in members:
            if member.name.endswith(b"data.pkl"):
                member.data = change(rng, member.data)

    return on_members(change_member)


PICKLE: tuple[Mutation, ...] = tuple(
    map(
        _on_pickle, (smuggle, smuggle, smuggle_config, rename, integers, integers, strings, shuffle)
    )
)
