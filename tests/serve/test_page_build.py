"""The committed files of the page are what web/ builds."""

import hashlib
import json
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WEB = ROOT / "web"
PAGE = ROOT / "src/gemmule/serve/page"
SOURCES = ["build.mjs", "icon.svg", "index.html", "package-lock.json", "src"]


def hash_of_sources() -> str:
    """The sum that build.mjs writes into the manifest."""
    paths = [WEB / name for name in SOURCES]
    files = [f for p in paths for f in (p.rglob("*") if p.is_dir() else [p]) if f.is_file()]
    lines = [
        f"{file.relative_to(WEB).as_posix()} {hashlib.sha256(file.read_bytes()).hexdigest()}\n"
        for file in files
    ]
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


def built(folder: Path) -> dict[str, bytes]:
    """Contents of all files under a folder by path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_the_page_was_built_after_the_last_change_of_its_sources() -> None:
    manifest = json.loads((PAGE / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["sources"] == hash_of_sources(), (
        "web/ was changed: npm run build (web/README.md)"
    )
    assert manifest["files"] == sorted(set(built(PAGE)) - {"manifest.json"})


def test_a_build_gives_the_committed_bytes(tmp_path: Path) -> None:
    node = shutil.which("node")
    if node is None or not (WEB / "node_modules/esbuild").is_dir():
        pytest.skip("needs node, and `npm ci` in web/")
    subprocess.run([node, WEB / "build.mjs", tmp_path / "page"], check=True, timeout=120)
    again = built(tmp_path / "page")
    assert sorted(again) == sorted(built(PAGE))
    for path, data in built(PAGE).items():
        assert again[path] == data, path


@pytest.mark.parametrize("command", ["check", "test"])
def test_types_and_scripts_of_the_page(command: str) -> None:
    npm = shutil.which("npm")
    if npm is None or not (WEB / "node_modules/typescript").is_dir():
        pytest.skip("needs npm, and `npm ci` in web/")
    done = subprocess.run(
        [npm, "run", "--silent", command],
        cwd=WEB, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_lock_file_names_no_registry() -> None:
    for name in ("package.json", "package-lock.json", ".npmrc"):
        text = (WEB / name).read_text(encoding="utf-8")
        assert '"resolved"' not in text
        assert "registry=" not in text


def test_the_sanitizer_has_no_known_hole() -> None:
    """CVE-2026-49978 is about IN_PLACE in DOMPurify before 3.4.7."""
    lock = json.loads((WEB / "package-lock.json").read_text(encoding="utf-8"))
    version = lock["packages"]["node_modules/dompurify"]["version"]
    assert tuple(map(int, version.split("."))) >= (3, 4, 7)
    sources = "".join(path.read_text(encoding="utf-8") for path in (WEB / "src").rglob("*.js"))
    assert sources.count("DOMPurify.sanitize(") == 1
    assert "IN_PLACE" not in sources


def test_the_page_loads_nothing_from_elsewhere() -> None:
    html = (PAGE / "index.html").read_text(encoding="utf-8")
    assert "//" not in html.replace("<!doctype html>", "")
    assert "<style" not in html and "style=" not in html
    assert "<script>" not in html
