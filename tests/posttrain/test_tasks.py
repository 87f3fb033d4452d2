"""Task generators: the same problems every time, right answers, nothing in two splits."""

import random
from dataclasses import replace
from pathlib import Path

import pytest

from gemmule.cli import main
from gemmule.data.read_log import ReadLog
from gemmule.errors import ConfigError
from gemmule.posttrain.readers import read_conversations, read_prompts
from gemmule.posttrain.rewards.by_name import by_record
from gemmule.posttrain.rewards.expressions import parse
from gemmule.posttrain.tasks import definitions, library_questions
from gemmule.posttrain.tasks.arithmetic import arithmetic
from gemmule.posttrain.tasks.by_name import TASKS, task_problems
from gemmule.posttrain.tasks.countdown import countdown
from gemmule.posttrain.tasks.library_questions import FAMILIES, Questions, split_of
from gemmule.posttrain.tasks.problem import Draw, Problem, problems
from gemmule.posttrain.tasks.strings import strings

DRAWS: dict[str, Draw] = {"arithmetic": arithmetic, "countdown": countdown, "strings": strings}


@pytest.mark.parametrize("name", DRAWS)
def test_every_answer_satisfies_its_own_verifier(name: str) -> None:
    for problem in problems(DRAWS[name], name, "train", 400):
        assert by_record(problem.answer, problem.record) == 1, problem
        assert by_record(problem.answer + " or 1234567", problem.record) == 0, problem


@pytest.mark.parametrize("name", DRAWS)
def test_problems_are_the_same_every_time_and_in_one_split(name: str) -> None:
    draw = DRAWS[name]
    train = problems(draw, name, "train", 300)
    assert train == problems(draw, name, "train", 300)
    assert train[:100] == problems(draw, name, "train", 100)
    assert train != problems(draw, name, "train", 300, seed=1)
    heldout = problems(draw, name, "heldout", 100)
    assert len({p.key for p in train + heldout}) == 400
    assert not {p.prompt for p in train} & {p.prompt for p in heldout}


def test_operands_in_another_order_are_the_same_problem() -> None:
    drawn = [arithmetic(random.Random(seed)) for seed in range(4000)]
    by_key: dict[str, set[str]] = {}
    for problem in drawn:
        by_key.setdefault(problem.key, set()).add(problem.prompt)
    swapped = [prompts for prompts in by_key.values() if len(prompts) > 1]
    assert swapped, "no problem was drawn in two orders"
    assert all(len(prompts) == 2 for prompts in swapped)
    counted = [countdown(random.Random(seed)) for seed in range(500)]
    assert all(p.record["numbers"] == sorted(p.record["numbers"]) for p in counted)


def test_countdown_answers_need_no_parenthesis_they_do_not_have() -> None:
    for seed in range(2000):
        problem = countdown(random.Random(seed))
        expression = parse(problem.answer)
        assert expression.value == problem.record["target"]
        assert sorted(expression.numbers) == problem.record["numbers"]


def test_a_task_without_enough_problems_says_how_many_it_has() -> None:
    def few(rng: random.Random) -> Problem:
        n = rng.randrange(30)
        return Problem(str(n), str(n), {}, str(n))

    with pytest.raises(ConfigError, match=r"no more than about \d+ problems in its train split"):
        problems(few, "few", "train", 100)
    with pytest.raises(ConfigError, match="split 'test'"):
        problems(few, "few", "test", 1)
    with pytest.raises(ConfigError, match="at least 1"):
        problems(few, "few", "train", 0)


SOURCE = '''
class Reader(Base, metaclass=Meta):
    """Reads lines. And more."""

    def read(self, size: int = -1, *, strict=False) -> str:
        """Return up to size characters."""

    @staticmethod
    def open(path, mode="r"):
        def inner():
            pass

def long(a_very_long_parameter_name, another_very_long_parameter_name, a_third_one):
    """not a sentence"""
'''


def test_definitions_are_read_from_the_syntax_tree() -> None:
    rows = {d.name: d for d in definitions.definitions("m.py", SOURCE)}
    assert set(rows) == {"Reader", "read", "open", "inner"}  # the long line is left out
    read = rows["read"]
    assert read.line == "def read(self, size=-1, *, strict=False):"
    assert read.kind == "method"
    assert read.parameters == ("self", "size", "strict")
    assert read.defaults == (("size", "-1"), ("strict", "False"))
    assert read.summary == "Return up to size characters."
    assert rows["Reader"].line == "class Reader(Base, metaclass=Meta):"
    assert rows["Reader"].bases == ("Base",)
    assert rows["Reader"].summary == "Reads lines."
    assert rows["open"].kind == rows["inner"].kind == "function"
    assert list(definitions.definitions("bad.py", "def f(:")) == []


