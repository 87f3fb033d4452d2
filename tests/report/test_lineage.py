"""The card's lineage, and cards of runs that are not evaluated by their loss on text."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from fixture_runs import dump, make_run
from test_card import read

from gemmule.errors import CheckpointError
from gemmule.report import write_card
from gemmule.report.lineage import stages, title_of
from gemmule.report.run_files import load_run
from gemmule.report.values import Provenance


def tune(
    folder: Path, start: Path | str, kind: str, method: str | None = None, **more: Any
) -> Path:
    """A finished run of a kind that starts from a model."""
    make_run(folder, **more)
    settings = f'[model]\ninit = "{start}"\n[objective]\nkind = "{kind}"\n'
    (folder / "config.toml").write_text(settings + (f'method = "{method}"\n' if method else ""))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest |= {"kind": kind, "parent": {"path": str(start), "fingerprint": "aa" * 32}}
    dump(folder / "manifest.json", manifest)
    return folder


def give_metrics(folder: Path, **metrics: float) -> None:
    """Makes result.json that of a kind with metrics of its own."""
    result = json.loads((folder / "result.json").read_text())
    for name in ("nats_per_token", "perplexity", "bits_per_byte", "heldout_tokens"):
        del result[name]
    dump(folder / "result.json", {"split": "heldout", **metrics, **result})


def give_gates(folder: Path, parent: Path, *, passed: bool) -> None:
    (folder / "evals").mkdir()
    dump(
        folder / "evals/gates.json",
        {
            "kind": "gates",
            "passed": passed,
            "candidate": {"path": str(folder)},
            "parent": {"path": str(parent)},
            "checks": [
                {
                    "name": "reward",
                    "rule": "gains more than 0 (whole interval)",
                    "passed": passed,
                    "outcome": "gains 0.210 (0.150 to 0.270)",
                    "estimate": {"value": 0.21, "low": 0.15, "high": 0.27, "n": 200},
                }
            ],
            "not_checked": ["safety"],
            "prompts": {"name": "sums", "count": 200},
        },
    )


@pytest.fixture
def line(tmp_path: Path) -> list[Path]:
    """Base, sft, two runs of RLOO, and their merge."""
    make_run(tmp_path / "base", kind="distill")
    sft = tune(tmp_path / "sft", tmp_path / "base", "sft", data="questions", seed=2)
    runs = [tune(tmp_path / f"rl-{m}", sft, "rl", "rloo", data="sums", wh=m) for m in (1, 2)]
    for run in runs:
        give_metrics(run, reward=0.71, **{"completions/mean_length": 4.5})
    merged = tmp_path / "merged"
    merged.mkdir()
    about = json.loads((sft / "manifest.json").read_text())
    about |= {
        "kind": "merge",
        "data": {"name": "sums", "documents": 500},
        "parents": [
            *({"path": str(run), "role": "model"} for run in runs),
            {"path": str(sft), "role": "base"},
        ],
        "objective": {"name": "merge", "method": "slerp", "weights": [0.5, 0.5], "eta": 1.0},
    }
    del about["seed"]
    dump(merged / "manifest.json", about)
    angles = [[0.0, 88.5], [88.5, 0.0]], [[0.0, None], [None, 0.0]], [[0.0, 41.25], [41.25, 0.0]]
    layers = {
        f"layers.{n}": {"coefficients": [0.7, 0.7], "norms": [1.0, 1.0], "angles": layer}
        for n, layer in enumerate(angles)
    }
    result = {"parameters": 1_524_096, "train_tokens": 0, "seconds": 1.5, "layers": layers}
    dump(merged / "result.json", result)
    give_gates(merged, sft, passed=True)
    return [tmp_path / "base", sft, *runs, merged]


def test_each_stage_has_its_data_cost_and_gates(line: list[Path]) -> None:
    page = read(write_card(line[-1])).text
    first, second, third = (
        page.index(t) for t in ("Distillation base", "Supervised", "SLERP merged")
    )
    assert first < second < third
    assert "Data: questions, 1,234 documents" in page
    assert "Cost: 500 k tokens, 1 min 35 s, 12.3 Wh" in page
    assert "Model: rl-1 (RLOO): 500 k tokens, 1 min 35 s, 1.00 Wh" in page
    assert "Angles between task vectors, by layer: 41.2° to 88.5°" in page
    assert "Promoted on 200 held-out prompts: it may replace …/sft. Not checked: safety." in page
    assert "passed reward: gains more than 0 (whole interval); gains 0.210" in page
    assert "seed" not in page[page.index("Limitations") : page.index("Energy and carbon")]
    assert "Cost: 1.5 s" in page
    assert str(line[0].parent) not in (line[-1] / "card/index.html").read_text()
    text = (line[-1] / "card/README.md").read_text()
    assert "## Lineage" in text
    assert "3. SLERP: merged" in text


def test_the_card_of_a_run_with_other_metrics(line: list[Path]) -> None:
    page = read(write_card(line[2])).text
    assert "RLOO: reward 0.71 on held-out data" in page
    assert "completions/mean length" in page
    assert "Supervised fine-tuning sft" in page
    assert "Its answers are not reliable" in page
    text = (line[2] / "card/README.md").read_text()
    assert "bits per byte" not in text
    assert "model-index" not in text  # there is no loss to report to the hub


def test_a_refused_run_says_so(line: list[Path]) -> None:
    give_gates(line[2], line[1], passed=False)
    page = read(write_card(line[2])).text
    assert "Refused on 200 held-out prompts: it does not replace …/sft." in page
    assert "failed reward" in page


def test_a_run_from_random_weights_has_none(line: list[Path]) -> None:
    page = read(write_card(line[0])).text
    assert "Lineage" not in page


def test_a_start_that_is_gone_or_on_the_hub(line: list[Path], tmp_path: Path) -> None:
    shutil.rmtree(line[0])
    page = read(write_card(line[1])).text
    assert "Start …/base" in page
    assert "Its files are not here" in page
    other = tune(tmp_path / "other", "google/gemma-2-2b", "preference", "dpo")
    assert "Start google/gemma-2-2b" in read(write_card(other)).text


def test_a_chain_that_leads_in_a_circle_ends(tmp_path: Path) -> None:
    one = tune(tmp_path / "one", tmp_path / "two", "sft")
    tune(tmp_path / "two", one, "opd")
    found = stages(one, load_run(one, ""), Provenance())
    assert [stage.title for stage in found] == [
        "Start", "On-policy distillation", "Supervised fine-tuning",
    ]  # fmt: skip


def test_a_relative_start_is_found_from_the_folders_that_the_run_is_in(tmp_path: Path) -> None:
    make_run(tmp_path / "runs/base")
    sft = tune(tmp_path / "runs/sft", "runs/base", "sft")
    titles = [stage.title for stage in stages(sft, load_run(sft, ""), Provenance())]
    assert titles == ["Pretraining", "Supervised fine-tuning"]


def test_titles(tmp_path: Path) -> None:
    for kind, method, title in (
        ("reward", None, "Reward model"),
        ("preference", "simpo", "SimPO"),
        ("rl", "jbond", "J-BOND"),
        ("mine", None, "mine"),
    ):
        folder = tune(tmp_path / f"{kind}-{method}", "x", kind, method)
        assert title_of(load_run(folder, "")) == title


def test_a_broken_stage_is_named(line: list[Path]) -> None:
    (line[1] / "result.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"sft.result\.json is not readable JSON"):
        write_card(line[-1])
