"""Environments of the clients: one folder each under build/clients, made when first used.

The versions are pinned in requirements/NAME.txt and in npm/package.json. An environment is made
again when its file has changed.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

HERE = Path(__file__).parent
BUILD = HERE.parents[1] / "build/clients"
MADE = "made-from.sha256"
# These need torch and more: they find it in the environment of the tests.
REUSES_OURS = ("lm-eval", "guidellm")


def python_of(name: str) -> Path:
    """The interpreter of an environment with requirements/NAME.txt."""
    requirements = HERE / f"requirements/{name}.txt"
    folder = BUILD / name
    python = folder / "bin/python"
    if not _is_new(folder, requirements):
        _run(sys.executable, "-m", "venv", "--clear", folder)
        if name in REUSES_OURS:
            (site,) = folder.glob("lib/python*/site-packages")
            ours = [sysconfig.get_path("purelib"), os.fspath(HERE.parents[1] / "src")]
            (site / "ours.pth").write_text("\n".join(ours) + "\n", encoding="utf-8")
        pip = (python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet")
        _run(*pip, "--requirement", requirements)
        _note(folder, requirements)
    return python


def npm_folder() -> Path:
    """A folder with npm/*.mjs and the packages of npm/package.json."""
    source, folder = HERE / "npm", BUILD / "npm"
    if not _is_new(folder, source / "package.json"):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        shutil.copy(source / "package.json", folder)
        _run("npm", "install", "--silent", "--no-audit", "--no-fund", cwd=folder)
        _note(folder, source / "package.json")
    for script in source.glob("*.mjs"):
        shutil.copy(script, folder)
    return folder


def _is_new(folder: Path, source: Path) -> bool:
    made = folder / MADE
    return made.exists() and made.read_text(encoding="ascii") == _digest(source)


def _note(folder: Path, source: Path) -> None:
    (folder / MADE).write_text(_digest(source), encoding="ascii")


def _digest(source: Path) -> str:
    return hashlib.sha256(source.read_bytes() + sys.version.encode()).hexdigest()


def _run(*command: str | Path, cwd: Path | None = None) -> None:
    done = subprocess.run(
        [os.fspath(part) for part in command],
        cwd=cwd, capture_output=True, text=True, timeout=1800, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{command} failed:\n{done.stdout}\n{done.stderr}")
