"""HumanEval's and MBPP's tests as programs: an answer is correct if its program runs to its end.

The programs are assembled in the same order as by the public graders (OpenAI's human-eval, and
lm-evaluation-harness's tasks `humaneval` and `mbpp`). They are used by evaluations and rewards.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gemmule.errors import DataError
from gemmule.sandbox.limits import Outcome
from gemmule.sandbox.sandbox import Sandbox

MBPP_END = "[DONE]"


def humaneval_program(problem: Mapping[str, Any], completion: str) -> str:
    """A HumanEval problem's prompt with a completion, its tests, and the call of the tests.

    Args:
        problem: a problem with `prompt`, `test` and `entry_point`.
        completion: a model's completion of the prompt.

    Raises:
        DataError: for a problem that lacks one of these fields.
    """
    prompt, test, entry_point = _texts(problem, "prompt", "test", "entry_point")
    return f"{prompt}{completion}\n{test}\ncheck({entry_point})\n"


def mbpp_program(problem: Mapping[str, Any], completion: str) -> str:
    """An answer to an MBPP problem followed by its tests.

    Args:
        problem: a problem with `test_list`, and optionally `test_setup_code`.
        completion: a model's text after "[BEGIN]"; anything after "[DONE]" is ignored.

    Raises:
        DataError: for a problem without a list of tests.
    """
    tests = problem.get("test_list")
    if not isinstance(tests, Sequence) or isinstance(tests, str) or not tests:
        raise DataError(f"{_name(problem)} has no test_list: it is not a problem of MBPP")
    setup = problem.get("test_setup_code") or ""
    answer = completion.split(MBPP_END, 1)[0]
    return "\n".join([answer, setup, *tests, ""])


def grade(
    sandbox: Sandbox,
    programs: Sequence[str],
    progress: Callable[[int], None] | None = None,
) -> list[Outcome]:
    """Runs the programs of answers.

    Args:
        sandbox: where they run.
        programs: a program for each answer.
        progress: called with the number of finished programs.

    Returns:
        An outcome for each program, in order; `passed` tells whether the answer is correct.
    """
    return sandbox.run_all(programs, progress=progress)


def _texts(problem: Mapping[str, Any], *keys: str) -> list[str]:
    for key in keys:
        if not isinstance(problem.get(key), str):
            raise DataError(f"{_name(problem)} has no {key}: it is not a problem of HumanEval")
    return [problem[key] for key in keys]


def _name(problem: Mapping[str, Any]) -> str:
    return f"problem {problem.get('task_id', '(without task_id)')!r}"
