"""Which sandbox is opened, and that programs run in it as they should."""

import os
import signal
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from gemmule.errors import ConfigError, UserError
from gemmule.sandbox import Limits, Outcome, Sandbox, isolation, supervise, view
from gemmule.sandbox.isolation import Isolation

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux can shut programs in")

BARE = Isolation("limits", filtered=False)  # what is left on macOS


@pytest.fixture(scope="module")
def box() -> Sandbox:
    """The strongest there is."""
    return Sandbox.open(accept_weaker=True)


@pytest.fixture(scope="module", params=[*isolation.NAMES, "bare"])
def each(request: pytest.FixtureRequest) -> Sandbox:
    if request.param == "bare":
        return Sandbox(Limits(), BARE)
    try:
        return Sandbox.open(accept_weaker=True, kind=request.param)
    except UserError as e:
        pytest.skip(str(e))


def test_a_program_that_comes_to_its_end(each: Sandbox) -> None:
    program = "import sys\nprint('out')\nprint('err', file=sys.stderr)\nassert not sys.stdin.read()"
    outcome = each.run(program)
    assert outcome == Outcome("passed", 0, "out\n", "err\n", outcome.seconds)
    assert outcome.passed
    assert outcome.seconds < 60


def test_a_program_that_fails(each: Sandbox) -> None:
    outcome = each.run("def check():\n    assert 1 == 2, 'one is not two'\ncheck()")
    assert (outcome.status, outcome.exit_code, outcome.stdout) == ("failed", 1, "")
    assert outcome.stderr == (
        "Traceback (most recent call last):\n"
        '  File "<program>", line 3, in <module>\n'
        '  File "<program>", line 2, in check\n'
        "AssertionError: one is not two\n"
    )


def test_leaving_early_is_said(each: Sandbox) -> None:
    outcome = each.run("import sys; sys.exit(3)")
    assert (outcome.status, outcome.exit_code) == ("failed", 3)
    assert "left before its end" in outcome.stderr
    assert each.run("import os; os._exit(0)").status == "failed"


def test_the_end_of_the_program_is_its_end(each: Sandbox) -> None:
    """Threads that still run, and what is registered for the exit, are not waited for."""
    program = (
        "import atexit, threading, time\n"
        "threading.Thread(target=time.sleep, args=(1000,)).start()\n"
        "atexit.register(time.sleep, 1000)\n"
        "print('printed, not flushed')"
    )
    outcome = each.run(program)
    assert (outcome.status, outcome.stdout) == ("passed", "printed, not flushed\n")


def test_a_program_is_a_module_but_not_main(each: Sandbox) -> None:
    program = (
        "import dataclasses, pickle, typing\n"
        "if __name__ == '__main__': raise SystemExit\n"
        "@dataclasses.dataclass\n"
        "class Point:\n    x: 'int'\n"
        "assert typing.get_type_hints(Point) == {'x': int}\n"
        "assert pickle.loads(pickle.dumps(Point(1))) == Point(1)\n"
    )
    assert each.run(program).passed


def test_numpy_is_there_and_nothing_else(each: Sandbox) -> None:
    program = """
import numpy as np
a = np.arange(6.0).reshape(2, 3)
assert (a @ a.T).tolist() == [[5, 14], [14, 50]]
assert np.linalg.inv(np.eye(2)).tolist() == [[1, 0], [0, 1]]
for name in ("torch", "pytest", "gemmule", "pydantic", "rich"):
    try:
        __import__(name)
    except ModuleNotFoundError:
        continue
    raise AssertionError(name)
"""
    outcome = each.run(program)
    assert outcome.passed, outcome


def test_what_graders_leave_to_chance_is_the_same_each_time(each: Sandbox) -> None:
    program = (
        "import random\nprint(random.random(), list({'a', 'b', 'c', 'd', 'e', 'f'}), hash('x'))"
    )
    assert each.run(program).stdout == each.run(program).stdout


def test_programs_know_nothing_of_each_other(each: Sandbox) -> None:
    program = (
        "import os\n"
        "try:\n    open('left', 'x').write('x')\nexcept PermissionError: pass\n"
        "print(os.getcwd() == '/tmp')"
    )
    first, second = each.run(program), each.run(program)
    assert (first.status, first.stdout) == (second.status, second.stdout)
    assert first.passed


def test_order_and_progress(box: Sandbox) -> None:
    seen: list[int] = []
    programs = [f"import time; time.sleep({0.2 if i == 0 else 0}); print({i})" for i in range(9)]
    outcomes = box.run_all(programs, workers=3, progress=seen.append)
    assert [outcome.stdout for outcome in outcomes] == [f"{i}\n" for i in range(9)]
    assert seen == sorted(seen)
    assert seen[-1] == 9
    assert box.run_all([]) == []


