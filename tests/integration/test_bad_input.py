"""What a user can get wrong: one clear message, exit code 2, and nothing lost or half written."""

import contextlib
import errno
import io
import os
import re
import resource
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
from gemmule.model.tokenizer import Tokenizer
from gemmule.runs.ledger.file import own_lines

Settings = Callable[..., dict[str, Any]]
pytestmark = pytest.mark.usefixtures("no_meter")


def gemmule(*arguments: object) -> tuple[int, str, str]:
    """Exit code, standard output and the message, in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main([str(a) for a in arguments])
        except SystemExit as e:
            return int(e.code or 0), out.getvalue(), err.getvalue()
    raise AssertionError("main always exits")


def refused(*arguments: object, code: int = 2) -> str:
    got, _, err = gemmule(*arguments)
    assert got == code, err
    assert "Traceback" not in err
    lines = err.splitlines()
    assert [line.startswith("gemmule: ") for line in lines[-1:]] == [True]
    return lines[-1]


@pytest.fixture(scope="module")
def tokenizer(pieces: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    pieces.save(folder)
    return folder


@pytest.fixture
def settings(tiny: Settings, tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(tomli_w.dumps(tiny()))
    return path


@pytest.fixture
def corpora(tmp_path: Path) -> Path:
    folder = tmp_path / "corpora"
    (folder / "empty").mkdir(parents=True)
    (folder / "binary.txt").write_bytes(b"\x00\x01\x02\xff" * 500)
    (folder / "koi.txt").write_bytes("русский текст\n".encode("koi8-r") * 50)
    (folder / "pictures").mkdir()
    (folder / "pictures" / "a.jpg").write_bytes(b"\xff\xd8\xff")
    return folder


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("empty", "no text in .*empty"),
        ("missing", "no file or folder at .*missing"),
        ("binary.txt", "1 binary"),
        ("koi.txt", "1 not UTF-8"),
        ("pictures", "no text in"),
        ("*.nothing", "nothing"),
    ],
)
@pytest.mark.parametrize("verb", ["data", "tokenizer", "quickstart"])
def test_unusable_text(
    verb: str, name: str, message: str, corpora: Path, tokenizer: Path, text_folder: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    out, source = tmp_path / "out", corpora / name
    command = {
        "data": ["data", source, "--tokenizer", tokenizer, "--out", out],
        "tokenizer": ["tokenizer", "train", source, "--out", out],
        "quickstart": ["quickstart", "--data", source, "--out", out, "--minutes", "0.01"],
    }[verb]
    assert re.search(message, refused(*command))
    # Nothing is left, so that the mended command works as it stands.
    assert not out.exists()


def test_a_bad_file_among_good_ones_is_left_out(
    text_folder: Path, corpora: Path, tokenizer: Path, tmp_path: Path
) -> None:
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    for path in [*text_folder.iterdir(), corpora / "binary.txt", corpora / "koi.txt"]:
        (mixed / path.name).write_bytes(path.read_bytes())
    code, out, _ = gemmule("data", mixed, "--tokenizer", tokenizer, "--out", tmp_path / "out")
    assert code == 0
    assert "dropped, not UTF-8: 1" in out
    assert "dropped, binary (NUL bytes): 1" in out


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("learing_rate=3", "did you mean 'optimizer.learning_rate'"),
        ("model.hiden_size=3", "did you mean 'hidden_size'"),
        ("data.seq_len=63000", "longer than the model's context of 64 tokens"),
        ("model.preset=10n", "did you mean '10m'"),
        ("steps=-1", "greater than 0"),
        ("optimizer.learning_rate=nan", "finite number"),
        ("model.hidden_size=1000000000", "GiB of memory"),
        ("data.path=nowhere", "no data folder at nowhere"),
        ("runtime.threads=1000000000000", "less than or equal to 1024"),
    ],
)
def test_wrong_settings(override: str, message: str, settings: Path, tmp_path: Path) -> None:
    assert message in refused("train", settings, "--set", override, "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_wrong_config_files(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("steps = = 3")
    out = tmp_path / "run"
    assert "not a readable TOML file" in refused("train", tmp_path / "bad.toml", "--out", out)
    assert "no config file at" in refused("train", tmp_path / "missing.toml", "--out", out)
    assert "'data.path' is required" in refused("train", "--set", "steps=1", "--out", out)
    assert not out.exists()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--minutes", "-3"], "minutes = -3.0"),
        (["--minutes", "nan"], "minutes = nan"),
        (["--minutes", "inf"], "minutes = inf"),
        (["--minutes", "1e300"], "minutes = 1e+300"),
        (["--seed", "-1"], "seed = -1"),
        (["--seed", "99999999999999999999"], "seed = 99999999999999999999"),
        (["--teacher", "4n"], "unknown model preset '4n'"),
        (["--country", "Germany"], "not a country code"),
        (["--vocab-size", "100"], "vocab_size = 100"),
    ],
)
def test_wrong_quickstart_options(option: list[str], message: str, tmp_path: Path) -> None:
    assert message in refused("quickstart", *option, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_places_in_use(settings: Path, tokenizer: Path, text_folder: Path, tmp_path: Path) -> None:
    used = tmp_path / "used"
    used.mkdir()
    (used / "thesis.tex").write_text("mine")
    commands: list[list[object]] = [
        ["train", settings, "--out", used],
        ["quickstart", "--out", used],
        ["data", text_folder, "--tokenizer", tokenizer, "--out", used],
        ["tokenizer", "train", text_folder, "--out", used, "--vocab-size", 512],
    ]
    for command in commands:
        assert "in use" in refused(*command)
        assert [p.name for p in used.iterdir()] == ["thesis.tex"]
        below = [used / "thesis.tex" / "x" if a is used else a for a in command]
        assert "cannot write to" in refused(*below)
    assert (used / "thesis.tex").read_text() == "mine"


def test_nothing_to_resume(settings: Path, tmp_path: Path) -> None:
    for verb in ("train", "distill", "quickstart"):
        message = refused(verb, "--resume", "--out", tmp_path / "run")
        assert "holds no run to resume" in message
    message = refused("train", settings, "--resume", "--out", tmp_path / "run")
    assert "give only --out" in message
    assert not (tmp_path / "run").exists()


def test_either_verb_resumes_either_kind(settings: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert gemmule("train", settings, "--set", "steps=1", "--out", out)[0] == 0
    (out / "result.json").unlink()
    assert gemmule("distill", "--resume", "--out", out)[0] == 0
    assert (out / "result.json").exists()


def test_usage_mistakes() -> None:
    for arguments in (["frobnicate"], ["train"], ["data", "--out"], ["card"], ["train", "--frob"]):
        code, _, err = gemmule(*arguments)
        assert code == 2
        assert "Traceback" not in err


def test_generate_checks_before_it_prints(settings: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert gemmule("train", settings, "--set", "steps=1", "--out", out)[0] == 0
    code, printed, err = gemmule("generate", out, "the sea", "--temperature", "-1")
    assert (code, printed) == (2, "")
    assert "temperature is -1" in err
    code, printed, _ = gemmule("generate", out, "the sea", "--temperature", "0", "--seed", "1")
    assert code == 0
    assert printed.startswith("the sea")
    *_, line = own_lines(out)
    assert (line.kind, line.outcome) == ("generate", "finished")
    assert line.tokens_in is not None
    assert line.tokens_out is not None
    assert line.tokens_in > 1
    assert line.tokens_out >= 1


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOSPC])
def test_a_disk_that_refuses(
    number: int, settings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may write anywhere, so the refusal is played."""
    plain = Path.mkdir

    def mkdir(path: Path, *args: Any, **kwargs: Any) -> None:
        if path.name == "run":
            raise OSError(number, os.strerror(number), str(path))
        plain(path, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    message = refused("train", settings, "--out", tmp_path / "run")
    assert f"cannot write to {tmp_path / 'run'}: " in message
    assert "choose" in message


LIMITED = """
import resource, signal, sys
import gemmule.runs.carbon
def no_tracker(*_):
    raise RuntimeError("left out by the test")
gemmule.runs.carbon.start_tracker = no_tracker
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
limit = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
from gemmule.cli import main
main(sys.argv[2:])
"""


def limited(limit: int, *arguments: object) -> str:
    """In a process whose files cannot grow beyond `limit` bytes."""
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(limit), *map(str, arguments)],
        capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "larger than this file system or limit allows" in done.stderr.splitlines()[-1]
    return done.stderr


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="no limits on this system")
@pytest.mark.parametrize("limit", [100, 2500, 20_000])
def test_a_full_disk_while_training(limit: int, settings: Path, tmp_path: Path) -> None:
    """At the config, at the metrics or events, at a training state."""
    out = tmp_path / "run"
    limited(limit, "train", settings, "--out", out)
    whole = [p for p in out.rglob("*") if p.is_file()]
    assert not any(p.name.endswith(".tmp") for p in whole)
    assert not (out / "model").exists()
    if limit == 100:
        assert whole == []
        return
    assert gemmule("train", "--resume", "--out", out)[0] == 0  # space has been made
    assert gemmule("train", settings, "--out", tmp_path / "unbroken")[0] == 0
    name = "model/model.safetensors"
    assert (out / name).read_bytes() == (tmp_path / "unbroken" / name).read_bytes()


