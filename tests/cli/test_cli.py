"""The verbs as a user types them; what can go wrong is in integration/test_bad_input.py."""

import json
import re
import subprocess
import sys
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch
from typer.testing import CliRunner

from gemmule import __version__, cli
from gemmule.__main__ import main as program
from gemmule.errors import ConfigError, GemmuleError, TrainingError, UserError
from gemmule.model.tokenizer import Tokenizer
from gemmule.train.config import RunConfig

Settings = Callable[..., dict[str, Any]]
pytestmark = pytest.mark.usefixtures("no_meter")
VERBS = [[], ["quickstart"], ["tokenizer"], ["tokenizer", "train"], ["tokenizer", "trim"],
         ["quality"], ["quality", "fit"], ["quality", "preview"], ["quality", "score"],
         ["decontamination"],
         ["data"], ["data-export"], ["train"], ["distill"], ["launch"], ["reward"],
         ["sft"], ["align"], ["synthesize"], ["merge"], ["warp"], ["gate"], ["tasks"],
         ["trim"],
         ["generate"], ["chat"], ["serve"], ["doctor"], ["info"],
         ["convert"], ["quantize"], ["bench"], ["teacher-check"], ["record"], ["verify"],
         ["ablate"], ["plan"], ["eval"], ["safety"], ["card"], ["ledger"], ["when"],
         ["memorization"], ["canaries"]]  # fmt: skip


def gemmule(*arguments: object, code: int = 0, stdin: str | None = None) -> str:
    """Standard output of one command."""
    done = CliRunner().invoke(cli.app, [str(a) for a in arguments], input=stdin)
    assert done.exit_code == code, done.output
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.stdout


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_help_has_an_example(verb: list[str]) -> None:
    text = gemmule(*verb, "--help")
    assert "Usage" in text
    if verb not in ([], ["tokenizer"], ["quality"]):
        assert f"Example: gemmule {' '.join(verb)} " in " ".join(text.split())


def test_every_verb_is_tested_here() -> None:
    import typer

    group: typing.Any = typer.main.get_command(cli.app)
    commands = [[]] + [[name] for name in group.commands]
    commands += [[n, s] for n, c in group.commands.items() for s in getattr(c, "commands", ())]
    assert sorted(commands) == sorted(VERBS)


def test_info_and_convert(pieces: Tokenizer, tmp_path: Path) -> None:
    from gemmule.checkpoints.hf.writer import save_model
    from gemmule.model.config import preset
    from gemmule.model.gemma import Gemma

    torch.manual_seed(0)
    save_model(Gemma(preset("1m", vocab_size=512)), pieces, tmp_path / "model")
    info = json.loads(gemmule("info", tmp_path / "model", "--json"))
    assert (
        info["parameters"]["non_embedding"] == preset("1m", vocab_size=512).non_embedding_parameters
    )
    out = tmp_path / "ckpt"
    report = json.loads(
        gemmule("convert", tmp_path / "model", out, "--to", "gemma_pytorch", "--json")
    )
    assert report == json.loads((out / "export.json").read_text())
    assert report["verified"]["weights"]["equal"]
    again = json.loads(gemmule("info", out / "model.ckpt", "--json"))
    same = ("config", "parameters", "stored_as", "tokenizer")
    assert {k: again[k] for k in same} == {k: info[k] for k in same}
    assert gemmule("generate", out, "a", "--max-new-tokens", 2, "--temperature", 0)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_model_whose_json_an_editor_of_windows_saved(
    encoding: str, pieces: Tokenizer, tmp_path: Path
) -> None:
    from gemmule.checkpoints.hf.writer import save_model
    from models import random_model

    save_model(random_model(), pieces, tmp_path)
    ask = ["generate", tmp_path, "the sea", "--temperature", 0, "--max-new-tokens", 4]
    before = gemmule(*ask)
    for file in tmp_path.glob("*.json"):
        text = file.read_text(encoding="utf-8").replace("\n", "\r\n")
        file.write_bytes(text.encode(encoding))
    assert gemmule(*ask) == before
    assert json.loads(gemmule("info", tmp_path, "--json"))["loads"]


def test_version() -> None:
    assert gemmule("--version").strip() == f"gemmule {__version__}"


