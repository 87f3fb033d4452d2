"""The reward for programs: run with their tests in a sandbox."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from gemmule.posttrain.rewards.record import expected
from gemmule.sandbox import Sandbox
from gemmule.sandbox.graders import grade, mbpp_program

_FENCE = re.compile(r"^```[\w+-]*[ \t]*\n(.*?)^```", re.MULTILINE | re.DOTALL)


def passes_tests(
    sandbox: Sandbox, answers: Sequence[str], records: Sequence[Mapping[str, Any]]
) -> list[float]:
    """1 for each answer whose program runs to the end of its tests, otherwise 0.

    A program that ends early, whatever its exit code, has not passed.

    Args:
        sandbox: where programs run; all of them at once, as far as there are cores.
        answers: the models' answers; the program is in the last code block, or all of the text.
        records: a record for each answer: record["tests"], a list of assert statements, and
            optionally record["setup"], statements that come before them.

    Raises:
        DataError: if a record has no tests.
        UserError: if the sandbox can no longer be set up.
    """
    programs = [
        mbpp_program(
            {
                "test_list": expected(record, "tests"),
                "test_setup_code": record.get("setup"),
            },
            code_of(answer),
        )
        for answer, record in zip(answers, records, strict=True)
    ]
    return [float(outcome.passed) for outcome in grade(sandbox, programs)]


def code_of(answer: str) -> str:
    """The last fenced code block of an answer; without one, the answer as it is."""
    blocks = _FENCE.findall(answer)
    return blocks[-1] if blocks else answer
