"""HumanEval's and MBPP's tests as programs: an answer is right if its program comes to its end.

The programs are the public graders' own, put together in the same order (OpenAI's human-eval, and
lm-evaluation-harness' tasks `humaneval` and `mbpp`).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gemmule.errors import DataError
from gemmule.sandbox.limits import Outcome
from gemmule.sandbox.sandbox import Sandbox

MBPP_END = "[DONE]"


def humaneval_program(problem: Mapping[str, Any], completion: str) -> str:
    """A HumanEval problem's prompt with a completion, its tests, and their call.

    Args:
        problem: with `prompt`, `test` and `entry_point`.
        completion: what a model wrote after the prompt.

    Raises:
        DataError: for a problem that lacks one of these.
    """
    prompt, test, entry_point = _texts(problem, "prompt", "test", "entry_point")
    return f"{prompt}{completion}\n{test}\ncheck({entry_point})\n"


def mbpp_program(problem: Mapping[str, Any], completion: str) -> str:
    """An answer to an MBPP problem and its tests.

    Args:
        problem: with `test_list`, and `test_setup_code` where there is any.
        completion: what a model wrote after "[BEGIN]"; what follows "[DONE]" is left out.

    Raises:
        DataError: for a problem without a list of tests.
    """
    tests = problem.get("test_list")
    if not isinstance(tests, Sequence) or isinstance(tests, str) or not tests:
        raise DataError(f"{_name(problem)} has no test_list: it is no problem of MBPP")
    setup = problem.get("test_setup_code") or ""
    answer = completion.split(MBPP_END, 1)[0]
    return "\n".join([answer, setup, *tests, ""])


def grade(
    sandbox: Sandbox,
    programs: Sequence[str],
    progress: Callable[[int], None] | None = None,
) -> list[Outcome]:
    """Runs programs made here.

    Args:
        sandbox: where they run.
        programs: one for each answer.
        progress: told the number of finished answers.

    Returns:
        An outcome for each, in order; `passed` says whether the answer is right.
    """
    return sandbox.run_all(programs, progress=progress)


def _texts(problem: Mapping[str, Any], *keys: str) -> list[str]:
    for key in keys:
        if not isinstance(problem.get(key), str):
            raise DataError(f"{_name(problem)} has no {key}: it is no problem of HumanEval")
    return [problem[key] for key in keys]


def _name(problem: Mapping[str, Any]) -> str:
    return f"problem {problem.get('task_id', '(without task_id)')!r}"
