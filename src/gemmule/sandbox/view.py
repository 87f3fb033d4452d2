"""The part of the file system that a program in a sandbox sees: what Python needs to run."""

import sys
from dataclasses import dataclass
from importlib import util
from pathlib import Path
from typing import Literal

RUNNER = Path(__file__).parent / "inside" / "runner.py"
PACKAGES = "/packages"

_LIBRARIES = ("/lib", "/lib64", "/lib32", "/usr/lib", "/usr/lib64", "/usr/lib32", "/nix/store")
_LOADER = ("/etc/ld.so.cache", "/etc/ld-musl-x86_64.path", "/etc/ld-musl-aarch64.path")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")


@dataclass(frozen=True)
class ViewEntry:
    """One entry of the view; all entries are read-only.

    Attributes:
        kind: a folder with everything in it, a file, a device, or a link (`source` is its text).
        source: its path outside.
        target: its path inside.
    """

    kind: Literal["folder", "file", "device", "link"]
    source: str
    target: str


def interpreter() -> Path:
    """The Python that runs programs: this process's, without its virtual environment."""
    return Path(getattr(sys, "_base_executable", sys.executable)).resolve()


def packages(names: tuple[str, ...]) -> list[Path]:
    """Folders of installed packages and of the shared libraries from their wheels."""
    folders = []
    for name in names:
        spec = util.find_spec(name)
        if spec and spec.submodule_search_locations:
            folder = Path(next(iter(spec.submodule_search_locations)))
            libraries = folder.with_name(f"{name}.libs")
            folders += [folder, *([libraries] if libraries.is_dir() else [])]
    return folders


def python_view(package_names: tuple[str, ...]) -> list[ViewEntry]:
    """The interpreter, its library, shared libraries, packages, and stateless devices."""
    python = interpreter()
    prefix = python.parent.parent
    view: list[ViewEntry] = []
    for path in (*_LIBRARIES, *(str(prefix / lib) for lib in ("lib", "lib64")), str(python)):
        _add(view, Path(path))
    for path in _LOADER:
        _add(view, Path(path))
    view.append(ViewEntry("file", str(RUNNER), "/runner.py"))
    view += [ViewEntry("folder", str(p), f"{PACKAGES}/{p.name}") for p in packages(package_names)]
    view += [ViewEntry("device", d, d) for d in _DEVICES if Path(d).exists()]
    return view


def readable_paths(package_names: tuple[str, ...]) -> list[str]:
    """The same paths, for a program that sees the whole file system and may open only these."""
    return [seen.source for seen in python_view(package_names) if seen.kind != "link"]


def _add(view: list[ViewEntry], path: Path) -> None:
    inside = any(s.kind == "folder" and path.is_relative_to(s.target) for s in view)
    if inside or not path.exists():
        return
    if path.is_symlink():
        view.append(ViewEntry("link", str(path.readlink()), str(path)))
    else:
        view.append(ViewEntry("folder" if path.is_dir() else "file", str(path), str(path)))
