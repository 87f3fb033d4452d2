"""Every failure listed in docs/serving-failures.md has tests that exist, or a reason."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROW = re.compile(r"^\| (\d+) \| (.+?) \| (.+?) \| (.*?) *\|$", re.MULTILINE)
ROWS = ROW.findall((ROOT / "docs/serving-failures.md").read_text(encoding="utf-8"))
CODE = re.compile(r"`([^`]+)`")


def test_the_table_has_every_failure_once_in_order() -> None:
    assert [int(number) for number, *_ in ROWS] == list(range(1, 77))


@pytest.mark.parametrize(("number", "answer"), [(row[0], row[3]) for row in ROWS])
def test_each_failure_has_tests_that_exist_or_a_reason(number: str, answer: str) -> None:
    tests = [name for name in CODE.findall(answer) if name.startswith("tests/")]
    if not tests:
        assert len(answer.split()) >= 5, f"{number}: neither test nor reason"
    for name in tests:
        path, _, function = name.partition("::")
        assert (ROOT / path).is_file(), name
        if function:
            source = (ROOT / path).read_text(encoding="utf-8")
            defined = re.search(rf"^(async )?(def|function) {re.escape(function)}\b", source, re.M)
            titled = path.endswith((".js", ".mjs", ".ts")) and function in source
            assert defined or titled, name
