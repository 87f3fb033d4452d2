"""Benchmarks measured whole: scores, samples, stopping and going on, formats, comparison."""

import json
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from gemmule.errors import ConfigError, DataError
from gemmule.evals.benchmarks import compare, prompt_formats, suites
from gemmule.evals.benchmarks.evaluate import RESPONSES, RESULT, SAMPLES, evaluate_benchmarks
from gemmule.evals.benchmarks.run_benchmarks import run_eval
from gemmule.evals.benchmarks.settings import EvalSettings
from gemmule.evals.eval_target import EvalTarget, open_target
from gemmule.infer.language_model import LanguageModel
from gemmule.model.gemma import Gemma
from gemmule.model.tokenizer import Tokenizer, train_tokenizer
from models import GROUPED, tiny_config

ANIMALS = ("cat", "dog", "horse", "sparrow", "trout", "adder", "newt", "wasp", "crab", "snail")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer([Path(textwrap.__file__).read_text()], 540)


def make_model(seed: int) -> Gemma:
    config = tiny_config(
        GROUPED, vocab_size=540, num_hidden_layers=2, sliding_window=16, max_position_embeddings=512
    )
    model = Gemma(config)
    model.init_weights(torch.Generator().manual_seed(seed))
    return model


@pytest.fixture(scope="module")
def models(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    from gemmule.checkpoints.hf.writer import save_model

    root = tmp_path_factory.mktemp("models")
    for seed in (0, 1):
        save_model(make_model(seed), tokenizer, root / f"m{seed}")
    return [root / "m0", root / "m1"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ARC-e, PIQA and GSM8K, made up, laid out as a user has them."""
    root = tmp_path_factory.mktemp("benchmarks")
    (root / "arc").mkdir()
    rows = [
        {
            "query": f"Question: Which of these is number {i} in a list of animals?",
            "choices": [ANIMALS[(i + j) % 10] for j in range(4)],
            "gold": i % 4,
        }
        for i in range(24)
    ]
    write(root / "arc/arc_easy.jsonl", rows)
    (root / "piqa").mkdir()
    goals = [
        {"goal": f"feed a {animal}", "sol1": "give it food", "sol2": f"paint it {i} times"}
        for i, animal in enumerate(ANIMALS)
    ]
    write(root / "piqa/valid.jsonl", goals)
    (root / "piqa/valid-labels.lst").write_text("".join(f"{i % 2}\n" for i in range(10)))
    (root / "gsm8k").mkdir()
    sums = [
        {"question": f"What is {i} and {i}?", "answer": f"It is {2 * i}.\n#### {2 * i}"}
        for i in range(12)
    ]
    write(root / "gsm8k/train.jsonl", sums)
    write(root / "gsm8k/test.jsonl", sums[:4])
    return root


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def target(models: list[Path], out: Path, number: int = 0) -> EvalTarget:
    return open_target(str(models[number]), out=out)


def settings(data: Path, **more: Any) -> EvalSettings:
    return EvalSettings.parse(
        {"data_dir": data, "tasks": ["arc-e", "piqa", "gsm8k"], **more}, "test"
    )


def kept(folder: Path) -> tuple[dict[str, Any], str]:
    """A result without what differs from run to run, and the samples."""
    result = json.loads((folder / RESULT).read_text())
    del result["seconds"]
    return result, (folder / SAMPLES).read_text()


@pytest.fixture(scope="module")
def measured(models: list[Path], data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("measured")
    evaluate_benchmarks(target(models, out), settings(data))
    return out


def test_every_row_has_its_interval_and_every_question_its_sample(measured: Path) -> None:
    result, text = kept(measured)
    rows = result["rows"]
    assert list(rows) == ["arc-e", "piqa", "gsm8k"]
    assert [rows[name]["n"] for name in rows] == [24, 10, 4]
    for row in rows.values():
        assert row["low"] <= row["value"] <= row["high"]
        assert len(row["prompts"]) == 64
    assert rows["arc-e"]["chance"] == 0.25
    assert rows["arc-e"]["published"]["Gemma 2 2B"] == 80.6
    assert rows["gsm8k"]["shots"] == 5
    assert result["bos"] == "once, before every prompt"
    samples = [json.loads(line) for line in text.splitlines()]
    assert len(samples) == 38
    for name in rows:
        scores = [s["score"] for s in samples if s["benchmark"] == name]
        assert sum(scores) / len(scores) == pytest.approx(rows[name]["value"])
    first = samples[0]
    assert first["prompt"].startswith("Question: Which of these is number 0")
    assert len(first["choices"]) == len(first["log_likelihoods"]) == 4
    assert isinstance(samples[-1]["answer"], str)


def test_a_model_that_guesses_is_said_to_be_at_chance(measured: Path) -> None:
    rows = kept(measured)[0]["rows"]
    for name in ("arc-e", "piqa"):
        inside = rows[name]["low"] <= rows[name]["chance"] <= rows[name]["high"]
        assert rows[name]["at_chance"] == inside


def test_scores_are_of_the_right_answers(models: list[Path], data: Path, tmp_path: Path) -> None:
    """Read again from the samples: the most likely choice, by log-likelihood per byte."""
    evaluate_benchmarks(target(models, tmp_path), settings(data, tasks=["arc-e"]))
    for line in (tmp_path / SAMPLES).read_text().splitlines():
        sample = json.loads(line)
        shares = [
            value / len(choice.strip().encode())
            for value, choice in zip(sample["log_likelihoods"], sample["choices"], strict=True)
        ]
        assert sample["score"] == float(shares.index(max(shares)) == sample["target"])


def test_asked_again_nothing_is_asked(
    models: list[Path], data: Path, measured: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = kept(measured)
    monkeypatch.setattr(LanguageModel, "score_continuations", None)
    monkeypatch.setattr(LanguageModel, "engine", None)
    evaluate_benchmarks(target(models, measured), settings(data))
    assert kept(measured) == before


@pytest.mark.parametrize("cut", ["after a line", "within a line"])
def test_a_stopped_evaluation_goes_on_to_the_same_result(
    models: list[Path], data: Path, measured: Path, tmp_path: Path, cut: str
) -> None:
    lines = (measured / RESPONSES).read_text().splitlines(keepends=True)
    half = "".join(lines[: len(lines) // 2]) + (lines[-1][:20] if cut == "within a line" else "")
    (tmp_path / RESPONSES).write_text(half)
    evaluate_benchmarks(target(models, tmp_path), settings(data))
    assert kept(tmp_path) == kept(measured)
    keys = [json.loads(line)["key"] for line in (tmp_path / RESPONSES).read_text().splitlines()[1:]]
    assert len(keys) == len(set(keys)) == len(lines) - 1


def test_killed_at_any_moment_no_sample_is_lost_or_scored_twice(
    models: list[Path], data: Path, measured: Path, tmp_path: Path
) -> None:
    command = [
        sys.executable, "-m", "gemmule.cli", "eval", str(models[0]), "--data-dir", str(data),
        "--tasks", "arc-e,piqa,gsm8k", "--out", str(tmp_path / "out"),
    ]  # fmt: skip
    answers = tmp_path / "out" / RESPONSES
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if answers.is_file() and answers.read_bytes().count(b"\n") > 1:
            break
        time.sleep(0.01)
    process.kill()
    process.wait()
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    result, samples = kept(tmp_path / "out")
    expected, expected_samples = kept(measured)
    assert result["rows"] == expected["rows"]
    assert samples == expected_samples
    keys = [json.loads(line)["key"] for line in answers.read_text().splitlines()[1:]]
    assert len(keys) == len(set(keys))


def test_order_and_other_benchmarks_change_nothing(
    models: list[Path], data: Path, measured: Path, tmp_path: Path
) -> None:
    """Each benchmark alone, or the others first: the same log-likelihoods to the last bit."""
    evaluate_benchmarks(target(models, tmp_path), settings(data, tasks=["gsm8k", "piqa", "arc-e"]))
    assert sorted(kept(tmp_path)[1].splitlines()) == sorted(kept(measured)[1].splitlines())
    alone = tmp_path / "alone"
    evaluate_benchmarks(target(models, alone), settings(data, tasks=["piqa"], limit=3))
    some = [line for line in kept(measured)[1].splitlines() if '"benchmark": "piqa"' in line]
    assert kept(alone)[1].splitlines() == some[:3]


def test_another_models_answers_are_refused(
    models: list[Path], data: Path, measured: Path, tmp_path: Path
) -> None:
    (tmp_path / RESPONSES).write_text((measured / RESPONSES).read_text())
    with pytest.raises(ConfigError, match="responses of another model"):
        evaluate_benchmarks(target(models, tmp_path, 1), settings(data))
    lines = (measured / RESPONSES).read_text().splitlines(keepends=True)
    (tmp_path / RESPONSES).write_text(lines[0] + "nonsense\n" + lines[1])
    with pytest.raises(DataError, match=r"answers.jsonl:2: not a response"):
        evaluate_benchmarks(target(models, tmp_path), settings(data))


def test_what_is_missing_is_named_and_left_out(
    models: list[Path], data: Path, tmp_path: Path
) -> None:
    result = evaluate_benchmarks(
        target(models, tmp_path), settings(data, tasks=["arc-e", "boolq"], limit=2)
    )
    assert "value" not in result["rows"]["boolq"]
    assert result["rows"]["boolq"]["missing"] == "there is no boolq/val.jsonl in the data folder"
    assert result["rows"]["arc-e"]["n"] == 2
    assert result["rows"]["arc-e"]["of"] == 24


def test_where_nothing_can_be_measured_nothing_is_written(
    models: list[Path], data: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"none .* \(BoolQ: there is no boolq/val.jsonl"):
        evaluate_benchmarks(target(models, tmp_path), settings(data, tasks=["boolq"]))
    assert list(tmp_path.iterdir()) == []


def test_twelve_formats(models: list[Path], data: Path, tmp_path: Path) -> None:
    given = settings(data, tasks=["arc-e"], formats=True)
    result = evaluate_benchmarks(target(models, tmp_path), given)["formats"]["arc-e"]
    values = [score["value"] for score in result["scores"]]
    assert len({score["format"] for score in result["scores"]}) == len(values) == 12
    mean = sum(values) / 12
    assert result["mean"] == pytest.approx(mean)
    variance = sum((value - mean) ** 2 for value in values) / 11
    assert result["std"] == pytest.approx(variance**0.5)


def test_formats_differ_in_mark_separator_and_frame() -> None:
    doc = {"question": "Why?", "choices": ["a", "b", "c", "d"], "answer": 2}
    texts = []
    for variant in prompt_formats.variants(suites.find("mmlu")):
        made = variant.benchmark.overrides
        texts.append(made["doc_to_text"](doc))
        assert made["doc_to_target"](doc) == 2
        assert len(made["doc_to_choice"](doc)) == 4
    assert len(set(texts)) == 12
    assert "Question: Why?\nA. a\nB. b\nC. c\nD. d\nAnswer:" in texts
    assert "Why?\n(A) a (B) b (C) c (D) d\nThe answer is" in texts
    assert prompt_formats.variants(suites.find("gsm8k")) == []


def test_two_models_on_the_same_questions(models: list[Path], data: Path, tmp_path: Path) -> None:
    results = run_eval([str(m) for m in models], settings(data), out=tmp_path)
    scores = [compare.read_scores(tmp_path / f"m{i}" / SAMPLES) for i in (0, 1)]
    for name, result in results[0]["against"][0]["differences"].items():
        pairs = [(scores[0][name][k][1], scores[1][name][k][1]) for k in scores[0][name]]
        differences = [a - b for a, b in pairs]
        assert result["value"] == pytest.approx(sum(differences) / len(differences))
        assert result["low"] <= result["value"] <= result["high"]
        assert result["low"] < result["high"]  # also where no question tells the two apart
        back = results[1]["against"][0]["differences"][name]
        assert back["value"] == pytest.approx(-result["value"])
    saved = json.loads((tmp_path / "m0" / RESULT).read_text())
    assert saved["against"][0]["name"] == "m1"
    with pytest.raises(ConfigError, match="the same model is named twice"):
        run_eval([str(models[0])] * 2, settings(data))


def test_only_questions_with_the_same_prompt_are_compared() -> None:
    a = {"x": {"t 0": ("q", 1.0), "t 1": ("r", 0.0)}, "y": {"t 0": ("q", 1.0)}}
    b = {"x": {"t 0": ("q", 0.0), "t 1": ("another", 1.0)}}
    result = compare.differences(a, b)
    assert list(result) == ["x"]
    assert result["x"]["n"] == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tasks": ["ark-e"]}, "did you mean 'arc-e'"),
        ({"tasks": None, "suite": "quik"}, "did you mean 'quick'"),
        ({"data_dir": Path("/nowhere/at/all")}, "there is no such folder"),
        ({"limit": 0}, "limit"),
    ],
)
def test_bad_settings(data: Path, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        settings(data, **given).entries()
