"""ARM's kernels, cross-compiled and emulated, against the portable ones, bit for bit.

There is no Python for the emulated processor, so a C++ program (kernels_alike.cpp) draws the cases
of test_kernels.py. The program runs on this processor too: the same hash means the same bits.
"""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from gemmule.quant import native

HERE = Path(__file__).parent
NATIVE = HERE.parents[1] / "native"
CROSS = "aarch64-linux-gnu"


def run(*command: str | Path) -> str:
    done = subprocess.run(
        [str(c) for c in command], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def program(compiler: str, library: Path, to: Path) -> Path:
    """The program of kernels_alike.cpp, linked to a library of the kernels."""
    run(
        compiler, "-std=c++20", "-O1", "-Wall", "-Wextra", "-Werror", "-I", NATIVE,
        HERE / "kernels_alike.cpp", library, f"-Wl,-rpath,{library.parent}", "-o", to,
    )  # fmt: skip
    return to


def parse(output: str) -> tuple[list[str], str]:
    """Instruction sets that were compared with the portable one, and the hash."""
    match = re.fullmatch(r"sets:([\w ]*)\nhash: (\w+)\nfailures: 0\n", output)
    assert match, output
    return match[1].split(), match[2]


@pytest.mark.slow
def test_every_instruction_set_gives_the_portable_bits(tmp_path: Path) -> None:
    emulator = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
    if not (emulator and shutil.which(f"{CROSS}-g++") and shutil.which("cmake")):
        pytest.skip("needs cmake, g++ for aarch64 and qemu-user")
    run(
        "cmake", "-S", NATIVE, "-B", tmp_path, f"-DCMAKE_CXX_COMPILER={CROSS}-g++",
        "-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
    )  # fmt: skip
    run("cmake", "--build", tmp_path, "--parallel", "2")
    arm = program(f"{CROSS}-g++", tmp_path / "libgemmule_kernels.so", tmp_path / "alike")
    hashes = set()
    for processor, sets in (
        ("max", ["dotprod", "i8mm"]),
        ("neoverse-n1", ["dotprod"]),
        ("cortex-a53", []),
    ):
        found, digest = parse(run(emulator, "-cpu", processor, "-L", f"/usr/{CROSS}", arm))
        assert found == sets, processor
        hashes.add(digest)
    if native.available() and shutil.which("g++"):
        here = program("g++", native.PATH.resolve(), tmp_path / "here")
        hashes.add(parse(run(here))[1])
    assert len(hashes) == 1