@pytest.mark.parametrize(
    ("family", "name", "answers"),
    [
        ("name", "read", {"It is called read."}),
        ("kind", "Reader", {"It defines a class called Reader."}),
        ("count", "read", {"It has 3 parameters."}),
        ("count", "inner", {"It has no parameters."}),
        ("list", "read", {"Its parameters are self, size and strict."}),
        ("nth", "open", {"Its first parameter is path.", "Its second parameter is mode.",
                         "Its last parameter is mode."}),
        ("default", "open", {"The default of mode is 'r'."}),
        ("base", "Reader", {"It inherits from Base."}),
        ("does", "Reader", {"Reads lines."}),
    ],
)  # fmt: skip
def test_answers_of_each_family(family: str, name: str, answers: set[str]) -> None:
    (definition,) = [d for d in definitions.definitions("m.py", SOURCE) if d.name == name]
    (asked,) = [f for f in FAMILIES if f.name == family]
    drawn = {asked.answer(definition, random.Random(seed)) for seed in range(40)}
    assert {a.text for a in drawn if a is not None} == answers


@pytest.fixture(scope="module")
def questions() -> Questions:
    return library_questions.library_questions()


def test_questions_are_held_out_by_module(questions: Questions) -> None:
    for split, rows in (("train", questions.train), ("heldout", questions.heldout)):
        assert {split_of(p.record["module"]) for p in rows} == {split}
    lines = {p.key for p in questions.train}
    assert not lines & {p.key for p in questions.heldout}
    assert questions.left_out > 0
    assert len(questions.train) > 5000 < 50 * len(questions.heldout)


def test_held_out_questions_can_be_checked(questions: Questions) -> None:
    assert {p.record["family"] for p in questions.heldout} == {
        f.name for f in FAMILIES if f.checked
    }
    for problem in questions.heldout:
        assert by_record(problem.answer, problem.record) == 1
        assert problem.key in problem.conversation()["messages"][0]["content"] or problem.before
    unchecked = [p for p in questions.train if p.record["family"] == "does"]
    assert unchecked
    assert all("verifier" not in p.record for p in unchecked)


def test_conversations_have_turns(questions: Questions) -> None:
    lengths = {len(p.conversation()["messages"]) for p in questions.train}
    assert {2, 4, 6} <= lengths
    for problem in questions.train[:500]:
        roles = [m["role"] for m in problem.conversation()["messages"]]
        assert roles == ["user", "assistant"] * (len(roles) // 2)


def test_the_seed_chooses_the_questions() -> None:
    rows = [
        replace(row, module=f"{n}.py", line=f"{row.line}  # {n}")
        for n in range(40)
        for row in definitions.definitions("m.py", SOURCE)
    ]
    first, again, other = (library_questions.library_questions(s, rows) for s in (0, 0, 1))
    assert first == again
    assert first.train != other.train
    assert first.modules["train"] + first.modules["heldout"] == 40
    assert first.left_out == 0


def succeed(*words: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(list(words))
    assert stopped.value.code == 0


def test_tasks_are_written_as_files_that_can_be_read_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    succeed("tasks", "countdown", "--out", str(tmp_path), "--count", "30", "--heldout", "10")
    assert "30 problems" in capsys.readouterr().out
    rows = list(read_prompts([tmp_path / "train.jsonl"], ReadLog()))
    assert len(rows) == 30
    expected = task_problems("countdown", "train", 30)
    assert [r.messages[-1].content for r in rows] == [p.prompt for p in expected]
    assert [dict(r.record) for r in rows] == [dict(p.record) for p in expected]
    conversations = list(read_conversations([tmp_path / "heldout.jsonl"], ReadLog()))
    assert [c.messages[-1].content for c in conversations] == [
        p.answer for p in task_problems("countdown", "heldout", 10)
    ]
    capsys.readouterr()
    succeed("tasks")
    listed = "".join(capsys.readouterr())
    assert all(name in listed for name in TASKS)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["countdwn", "--out", "x"], "there is no task 'countdwn'; did you mean 'countdown'"),
        (["countdown"], "Name a folder: gemmule tasks countdown --out runs/countdown"),
        (["strings", "--out", "x", "--count", "0"], "0 problems: at least 1"),
    ],
)
def test_a_task_that_does_not_exist_is_refused(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["tasks", *words])
    assert stopped.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())
