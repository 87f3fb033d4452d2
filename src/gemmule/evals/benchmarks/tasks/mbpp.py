"""MBPP (Austin et al., 2021): write a short function, given a sentence and three tests."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemmule.errors import DataError
from gemmule.evals.benchmarks import code_execution, local_files
from gemmule.evals.benchmarks.benchmark import Benchmark, Doc, LocalData

if TYPE_CHECKING:
    from gemmule.sandbox import Sandbox

_FIELDS = {"task_id": int, "text": str, "code": str, "test_setup_code": str, "test_list": list}
_TESTS = ("{{test_list[0]}}", "{{test_list[1]}}", "{{test_list[2]}}")
# By task_id, as in the paper.
_SPLITS = {"prompt": range(1, 11), "test": range(11, 511)}
_EXAMPLES = (2, 3, 4)  # as in the paper and in lm-eval


def mbpp(folder: Path) -> LocalData:
    """Reads mbpp.jsonl: 974 tasks, of which 11 to 510 are evaluated."""
    path = folder / "mbpp.jsonl"
    splits: dict[str, list[Doc]] = {split: [] for split in _SPLITS}
    for number, row in enumerate(local_files.jsonl(path, _FIELDS), 1):
        local_files.texts(path, number, "test_list", row["test_list"])
        if len(row["test_list"]) < len(_TESTS):
            raise DataError(f"{path}:{number}: fewer than {len(_TESTS)} tests in test_list")
        for split, numbers in _SPLITS.items():
            if row["task_id"] in numbers:
                splits[split].append({field: row[field] for field in _FIELDS})
    for task in _EXAMPLES:
        if not any(row["task_id"] == task for row in splits["prompt"]):
            raise DataError(f"{path}: no task_id {task}, which is one of the few-shot examples")
    if not splits["test"]:
        raise DataError(f"{path}: no task_id from 11 to 510, which are the evaluated ones")
    return LocalData({"mbpp": splits}, [path])


def _examples(rows: Iterable[Doc]) -> list[Doc]:
    return [row for row in rows if row["task_id"] in _EXAMPLES]


def _settings(sandbox: "Sandbox", task: str) -> dict[str, Any]:
    """lm-eval's settings, without its grader from the hub, which runs answers without a sandbox.

    lm-eval sets no length for answers and so allows 256 tokens; the longest reference solution
    needs more, so 512 are allowed here.
    """
    from gemmule.sandbox import graders

    tests = "\n".join(_TESTS)
    return {
        "dataset_path": "google-research-datasets/mbpp",
        "dataset_name": "full",
        "output_type": "generate_until",
        "test_split": "test",
        "doc_to_text": (
            "You are an expert Python programmer, and here is your task: {{text}} "
            f"Your code should pass these tests:\n\n{tests}\n[BEGIN]\n"
        ),
        "doc_to_target": tests,
        "target_delimiter": "",
        "fewshot_config": {
            "sampler": "first_n",
            "split": "prompt",
            "process_docs": _examples,
            "doc_to_target": "{{code}}\n[DONE]",
        },
        "generation_kwargs": {"until": ["[DONE]"], "do_sample": False, "max_gen_toks": 512},
        "metadata": {"version": 1.0},
        **code_execution.settings(sandbox, graders.mbpp_program),
    }


BENCHMARKS = (
    Benchmark(
        name="mbpp",
        title="MBPP",
        tasks=("mbpp",),
        shots=3,
        metric=code_execution.METRIC,
        kind="generation",
        chance=None,
        folder="mbpp",
        local=mbpp,
        sandboxed=code_execution.sandboxed(_settings),
    ),
)
