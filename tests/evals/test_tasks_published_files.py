"""The published files, where GEMMULE_BENCHMARKS names a folder that has them."""

import os
from pathlib import Path

import pytest

from gemmule.evals.benchmarks import suites
from gemmule.evals.benchmarks.lm_eval_tasks import load_tasks

FOLDER = os.environ.get("GEMMULE_BENCHMARKS")
# Questions, and what lm-eval asks of a model for them: one answer after another.
CHOICE = {
    "arc-e": (2376, 9497),
    "arc-c": (1172, 4684),
    "piqa": (1838, 3676),
    "siqa": (1954, 5862),
    "boolq": (3270, 6540),
    "winogrande": (1267, 2534),
    "hellaswag": (800, 1600),
    "mmlu": (14042, 56168),
    "mmlu-cloze": (14042, 56168),
    "agieval": (3852, 13671),
}


@pytest.mark.slow
@pytest.mark.skipif(not FOLDER, reason="GEMMULE_BENCHMARKS names no folder")
@pytest.mark.parametrize("name", CHOICE)
def test_every_question_of_the_published_files_is_asked(name: str) -> None:
    loaded = load_tasks(suites.find(name), Path(FOLDER or ""))
    assert all(f["known"] for f in loaded.files)
    questions = requests = 0
    for task in loaded.tasks.values():
        task.build_all_requests(limit=None)
        questions += len(task.eval_docs)
        requests += len(task.instances)
    assert (questions, requests) == CHOICE[name]
