"""tests/ has a folder for each package of src/gemmule, and tests in it that use the package."""

import ast
import functools
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
SOURCE = TESTS.parent / "src/gemmule"
# Scripts that a sandbox runs: nothing imports them, and every test of the sandbox starts them.
SCRIPTS = SOURCE / "sandbox/inside"
PACKAGES = sorted({p.parent for p in SOURCE.rglob("__init__.py")} - {SOURCE, SCRIPTS})
MODULES = sorted(p for p in SOURCE.glob("*.py") if p.name != "__init__.py")


@functools.cache
def imports(path: Path) -> set[str]:
    """Everything of gemmule that a file imports, as dotted names."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in names if name.startswith("gemmule.")}


def users(name: str, folder: Path) -> list[str]:
    """Test files of a folder that import the module or package `name`, or something in it."""
    return [
        path.name
        for path in folder.rglob("test_*.py")
        if any(f"{imported}.".startswith(f"{name}.") for imported in imports(path))
    ]


def dotted(path: Path) -> str:
    return ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts)


@pytest.mark.parametrize("package", PACKAGES, ids=dotted)
def test_each_package_has_tests(package: Path) -> None:
    folder = TESTS / package.relative_to(SOURCE).parts[0]
    assert users(dotted(package), folder), f"no test in {folder} imports {dotted(package)}"


@pytest.mark.parametrize("module", MODULES, ids=dotted)
def test_each_module_outside_a_package_has_tests(module: Path) -> None:
    assert users(dotted(module), TESTS), f"no test imports {dotted(module)}"


def test_each_folder_of_tests_is_for_something() -> None:
    """A package that was moved does not leave its tests behind under the old name."""
    across = {"clients", "fuzz", "integration", "parity"}
    folders = {p.name for p in TESTS.iterdir() if any(p.glob("test_*.py"))}
    assert folders - across <= {package.name for package in SOURCE.iterdir()}


def test_a_package_without_tests_would_be_noticed(tmp_path: Path) -> None:
    (tmp_path / "test_x.py").write_text("from gemmule.train import loop\nimport gemmule.data.x\n")
    assert users("gemmule.train", tmp_path) == users("gemmule.data", tmp_path) == ["test_x.py"]
    assert users("gemmule.train.loop", tmp_path) == ["test_x.py"]
    assert users("gemmule.trainer", tmp_path) == users("gemmule.plan", tmp_path) == []


def test_names_of_test_files_differ() -> None:
    """Without packages in tests/, pytest cannot import two files of one name."""
    names = [path.name for path in TESTS.rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))
