"""Verifiers: what is right, what is wrong, and what only looks right."""

from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gemmule.errors import ConfigError, DataError, UserError
from gemmule.posttrain.rewards.by_name import (
    VERIFIERS,
    CodeReward,
    WeightedSum,
    for_manifest,
    open_reward,
    open_rewards,
)
from gemmule.posttrain.rewards.code import code_of
from gemmule.posttrain.rewards.expressions import ExpressionError, parse
from gemmule.posttrain.rewards.numbers import last_number
from gemmule.posttrain.rewards.protocol import Answer
from gemmule.posttrain.rewards.user_function import UserFunction
from gemmule.sandbox import Sandbox


def score(name: str, answer: str, /, **record: Any) -> float:
    (value,) = open_reward(name).score([Answer(answer, record)])
    return value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("42", 42), ("The answer is 42.", 42), ("= 1,234,567!", 1234567), ("$3.50", Fraction(7, 2)),
        ("-7", -7), ("−7", -7), ("9 - 7", 7), ("9-7", 7), ("it is .5", Fraction(1, 2)),
        ("1/2", Fraction(1, 2)), ("x = -3/4", Fraction(-3, 4)), ("1, 2", 2), ("12,34", 34),
        ("#### 72", 72), ("50%", 50), ("(-3)", -3), ("3.", 3), ("", None), ("none", None),
        ("1/0", None), ("9" * 101, None), ("007", 7),
    ],
)  # fmt: skip
def test_last_number(text: str, value: Any) -> None:
    assert last_number(text) == value


def test_number_compares_values_and_only_the_last_one() -> None:
    assert score("number", "17 + 25 = 42", answer="42") == 1
    assert score("number", "It is 1,000.0", answer=1000) == 1
    assert score("number", "42 or 43", answer="42") == 0  # listing candidates does not help
    assert score("number", "forty-two", answer="42") == 0
    assert score("number", "420", answer="42") == 0
    assert score("number", "3.14", answer="3.1416", tolerance="0.01") == 1
    assert score("number", "3.1", answer="3.1416", tolerance="0.01") == 0


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2 * 3 + 7", 13), ("2*(3+7)", 20), ("7 - 3 - 2", 2), ("8 / 3", Fraction(8, 3)),
        ("8/4/2", 1), ("-3 + 5", 2), ("2 × 3 − 1", 5), ("--2", 2), ("((((4))))", 4),
    ],
)  # fmt: skip
def test_an_expression_has_its_exact_value(text: str, value: Any) -> None:
    assert parse(text).value == value


@pytest.mark.parametrize(
    "text",
    [
        "", "2 +", "2 3", "(2", "2)", "2 ** 3", "1 / 0", "1/(2-2)", "2.5", "x", "__import__('os')",
        "1" + "+1" * 200, "(" * 201, "٣ + 1", "1e9", "2 // 1",
    ],
)  # fmt: skip
def test_what_is_not_an_expression_is_refused(text: str) -> None:
    with pytest.raises(ExpressionError):
        parse(text)
    assert score("countdown", text, numbers=[1, 2], target=3) == 0


def test_deep_nesting_within_the_limit_does_not_overflow_the_stack() -> None:
    assert parse("(" * 99 + "1" + ")" * 99).value == 1
    assert parse("-" * 198 + "1").value == 1


def test_countdown_wants_the_target_from_the_given_numbers() -> None:
    given: dict[str, Any] = {"numbers": [2, 3, 7], "target": 13}
    for right in ("2 * 3 + 7", "7 + 3*2", "(2*3)+7 = 13", "Let us see:\n2 * 3 + 7"):
        assert score("countdown", right, **given) == 1
    wrong = ["13", "6 + 7", "2*3+7+0", "3 + 3 + 7", "2 * 3 + 7 = 14", "2 * 3 + 7 = 13 = 13",
             "2 * 3 + 7\nor not", "23 - 10", "7 * 2 - 1"]  # fmt: skip
    for text in wrong:
        assert score("countdown", text, **given) == 0, text
    assert score("countdown", "2 * 3", numbers=[2, 3, 7], target=6) == 1
    assert score("countdown", "2 * 3", numbers=[2, 3, 7], target=6, all=True) == 0
    assert score("countdown", "5 + 5", numbers=[5, 5], target=10) == 1


def test_exact_ignores_space_and_nothing_else() -> None:
    assert score("exact", "  It has\n2 parameters. ", answer="It has 2 parameters.") == 1
    assert score("exact", "it has 2 parameters.", answer="It has 2 parameters.") == 0
    assert score("exact", "YES", answer=["yes", "no"], ignore_case=True) == 1
    assert score("exact", "It has 2 parameters. Really.", answer="It has 2 parameters.") == 0
    assert score("exact", "7", answer=7) == 1


