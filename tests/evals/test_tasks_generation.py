"""Generation: local rows become prompts with the right examples, and broken files are named."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gemmule.errors import DataError
from gemmule.evals.benchmarks import suites
from gemmule.evals.benchmarks.lm_eval_tasks import LoadedBenchmark, Unavailable, load_tasks
from gemmule.evals.benchmarks.tasks import (
    bbh,
    drop,
    gsm8k,
    hendrycks_math,
    humaneval,
    ifeval,
    mbpp,
    nq,
    triviaqa,
)

pytest.importorskip("lm_eval")

Doc = dict[str, Any]


class NoSandbox:
    """Stands for a sandbox where nothing is run."""


SANDBOX: Any = NoSandbox()


def lines(path: Path, rows: list[Any]) -> None:
    """Texts as they are, anything else as JSON, one a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    texts = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(f"{line}\n" for line in texts), encoding="utf-8")


def prompts(loaded: LoadedBenchmark, task: str) -> list[str]:
    made = loaded.tasks[task]
    made.build_all_requests(limit=None)
    return [instance.args[0] for instance in made.instances]


GSM8K = {"question": "How many?", "answer": "Two.\n#### 2"}
TRIVIA = {"context": "Question: Who?\nAnswer:", "answer": "Ann", "aliases": ["Annie", "Ann"]}
NQ = {"question": "who was it", "answer": ["Ann"]}
PROBLEM = {
    "problem": "What is $1+1$?",
    "level": "Level 1",
    "type": "Algebra",
    "solution": r"It is $\boxed{2}$.",
}
ANSWER = {"number": "", "date": {}, "spans": ["Ann"]}
PAIR = {"question": "Who?", "query_id": "q", "answer": ANSWER}
CODE = {
    "task_id": 11,
    "text": "Add.",
    "code": "pass",
    "test_setup_code": "",
    "test_list": ["assert a", "assert b", "assert c"],
}
HUMANEVAL = dict.fromkeys(
    ("task_id", "prompt", "entry_point", "canonical_solution", "test"), "def f():\n"
)
FOLLOW = {
    "key": 1,
    "prompt": "Go.",
    "instruction_id_list": ["punctuation:no_comma"],
    "kwargs": [{}],
}


def test_gsm8k(tmp_path: Path) -> None:
    lines(tmp_path / "gsm8k/test.jsonl", [GSM8K])
    train = [{"question": f"Q{n}?", "answer": f"{n}.\n#### {n}"} for n in range(5)]
    lines(tmp_path / "gsm8k/train.jsonl", train)
    (prompt,) = prompts(load_tasks(suites.find("gsm8k"), tmp_path), "gsm8k")
    *examples, last = prompt.split("\n\n")
    assert sorted(examples) == [f"Question: Q{n}?\nAnswer: {n}.\n#### {n}" for n in range(5)]
    assert last == "Question: How many?\nAnswer:"


def test_math_has_the_four_examples_of_minerva(tmp_path: Path) -> None:
    lines(tmp_path / "math/test.jsonl", [PROBLEM, PROBLEM | {"type": "Geometry"}])
    loaded = load_tasks(suites.find("math"), tmp_path)
    assert list(loaded.tasks) == ["minerva_math_algebra", "minerva_math_geometry"]
    (prompt,) = prompts(loaded, "minerva_math_geometry")
    assert prompt.count("Problem:\n") == 5
    assert prompt.count("Final Answer: The final answer is $") == 4
    assert prompt.endswith("correct.\n\nProblem:\nWhat is $1+1$?\n\nSolution:")


def test_drop_with_a_training_split(tmp_path: Path) -> None:
    two = {"number": "", "date": {}, "spans": ["Bea", "Cy"]}
    (tmp_path / "drop").mkdir()
    date = {"number": "", "date": {"day": "", "month": "May", "year": "1617"}, "spans": []}
    nothing = {"number": "", "date": dict.fromkeys(date["date"], ""), "spans": []}
    pairs = [PAIR, {**PAIR, "answer": date, "validated_answers": [nothing, ANSWER, date]}]
    dev = {"one": {"passage": "Ann came.", "qa_pairs": pairs}}
    (tmp_path / "drop/drop_dataset_dev.json").write_text(json.dumps(dev))
    train = {str(n): {"passage": f"P{n}.", "qa_pairs": [{**PAIR, "answer": two}]} for n in range(3)}
    (tmp_path / "drop/drop_dataset_train.json").write_text(json.dumps(train))
    loaded = load_tasks(suites.find("drop"), tmp_path)
    prompt, _ = prompts(loaded, "drop")
    *examples, last = prompt.split("\n\n")
    assert sorted(examples) == [
        f"Passage: P{n}.\nQuestion: Who?\nAnswer: Bea, Cy" for n in range(3)
    ]
    assert last == "Passage: Ann came.\nQuestion: Who?\nAnswer:"
    answers = [doc["answers"] for doc in loaded.tasks["drop"].eval_docs]
    assert answers == [[["Ann"]], [["May 1617"], ["Ann"]]]
    assert loaded.notes == [
        "2 files are not the published ones: drop/drop_dataset_dev.json, …, "
        "drop/drop_dataset_train.json"
    ]


