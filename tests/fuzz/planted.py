"""Planted bugs, to see that the fuzzing notices each; prints what it found as JSON.

Run by test_fuzz.py in a process of its own: it forks, and pytest has threads.
"""

import ctypes
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # where models.py is

import fuzzing
from mutate import pack
from mutate_pickle import CALLS
from targets import Target

from gemmule.errors import CheckpointError

SEED = b"sound"
HANG_SECONDS = 0.4


def reads(folder: Path) -> bytes:
    return (folder / "file").read_bytes() if (folder / "file").exists() else b""


def planted(bug: Callable[[Path], None]) -> Callable[[Path], None]:
    """A reader that is fine with the sound input, and has a bug with some others."""

    def check(folder: Path) -> None:
        data = reads(folder)
        if data == SEED:
            return
        if not data.startswith(SEED):
            raise CheckpointError(f"{data[:4]!r} is not what it should be")
        bug(folder)

    return check


def segfault(folder: Path) -> None:
    ctypes.string_at(0)


def abort(folder: Path) -> None:
    os.abort()


def leave(folder: Path) -> None:
    os._exit(0)


def busy_hang(folder: Path) -> None:
    while True:
        pass


def native_hang(folder: Path) -> None:
    """One that Python's own signal handlers would never see."""
    re.match(r"(x+x+)+y", "x" * 99)


def sleeping_hang(folder: Path) -> None:
    while True:
        time.sleep(9)


def foreign(folder: Path) -> None:
    raise KeyError("x")


def panic(folder: Path) -> None:
    raise BaseException("as Rust code ends")


def fill_memory(folder: Path) -> None:
    _ = bytearray(b"x") * (700 * 2**20)


def fill_slowly(folder: Path) -> None:
    kept = []
    while True:
        kept.append(bytearray(b"x") * 2**22)


def ask_for_too_much(folder: Path) -> None:
    _ = bytearray(2**40)


def run_pickle(folder: Path) -> None:
    import pickle

    pickle.loads(b"\x80\x02" + CALLS[0] + b".")


def evaluate(folder: Path) -> None:
    import pickle

    pickle.loads(b"\x80\x02" + CALLS[2] + b".")


def start_process(folder: Path) -> None:
    subprocess.run(["true"], check=True)


def read_outside(folder: Path) -> None:
    (folder / "../outside.bin").read_bytes()


def write_outside(folder: Path) -> None:
    (folder.parent / "new").write_bytes(b"")


def mutter(folder: Path) -> None:
    raise CheckpointError("")


BUGS = (
    segfault, abort, leave, busy_hang, native_hang, sleeping_hang, foreign, panic, fill_memory,
    fill_slowly, ask_for_too_much, run_pickle, evaluate, start_process, read_outside,
    write_outside, mutter,
)  # fmt: skip


def add_a_byte(rng: object, data: bytes, other: bytes) -> bytes:
    return data + b"!"


def main() -> None:
    tallies = {}
    work = Path(tempfile.mkdtemp())
    for bug in BUGS:
        target = Target(
            bug.__name__, ("file",), ((add_a_byte,) * 99,), [pack([SEED])], planted(bug)
        )
        patience = HANG_SECONDS if "hang" in bug.__name__ else 20.0
        plan = fuzzing.Plan("random", 0, work / bug.__name__, patience)
        plan.work.mkdir()
        tally = fuzzing.fuzz(target, 3, plan)
        kept = [plan.work / finding["input"] for finding in tally.findings]
        tallies[bug.__name__] = {
            "crashes": tally.crashes,
            "hangs": tally.hangs,
            "executed": tally.executed,
            "memory": tally.memory,
            "inputs": tally.inputs,
            "what": [finding["what"] for finding in tally.findings],
            "kept": [path.read_bytes().decode(errors="replace") for path in kept],
        }
    shutil.rmtree(work)
    json.dump(tallies, sys.stdout)


if __name__ == "__main__":
    main()