def test_being_stopped(each: Sandbox) -> None:
    """As by Ctrl-C: what runs is ended, what waits is not begun."""

    def stop(done: int) -> None:
        raise KeyboardInterrupt

    def children() -> str:
        return Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text()

    programs = ["", *["import time; time.sleep(1000)"] * 50]
    with pytest.raises(KeyboardInterrupt):
        each.run_all(programs, workers=2, progress=stop)
    assert children() == ""


def test_programs_go_first_when_memory_runs_out(
    each: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    collected = []
    threads = supervise._threads

    def look(pid: int) -> int:
        collected.append(Path(f"/proc/{pid}/oom_score_adj").read_text())
        return threads(pid)

    monkeypatch.setattr(supervise, "_threads", look)
    replace(each, limits=Limits(wall=0.3)).run("while True: pass")
    assert set(collected) == {"1000\n"}


def test_large_programs(each: Sandbox) -> None:
    text = "x" * 3_000_000  # more than any pipe holds
    outcome = each.run(f"assert len('{text}') == {len(text)}")
    assert outcome.passed, outcome


def test_every_limit_is_above_zero() -> None:
    with pytest.raises(ConfigError, match="limit of wall is 0: it must be above zero"):
        Limits(wall=0)
    with pytest.raises(ConfigError, match="Python alone needs"):
        Limits(memory=1 << 20)


def test_what_is_kept_in_results(box: Sandbox) -> None:
    kept = box.json()
    assert kept["kind"] == box.kind
    assert kept["guarantee"] == box.guarantee
    assert kept["limits"]["memory"] == 1 << 30
    assert list(kept["packages"]) == ["numpy"]


# The ways without namespaces, on which less can be tried.


def test_limits_without_a_filter(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It holds what it says: time, output, and an environment without secrets."""
    monkeypatch.setenv("GEMMULE_SECRET", "x")
    bare = Sandbox(Limits(wall=0.5), BARE)
    assert bare.run("import os; assert 'GEMMULE_SECRET' not in os.environ").passed
    assert bare.run("while True: pass").status == "timeout"
    assert bare.run("while True: print('x' * 1000)").status == "output"
    leaves = f"""
import os, time
if os.fork() == 0:
    time.sleep(1.0)
    open({str(tmp_path / "late")!r}, "w")
"""
    assert bare.run(leaves).passed
    for _ in range(3):  # until the one left behind would have done it
        assert bare.run("import time; time.sleep(1000)").status == "timeout"
    assert not (tmp_path / "late").exists()


def test_hostile_programs_do_harm_where_nothing_holds_them(tmp_path: Path) -> None:
    """What the tests of hostile programs try does work outside a sandbox."""
    kept = tmp_path / "kept"
    kept.write_text("here")
    program = f"""
import os, socket, sys
with open({str(kept)!r}, "a") as f:
    f.write(" and gone")
assert os.listdir({str(tmp_path)!r})
with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
os.kill(os.getppid(), 0)
os.posix_spawn(sys.executable, [sys.executable, "-c", ""], {{}})
"""
    assert Sandbox(Limits(), BARE).run(program).passed
    assert kept.read_text() == "here and gone"


def test_without_landlock(tmp_path: Path) -> None:
    filtered = Sandbox(Limits(), Isolation("limits"))
    kept = tmp_path / "kept"
    kept.write_text("here")
    program = f"""
assert open({str(kept)!r}).read() == "here"
open({str(kept)!r}, "w")
"""
    outcome = filtered.run(program)
    assert "line 3" in outcome.stderr
    assert "PermissionError" in outcome.stderr
    assert kept.read_text() == "here"


# Which one is opened.


def no_bubblewrap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolation.shutil, "which", lambda name: None)


def test_the_strongest_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("bubblewrap", "namespaces"):
        try:
            Sandbox.open(kind=name)
        except UserError:
            pytest.skip(f"{name} does not work here")
    assert Sandbox.open().kind == "bubblewrap"
    assert "by bubblewrap" in Sandbox.open().guarantee
    no_bubblewrap(monkeypatch)
    assert Sandbox.open().kind == "namespaces"
    assert Sandbox.open(accept_weaker=True).kind == "namespaces"
    with pytest.raises(UserError, match="bubblewrap: bwrap is not installed"):
        Sandbox.open(kind="bubblewrap")


@pytest.mark.parametrize("how", ["exit 1", "echo no permission >&2; exit 1", "kill -9 $$"])
def test_a_bubblewrap_that_does_not_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    broken = tmp_path / "bwrap"
    broken.write_text(f"#!/bin/sh\n{how}\n")
    broken.chmod(broken.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(isolation.shutil, "which", lambda name: str(broken))
    assert Sandbox.open(accept_weaker=True).kind != "bubblewrap"
    with pytest.raises(UserError, match="no permission" if "echo" in how else "without a message"):
        Sandbox.open(kind="bubblewrap")


def no_namespaces(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As in a container that may not make any."""
    no_bubblewrap(monkeypatch)
    refusing = tmp_path / "namespaces.py"
    refusing.write_text("import sys\nsys.exit('unshare: Operation not permitted')")
    monkeypatch.setattr(isolation, "_NAMESPACES", refusing)


def test_a_weaker_one_must_be_accepted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    no_namespaces(monkeypatch, tmp_path)
    with pytest.raises(UserError) as e:
        Sandbox.open()
    message = str(e.value)
    for part in (
        "bubblewrap: bwrap is not installed",
        "namespaces: unshare: Operation not permitted",
        "apt-get install bubblewrap",
        "--accept-weaker-sandbox",
        "WEAKER SANDBOX",
        "could not write to any file",
    ):
        assert part in message
    assert len(message) < 1500  # nothing of it is cut
    weaker = Sandbox.open(accept_weaker=True)
    assert weaker.kind == "limits"
    assert weaker.isolation.filtered
    assert weaker.guarantee.startswith("WEAKER SANDBOX")
    with pytest.raises(UserError, match="only limits were asked for"):
        Sandbox.open(kind="limits")


def test_where_nothing_can_hold_a_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolation.syscalls.platform, "machine", lambda: "s390x")
    no_bubblewrap(monkeypatch)
    with pytest.raises(UserError, match="NO SANDBOX TO SPEAK OF"):
        Sandbox.open()
    with pytest.raises(UserError, match="not known to gemmule"):
        Sandbox.open(kind="namespaces")
    assert Sandbox.open(accept_weaker=True).isolation == BARE


def test_unknown_kinds() -> None:
    with pytest.raises(ConfigError, match="there is no sandbox 'docker'; there are bubblewrap"):
        Sandbox.open(kind="docker")


def test_a_sandbox_that_works_no_more(
    box: Sandbox, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(isolation, "_PYTHON_FLAGS", ("--no-such-flag",))
    with pytest.raises(UserError, match=r"could not start a program: .*no-such-flag"):
        box.run("")
    monkeypatch.setattr(view, "interpreter", lambda: tmp_path / "gone")
    with pytest.raises(UserError, match="could not start a program"):
        Sandbox(Limits(), Isolation("limits")).run("")


def test_a_start_that_takes_too_long(box: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervise, "_STARTUP", 0.0)
    monkeypatch.setattr(isolation, "_PYTHON_FLAGS", ("-c", "import time; time.sleep(1000)"))
    with pytest.raises(UserError, match="nothing happened for 0 s"):
        box.run("")


@pytest.mark.parametrize("installed", [True, False], ids=["installed", "not installed"])
def test_every_guarantee_says_what_it_is_worth(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, installed: bool
) -> None:
    if installed:
        program = tmp_path / "bwrap"
        program.write_text("#!/bin/sh\necho bubblewrap 1.2.3\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert ("by bubblewrap 1.2.3," in Isolation("bubblewrap").guarantee) == installed
    assert "by bubblewrap" in Isolation("bubblewrap").guarantee
    ways = [way for name in isolation.NAMES for way in isolation.candidates(name)]
    assert len({way.guarantee for way in ways}) == len(ways)
    for way in ways:
        assert way.jailed != ("SANDBOX" in way.guarantee)


def test_the_interpreter_is_none_of_a_virtual_environment() -> None:
    python = view.interpreter()
    assert not python.is_symlink()
    done = subprocess.run(
        [python, "-I", "-S", "-c", "import sys; print(sys.version)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == sys.version


def test_the_view_has_no_place_twice() -> None:
    seen = view.python_view(("numpy",))
    folders = [Path(s.target) for s in seen if s.kind == "folder"]
    for s in seen:
        within = [f for f in folders if Path(s.target).is_relative_to(f) and str(f) != s.target]
        assert within == []
    targets = [s.target for s in seen]
    assert len(set(targets)) == len(targets)
    assert str(Path.home()) not in targets


def test_signal_numbers_of_jailed_programs(each: Sandbox) -> None:
    outcome = each.run("import ctypes; ctypes.string_at(0)")
    assert (outcome.status, outcome.exit_code) == ("killed", -signal.SIGSEGV)
    outcome = each.run("import os; os._exit(77)")
    assert (outcome.status, outcome.exit_code) == ("failed", 77)