def test_drop_s_fixture_takes_examples_from_itself(tmp_path: Path) -> None:
    pairs = [
        {"question": f"Q{n}?", "query_id": str(n), "answer": {**ANSWER, "number": n, "spans": []},
         "validated_answers": [ANSWER]}
        for n in range(5)
    ]  # fmt: skip
    (tmp_path / "drop_fixture").mkdir()
    path = tmp_path / "drop_fixture/drop.json"
    path.write_text(json.dumps({"one": {"passage": "Counted.", "qa_pairs": pairs}}))
    loaded = load_tasks(suites.find("drop"), tmp_path)
    assert loaded.notes[0] == (
        "5 questions, few-shot examples from among them: a test of the format, not a score"
    )
    for n, prompt in enumerate(prompts(loaded, "drop")):
        assert prompt.endswith(f"Question: Q{n}?\nAnswer:")
        assert prompt.count("Passage: ") == 4
        assert prompt.count(f"Q{n}?") == 1  # not among its own examples
    assert [doc["answers"] for doc in loaded.tasks["drop"].eval_docs][3] == [["3"], ["Ann"]]


def test_questions_answered_from_memory_leave_themselves_out(tmp_path: Path) -> None:
    rows: list[Doc] = [
        {"context": f"Question: Who is {n}?\nAnswer:", "answer": f"N{n}", "aliases": ["X", f"N{n}"]}
        for n in range(7)
    ]
    lines(tmp_path / "triviaqa/triviaqa_sm_sub.jsonl", rows)
    loaded = load_tasks(suites.find("triviaqa"), tmp_path)
    assert loaded.notes[0] == "7 questions, and examples from among them (never the evaluated one)"
    for n, prompt in enumerate(prompts(loaded, "triviaqa")):
        assert prompt.endswith(f"\n\nQuestion: Who is {n}??\nAnswer:")
        # Examples with the answer that a person would give, not its first alias.
        assert prompt.count("\nAnswer: N") == 5
        assert f"Answer: N{n}" not in prompt
    rows = [{"question": f"who is {n}", "answer": [f"N{n}", "X"]} for n in range(7)]
    lines(tmp_path / "nq_open/NQ-open.dev.jsonl", rows)
    for n, prompt in enumerate(prompts(load_tasks(suites.find("nq"), tmp_path), "nq_open")):
        assert prompt.startswith("Answer these questions:\n\nQ: who is ")
        assert prompt.endswith(f"\nQ: who is {n}?\nA:")
        assert prompt.count("\nA: N") == 5
        assert f"A: N{n}" not in prompt


def test_bbh_needs_all_its_tasks(tmp_path: Path) -> None:
    benchmark = suites.find("bbh")
    example = {"examples": [{"input": "Where?", "target": "Here"}]}
    paths = [
        tmp_path / f"bbh/bbh/{task.removeprefix('bbh_cot_fewshot_')}.json"
        for task in benchmark.tasks
    ]
    paths[0].parent.mkdir(parents=True)
    for path in paths[:-1]:
        path.write_text(json.dumps(example))
    with pytest.raises(Unavailable, match=r"there is no .*word_sorting\.json"):
        load_tasks(benchmark, tmp_path)
    paths[-1].write_text(json.dumps(example))
    (prompt,) = prompts(load_tasks(benchmark, tmp_path), "bbh_cot_fewshot_word_sorting")
    assert prompt.startswith("Sort a list of words.\n\nQ: Sort the following words")
    assert prompt.count("A: Let's think step by step.\n") == 4
    assert prompt.count("So the answer is ") == 3
    assert prompt.endswith("\n\nQ: Where?\nA: Let's think step by step.\n")


