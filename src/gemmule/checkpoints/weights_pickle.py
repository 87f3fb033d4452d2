"""Reads the pickle in a .ckpt file without executing any of it.

torch's weights-only reader does not run code from a pickle, but a file can still make it exhaust
memory (it may call bytearray), hang or crash (a dictionary key can be nested tuples that take
forever to hash). So the pickle is first checked without building any object: it passes if it only
holds what torch.save writes for tensors and plain values by name.
"""

import io
import pickletools
import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from zipfile import ZipFile, ZipInfo

import torch

from gemmule.errors import CheckpointError, first_line

# The kind of a value on the pickle machine's stack; for a tuple, the kinds of its items.
_Kind = str | tuple[str, ...]
_PLAIN = {
    "EMPTY_DICT": "dict",
    "EMPTY_LIST": "list",
    "BINUNICODE": "text",
    "BININT": "int",
    "BININT1": "int",
    "BININT2": "int",
    "LONG1": "int",
    "BINFLOAT": "value",
    "NONE": "value",
    "NEWTRUE": "value",
    "NEWFALSE": "value",
}
_KEYS = ("text", "int")  # fast to hash
_ENDED_BY_MARK = {"TUPLE", "SETITEMS", "APPENDS"}
_MAX_ITEMS = 16  # in a tuple; a tensor needs six
_MAX_STEPS = 100_000  # of the pickle machine; the 27B's int8 file takes twenty thousand
_STORAGE_CLASS = re.compile(r"torch \w+Storage")
_PERSISTENT = ("text", "storage class", "text", "text", "int")
# Functions that may be called: the kinds of their arguments and of the result. Names as in
# pickletools.
_CALLS: Mapping[str, tuple[tuple[str, ...], str]] = {
    "collections OrderedDict": ((), "dict"),
    "torch._utils _rebuild_tensor_v2": (
        ("storage", "int", "ints", "ints", "value", "dict"),
        "tensor",
    ),
    "torch._utils _rebuild_parameter": (("tensor", "value", "dict"), "tensor"),
}


class _Refused(Exception):
    """Describes forbidden content of the pickle."""


def unpickle(
    pickled: bytes, storages: Iterable[str], path: Path
) -> tuple[object, Mapping[int, str]]:
    """Unpickles a state dict whose tensors have no data.

    torch reads it from an archive in memory with empty storages, so it never reads the file itself;
    the offset of an empty storage identifies the storage of a tensor.

    Args:
        pickled: the content of data.pkl.
        storages: names of the file's storages, such as "data/0".
        path: the file, for messages.

    Returns:
        The value, and the storages' names by `untyped_storage()._checkpoint_offset` of a tensor.

    Raises:
        CheckpointError: when it holds code, or anything other than tensors and plain values by
            name.
    """
    try:
        _walk(pickled)
    except _Refused as e:
        raise CheckpointError(
            f"{path} holds {e}; none of it was executed. Use safetensors, or a file of tensors by "
            "name that torch.save wrote with its default pickle protocol"
        ) from None
    except Exception as e:  # pickletools can raise anything on a broken pickle
        raise CheckpointError(
            f"{path}: its pickle is damaged ({first_line(e)}); download it again"
        ) from None
    slim, starts = io.BytesIO(), {}
    with ZipFile(slim, "w") as archive:
        archive.writestr(ZipInfo("archive/version"), "3")
        archive.writestr(ZipInfo("archive/data.pkl"), pickled)
        for name in storages:
            member = ZipInfo(f"archive/{name}")
            archive.writestr(member, b"")
            starts[member.header_offset + len(member.FileHeader())] = name
    slim.seek(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # errors are reported below
            return torch.load(slim, map_location="meta", weights_only=True), starts
    except Exception as e:  # so can torch
        raise CheckpointError(
            f"{path} cannot be read as weights ({first_line(e)}); download it again"
        ) from None


def _walk(pickled: bytes) -> None:  # noqa: PLR0912 (one case per operation)
    """Simulates the pickle machine on the kinds of values alone."""
    stack: list[_Kind] = []
    outer: list[list[_Kind]] = []  # stacks left at a mark
    memo: dict[object, _Kind] = {}
    for step, (op, argument, _) in enumerate(pickletools.genops(pickled)):
        _expect(step < _MAX_STEPS, "a pickle far longer than weights need")
        items: list[_Kind] = []
        if op.name in _ENDED_BY_MARK:
            items, stack = stack, outer.pop()
        match op.name:
            case "PROTO" | "STOP":
                _expect(argument in {2, None}, f"a pickle of protocol {argument}")
            case "MARK":
                outer.append(stack)
                stack = []
            case name if name in _PLAIN:
                small = not isinstance(argument, int) or argument.bit_length() < 64
                _expect(small, "a number of absurd size")
                stack.append(_PLAIN[name])
            case "GLOBAL":
                stack.append(_global(str(argument)))
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                _expect(argument in memo, "a reference to nothing")
                stack.append(memo[argument])
            case "EMPTY_TUPLE" | "TUPLE":
                stack.append(_tuple(items))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack[-int(op.name[-1]) :] = [_tuple(stack[-int(op.name[-1]) :])]
            case "BINPERSID":
                _expect(stack.pop() == _PERSISTENT, "a reference to something outside")
                stack.append("storage")
            case "REDUCE":
                arguments, called = stack.pop(), str(stack.pop())
                expected, made = _CALLS.get(called, (None, ""))
                _expect(arguments == expected, "a call with other arguments than a tensor's")
                stack.append(made)
            case "BUILD":  # attributes of a module's state dict: its versions
                _expect((stack.pop(), stack[-1]) == ("dict", "dict"), "an object with a state")
            case "SETITEM" | "SETITEMS":
                if op.name == "SETITEM":
                    items = [stack.pop(-2), stack.pop()]
                fits = stack[-1] == "dict" and all(key in _KEYS for key in items[::2])
                _expect(fits, "values under keys that are not names")
            case "APPEND" | "APPENDS":
                del stack[len(stack) - (op.name == "APPEND") :]
                _expect(stack[-1] == "list", "values appended to something other than a list")
            case _:
                of = "" if argument is None else f" of {str(argument).replace(' ', '.'):.80}"
                raise _Refused(f"more than weights (its pickle has {op.name}{of})")


def _global(name: str) -> str:
    if _STORAGE_CLASS.fullmatch(name):
        return "storage class"
    if name not in _CALLS:
        raise _Refused(f"code in addition to weights (it asks for {name.replace(' ', '.'):.80})")
    return name


def _tuple(items: Iterable[_Kind]) -> tuple[str, ...]:
    """The kind of a tuple. Kinds of tuples inside it are not kept, so that kinds stay small."""
    items = list(items)
    _expect(len(items) <= _MAX_ITEMS, "a tuple of absurd length")
    return tuple(
        item if isinstance(item, str) else "ints" if all(x == "int" for x in item) else "tuple"
        for item in items
    )


def _expect(condition: bool, otherwise: str) -> None:
    if not condition:
        raise _Refused(otherwise)
