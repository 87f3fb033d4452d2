"""The suites are the report's table, and names are found."""

import subprocess
import sys

import pytest

from gemmule.errors import ConfigError
from gemmule.evals.benchmarks import suites
from gemmule.evals.benchmarks.published import PARAMETERS, published
from gemmule.model.config import preset

# As the report's table of pre-trained models has them: shots, and what counts.
REPORT = {
    "mmlu": (5, "acc"),
    "arc-c": (25, "acc_norm"),
    "gsm8k": (5, "exact_match"),
    "agieval": (0, "acc"),  # from files three to five
    "drop": (3, "f1"),
    "bbh": (3, "exact_match"),
    "winogrande": (5, "acc"),
    "hellaswag": (10, "acc_norm"),
    "math": (4, "exact_match"),
    "arc-e": (0, "acc_norm"),
    "piqa": (0, "acc_norm"),
    "siqa": (0, "acc"),
    "boolq": (0, "acc"),
    "triviaqa": (5, "exact_match"),
    "nq": (5, "exact_match"),
    "humaneval": (0, "pass@1"),
    "mbpp": (3, "pass@1"),
}


def test_the_report_s_rows_are_in_its_order() -> None:
    suite = suites.suite("report")
    assert [e.benchmark.name for e in suite.entries] == [*REPORT, "ifeval"]
    assert all(e.limit is None for e in suite.entries)
    for entry in suite.entries[:-1]:
        b = entry.benchmark
        assert (b.shots, b.metric) == REPORT[b.name], b.name


def test_the_quick_suite_is_small_and_all_choice() -> None:
    entries = suites.suite("quick").entries
    assert all(e.benchmark.kind == "choice" and e.benchmark.chance for e in entries)
    asked = [(e.limit or 10_000) * len(e.benchmark.tasks) for e in entries]
    assert sum(asked) <= 6000
    assert max(e.benchmark.shots for e in entries) <= 5


def test_every_benchmark_is_found_by_its_name() -> None:
    for name, benchmark in suites.BENCHMARKS.items():
        assert suites.find(name) is benchmark
        assert benchmark.tasks
        assert len(set(benchmark.tasks)) == len(benchmark.tasks)
    titles = [b.title for b in suites.BENCHMARKS.values()]
    assert len(set(titles)) == len(titles)


def test_a_wrong_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"no benchmark 'arce': did you mean 'arc-e'\? .*mmlu, "):
        suites.find("arce")
    with pytest.raises(ConfigError, match=r"no benchmark 'PIQA': did you mean 'piqa'\?"):
        suites.find("PIQA")
    with pytest.raises(ConfigError, match=r"no benchmark 'xyzzy': allowed: mmlu, .*ifeval$"):
        suites.find("xyzzy")
    with pytest.raises(ConfigError, match=r"no suite 'quik': did you mean 'quick'\? .*report"):
        suites.suite("quik")


def test_published_scores() -> None:
    assert published("mmlu") == {"Gemma 2 2B": 52.2, "Gemma 2 9B": 71.3, "Gemma 2 27B": 75.2}
    assert [name for name in suites.BENCHMARKS if published(name)] == [
        name for name in suites.BENCHMARKS if name in REPORT
    ]
    assert published("hellaswag-0") == {}  # with other shots it is another measurement


def test_published_sizes_are_those_of_the_shapes() -> None:
    for name, size in zip(PARAMETERS, ("2b", "9b", "27b"), strict=True):
        assert PARAMETERS[name] == preset(size).parameters


def test_looking_at_the_catalogue_imports_nothing_heavy() -> None:
    heavy = "{'torch', 'lm_eval', 'datasets', 'transformers', 'sympy'}"
    code = (
        "import sys, gemmule.evals.benchmarks.suites, gemmule.evals.benchmarks.published\n"
        f"assert not {heavy} & set(sys.modules), {heavy} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
