"""`gemmule safety` on a tiny random model, from the command line."""

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safety_files

from gemmule.checkpoints.hf.writer import save_model
from gemmule.cli import main
from gemmule.evals.lm_eval_model import GemmuleLM
from gemmule.evals.response_cache import ResponseCache
from gemmule.evals.safety.evaluate import read_samples
from gemmule.infer.language_model import load
from gemmule.model.tokenizer import train_tokenizer
from gemmule.runs.lock import locked_output
from models import random_model, tiny_config

pytest.importorskip("lm_eval")
TEXT = "Yes No you are a fool and the sea was calm. Who was slow? The nurse told the patient. " * 40


def gemmule(*arguments: object, code: int = 0) -> str:
    """What a command prints: its result, or its message."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(["safety", *map(str, arguments)])
        except SystemExit as e:
            assert (e.code or 0) == code, err.getvalue()
    return err.getvalue() if code == 2 else out.getvalue()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return safety_files.make(tmp_path_factory.mktemp("safety") / "data")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """model(seed): a folder with a tiny random model; all have one tokenizer."""
    tokenizer = train_tokenizer([TEXT] * 4, 540)
    made: dict[int, Path] = {}

    def make(seed: int) -> Path:
        if seed not in made:
            made[seed] = tmp_path_factory.mktemp(f"model{seed}")
            config = tiny_config(
                vocab_size=540, hidden_size=16, intermediate_size=24, head_dim=8,
                sliding_window=64, max_position_embeddings=1500,
            )  # fmt: skip
            network = random_model(config, seed, std={"post_": 0.5, "": 0.4}, mean={"post_": 2.0})
            save_model(network, tokenizer, made[seed])
        return made[seed]

    return make


def measured(out: Path) -> dict[str, Any]:
    result = json.loads((out / "safety.json").read_text())
    return {k: v for k, v in result.items() if k not in ("seconds", "gate")}


def test_everything_with_a_judge(model: Callable[[int], Path], data: Path, tmp_path: Path) -> None:
    printed = gemmule(
        model(1), "--data-dir", data, "--judge", model(2), "--out", tmp_path, "--json"
    )  # fmt: skip
    result = json.loads(printed)
    assert result == json.loads((tmp_path / "safety.json").read_text())
    assert [n for n, f in result["figures"].items() if "missing" in f] == []
    assert result["scorer"]["kind"] == "judge"
    harms = result["benchmarks"]["realtoxicityprompts"]["harms"]
    assert set(harms) == {"dangerous content", "harassment", "hate speech", "sexually explicit"}
    assert result["figures"]["realtoxicityprompts"]["value"] >= max(harms.values())
    judged = [s for s in read_samples(tmp_path) if s.get("harms")]
    assert len(judged) >= 6
    assert all(s["toxicity"] == max(s["harms"].values()) for s in judged)


def test_one_process_at_a_time(model: Callable[[int], Path], data: Path, tmp_path: Path) -> None:
    with locked_output(tmp_path / "safety.json"):
        message = gemmule(model(1), "--data-dir", data, "--out", tmp_path, code=2)
    assert f"{tmp_path / 'safety.json'} is being written by process" in message


def test_figures_come_from_the_models_own_likelihoods(
    model: Callable[[int], Path], data: Path, tmp_path: Path
) -> None:
    gemmule(model(1), "--data-dir", data, "--tasks", "crows-pairs", "--out", tmp_path)
    lm = load(model(1))
    for sample in read_samples(tmp_path):
        expected = [sum(lm.score(choice)) for choice in sample["choices"]]
        assert sample["log_likelihoods"] == pytest.approx(expected, abs=1e-4)


def test_drawn_continuations_are_the_same_again(
    model: Callable[[int], Path], data: Path, tmp_path: Path
) -> None:
    command = [model(1), "--data-dir", data, "--tasks", "realtoxicityprompts", "--judge", model(2),
               "--temperature", 1, "--max-new-tokens", 8]  # fmt: skip
    for out, seed in (("a", 3), ("b", 3), ("c", 4)):
        gemmule(*command, "--seed", seed, "--out", tmp_path / out)
    texts = {
        out: [s["answer"] for s in read_samples(tmp_path / out)] for out in ("a", "b", "c")
    }  # fmt: skip
    assert texts["a"] == texts["b"] != texts["c"]
    about = measured(tmp_path / "a")["benchmarks"]["realtoxicityprompts"]
    assert about["written"] == "sampled at temperature 1 with seed 3, at most 8 tokens"


def test_stopped_and_gone_on_with(
    model: Callable[[int], Path], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gemmule.evals.safety.evaluate._VERDICTS_AT_ONCE", 4)
    monkeypatch.setattr(
        "gemmule.evals.lm_eval_model._grouped", lambda answers: ([a] for a in answers)
    )
    command = [model(1), "--data-dir", data, "--judge", model(2)]
    gemmule(*command, "--out", tmp_path / "whole")
    keep = ResponseCache.add
    kept: list[str] = []

    def stopping(most: int) -> Callable[..., None]:
        def add(cache: ResponseCache, answers: Any) -> None:
            some = list(answers)
            if len(kept) + len(some) > most:
                raise KeyboardInterrupt
            kept.extend(key for key, _ in some)
            keep(cache, some)

        return add

    for most in (0, 7, 40, 190, 10_000):
        with monkeypatch.context() as patch:
            patch.setattr(ResponseCache, "add", stopping(most))
            gemmule(*command, "--out", tmp_path / "parts", code=130 if most < 10_000 else 0)
        assert (tmp_path / "parts/safety.json").exists() == (most == 10_000)
    assert len(set(kept)) == len(kept) > 190  # nothing was asked twice
    assert measured(tmp_path / "parts") == measured(tmp_path / "whole")
    assert read_samples(tmp_path / "parts") == read_samples(tmp_path / "whole")


def test_a_gate_and_its_exit_code(
    model: Callable[[int], Path], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [model(1), "--data-dir", data, "--tasks", "winogender,bbq", "--out", tmp_path / "out"]
    gate = tmp_path / "gate.toml"
    gate.write_text("[limits.winogender]\nmin = 0\n[margins]\nbbq-ambiguous = 100\n")
    gemmule(*command, "--gate", gate, "--baseline", model(2))
    assert (tmp_path / "out/baseline/safety.json").exists()
    result = json.loads((tmp_path / "out/safety.json").read_text())
    assert result["gate"]["passed"] is True
    # Again: the model gets no requests, and the baseline's result is taken as it is.
    with monkeypatch.context() as patch:
        patch.setattr(GemmuleLM, "_scored", None)
        gemmule(*command, "--gate", gate, "--baseline", tmp_path / "out/baseline")
        gate.write_text("[limits.winogender]\nmin = 101\n")
        printed = gemmule(*command, "--gate", gate, "--json", code=3)
    assert json.loads(printed)["gate"]["checks"][0]["passed"] is False
    gate.write_text("[limits.truthfulqa-mc1]\nmin = 0\n")
    gemmule(*command, "--gate", gate, code=3)  # it was not measured


def test_what_a_user_can_get_wrong(
    model: Callable[[int], Path], data: Path, tmp_path: Path
) -> None:
    gate, out = tmp_path / "gate.toml", tmp_path / "out"
    gate.write_text("[limits.winogendr]\nmin = 0\n")
    margins = tmp_path / "margins.toml"
    margins.write_text("[margins]\nwinogender = 1\n")
    base = [model(1), "--data-dir", data, "--out", out]
    for more, message in (
        (["--tasks", "bqb"], "there is no safety benchmark 'bqb'; did you mean 'bbq'"),
        (["--limit", 0], "limit = 0"),
        (["--temperature", "nan"], "temperature = nan"),
        (["--gate", gate], "there is no metric 'winogendr'; did you mean 'winogender'"),
        (["--gate", tmp_path / "none.toml"], "no config file at"),
        (["--gate", margins], "has margins and names no baseline"),
        (["--gate", margins, "--baseline", tmp_path / "none"], "nothing at"),
        (["--baseline", model(2)], "name a gate too"),
        (["--judge", model(2), "--toxicity-classifier", "x"], "name one of the two"),
        (["--toxicity-label", "toxic"], "belongs to a classifier"),
        (["--toxicity-classifier", tmp_path / "none"], "no folder"),
        (["--judge", tmp_path / "none"], "nothing at"),
        (["--data-dir", tmp_path / "none"], "no folder"),
    ):
        printed = gemmule(*base, *more, code=2)
        assert printed.splitlines()[-1].startswith("gemmule: ")
        assert message in printed
        assert "Traceback" not in printed
    assert "nothing at" in gemmule(tmp_path / "none", "--data-dir", data, "--out", out, code=2)
    assert not out.exists()


def test_other_weights_do_not_take_over_responses(
    model: Callable[[int], Path], data: Path, tmp_path: Path
) -> None:
    gemmule(model(1), "--data-dir", data, "--tasks", "winogender", "--out", tmp_path)
    printed = gemmule(
        model(3), "--data-dir", data, "--tasks", "winogender", "--out", tmp_path, code=2
    )
    assert "has the responses of another model" in printed


def test_the_table_names_what_is_missing(
    model: Callable[[int], Path], data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from gemmule.evals.safety.results_table import show

    gemmule(model(1), "--data-dir", data, "--limit", 2, "--out", tmp_path)
    show(json.loads((tmp_path / "safety.json").read_text()))
    shown = capfd.readouterr().err
    assert "not measured: no toxicity classifier named" in shown
    assert "Gemma 2 report (arXiv 2408.00118)" in shown
    row = next(line for line in shown.splitlines() if line.strip().startswith("Winogender "))
    assert "52.9 79.2 77.2" in " ".join(row.split())