def test_programs_are_asked_for_as_lm_eval_does(tmp_path: Path) -> None:
    lines(tmp_path / "humaneval/HumanEval.jsonl", [HUMANEVAL])
    with pytest.raises(Unavailable, match=r"HumanEval\.jsonl\.gz"):
        load_tasks(suites.find("humaneval"), tmp_path, SANDBOX)
    rows = [CODE | {"task_id": n, "code": f"code{n}"} for n in (2, 3, 4, 10, 11, 511)]
    lines(tmp_path / "mbpp/mbpp.jsonl", rows)
    (prompt,) = prompts(load_tasks(suites.find("mbpp"), tmp_path, SANDBOX), "mbpp")
    asked = (
        "You are an expert Python programmer, and here is your task: Add. Your code should pass "
        "these tests:\n\nassert a\nassert b\nassert c\n[BEGIN]\n"
    )
    assert prompt == "".join(f"{asked}code{n}\n[DONE]\n\n" for n in (2, 3, 4)) + asked


def test_programs_are_not_run_without_a_sandbox(tmp_path: Path) -> None:
    for name in ("humaneval", "mbpp"):
        for data in (tmp_path, None):
            with pytest.raises(Unavailable, match="only in a sandbox, and there is none"):
                load_tasks(suites.find(name), data)


def test_ifeval(tmp_path: Path) -> None:
    rows = [
        FOLLOW,
        FOLLOW | {"instruction_id_list": ["keywords:existence"], "kwargs": [{"keywords": ["sea"]}]},
    ]
    lines(tmp_path / "ifeval/input_data.jsonl", rows)
    loaded = load_tasks(suites.find("ifeval"), tmp_path)
    assert prompts(loaded, "ifeval") == ["Go.", "Go."]
    assert [d["kwargs"] for d in loaded.tasks["ifeval"].eval_docs] == [
        [{"keywords": None}],
        [{"keywords": ["sea"]}],
    ]


# Each: what reads it, the file, its rows, and what is said of the last one.
BROKEN: list[tuple[Any, str, list[Any], str]] = [
    (
        gsm8k.gsm8k,
        "test.jsonl",
        [GSM8K, GSM8K | {"answer": "2"}],
        ":2: the answer has no last line",
    ),
    (gsm8k.gsm8k, "test.jsonl", [GSM8K, '{"question": '], ":2: broken JSON"),
    (gsm8k.gsm8k, "test.jsonl", [{"question": "?"}], ":1: no field 'answer'"),
    (hendrycks_math.math, "test.jsonl", [PROBLEM | {"type": "Chess"}], ":1: type is 'Chess'"),
    (hendrycks_math.math, "test.jsonl", [PROBLEM, PROBLEM | {"solution": "2"}], ":2: the solution"),
    (
        hendrycks_math.math,
        "test.jsonl",
        [PROBLEM | {"solution": r"\boxed{2"}],
        ":1: the solution has no answer in ",
    ),
    (
        triviaqa.triviaqa,
        "triviaqa_sm_sub.jsonl",
        [TRIVIA, TRIVIA | {"context": "Who?"}],
        ":2: context is not 'Question: ', a question",
    ),
    (
        triviaqa.triviaqa,
        "triviaqa_sm_sub.jsonl",
        [TRIVIA | {"aliases": []}],
        r":1: aliases is \[\]",
    ),
    (nq.nq, "NQ-open.dev.jsonl", [NQ, NQ | {"answer": [1]}], r":2: answer is \[1\]"),
    (nq.nq, "NQ-open.dev.jsonl", [NQ | {"answer": "Ann"}], ":1: answer is 'Ann'; expected a list"),
    (mbpp.mbpp, "mbpp.jsonl", [CODE | {"test_list": ["assert a"]}], ":1: fewer than 3 tests"),
    (mbpp.mbpp, "mbpp.jsonl", [CODE | {"task_id": "11"}], ":1: task_id is '11'"),
    (mbpp.mbpp, "mbpp.jsonl", [CODE], ": no task_id 2, which is one of the few-shot examples"),
    (
        mbpp.mbpp,
        "mbpp.jsonl",
        [CODE | {"task_id": n} for n in (2, 3, 4)],
        ": no task_id from 11 to 510",
    ),
    (
        ifeval.ifeval,
        "input_data.jsonl",
        [FOLLOW, FOLLOW | {"instruction_id_list": ["punctuation:none"]}],
        ":2: there is no instruction 'punctuation:none'; known: keywords:existence",
    ),
    (
        ifeval.ifeval,
        "input_data.jsonl",
        [FOLLOW | {"kwargs": []}],
        ":1: 1 instructions, and arguments for 0",
    ),
    (
        ifeval.ifeval,
        "input_data.jsonl",
        [FOLLOW | {"kwargs": [{"commas": 1}]}],
        r":1: arguments of punctuation:no_comma are \{\"commas\": 1\}: ",
    ),
    (
        ifeval.ifeval,
        "input_data.jsonl",
        [FOLLOW | {"kwargs": ["none"]}],
        ":1: arguments of punctuation:no_comma are 'none'; expected an object",
    ),
    (
        ifeval.ifeval,
        "input_data.jsonl",
        [FOLLOW | {"instruction_id_list": ["keywords:forbidden_words"]}],
        ":1: keywords:forbidden_words has no 'forbidden_words'",
    ),
]


