"""What CI relies on: a bare machine hides what is installed, and a test that never ran is named."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BARE = ROOT / ".ci/bare"
SKIPS = ROOT / "tools/check_skips.py"


@pytest.mark.skipif(sys.platform != "linux", reason="CI runs on Linux")
def test_a_bare_machine_has_python_and_make_but_nothing_that_is_installed(tmp_path: Path) -> None:
    folder = tmp_path / "programs"
    folder.mkdir()
    for name in ("bwrap", "g++", "chromium"):
        (folder / name).write_text("#!/bin/sh\n")
        (folder / name).chmod(0o755)
    code = (
        "import os, shutil\n"
        "hidden = 'bwrap g++ gcc cc c++ clang chromium cmake git strace'.split()\n"
        "print([name for name in hidden if shutil.which(name)])\n"
        "print([name for name in ('sh', 'python3', 'env') if not shutil.which(name)])\n"
        "print(sorted(os.environ.keys() - {'PWD'}))\n"
        "print(os.listdir(os.environ['HOME']))\n"
    )
    done = subprocess.run(
        [BARE, "python3", "-c", code],
        env={"PATH": f"{folder}:/usr/local/bin:/usr/bin:/bin:{Path(sys.executable).parent}",
             "HOME": str(tmp_path), "SECRET": "x", "CXX": "g++",
             "PIP_INDEX_URL": "x", "https_proxy": "y"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.splitlines() == [
        "[]",
        "[]",
        "['HOME', 'LANG', 'PATH', 'PIP_INDEX_URL', 'SKBUILD_CMAKE_ARGS', 'TMPDIR', 'https_proxy']",
        "[]",
    ]


@pytest.mark.skipif(sys.platform != "linux", reason="CI runs on Linux")
def test_a_bare_machine_reports_failure_and_leaves_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [BARE, "sh", "-c", "echo $HOME; exit 3"],
        env={"PATH": f"/usr/bin:/bin:{Path(sys.executable).parent}", "TMPDIR": str(tmp_path)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 3
    assert not Path(done.stdout.strip()).exists()
    assert list(tmp_path.iterdir()) == []


TESTS = """\
import pytest
{module}
@pytest.mark.skipif({skipped}, reason="{reason}")
def test_it() -> None:
    pass
def test_other() -> None:
    pass
"""


Report = Callable[..., Path]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """report(**changes): the JUnit report of a run of two tests, the first skipped by default."""
    made: dict[str, Path] = {}

    def make(*, module: str = "", skipped: bool = True, reason: str = "no x") -> Path:
        text = TESTS.format(module=module, skipped=skipped, reason=reason)
        if text not in made:
            folder = tmp_path_factory.mktemp("run")
            (folder / "test_made_up.py").write_text(text)
            made[text] = folder / "report.xml"
            subprocess.run(
                [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "test_made_up.py",
                 f"--junitxml={made[text]}"],
                cwd=folder, env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
                capture_output=True, check=False, timeout=120,
            )  # fmt: skip
        return made[text]

    return make


def check(*reports: Path) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, SKIPS, *reports], capture_output=True, text=True, check=False
    )
    assert not done.stderr
    return done.returncode, done.stdout


def test_a_test_that_every_run_skipped_fails_ci(report: Report) -> None:
    code, output = check(report(), report(reason="no y"))
    assert code == 1
    assert "never ran: test_made_up.test_it: no y" in output
    assert "test_other" not in output
    assert check(report(), report(skipped=False))[0] == 0


def test_a_module_that_every_run_skipped_fails_ci(report: Report) -> None:
    without = report(module="pytest.importorskip('no_such_package')")
    code, output = check(without)
    assert code == 1
    assert "never ran: test_made_up: could not import 'no_such_package'" in output
    # Another run had the package and ran one test of the module; the other never ran.
    code, output = check(without, report())
    assert code == 1
    assert output.count("never ran") == 1
    assert "never ran: test_made_up.test_it: no x" in output
    assert check(without, report(skipped=False))[0] == 0


def test_what_ci_cannot_provide_is_allowed(report: Report) -> None:
    code, output = check(report(reason="needs the atheris package"))
    assert code == 0
    assert "1  needs the atheris package  (allowed)" in output
    # What is installed last decides.
    assert check(report(), report(reason="there are no kernels for amx here"))[0] == 0
    assert check(report(reason="there are no kernels for amx here"), report())[0] == 1


def test_reports_without_tests_are_no_success(tmp_path: Path) -> None:
    (tmp_path / "empty.xml").write_text("<testsuites/>")
    assert check(tmp_path / "empty.xml")[0] == 1
