"""HumanEval's and MBPP's tests as programs, and that right answers pass and wrong ones do not."""

import gzip
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gemmule.errors import DataError
from gemmule.sandbox import Sandbox
from gemmule.sandbox.graders import grade, humaneval_program, mbpp_program

HUMANEVAL = {
    "task_id": "HumanEval/x",
    "prompt": 'def double(x):\n    """Twice x."""\n',
    "test": "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate(-1) == -2\n",
    "entry_point": "double",
    "canonical_solution": "    return 2 * x\n",
}
MBPP = {
    "task_id": 1,
    "test_list": ["assert double(2) == 4", "assert double(-1) == -2"],
    "test_setup_code": "",
    "code": "def double(x):\r\n    return 2 * x",
}


@pytest.fixture(scope="module")
def box() -> Sandbox:
    return Sandbox.open(accept_weaker=True)


def test_humaneval_program() -> None:
    assert humaneval_program(HUMANEVAL, "    return x\n") == (
        'def double(x):\n    """Twice x."""\n    return x\n\n'
        "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate(-1) == -2\n\n"
        "check(double)\n"
    )


def test_mbpp_program() -> None:
    problem = {**MBPP, "test_setup_code": "import math"}
    assert mbpp_program(problem, "def double(x): ...\n[DONE]\n[BEGIN] and so on") == (
        "def double(x): ...\n\nimport math\nassert double(2) == 4\nassert double(-1) == -2\n"
    )
    assert mbpp_program({"test_list": ["assert f()"]}, "x = 1") == "x = 1\n\nassert f()\n"


def test_as_lm_evaluation_harness_does_it() -> None:
    """Its code_eval runs a candidate, a line's end, and the reference."""
    reference = f"{HUMANEVAL['test']}\ncheck({HUMANEVAL['entry_point']})"
    candidate = HUMANEVAL["prompt"] + "    return 1"
    program = humaneval_program(HUMANEVAL, "    return 1")
    assert program == f"{candidate}\n{reference}\n"


@pytest.mark.parametrize("key", ["prompt", "test", "entry_point"])
def test_no_humaneval_problem(key: str) -> None:
    problem: dict[str, Any] = {**HUMANEVAL, key: None}
    with pytest.raises(DataError, match=f"'HumanEval/x' has no {key}"):
        humaneval_program(problem, "")


@pytest.mark.parametrize("tests", [None, [], "assert True"])
def test_no_mbpp_problem(tests: object) -> None:
    with pytest.raises(DataError, match="problem 1 has no test_list"):
        mbpp_program({**MBPP, "test_list": tests}, "")


def test_grading(box: Sandbox) -> None:
    seen: list[int] = []
    answers = {
        "    return 2 * x\n": True,
        "    return x + x": True,
        "    return 3 * x\n": False,
        "    pass\n": False,
        "": False,
        "    return 2 * x\n\nassert False\n": False,
        "    import sys\n    sys.exit(0)\n": False,
        "    import os\n    os._exit(0)\n": False,
        "    return 2 * x\n\nexit()\n": False,
        "    return 2 *\n": False,
        "    return 2 * x\n\nif __name__ == '__main__':\n    print(double(input()))\n": True,
        "    print('working')\n    return 2 * x\n": True,
    }
    programs = [humaneval_program(HUMANEVAL, answer) for answer in answers]
    outcomes = grade(box, programs, progress=seen.append)
    assert [outcome.passed for outcome in outcomes] == list(answers.values())
    assert seen[-1] == len(answers)
    assert grade(box, [mbpp_program(MBPP, MBPP["code"])])[0].passed  # type: ignore[arg-type]


# On the benchmarks' own files.

Maker = Callable[[dict[str, Any], str], str]


def problems(name: str) -> list[dict[str, Any]]:
    folder = os.environ.get("GEMMULE_BENCHMARKS")
    if not folder:
        pytest.skip("GEMMULE_BENCHMARKS names no folder of benchmarks")
    path = Path(folder) / name
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can shut programs in")
@pytest.mark.parametrize(
    ("file", "size", "maker", "solution"),
    [
        ("humaneval/HumanEval.jsonl.gz", 164, humaneval_program, "canonical_solution"),
        ("mbpp/mbpp.jsonl", 974, mbpp_program, "code"),
    ],
    ids=["humaneval", "mbpp"],
)
def test_reference_solutions_pass_and_empty_ones_do_not(
    box: Sandbox, file: str, size: int, maker: Maker, solution: str
) -> None:
    tasks = problems(file)
    assert len(tasks) == size
    outcomes = grade(box, [maker(p, p[solution]) for p in tasks])
    failed = [
        p["task_id"] for p, outcome in zip(tasks, outcomes, strict=True) if not outcome.passed
    ]
    assert failed == []
    for wrong in ("    pass\n", "    return None\n", "    return 0\n" if size == 164 else "x = 0"):
        outcomes = grade(box, [maker(p, wrong) for p in tasks])
        passed = [p["task_id"] for p, o in zip(tasks, outcomes, strict=True) if o.passed]
        assert passed == [], wrong
