"""Limits of the machine: each gives one line that says what ran out and what to do."""

import contextlib
import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from unprivileged import obey_permissions

from gemmule.checkpoints.convert import convert
from gemmule.checkpoints.hf.writer import save_model
from gemmule.data.prepare import prepare
from gemmule.errors import OutputError
from gemmule.model.tokenizer import Tokenizer
from gemmule.quantize import quantize
from gemmule.runtime.shortage import explain_shortage
from models import TINY, random_model, tiny_config


@pytest.fixture(scope="module")
def model(pieces: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_model(random_model(tiny_config(TINY, vocab_size=pieces.vocab_size)), pieces, folder)
    return folder


def in_child(code: str, *arguments: object, **environment: str) -> Any:
    """What a program prints as JSON in its last line; permissions hold for it."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True, text=True, check=False, timeout=120, preexec_fn=obey_permissions,
        env={**os.environ, **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


REFUSALS = [
    (MemoryError(), "out of memory: end other programs"),
    (
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate "
            "memory: you tried to allocate 8589934592 bytes. Error code 12 (Cannot allocate memory)"
        ),
        "out of memory (8.0 GiB wanted): ",
    ),
    (MemoryError("not enough memory for a step of 5 tokens"), "out of memory for a step of 5 tok"),
    (MemoryError("Unable to allocate 1.50 GiB for an array"), "out of memory (1.50 GiB wanted): "),
    (RuntimeError("std::bad_alloc"), "out of memory: "),
    (
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has"),
        "out of memory on the GPU (2.00 GiB wanted): ",
    ),
    (ImportError("libtorch.so: failed to map segment from shared object"), "while a library"),
    (
        RuntimeError("can't start new thread"),
        "a thread cannot be started: raise the lim",
    ),
    (OSError(errno.EMFILE, "Too many open files", "a.txt"), "(a.txt): raise the limit (ulimit -n)"),
    (RuntimeError("unable to open file <x>: Too many open files (24)"), "(ulimit -n)"),
    (FileNotFoundError(2, "No usable temporary directory found in ['/tmp']"), "set TMPDIR to one"),
    (OSError(errno.ENOMEM, "Cannot allocate memory"), "out of memory: "),
    (BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), "(ulimit -u)"),
]


@pytest.mark.parametrize(("error", "message"), REFUSALS, ids=[str(e)[:20] for e, _ in REFUSALS])
def test_refusals_of_the_system(error: BaseException, message: str) -> None:
    line = explain_shortage(error)
    assert line is not None
    assert "\n" not in line
    assert message in line


def test_other_errors_stay() -> None:
    for error in (ValueError("memory"), OSError(errno.ENOENT, "gone"), RuntimeError("a bug")):
        assert explain_shortage(error) is None


def test_limits_of_a_process(model: Path) -> None:
    """Each is set when everything is loaded, so that it is our own work that meets it."""
    code = """
import json, resource, sys
import torch
from gemmule.checkpoints.load import load_model
from gemmule.errors import ConfigError
from gemmule.infer.core.cache_size import affordable_pages
from gemmule.infer.runners.choose import make_runner
from gemmule.quant import native
from gemmule.quant.packed import plain
from gemmule.runtime import memory
from gemmule.runtime.shortage import explain_shortage

def says(name, room, work):
    before = resource.getrlimit(name)
    used = 0
    if name == resource.RLIMIT_AS:
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(name, (used + room, before[1]))
    try:
        return str(work())
    except ConfigError as e:
        return str(e)
    except Exception as e:
        return explain_shortage(e) or repr(e)
    finally:
        resource.setrlimit(name, before)

def product():
    return len(native.linear(matrix, rows))

matrix, rows = plain(torch.ones(16, 256)), torch.ones(2**17, 256)
if native.available():
    native.threads()
runner = make_runner(load_model(sys.argv[1])[0])
AS, MIB = resource.RLIMIT_AS, 2**20
print(json.dumps({
    "tensor": says(AS, 100 * MIB, lambda: torch.empty(2**30)),
    "bytes": says(AS, 100 * MIB, lambda: bytearray(2**32)),
    "threads": says(AS, 64 * MIB, lambda: native.Threads(64)) if native.available() else "",
    "product": says(AS, 64 * MIB, product) if native.available() else "",
    "another": says(AS, 1024 * MIB, product) if native.available() else "",
    "pages": says(AS, 100 * MIB, lambda: affordable_pages(runner) * runner.page_bytes),
    "files": says(resource.RLIMIT_NOFILE, 3, lambda: load_model(sys.argv[1])),
}))
"""
    lines = in_child(code, model)
    assert lines["tensor"].startswith("out of memory (4.0 GiB wanted): ")
    assert lines["bytes"].startswith("out of memory: ")
    assert (
        not lines["threads"] or "64 threads cannot be started: raise the limit" in lines["threads"]
    )
    if lines["product"]:
        assert lines["product"].startswith("out of memory for a product of 131072 rows with a 16 x")
        assert lines["another"] == "131072"
    assert 0 < int(lines["pages"]) <= 25 * 2**20
    assert "(ulimit -n)" in lines["files"]


def test_files_of_a_limited_size(model: Path, tmp_path: Path) -> None:
    code = """
import json, resource, sys
from pathlib import Path
from gemmule.checkpoints.convert import convert
from gemmule.errors import OutputError
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
try:
    convert(sys.argv[1], Path(sys.argv[2]), "hf", verify=False)
except OutputError as e:
    print(json.dumps(str(e)))
"""
    assert "larger than this file system or limit allows" in in_child(code, model, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    convert(model, tmp_path / "out", "hf", verify=False)
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=40k", "none", str(disk)]
    able = os.geteuid() == 0 and shutil.which("mount") and shutil.which("umount")
    if not able or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("file systems cannot be mounted here")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_full_disk(small_disk: Path, model: Path, text_folder: Path, pieces: Tokenizer) -> None:
    writers = {
        "export": lambda out: convert(model, out, "hf", verify=False),
        "packed": lambda out: quantize(model, "int8", out),
        "tokenizer": pieces.save,
        "data": lambda out: prepare(text_folder, pieces, out, workers=1),
    }
    for name, write in writers.items():
        with contextlib.suppress(OSError):
            (small_disk / "filler").write_bytes(bytes(2**20))
        with pytest.raises(OutputError, match="the disk is full: free some space"):
            write(small_disk / name)
        (small_disk / "filler").unlink()
        assert not (small_disk / name / "manifest.json").exists()
        if name in ("export", "packed"):
            assert not (small_disk / name).exists()
    subprocess.run(["mount", "-o", "remount,size=20m", str(small_disk)], check=True)
    for name, write in writers.items():
        write(small_disk / name)
    assert sorted(entry.name for entry in small_disk.iterdir()) == sorted(writers)


def test_a_mount_point_is_the_output(small_disk: Path, model: Path) -> None:
    subprocess.run(["mount", "-o", "remount,size=20m", str(small_disk)], check=True)
    convert(model, small_disk, "gguf", verify=False)
    assert sorted(entry.name for entry in small_disk.iterdir()) == ["export.json", "model.gguf"]


HUB = """
import json, sys
import huggingface_hub
from huggingface_hub.errors import LocalEntryNotFoundError
from gemmule.checkpoints.hub import download_repository
from gemmule.errors import CheckpointError
def refuse(*_, **__):
    raise {error}
huggingface_hub.snapshot_download = refuse
try:
    download_repository("org/name")
except CheckpointError as e:
    print(json.dumps(str(e)))
"""
NOT_CACHED = "LocalEntryNotFoundError('not cached')"
NOT_ALLOWED = "PermissionError(13, 'Permission denied', 'x')"


def test_a_hub_cache_of_another_user(tmp_path: Path) -> None:
    model = tmp_path / "hub" / "models--org--name"
    model.mkdir(parents=True)
    home = {"HF_HOME": str(tmp_path), "HF_HUB_CACHE": str(tmp_path / "hub")}
    assert "has no such model" in in_child(HUB.format(error=NOT_CACHED), **home)
    model.chmod(0)
    try:
        message = in_child(HUB.format(error=NOT_CACHED), **home)
        assert f"{model} cannot be read (it belongs to user " in message
        assert "set HF_HOME to a folder of yours" in message
    finally:
        model.chmod(0o755)
    model.rmdir()
    (tmp_path / "hub").chmod(0o555)
    try:
        message = in_child(HUB.format(error=NOT_ALLOWED), **home)
        assert f"{tmp_path / 'hub'} cannot be written to (it belongs to user " in message
    finally:
        (tmp_path / "hub").chmod(0o755)


def test_a_home_that_cannot_be_written(model: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    home.chmod(0o555)
    code = "import json, sys, gemmule; print(json.dumps(gemmule.load(sys.argv[1]).generate('the')))"
    try:
        for folder in (home, tmp_path / "missing"):
            assert in_child(code, model, HOME=str(folder), XDG_CACHE_HOME=str(folder))
    finally:
        home.chmod(0o755)


def test_a_cache_of_torch_compile_that_cannot_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    code = """
import contextlib, io, json
from gemmule.console import console
from gemmule.runtime.torch_compile import can_compile
with console.capture() as capture:
    assert not can_compile()
print(json.dumps(capture.get()))
"""
    try:
        message = in_child(code, TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "cache"))
    finally:
        tmp_path.chmod(0o755)
    assert "Permission denied" in message
    assert "Set TORCHINDUCTOR_CACHE_DIR" in message
