"""lm-eval's settings of tasks, and its templates."""

from typing import Any

import pytest

from gemmule.evals.benchmarks import lm_eval_settings

lm_eval: Any = pytest.importorskip("lm_eval")


@pytest.mark.parametrize(
    "task",
    ["arc_easy", "boolq", "social_iqa", "mmlu_virology", "agieval_sat_en", "minerva_math_algebra"],
)
def test_a_task_is_found_by_its_name(task: str) -> None:
    settings = lm_eval_settings.settings(task)
    assert settings["task"] == task
    assert settings["dataset_path"]
    assert settings["metric_list"]


def test_a_template_is_compiled_once() -> None:
    from lm_eval import utils

    lm_eval_settings.keep_templates()
    lm_eval_settings.keep_templates()  # twice is once
    cached: Any = utils.env.from_string
    before = cached.cache_info()
    template = "{{a}} and {{b.strip()}} of a test"
    assert utils.apply_template(template, {"a": 1, "b": " x "}) == "1 and x of a test"
    assert utils.apply_template(template, {"a": 2, "b": "y"}) == "2 and y of a test"
    after = cached.cache_info()
    assert (after.misses - before.misses, after.hits - before.hits) == (1, 1)
