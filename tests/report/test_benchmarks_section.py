"""What the card says of a run's evals/benchmarks.json."""

import copy

import pytest
from fixture_runs import dump, make_run

from gemmule.errors import CheckpointError
from gemmule.report import write_card


def row(title, value, chance, **more):
    return {
        "title": title, "shots": 0, "metric": "acc", "value": value, "low": value - 0.05,
        "high": value + 0.05, "n": 400, "of": 2376, "chance": chance, "notes": [],
        "contamination": {
            "known": True, "documents": 3, "judged": 390, "rule": "13 words in a row",
        },
        "published": {"Gemma 2 2B": 80.6}, **more,
    }  # fmt: skip


RESULT = {
    "format": 1,
    "kind": "benchmarks",
    "model": {"path": "/home/somebody/student", "parameters": 1_400_000},
    "published": {"source": "a report", "parameters": {"Gemma 2 2B": 2_614_341_888}},
    "rows": {
        "arc-e": row("ARC-e", 0.271, 0.25),
        "piqa": row("PIQA <b>", 0.5812, 0.5, shots=[3, 5], notes=["cut & <i>"]),
        "boolq": row("BoolQ", 0.3, 0.5),
        "gsm8k": row("GSM8K", 0.06, None, published={}),
        "drop": {"title": "DROP", "published": {"Gemma 2 2B": 51.2}, "missing": "no such file"},
    },
    "formats": {
        "arc-e": {
            "title": "ARC-e", "mean": 0.26, "std": 0.021,
            "published_std_percent": {"Gemma 2 2B": 2.1},
        }
    },
    "against": [
        {
            "name": "scratch", "parameters": 1_400_000,
            "scores": {"arc-e": {"value": 0.26, "low": 0.2, "high": 0.3, "n": 400}},
            "differences": {
                "arc-e": {
                    "value": 0.011, "low": -0.02, "high": 0.04, "n": 400,
                    "verdict": "no difference seen",
                }
            },
        }
    ],
}  # fmt: skip


def card(tmp_path, result):
    run = tmp_path / "run"
    make_run(run)
    (run / "evals").mkdir()
    dump(run / "evals/benchmarks.json", result)
    folder = write_card(run)
    return tuple((folder / name).read_text() for name in ("README.md", "index.html"))


def test_scores_stand_beside_chance_and_the_published_ones(tmp_path):
    readme, html = card(tmp_path, RESULT)
    assert "Of 3 multiple-choice benchmarks: 1 above chance, 1 at chance, 1 below chance." in readme
    assert "| ARC-e | 0 | 27.1 | 22.1 to 32.1 | at 25.0 | 80.6 | 400 |" in readme
    assert "| 3-5 | 58.1 | 53.1 to 63.1 | above 50.0 |" in readme
    assert "| GSM8K | 0 | 6.0 | 1.0 to 11.0 |  | | 400 |" in readme
    assert "DROP: not measured: no such file" in readme
    assert "400 of 2,376 questions" in readme
    assert "3 of 390 questions share 13 words in a row" in readme
    assert "mean 26.0, standard deviation 2.1 over twelve formats" in readme
    assert "| ARC-e | +1.1 | -2.0 to +4.0 | no difference seen |" in readme
    assert "rows.arc-e.value" in readme.replace("\\", "")
    assert "against.0.differences.arc-e.value" in readme.replace("\\", "")
    assert 'title="evals/benchmarks.json: rows.arc-e.value">27.1<' in html
    assert "PIQA <b>" not in html
    assert "cut & <i>" not in html
    assert "somebody" not in readme + html


def test_the_plot_says_in_words_what_it_shows(tmp_path):
    _, html = card(tmp_path, RESULT)
    assert "ARC-e: this model 27.1 at 1.40 M, scratch 26.0 at 1.40 M, Gemma 2 2B 80.6" in html


def test_the_card_is_the_same_each_time(tmp_path):
    assert card(tmp_path / "a", RESULT) == card(tmp_path / "b", RESULT)


def test_what_was_not_measured_is_said(tmp_path):
    readme, _ = card(tmp_path, RESULT)
    assert "Not measured: safety, memorization." in readme


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.update(kind="safety"), "kind is 'safety': input should be 'benchmarks'; meas"),
        (lambda r: r.update(rows=[]), r"rows is \[\]: .*; measure again with gemmule eval"),
        (lambda r: r["model"].pop("parameters"), "model.parameters is missing"),
        (
            lambda r: r["rows"]["arc-e"].update(value="high"),
            "rows.arc-e.value is .high., not a",
        ),
        (lambda r: r["rows"]["piqa"].pop("published"), "rows.piqa.published is missing"),
    ],
)
def test_a_broken_file_is_named(tmp_path, change, message):
    result = copy.deepcopy(RESULT)
    change(result)
    with pytest.raises(CheckpointError, match=message):
        card(tmp_path, result)