def test_mentions_counts_whole_words() -> None:
    assert score("mentions", "Red sails, and the sea.", words=["sea", "red", "Red", "sail"]) == 0.5
    assert score("mentions", "f(x) + g", words=["f(x)"]) == 1


def test_formats() -> None:
    assert score("json_object", '{"a": 1}') == score("json_object", '{"a": 1}', keys=["a"]) == 1
    for wrong in ("[1]", '{"a": 1} ok', "", "[" * 100_000, '{"b": 1}', "NaN"):
        assert score("json_object", wrong, keys=["a"]) == 0
    assert score("pattern", " abc1\n", pattern=r"[a-z]+\d") == 1
    assert score("pattern", "abc1 and more", pattern=r"[a-z]+\d") == 0
    assert score("tagged", "<think>so</think>\n<answer>4</answer>") == 1
    for wrong in ("4", "<think>a</think><answer>4</answer> 5", "<answer>4</answer>",
                  "<think></think><answer>1</answer><answer>2</answer>"):  # fmt: skip
        assert score("tagged", wrong) == 0


def test_each_prompt_can_name_its_verifier() -> None:
    assert score("verifier", "It is 4", verifier="number", answer=4) == 1
    assert score("verifier", "It is 4", verifier="exact", answer=4) == 0
    with pytest.raises(DataError, match=r"verifier = 'numbr' .* did you mean 'number'"):
        score("verifier", "4", verifier="numbr", answer=4)


@pytest.mark.parametrize(
    ("name", "record", "message"),
    [
        ("number", {}, r"has no 'answer', which its reward needs; it has nothing"),
        ("exact", {"answers": ["a"]}, r"has no 'answer', .* it has 'answers'"),
        ("number", {"answer": "many"}, r"'many' holds no number"),
        ("countdown", {"numbers": "2 3", "target": 5}, r"a list of whole numbers"),
        ("countdown", {"numbers": [2, 3]}, r"has no 'target'"),
        ("pattern", {"pattern": "("}, r"is not a regular expression"),
        ("mentions", {"words": []}, r"a list of words"),
        ("verifier", {"answer": 1}, r"has no 'verifier'"),
    ],
)
def test_a_record_that_cannot_be_compared_with_is_refused(
    name: str, record: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        score(name, "4", **record)


@pytest.mark.parametrize("name", VERIFIERS)
@pytest.mark.parametrize("text", ["", "\x00", "9" * 10_000, "(" * 10_000, "\ud800", "-" * 5000])
def test_any_answer_gets_a_number(name: str, text: str) -> None:
    record = {"answer": "1", "numbers": [1], "target": 1, "words": ["a"], "pattern": "a+"}
    assert 0 <= score(name, text, **record) <= 1


@pytest.fixture(scope="module")
def sandbox() -> Sandbox:
    try:
        return Sandbox.open(accept_weaker=True)
    except UserError as e:
        pytest.skip(f"programs cannot be isolated here: {e}")


def test_code_runs_its_tests_in_the_sandbox(sandbox: Sandbox, tmp_path: Path) -> None:
    reward = CodeReward(sandbox)
    record = {"tests": ["assert add(2, 3) == 5", "assert add(-1, 1) == 0"], "setup": "import math"}
    programs = {
        "def add(a, b):\n    return a + b": 1,
        "Here it is:\n```python\ndef add(a, b):\n    return a + b\n```\nDone.": 1,
        "def add(a, b):\n    return 5": 0,
        "def add(a, b) return": 0,
        "import sys\nsys.exit(0)": 0,  # ending before the tests is not passing them
        "import os\nos._exit(0)": 0,
        f"open({str(tmp_path / 'x')!r}, 'w')\ndef add(a, b):\n    return a + b": 0,
        "": 0,
    }
    answers = [Answer(text, record) for text in programs]
    assert reward.score(answers) == list(programs.values())
    assert not list(tmp_path.iterdir())
    assert reward.describe()["sandbox"]["kind"] == sandbox.kind
    with pytest.raises(DataError, match="has no 'tests'"):
        reward.score([Answer("pass", {})])


def test_the_last_code_block_counts() -> None:
    assert code_of("```\na = 1\n```\nor\n```py\na = 2\n```") == "a = 2\n"
    assert code_of("a = 3") == "a = 3"
    assert code_of("```python\na = 4") == "```python\na = 4"  # cut off: not a program


USER = """
def shorter(answer, record):
    return -len(answer) / record.get("scale", 1)

def broken(answer, record):
    return record["missing"]

def text(answer, record):
    return "good"

def infinite(answer, record):
    return float("inf")

def one(answer):
    return 1.0

number = 3
"""


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "my_rewards_17.py").write_text(USER)
    monkeypatch.chdir(tmp_path)
    return "my_rewards_17"