def test_a_full_disk_while_tokenising(
    text_folder: Path, tokenizer: Path, prepared: Path, tmp_path: Path
) -> None:
    out = tmp_path / "data"
    command = ("data", text_folder, "--tokenizer", tokenizer, "--out", out)
    size = max(p.stat().st_size for p in prepared.rglob("*.tokens"))
    largest = max(p.stat().st_size for p in tokenizer.iterdir())
    limit = size - 1 if size > largest else largest - 1
    limited(limit, *command)
    assert not (out / "manifest.json").exists()
    assert gemmule(*command)[0] == 0


def interrupted(after: Callable[[], bool], *arguments: object) -> tuple[int, str]:
    """Sends Ctrl-C once `after()` holds."""
    process = subprocess.Popen(
        [sys.executable, "-c", LIMITED, str(resource.RLIM_INFINITY), *map(str, arguments)],
        stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    deadline = time.monotonic() + 90
    while not after() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, message = process.communicate(timeout=60)
    return process.returncode, message


def test_ctrl_c_while_training(settings: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    metrics = out / "metrics.jsonl"
    code, message = interrupted(
        metrics.is_file, "train", settings, "--set", "steps=100000", "--set",
        "checkpoint.every=100000", "--out", out,
    )  # fmt: skip
    assert code == 130
    assert "Traceback" not in message
    last = message.splitlines()[-1]
    assert last.startswith("gemmule: stopped after step ")
    assert "with --resume continues from there" in last
    (saved,) = (out / "checkpoints").iterdir()
    assert f"step {saved.name.removeprefix('step-')} of 100000" in last


def test_ctrl_c_anywhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("gemmule.data.prepare.find_source", stop)
    monkeypatch.setattr("gemmule.train.run.Dataset.open", stop)
    monkeypatch.setattr("gemmule.model.tokenizer.Tokenizer.load", lambda path: None)
    out = tmp_path / "out"
    assert "continues" in refused("data", "--tokenizer", "t", "--out", out, code=130)
    train = ["train", "--set", "data.path=d", "--set", "steps=1", "--out", out]
    assert "--resume continues" in refused(*train, code=130)
    assert refused("tokenizer", "train", "--out", out, code=130) == "gemmule: stopped"