def test_from_text_to_a_student(
    text_folder: Path, tiny: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    gemmule("tokenizer", "train", text_folder, "--vocab-size", 512, "--out", "tok")
    tokenizer = Tokenizer.load(Path("tok"))
    assert tokenizer.vocab_size == 512
    command = ["data", text_folder, "--tokenizer", "tok", "--out", "data", "--name", "sea tales",
               "--licence", "CC0-1.0", "--json"]  # fmt: skip
    about = json.loads(gemmule(*command))
    assert (about["name"], about["licence"]) == ("sea tales", "CC0-1.0")
    assert set(about["splits"]) == {"train", "validation", "heldout"}
    assert sum(s["documents"] for s in about["splits"].values()) == 120
    assert json.loads(gemmule(*command)) == about  # again: found finished

    Path("tiny.toml").write_text(tomli_w.dumps(tiny(data={"path": "data"})))
    result = json.loads(gemmule("train", "tiny.toml", "--set", "steps=2", "--out", "big", "--json"))
    assert result == json.loads(Path("big/result.json").read_text())
    assert result["train_tokens"] == 2 * 4 * 24
    gemmule("distill", "tiny.toml", "--teacher", "big", "--set", "steps=2", "--out", "small")
    assert json.loads(Path("small/manifest.json").read_text())["parent"]["path"] == "big"
    completion = json.loads(
        gemmule("generate", "small", "the sea", "--max-new-tokens", 4, "--json")
    )
    assert completion["prompt"] == "the sea"
    more = ["--max-new-tokens", 4, "--logprobs", 2, "--repetition-penalty", 1.2, "--json"]
    told = json.loads(gemmule("generate", "small", "the sea", *more))["tokens"]
    assert 0 < len(told) <= 4
    assert all(t["logprob"] <= t["top"][0]["logprob"] <= 0 and len(t["top"]) == 2 for t in told)
    greedy = ["the sea", "--max-new-tokens", 9, "--temperature", 0]
    assert gemmule("generate", "big", *greedy, "--draft", "small") == gemmule(
        "generate", "big", *greedy
    )
    piped = gemmule("generate", "small", "-", "--temperature", 0, stdin="the wind")
    assert piped.startswith("the wind")
    assert piped.endswith("\n")


def test_distilling_by_another_divergence(tiny: Settings, tmp_path: Path) -> None:
    recipe, big = tmp_path / "tiny.toml", tmp_path / "big"
    recipe.write_text(tomli_w.dumps({**tiny(), "steps": 2}))
    gemmule("train", recipe, "--out", big)
    results, objectives = {}, {}
    for loss in ("cross_entropy", "forward_kl", "reverse_kl", "jsd", "skew_kl"):
        out = tmp_path / loss
        command = ["distill", recipe, "--teacher", big, "--set", "seed=3", "--json", "--out", out]
        settings = [] if loss == "cross_entropy" else ["--set", f"objective.loss={loss}"]
        if loss == "jsd":
            settings += ["--set", "objective.beta=0.3"]
        results[loss] = json.loads(gemmule(*command, *settings))["nats_per_token"]
        objectives[loss] = json.loads((out / "manifest.json").read_text())["objective"]
    assert objectives["jsd"] == {
        "name": "distillation", "loss": "jsd", "beta": 0.3, "temperature": 1.0, "alpha": 0.0,
    }  # fmt: skip
    assert objectives["cross_entropy"]["loss"] == "cross_entropy"
    # One gradient, two values of the loss; the others train other students.
    assert results.pop("forward_kl") == pytest.approx(results["cross_entropy"], rel=1e-5)
    assert len({round(r, 6) for r in results.values()}) == len(results)
    for setting, message in (("loss=kl", r"loss = 'kl': .*'jsd'"), ("beta=1", "beta = 1: ")):
        given = ["objective.kind=distill", f"objective.teacher={big}", f"objective.{setting}"]
        with pytest.raises(ConfigError, match=message):
            RunConfig.load(recipe, given)


class Odd(GemmuleError):
    exit_code = 1


def status_of_a_command_that_raises(error: BaseException, patch: pytest.MonkeyPatch) -> object:
    def fail(*_: object) -> None:
        raise error

    patch.setattr("gemmule.report.card.write_card", fail)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["card", "run"])
    return stopped.value.code


@pytest.mark.parametrize(
    ("error", "code"), [(UserError("mend it"), 2), (TrainingError("diverged"), 1), (Odd("x"), 1)]
)
def test_exit_codes(
    error: GemmuleError, code: int, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert status_of_a_command_that_raises(error, monkeypatch) == code
    assert capsys.readouterr().err == f"gemmule: {error}\n"


UNEXPECTED = [
    (RuntimeError("a bug"), 1, r"unexpected RuntimeError in gemmule/cli/report.py:\d+: a bug "),
    (RecursionError("too deep"), 1, "unexpected RecursionError"),
    (MemoryError(), 1, "out of memory"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 1, "out of memory"),
    (OSError(13, "Permission denied", "/root/x"), 2, "/root/x: Permission denied"),
    (OSError(18, "Cross-device link", "a", None, "b"), 2, "a -> b: Cross-device link"),
    (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid"), 1, "unexpected UnicodeDecodeError"),
    (
        UnicodeEncodeError(sys.getfilesystemencoding(), "é", 0, 1, "x"),
        2,
        "file names .* set LC_ALL=C.UTF-8",
    ),
    (KeyboardInterrupt(), 130, "stopped"),
]


@pytest.mark.parametrize(("error", "code", "message"), UNEXPECTED, ids=lambda value: str(value)[:9])
def test_what_no_command_expects_is_one_line(
    error: BaseException, code: int, message: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert status_of_a_command_that_raises(error, monkeypatch) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert re.match(f"gemmule: {message}", line)


def test_a_traceback_for_those_who_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("gemmule.report.card.write_card", fail)
    monkeypatch.setenv("GEMMULE_TRACEBACK", "1")
    with pytest.raises(RuntimeError, match="a bug"):
        cli.main(["card", "run"])


def test_ctrl_c_while_the_program_starts(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    class Stop:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "gemmule.cli":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "gemmule.cli")
    monkeypatch.setattr(sys, "meta_path", [Stop(), *sys.meta_path])
    with pytest.raises(SystemExit) as stopped:
        program()
    assert stopped.value.code == 130
    assert capsys.readouterr().err == "gemmule: stopped\n"


def test_a_reader_that_has_seen_enough() -> None:
    code = """
import gemmule.report.card as card, sys
def write_card(*_):
    for _ in range(100_000):
        print("a line that no one reads")
card.write_card = write_card
from gemmule.cli import main
main(["card", "run"])
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        message = process.stderr.read()
    assert (process.returncode, message) == (0, "")