def test_a_users_file_may_have_dataclasses(tmp_path: Path) -> None:
    (tmp_path / "classy.py").write_text(
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n"
        "@dataclass\n"
        "class Limit:\n"
        "    longest: int\n"
        "def short(answer, record):\n"
        "    return float(len(answer) <= Limit(3).longest)\n"
    )
    reward = open_reward(f"{tmp_path / 'classy.py'}:short")
    assert reward.score([Answer("abc", {}), Answer("abcd", {})]) == [1.0, 0.0]


def test_a_users_function_is_called_by_its_name(user: str, tmp_path: Path) -> None:
    by_module = open_reward(f"{user}:shorter")
    by_file = open_reward(f"{tmp_path / user}.py:shorter")
    answers = [Answer("abcd", {"scale": 2}), Answer("", {})]
    assert by_module.score(answers) == by_file.score(answers) == [-2.0, 0.0]
    entry = by_module.describe()
    assert entry["source_sha256"] == by_file.describe()["source_sha256"]
    (tmp_path / f"{user}.py").write_text(USER + "\n")
    assert open_reward(f"{user}:shorter").describe() != entry  # an edited reward is another one


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nosuchmodule17:f", "there is no module 'nosuchmodule17'"),
        ("nosuch.py:f", "there is no file nosuch.py"),
        ("my_rewards_17:longer", "has no function 'longer'; it has shorter, broken"),
        ("my_rewards_17:number", "has no function 'number'"),
        ("my_rewards_17:one", "cannot be called"),
        (":f", "neither a known one nor a function"),
        ("numbr", "there is no reward 'numbr'; did you mean 'number'"),
    ],
)
@pytest.mark.usefixtures("user")
def test_a_reward_that_does_not_exist_is_refused(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_reward(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("broken", r"raised KeyError: 'missing' \(.*my_rewards_17.py, line 6\)"),
        ("text", "returned 'good' .* must return a finite number"),
        ("infinite", "returned inf"),
    ],
)
def test_a_users_function_that_fails_is_named(user: str, name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_reward(f"{user}:{name}").score([Answer("a", {})])


def test_rewards_add_up_with_weights() -> None:
    reward = open_rewards({"number": 1.0, "tagged": 0.25})
    assert isinstance(reward, WeightedSum)
    tagged = "<think>2+2</think><answer>4</answer>"
    answers = [Answer(t, {"answer": 4}) for t in (tagged, "4", "5", tagged.replace("4", "5"))]
    assert reward.score(answers) == [1.25, 1.0, 0.0, 0.25]
    assert [p["weight"] for p in reward.describe()["parts"]] == [1.0, 0.25]
    assert open_rewards({"number": 1.0}).name == "number"
    with pytest.raises(ConfigError, match="no reward is given"):
        open_rewards({})


def test_the_identity_of_a_reward_is_what_decides_its_scores(
    tmp_path: Path,
) -> None:
    file = tmp_path / "mine.py"

    def identity(weights: dict[str, float]) -> Any:
        return for_manifest(open_rewards(weights))["identity"]

    file.write_text("def short(answer, record):\n    return 1.0\n")
    mine = f"{file}:short"
    first = identity({mine: 1.0})
    assert first == identity({mine: 1.0})
    others = [identity({mine: 0.5}), identity({mine: 1.0, "number": 1.0}), identity({"number": 1})]
    file.write_text("def short(answer, record):\n    return 0.5\n")
    assert len({first, *others, identity({mine: 1.0})}) == 5
    boxes: list[Any] = [SimpleNamespace(json=lambda kind=k: {"kind": kind}) for k in ("a", "b")]
    ours, theirs = (for_manifest(CodeReward(box)) for box in boxes)
    assert ours["sandbox"] != theirs["sandbox"]
    assert ours["identity"] == theirs["identity"]


def test_the_module_that_defines_an_imported_function_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    defined, named = tmp_path / "defined_here.py", tmp_path / "named_here.py"
    defined.write_text("def short(answer, record):\n    return 1.0\n")
    named.write_text("from defined_here import short\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    function = UserFunction(f"{named}:short")
    before = function.fingerprint
    defined.write_text("def short(answer, record):\n    return 2.0\n")
    assert function.fingerprint != before