@pytest.mark.parametrize(("read", "name", "rows", "message"), BROKEN)
def test_a_broken_row_is_named(
    tmp_path: Path, read: Any, name: str, rows: list[Any], message: str
) -> None:
    lines(tmp_path / name, rows)
    with pytest.raises(DataError, match=rf"{name}{message}"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], "list; expected an object of passages"),
        ({}, "is empty"),
        ({"one": {"passage": "P."}}, "one: no field 'qa_pairs'"),
        ({"one": {"passage": "P.", "qa_pairs": [{}]}}, "one, question 1: no field 'question'"),
        (
            {
                "one": {
                    "passage": "P.",
                    "qa_pairs": [PAIR, {**PAIR, "answer": {**ANSWER, "spans": []}}],
                }
            },
            "one, question 2: an answer without number, date or spans",
        ),
        (
            {"one": {"passage": "P.", "qa_pairs": [{**PAIR, "validated_answers": {}}]}},
            r"one, question 1: validated_answers is \{\}; expected a list",
        ),
        (
            {
                "one": {
                    "passage": "P.",
                    "qa_pairs": [{**PAIR, "validated_answers": [{**ANSWER, "spans": [3]}]}],
                }
            },
            r"one, question 1: spans is \[3\]",
        ),
    ],
)
def test_a_broken_passage_is_named(tmp_path: Path, document: Any, message: str) -> None:
    (tmp_path / "drop_fixture").mkdir()
    (tmp_path / "drop_fixture/drop.json").write_text(json.dumps(document))
    with pytest.raises(DataError, match=rf"drop\.json:? ?{message}"):
        drop.drop(tmp_path / "drop")


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], ".*: list; expected an object"),
        ({"examples": []}, " is empty"),
        (
            {"examples": [{"input": "?", "target": "a"}, {"input": "?"}]},
            ":example 2: no field 'target'",
        ),
        ({"examples": [{"input": "?", "target": " "}]}, ":example 1: target is empty"),
    ],
)
def test_a_broken_example_of_bbh_is_named(tmp_path: Path, document: Any, message: str) -> None:
    (tmp_path / "bbh").mkdir()
    (tmp_path / "bbh/boolean_expressions.json").write_text(json.dumps(document))
    with pytest.raises(DataError, match=rf"boolean_expressions\.json{message}"):
        bbh.bbh(tmp_path)


def test_a_packed_file_that_cannot_be_unpacked_is_named(tmp_path: Path) -> None:
    (tmp_path / "HumanEval.jsonl.gz").write_bytes(b"not packed")
    with pytest.raises(DataError, match=r"HumanEval\.jsonl\.gz: cannot be unpacked"):
        humaneval.humaneval(tmp_path)


def test_nothing_is_fetched(tmp_path: Path) -> None:
    """lm-eval's own settings of these load graders from the hub, and a model of NLTK's."""
    lines(tmp_path / "mbpp/mbpp.jsonl", [CODE | {"task_id": n} for n in (2, 3, 4, 11)])
    lines(tmp_path / "ifeval/input_data.jsonl", [FOLLOW])
    lines(tmp_path / "math/test.jsonl", [PROBLEM])
    code = f"""
import socket
from pathlib import Path

def refused(*arguments, **more):
    raise AssertionError("the network was used")

socket.getaddrinfo = socket.socket.connect = refused
from gemmule.evals.benchmarks import suites
from gemmule.evals.benchmarks.lm_eval_tasks import load_tasks
for name in ("mbpp", "ifeval", "math"):
    load_tasks(suites.find(name), Path({str(tmp_path)!r}), object())
"""
    nowhere = {**os.environ, "NLTK_DATA": str(tmp_path), "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=nowhere, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
