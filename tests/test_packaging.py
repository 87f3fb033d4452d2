"""What an installation is made of; building one needs a network, so this reads the recipes."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
RECIPE = (ROOT / "native/CMakeLists.txt").read_text(encoding="utf-8")
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_every_source_is_built() -> None:
    named = set(re.findall(r"\b(\w+\.cpp)\b", RECIPE))
    assert named == {path.name for path in (ROOT / "native").glob("*.cpp")}


def test_every_instruction_set_has_its_own_flags() -> None:
    for path in (ROOT / "native").glob("isa_*.cpp"):
        if path.stem != "isa_portable":
            assert f"set_source_files_properties({path.name} PROPERTIES" in RECIPE


def test_without_a_compiler_it_installs_as_pure_python() -> None:
    overrides = SETTINGS["tool"]["scikit-build"]["overrides"]
    assert {"if": {"failed": True}, "wheel": {"cmake": False}} in overrides


def test_a_built_library_is_never_committed_nor_in_a_source_distribution() -> None:
    assert "*.so" in (ROOT / ".gitignore").read_text(encoding="utf-8").split()


def test_a_change_of_the_kernels_builds_them_again() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(r"^\$\(STAMP\):.*\$\(wildcard native/\*\)", makefile, re.MULTILINE)


def test_the_page_of_the_server_is_in_wheels_and_source_distributions() -> None:
    """It is under src/gemmule, which is packed whole but for what git ignores."""
    scikit_build = SETTINGS["tool"]["scikit-build"]
    assert scikit_build["wheel"]["packages"] == ["src/gemmule"]
    page = ROOT / "src/gemmule/serve/page"
    assert (page / "index.html").is_file()
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").split()
    assert not {"*.js", "*.css", "page/", "assets/"} & set(ignored)
    assert not any("page" in pattern for pattern in scikit_build["sdist"]["exclude"])
