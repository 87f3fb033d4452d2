"""The planner against published runs: what the page says is what it says now."""

import re
from pathlib import Path

import pytest

from gemmule.plan.cluster import efficiency, validation
from gemmule.plan.cluster.published import published_runs
from gemmule.plan.cluster.validation import Check

PAGE = Path(__file__).parents[2] / "docs/plan-cluster.md"


@pytest.fixture(scope="module")
def checks() -> list[Check]:
    return validation.checks()


def numbers(text: str) -> list[float]:
    return [float(n.replace(",", "")) for n in re.findall(r"\d[\d,]*\.?\d*", text)]


def shown(name: str) -> list[str]:
    page = PAGE.read_text(encoding="utf-8")
    return page.split(f"<!-- {name} -->\n")[1].split("<!-- end -->")[0].splitlines()


@pytest.mark.parametrize("name", ["devices", "summary", "runs", "gemma-2"])
def test_the_page_has_what_the_planner_says_now(name: str, checks: list[Check]) -> None:
    lines = {
        "devices": validation.device_table,
        "summary": lambda: validation.summary_table(checks),
        "runs": lambda: validation.speed_table(checks),
        "gemma-2": validation.gemma_2_table,
    }[name]()
    page = shown(name)
    again = "python bench/published_runs.py --write"
    assert len(page) == len(lines), again
    for written, line in zip(page, lines, strict=True):
        # Words are equal; numbers to their last digit, which another machine may round differently.
        assert re.sub(r"[\d.,]+", "#", written) == re.sub(r"[\d.,]+", "#", line), again
        assert numbers(written) == pytest.approx(numbers(line), rel=0.01, abs=0.011), again


def test_the_aims_that_are_met_stay_met(checks: list[Check]) -> None:
    errors = validation.summary(checks)
    assert errors["speed, listed"]["median"] <= validation.MEDIAN_AIM
    assert errors["speed, listed"]["worst"] <= validation.WORST_AIM
    assert errors["memory, listed"]["median"] <= validation.MEMORY_AIM
    carbon = validation.gemma_2()
    ratio = carbon["tonnes"]["best"] / carbon["reported_tonnes"]
    assert 1 / validation.CARBON_AIM <= ratio <= validation.CARBON_AIM


def test_a_run_that_is_left_out_does_not_help_to_predict_itself() -> None:
    runs = published_runs()[:20]
    wrong = [*runs[:-1], _faster(runs[-1], 1.3)]
    before = efficiency.left_out(runs)[-1]
    after = efficiency.left_out(wrong)[-1]
    assert after == pytest.approx(before / 1.3, rel=1e-3)
    # Left in, it pulls its own prediction.
    own = efficiency.predicted_tokens(efficiency.fit(wrong), wrong[-1]) / wrong[-1].tokens
    assert own > 1.02 * after


def _faster(run: object, factor: float) -> object:
    import dataclasses

    return dataclasses.replace(run, tokens=factor * run.tokens)  # type: ignore[attr-defined,type-var]


def test_speeds_given_as_flops_are_converted_as_their_source_counts() -> None:
    runs = {(run.name, run.cluster.count): run for run in published_runs()}
    llama = runs["405B, TP 8, PP 16", 8192]
    assert llama.tflops == pytest.approx(430)  # attention over the causal half
    gpt = runs["GPT 462B, TP 8, PP 16", 6144]
    assert gpt.tokens * gpt.shape.full_square_flops(4096) == pytest.approx(459.9e12)
    assert gpt.tflops < 459.9


def test_each_fact_names_its_source_and_each_grid_its_devices() -> None:
    for run in published_runs():
        assert run.url.startswith("https://")
        assert run.layout.devices == run.cluster.count
        assert 50 < run.tflops < run.cluster.device.peak_of(run.layout.dtype) / 1e12
