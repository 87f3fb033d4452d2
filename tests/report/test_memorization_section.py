"""What the card says of a run's evals/memorization.json."""

import copy
import json

import pytest
from fixture_runs import dump, make_run

from gemmule.errors import CheckpointError
from gemmule.report import write_card


def share(value, n=1000):
    return {"value": value, "low": value * 0.5, "high": value * 1.5 + 0.001, "n": n}


def rates(exact, approximate, probes=1000):
    return {"probes": probes, "exact": share(exact), "approximate": share(approximate)}


RESULT = {
    "format": 1,
    "kind": "memorization",
    "model": {"path": "/home/somebody/runs/student"},
    "measured": {"settings": {"prompt_tokens": 50, "continuation_tokens": 50, "most_edits": 5}},
    "train": rates(0.0124, 0.0234),
    "control": {"split": "heldout", **rates(0.0, 0.0001), "why": None},
    "sources": [
        {"source": "asyncio/", **rates(0.011, 0.022, 600)},
        {"source": "<b>json</b>", **rates(0.013, 0.026, 400)},
    ],
    "times_read": [{"times": "1", **rates(0.01, 0.02)}],
    "canaries": {"groups": [{"repeats": 64, **rates(1.0, 1.0, 4)}], "why": None},
    "personal_data": {
        "severities": {
            name: {"in_text": n + 20, "recalled": n, "of_probes": share(n / 1000)}
            for n, name in enumerate(("high", "medium", "low"))
        }
    },
    "notes": ["the run started from a & b"],
}
AGAINST = {
    "model": {"path": "/home/somebody/runs/scratch"},
    "train": rates(0.0345, 0.0456),
    "difference": {"exact": share(-0.0222), "approximate": share(0.0222)},
}


def card(tmp_path, result):
    run = tmp_path / "run"
    make_run(run)
    (run / "evals").mkdir()
    dump(run / "evals/memorization.json", result)
    folder = write_card(run)
    return tuple((folder / name).read_text() for name in ("README.md", "index.html"))


def test_shares_with_their_intervals_and_sources(tmp_path):
    readme, html = card(tmp_path, RESULT)
    assert "## Memorization" in readme
    assert (
        "| this model, training text | 1,000 | 1.24 | 0.62 to 1.96 | 2.34 | 1.17 to 3.61 |"
        in readme
    )
    assert "| this model, text never seen | 1,000 | 0.00 | 0.00 to 0.10 |" in readme
    assert "exactly for 1.24% of 1,000 passages" in readme
    assert "| planted 64 times | 4 | 100.00 |" in readme
    assert "| medium | 21 | 1 | 0.10 |" in readme
    assert "read once" not in readme  # one group is the first row again
    assert "the run started from a \\& b" in readme
    assert "| 0.0124 | evals/memorization.json | train.exact.value |" in readme.replace("\\", "")
    assert "sources.1.approximate.low" in readme.replace("\\", "")
    assert 'title="evals/memorization.json: train.exact.value">1.24<' in html
    assert "&lt;b&gt;json" in html
    assert "<b>json" not in html + readme
    assert "somebody" not in html + readme


def test_two_models_and_their_difference(tmp_path):
    readme, html = card(tmp_path, {**RESULT, "against": AGAINST})
    assert "| scratch, the same passages | 1,000 | 3.45 |" in readme
    assert "| difference from scratch, paired |  | -2.22 | -1.11 to -3.23 | +2.22 |" in readme
    assert "difference from scratch, paired" in html
    assert "somebody" not in html + readme


def test_without_a_control_it_says_so(tmp_path):
    nothing = {"probes": 0, "exact": None, "approximate": None, "why": "too short"}
    readme, html = card(tmp_path, {**RESULT, "control": nothing, "canaries": None})
    assert "| this model, text never seen | 0 | not measured |" in readme
    assert "the control" not in readme
    assert "Canaries" not in html


def test_not_measured_is_no_section(tmp_path):
    run = tmp_path / "run"
    make_run(run)
    assert "## Memorization" not in (write_card(run) / "README.md").read_text()


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        ("kind", "safety", "kind is 'safety': input should be 'memorization'"),
        ("train", None, "train is None"),
        ("train.exact", None, "train.exact is None"),
        ("train.approximate.low", "a", "train.approximate.low is 'a', not a finite number"),
        ("control.probes", None, "control.probes is None, not a finite number"),
        ("sources.1", 3, "sources.1 is 3"),
        ("times_read.0.exact.high", None, "times_read.0.exact.high is None, not a finite number"),
        ("against.difference.exact", None, "against.difference.exact is None"),
        ("against.train", [], r"against.train is \[\]"),
        ("personal_data.severities.low", None, "personal_data.severities.low is None"),
        (
            "personal_data.severities.low.recalled",
            "x",
            "low.recalled is 'x', not a",
        ),
        (
            "measured.settings.most_edits",
            None,
            "measured.settings.most_edits is None",
        ),
    ],
)
def test_a_broken_result_is_named(tmp_path, path, value, named):
    result = copy.deepcopy({**RESULT, "against": AGAINST})
    *parents, last = (int(p) if p.isdigit() else p for p in path.split("."))
    inside = result
    for part in parents:
        inside = inside[part]
    inside[last] = value
    with pytest.raises(CheckpointError, match=f"evals/memorization.json.*{named}"):
        card(tmp_path, json.loads(json.dumps(result)))
