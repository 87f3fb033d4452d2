"""Commands in the surroundings that shells, schedulers and terminals give them."""

import contextlib
import io
import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from gemmule.cli import main
from gemmule.runtime import streams

Settings = Callable[..., dict[str, Any]]

# gemmule, without the meter of energy, and without torch for the cards of the tests below.
PROGRAM = """
import sys
import gemmule.runs.carbon
def no_tracker(*_):
    raise RuntimeError("left out by the test")
gemmule.runs.carbon.start_tracker = no_tracker
import gemmule.report.card
def write_card(run, licence):
    from gemmule.console import console, table
    table(["text", "nats"], [[str(run), "1 \\xb1 2"]])
    print("the \\u6d77 \\xe9 \\u2026", run)
    from pathlib import Path
    with Path(run, "opened").open("w") as file:
        assert file.fileno() > 2
    return Path(run)
gemmule.report.card.write_card = write_card
from gemmule.cli import main
main(sys.argv[1:])
"""


def shell(
    script: str, folder: Path, arguments: list[str], **environment: str
) -> "subprocess.CompletedProcess[bytes]":
    """Runs a line of shell, in which "$@" stands for gemmule with `arguments`."""
    command = ["bash", "-c", script, "bash", sys.executable, "-c", PROGRAM, *arguments]
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("LC_", "LANG", "PYTHONIO"))}
    return subprocess.run(
        command, env={**plain, **environment}, cwd=folder, capture_output=True, timeout=100,
        check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("environment", "shown"),
    [
        ({"PYTHONIOENCODING": "cp1252"}, "the ? é …".encode("cp1252")),
        ({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, b"the ? ? ..."),
        ({"LC_ALL": "C"}, "the 海 é …".encode()),  # Python chooses UTF-8 there
    ],
    ids=["cp1252", "ascii", "C"],
)
def test_a_terminal_s_encoding(environment: dict[str, str], shown: bytes, tmp_path: Path) -> None:
    name = "café"  # in UTF-8, as any encoding of arguments leaves it
    (tmp_path / name).mkdir()
    done = shell('"$@"', tmp_path, ["card", name], **environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(shown)
    assert done.stdout.endswith(b"\n")
    assert b"Traceback" not in done.stderr
    assert (tmp_path / name / "opened").exists()


@pytest.mark.parametrize(
    ("script", "code", "message"),
    [
        ('"$@" <&-', 0, b""),
        ('"$@" >&-', 0, b""),
        ('"$@" 2>&-', 0, b""),
        ('"$@" <&- >&- 2>&-', 0, b""),
        (
            '"$@" >/dev/full',
            1,
            b"gemmule: cannot write to standard output: No space left on device\n",
        ),
        ('"$@" 2>/dev/full', 0, b""),
        ('"$@" >/dev/full 2>/dev/full', 1, b""),
        ('"$@" | true; exit ${PIPESTATUS[0]}', 0, b""),
    ],
)
def test_streams_that_are_closed_full_or_broken(
    script: str, code: int, message: bytes, tmp_path: Path
) -> None:
    done = shell(script, tmp_path, ["card", "."])
    assert done.returncode == code
    assert (tmp_path / "opened").read_bytes() == b""  # not what was printed
    if message:
        assert done.stderr.endswith(message)
        assert done.stderr.count(b"gemmule: ") == 1
    assert b"Traceback" not in done.stderr
    assert b"Exception ignored" not in done.stderr


def test_a_prompt_from_a_closed_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    fd = os.open(os.devnull, os.O_WRONLY)  # as streams.prepare leaves it
    with os.fdopen(fd, encoding="utf-8") as closed:
        monkeypatch.setattr("sys.stdin", closed)
        message = run("generate", "m", "-", code=2)
    assert message == (
        "gemmule: cannot read standard input (Bad file descriptor): give the text as an argument"
    )


def run(*arguments: object, code: int) -> str:
    """The message of a command that fails in this process."""
    with contextlib.redirect_stderr(io.StringIO()) as err, pytest.raises(SystemExit) as ended:
        main([str(a) for a in arguments])
    assert ended.value.code == code, err.getvalue()
    return err.getvalue().splitlines()[-1]


VERBS = [
    "quickstart", "tokenizer train", "data", "train", "distill", "generate", "chat", "doctor",
    "info", "convert", "quantize", "bench", "record", "verify", "ablate", "plan", "eval", "safety",
    "card", "memorization", "canaries",
]  # fmt: skip


@pytest.mark.parametrize("verb", VERBS)
def test_help_on_a_full_disk_and_in_ascii(verb: str, tmp_path: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        stream = streams.open_output(full.fileno(), "utf-8", required=True)
        with contextlib.redirect_stdout(stream):
            assert "No space left on device" in run(*verb.split(), "--help", code=1)
        stream.close()
    with (tmp_path / "help").open("wb") as file:
        stream = streams.open_output(file.fileno(), "ascii", required=True)
        with contextlib.redirect_stdout(stream), pytest.raises(SystemExit) as ended:
            main([*verb.split(), "--help"])
        assert ended.value.code == 0
        stream.close()
    lines = (tmp_path / "help").read_bytes().splitlines()
    assert any(line.startswith(b"+- Options -") for line in lines)
    assert all(line.startswith((b"|", b"+", b" ")) or not line for line in lines)


# Each command, and the function that it spends its time in.
WORK = {
    "quickstart --out o": "gemmule.quickstart.run_quickstart",
    "tokenizer train --out o": "gemmule.data.prepare.sample_texts",
    "train --set data.path=d --set steps=1 --out o": "gemmule.train.run.run_training",
    "distill --set data.path=d --set steps=1 --teacher t --out o": "gemmule.train.run.run_training",
    "record t --data d --out o": "gemmule.teachers.record.record",
    "verify s": "gemmule.teachers.verify_store.verify",
    "ablate size --data d --out o": "gemmule.ablate.run_sweep.run_ablation",
    "plan --teacher 3m --student 1m": "gemmule.plan.forecast.make_plan",
    "eval m": "gemmule.evals.benchmarks.run_benchmarks.run_eval",
    "safety m": "gemmule.evals.safety.run_safety.run_safety",
    "memorization r": "gemmule.evals.memorization.run_memorization.run_memorization",
    "canaries d --out o": "gemmule.data.dataset.Dataset.open",
    "convert m o --to hf": "gemmule.checkpoints.convert.convert",
    "quantize m --to int4": "gemmule.quantize.quantize",
    "bench m": "gemmule.speed.benchmark.measure",
    "doctor m": "gemmule.doctor.examine.run_doctor",
    "info m": "gemmule.checkpoints.describe.describe",
    "card r": "gemmule.report.card.write_card",
    "generate m x": "gemmule.load",
    "chat m": "gemmule.load",
    "data --tokenizer t --out o": "gemmule.data.prepare.prepare",
}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("line", WORK)
def test_stopped_by_a_signal_outside_of_training(
    line: str, number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(*_: object, **__: object) -> None:
        signal.raise_signal(number)
        raise AssertionError("the signal was lost")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("gemmule.model.tokenizer.Tokenizer.load", lambda path: None)
    monkeypatch.setattr(WORK[line], work)
    assert run(*line.split(), code=130).startswith("gemmule: stopped")
    assert not any(tmp_path.glob("o/*"))


def test_a_terminal_that_is_closed_while_training(tiny: Settings, tmp_path: Path) -> None:
    """SIGHUP, and from then on writing to it fails: the state is saved all the same."""
    (tmp_path / "tiny.toml").write_text(tomli_w.dumps(tiny(steps=1_000_000)))
    ours, theirs = pty.openpty()

    own = "import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
    command = [sys.executable, "-c", own + PROGRAM, "train", "tiny.toml", "--out", "run",
               "--set", "checkpoint.every=1000000"]  # fmt: skip
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=tmp_path,
        start_new_session=True, env={**os.environ, "OMP_NUM_THREADS": "1", "TERM": "xterm"},
    )  # fmt: skip
    os.close(theirs)
    os.set_blocking(ours, False)
    metrics, deadline = tmp_path / "run/metrics.jsonl", time.monotonic() + 100
    try:
        while not metrics.exists() or metrics.read_bytes().count(b"\n") < 3:
            assert process.poll() is None
            assert time.monotonic() < deadline
            with contextlib.suppress(BlockingIOError):
                os.read(ours, 65536)
            time.sleep(0.05)
        os.close(ours)
        assert process.wait(timeout=60) == 130
    finally:
        process.kill()
    (state,) = (tmp_path / "run/checkpoints").iterdir()
    last = metrics.read_text().splitlines()[-1]
    assert state.name == f"step-{json.loads(last)['step']}"
