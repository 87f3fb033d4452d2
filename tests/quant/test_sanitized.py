"""The kernels under the address and undefined-behaviour sanitizers, through their own tests."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TESTS = ("tests/quant/test_kernels.py", "tests/infer/test_native_runner.py")


def preloaded(compiler: str) -> str:
    """The sanitizers' libraries, which must be loaded before anything else."""
    paths = []
    for name in ("libasan.so", "libubsan.so"):
        asked = [compiler, f"-print-file-name={name}"]
        path = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
        if path == name:  # GCC's answer for a file that it does not have
            pytest.skip(f"the compiler has no {name}")
        paths.append(path)
    return " ".join(paths)


@pytest.mark.slow
def test_no_kernel_reads_or_writes_out_of_bounds(tmp_path: Path) -> None:
    gcc, cmake = shutil.which("g++"), shutil.which("cmake")
    if not gcc or not cmake or sys.platform != "linux":
        pytest.skip("needs g++ and cmake on Linux")
    for command in (
        [cmake, "-S", str(ROOT / "native"), "-B", str(tmp_path), "-DGEMMULE_SANITIZE=ON",
         f"-DCMAKE_CXX_COMPILER={gcc}"],
        [cmake, "--build", str(tmp_path)],
    ):  # fmt: skip
        subprocess.run(command, check=True, capture_output=True)
    environment = {
        **os.environ,
        "LD_PRELOAD": preloaded(gcc),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python frees much of its memory only at exit, or never
        "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
        "GEMMULE_LIBRARY": str(tmp_path / "libgemmule_kernels.so"),
    }
    command = [sys.executable, "-m", "pytest", "-qsx", "-p", "no:cacheprovider", *TESTS]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
