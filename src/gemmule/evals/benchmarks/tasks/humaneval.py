"""HumanEval (Chen et al., 2021): write a function, given its signature and docstring."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemmule.evals.benchmarks import code_execution, local_files
from gemmule.evals.benchmarks.benchmark import Benchmark, LocalData

if TYPE_CHECKING:
    from gemmule.sandbox import Sandbox

_FIELDS = dict.fromkeys(("task_id", "prompt", "entry_point", "canonical_solution", "test"), str)


def humaneval(folder: Path) -> LocalData:
    """Reads HumanEval.jsonl.gz, which has the hub's columns."""
    path = folder / "HumanEval.jsonl.gz"
    rows = [{field: row[field] for field in _FIELDS} for row in local_files.jsonl(path, _FIELDS)]
    return LocalData({"humaneval": {"test": rows}}, [path])


def _settings(sandbox: "Sandbox", task: str) -> dict[str, Any]:
    """lm-eval's settings, without its grader from the hub, which runs answers without a sandbox.

    As in OpenAI's evaluation, an answer ends before the next top-level statement.
    """
    from gemmule.sandbox import graders

    return {
        "dataset_path": "openai/openai_humaneval",
        "output_type": "generate_until",
        "test_split": "test",
        "doc_to_text": "{{prompt}}",
        "doc_to_target": "{{test}}\ncheck({{entry_point}})",
        "generation_kwargs": {
            "until": ["\nclass", "\ndef", "\n#", "\nif", "\nprint"],
            "max_gen_toks": 1024,
            "do_sample": False,
        },
        "metadata": {"version": 1.0},
        **code_execution.settings(sandbox, graders.humaneval_program),
    }


BENCHMARKS = (
    Benchmark(
        name="humaneval",
        title="HumanEval",
        tasks=("humaneval",),
        shots=0,
        metric=code_execution.METRIC,
        kind="generation",
        chance=None,
        folder="humaneval",
        local=humaneval,
        sandboxed=code_execution.sandboxed(_settings),
    ),
)
