"""The card's questions and answers, from the chat stages of a quickstart."""

import html
from pathlib import Path
from typing import Any

import pytest
from fixture_runs import dump, make_run

from gemmule.errors import CheckpointError
from gemmule.report import write_card

RATE = {"value": 0.725, "low": 0.66, "high": 0.78, "n": 200}
QUESTION = "What is it called?\ndef <b>add</b>(a, b):"


def answers(count: int = 12) -> dict[str, Any]:
    return {
        "questions": 200,
        "models": {
            name: {"exact": RATE, "ended": {**RATE, "value": 0.995}, "families": {"name": RATE}}
            for name in ("teacher", "student_sft", "student")
        },
        "gain": {**RATE, "value": -0.01},
        "chosen": "student_sft",
        "examples": [
            {
                "question": f"{QUESTION} # {n}",
                "right": "add",
                "answers": {
                    "teacher": {"text": "add", "correct": True},
                    "student_sft": {"text": "`sub`", "correct": False},
                    "student": {"text": "add", "correct": True},
                },
            }
            for n in range(count)
        ],
        "conversations": [
            [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hello!"}]
        ],
    }


@pytest.fixture
def student(tmp_path: Path) -> Path:
    """The last run of the chat stages of a quickstart."""
    chat = tmp_path / "quick" / "chat"
    make_run(chat / "student")
    dump(tmp_path / "quick" / "comparison.json", {})
    dump(chat / "answers.json", answers())
    return chat / "student"


def cards(run: Path) -> list[str]:
    folder = write_card(run)
    return [html.unescape((folder / name).read_text()) for name in ("README.md", "index.html")]


def test_questions_answers_and_whether_they_are_right(student: Path) -> None:
    for card in cards(student):
        assert "Questions and answers" in card
        assert "200 short questions" in card.replace("</data>", "").replace(">200", ">200")
        assert "72.5" in card and "66.0" in card and "78.0" in card and "99.5" in card
        shown = [n for n in range(12) if f"{QUESTION} # {n}\n" in card or f"# {n}<" in card]
        assert shown == [0, 3, 6, 9]
        assert "`sub`" in card
        assert "Conversation 1, Student, fine-tuned" in card
        assert "../answers.json" in card
    readme, page = cards(student)
    assert readme.count(": right:") == 8 and readme.count(": wrong:") == 4
    assert page.count('<b class="passed">right</b>') == 8
    assert page.count('<b class="failed">wrong</b>') == 4
    assert "<b>add</b>" not in (student / "card/index.html").read_text()  # escaped


def test_few_examples_are_all_shown(student: Path) -> None:
    dump(student.parent / "answers.json", answers(2))
    assert cards(student)[0].count("Right answer:") == 2


def test_other_runs_have_no_such_section(student: Path, tmp_path: Path) -> None:
    """A file of that name next to a run may be anything."""
    make_run(tmp_path / "runs" / "student")
    (tmp_path / "runs" / "answers.json").write_text("[]\n")
    make_run(student.parent / "another")
    for run in (tmp_path / "runs" / "student", student.parent / "another"):
        assert not any("Questions and answers" in card for card in cards(run))
    (student.parent / "answers.json").unlink()
    assert not any("Questions and answers" in card for card in cards(student))


def test_a_broken_file_is_named(student: Path) -> None:
    broken = {k: v for k, v in answers().items() if k != "chosen"}
    dump(student.parent / "answers.json", broken)
    with pytest.raises(CheckpointError, match=r"answers\.json: chosen is missing; delete it"):
        write_card(student)
