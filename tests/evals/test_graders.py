"""Scores: correct answers get 1, wrong ones 0, partial ones what public graders give."""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from gemmule.errors import UserError
from gemmule.evals.benchmarks import suites
from gemmule.evals.benchmarks.lm_eval_tasks import LoadedBenchmark, load_tasks
from gemmule.evals.benchmarks.tasks import drop, hendrycks_math

pytest.importorskip("lm_eval")

Doc = dict[str, Any]


def scores(loaded: LoadedBenchmark, answer: Callable[[Any, Doc], str]) -> list[dict[str, Any]]:
    """What each document's answer gets, on the way a model's goes.

    It is cut where a model's would be, filtered, and scored by the task.
    """
    from lm_eval.api.instance import Instance

    collected = []
    for task in loaded.tasks.values():
        settings = task.config.generation_kwargs
        instances = [
            Instance(request_type="generate_until", doc=doc, arguments=("", settings), idx=0)
            for doc in task.eval_docs
        ]
        for instance in instances:
            instance.resps = [cut(answer(task, instance.doc), settings["until"])]
        for ensemble in task._filters:
            ensemble.apply(instances)
        for instance in instances:
            answered = instance.filtered_resps[loaded.benchmark.filter]
            collected.append(task.process_results(instance.doc, [answered]))
    return collected


def cut(text: str, until: Sequence[str]) -> str:
    return text[: min([text.find(stop) for stop in until if stop in text], default=len(text))]


def score(loaded: LoadedBenchmark, answer: Callable[[Any, Doc], str]) -> float:
    """The sum of the scores that the benchmark reports."""
    return float(sum(m[loaded.benchmark.metric] for m in scores(loaded, answer)))


def lines(path: Path, rows: list[Doc]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


# ---- Every published document (folder: docs/benchmark-data.md)

# A right answer to each document, as a model would write it.
GOLD: dict[str, Callable[[Any, Doc], str]] = {
    "gsm8k": lambda task, doc: f" {doc['answer']}",
    "math": lambda task, doc: (
        f" {doc['solution']}\nFinal Answer: The final answer is ${doc['answer']}$. "
        "I hope it is correct."
    ),
    "drop": lambda task, doc: f" {task.doc_to_target(doc)}",
    "bbh": lambda task, doc: f"Surely. So the answer is {doc['target']}.\n\nQ: And",
    "triviaqa": lambda task, doc: f" {doc['answer']['aliases'][-1]}\n\nQuestion:",
    "nq": lambda task, doc: f" {doc['answer'][-1]}\nQ: and",
    "humaneval": lambda task, doc: str(doc["canonical_solution"]),
    "mbpp": lambda task, doc: f"{doc['code']}\n[DONE]",
}
DOCUMENTS = {
    "gsm8k": 1319,
    "math": 5000,
    "drop": 19,
    "bbh": 6511,
    "triviaqa": 3000,
    "nq": 3610,
    "humaneval": 164,
    "mbpp": 500,
}


def published(name: str) -> LoadedBenchmark:
    if "GEMMULE_BENCHMARKS" not in os.environ:
        pytest.skip("GEMMULE_BENCHMARKS names no folder with the published files")
    benchmark = suites.find(name)
    data = Path(os.environ["GEMMULE_BENCHMARKS"])
    if not benchmark.sandboxed:
        return load_tasks(benchmark, data)
    from gemmule.sandbox import Sandbox

    return load_tasks(benchmark, data, Sandbox.open())


@pytest.mark.slow
@pytest.mark.parametrize("name", GOLD)
def test_every_published_answer_gets_the_full_score(name: str) -> None:
    loaded = published(name)
    assert score(loaded, GOLD[name]) == DOCUMENTS[name]
    assert all(file["known"] for file in loaded.files)


@pytest.mark.slow
@pytest.mark.parametrize("name", GOLD)
def test_wrong_answers_get_none(name: str) -> None:
    wrong = "    return 'no idea'" if name in ("humaneval", "mbpp") else " no idea"
    assert score(published(name), lambda task, doc: wrong) == 0


@pytest.mark.slow
def test_math_s_solutions_as_they_are_satisfy_math_verify() -> None:
    scored = scores(published("math"), lambda task, doc: doc["solution"])
    assert sum(m["math_verify"] for m in scored) == 5000
    assert sum(m["exact_match"] for m in scored) == 0  # they do not end as the examples do


@pytest.mark.slow
def test_ifeval_s_instructions_can_all_be_checked() -> None:
    scored = scores(published("ifeval"), lambda task, doc: "")
    assert len(scored) == 541
    assert sum(len(m["inst_level_strict_acc"]) for m in scored) == 834
    assert not any(m["inst_level_loose_acc"][0] for m in scored)


# ---- Arithmetic and mathematics


def test_gsm8k_takes_the_number_after_the_marks(tmp_path: Path) -> None:
    row = {"question": "How many?", "answer": "They are 1000 + 234.\n#### 1,234"}
    lines(tmp_path / "gsm8k/test.jsonl", [row])
    lines(tmp_path / "gsm8k/train.jsonl", [row] * 5)
    loaded = load_tasks(suites.find("gsm8k"), tmp_path)

    def mark(answer: str) -> float:
        return score(loaded, lambda task, doc: answer)

    assert mark(" They are many.\n#### 1234\n\nQuestion: Why?\nAnswer: #### 5") == 1
    assert mark(" #### 1,234.") == 1
    assert mark(" #### 1235") == 0
    assert mark(" The answer is 1234.") == 0  # not as the examples end
    assert mark("") == 0


# To a problem whose answer is one half: what is said, and what it gets by both metrics.
HALVES = [
    (r"Final Answer: The final answer is $\frac{1}{2}$. I hope it is correct.", 1, 1),
    (r"Final Answer: The final answer is $0.5$. I hope it is correct. Problem: 2", 1, 1),
    (r"Final Answer: The final answer is $0.4$. I hope it is correct.", 0, 0),
    (r"So it is $\boxed{\frac{1}{2}}$.", 0, 1),
    ("Final Answer: The final answer is", 0, 0),
    ("Final Answer: The final answer is \\\ud800{. I hope it is correct.", 0, 0),
    ("", 0, 0),
]


def test_math(tmp_path: Path) -> None:
    solution = r"It is half: $\boxed{\frac12}$."
    rows = [
        {"problem": str(n), "level": "Level 1", "type": "Algebra", "solution": solution}
        for n in range(len(HALVES))
    ]
    lines(tmp_path / "math/test.jsonl", rows)
    loaded = load_tasks(suites.find("math"), tmp_path)
    scored = scores(loaded, lambda task, doc: HALVES[int(doc["problem"])][0])
    assert [(m["exact_match"], m["math_verify"]) for m in scored] == [half[1:] for half in HALVES]


def test_a_hostile_answer_stalls_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gemmule.evals.benchmarks.tasks.hendrycks_math._SECONDS", 2)
    doc = {"solution": r"$\boxed{2}$", "answer": "2"}
    answers = [
        r"The final answer is $9^{9^{9^9}} + 1$",
        r"The final answer is $((((9!)!)!)!)!$",
        r"Final Answer: The final answer is $2$. I hope it is correct.",
    ]
    result = hendrycks_math.grade_answers([[a] for a in answers], [doc] * 3)
    assert [f["math_verify"] for f in result] == [0, 0, 1]
    for outcome in result[:2]:
        assert outcome["why"] == "math_verify: took more than 2 s of processor time"
    assert result[2] == {"exact_match": 1, "math_verify": 1}


# ---- Answers in words


def doc_of(*answers: Doc) -> Doc:
    from lm_eval.tasks.drop import utils

    whole = [{"number": "", "date": dict.fromkeys(("day", "month", "year"), ""), "spans": []} | a
             for a in answers]  # fmt: skip
    keys = ("number", "date", "spans")
    others = {key: [a[key] for a in whole[1:]] for key in keys}
    return {"answers": utils.get_answers({"answer": whole[0], "validated_answers": others})}


@pytest.mark.parametrize(
    ("answer", "gold", "f1", "em"),
    [
        ("Kansas City Chiefs", [{"spans": ["Kansas City Chiefs"]}], 1, 1),
        # One of three words: precision 1, recall 1/3.
        ("Chiefs", [{"spans": ["Kansas City Chiefs"]}], 0.5, 0),
        # Articles, case and punctuation do not count.
        ("the Sixth terminal!", [{"spans": ["sixth terminal"]}], 1, 1),
        ("2", [{"number": "2"}], 1, 1),
        ("2.0", [{"number": "2"}], 1, 1),
        ("2 years", [{"number": "2"}], 0.67, 0),
        ("3", [{"number": "2"}], 0, 0),
        # Another number than the gold one makes the rest worthless.
        ("25-yard field goal", [{"spans": ["38-yard field goal"]}], 0, 0),
        ("27 February 1617", [{"date": {"day": "27", "month": "February", "year": "1617"}}], 1, 1),
        # Two of three words: precision 1, recall 2/3.
        ("February 1617", [{"date": {"day": "27", "month": "February", "year": "1617"}}], 0.8, 0),
        # Several spans, in any order; each missing or needless one costs its share.
        ("Pskov, Gdov", [{"spans": ["Gdov", "Pskov"]}], 1, 1),
        ("Pskov", [{"spans": ["Gdov", "Pskov"]}], 0.5, 0),
        ("Pskov, Gdov, Ivangorod", [{"spans": ["Gdov", "Pskov"]}], 0.67, 0),
        # A comma inside a span does not take it apart.
        ("Charleston, South Carolina", [{"spans": ["Charleston, South Carolina"]}], 1, 1),
        # Of several people's answers the nearest counts.
        ("two", [{"number": "2"}, {"spans": ["two"]}], 1, 1),
        ("", [{"spans": ["Gdov"]}], 0, 0),
        (", , ", [{"spans": ["Gdov"]}], 0, 0),
    ],
)
def test_drop_s_scores_are_its_own_evaluator_s(
    answer: str, gold: list[Doc], f1: float, em: float
) -> None:
    assert drop.scores(doc_of(*gold), [f" {answer} "]) == {"f1": f1, "em": em}


def test_an_answer_counts_by_any_of_its_names(tmp_path: Path) -> None:
    rows = [
        {"context": f"Question: Q{n}?\nAnswer:", "answer": "St. Louis",
         "aliases": ["The Gateway, City", "St. Louis"]}
        for n in range(6)
    ]  # fmt: skip
    lines(tmp_path / "triviaqa/triviaqa_sm_sub.jsonl", rows)
    loaded = load_tasks(suites.find("triviaqa"), tmp_path)
    assert score(loaded, lambda task, doc: " st louis\n") == 6
    assert score(loaded, lambda task, doc: " the gateway city") == 6
    assert score(loaded, lambda task, doc: " Louis") == 0
    rows = [{"question": f"q{n}", "answer": ["December 14, 1972", "the moon"]} for n in range(6)]
    lines(tmp_path / "nq_open/NQ-open.dev.jsonl", rows)
    loaded = load_tasks(suites.find("nq"), tmp_path)
    assert score(loaded, lambda task, doc: " December 14, 1972\nQ: more") == 6
    assert score(loaded, lambda task, doc: " Moon") == 6
    assert score(loaded, lambda task, doc: " 1972") == 0


def test_bbh_takes_what_follows_the_answer_is(tmp_path: Path) -> None:
    benchmark = suites.find("bbh")
    for task in benchmark.tasks:
        path = tmp_path / f"bbh/bbh/{task.removeprefix('bbh_cot_fewshot_')}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"examples": [{"input": "Which?", "target": "(Q)"}]}))
    loaded = load_tasks(benchmark, tmp_path)
    assert score(loaded, lambda task, doc: "Queens. So the answer is (Q).\n\nQ: Which?") == 27
    assert score(loaded, lambda task, doc: "So the answer is (R).") == 0
    assert score(loaded, lambda task, doc: "(Q)") == 0


# ---- Instructions

GERMAN = "Das Meer ist heute ruhig, und der Wind kommt aus dem Norden."
ENGLISH = "The sea is calm today and the wind comes from the north."
# Of each instruction: arguments, an answer that follows it, one that does not.
INSTRUCTIONS: dict[str, tuple[Doc, str, str]] = {
    "keywords:existence": ({"keywords": ["sea", "wind"]}, ENGLISH, "The sea is calm."),
    "keywords:frequency": (
        {"keyword": "sea", "frequency": 2, "relation": "at least"}, "Sea and sea.", "Sea.",
    ),
    "keywords:forbidden_words": ({"forbidden_words": ["wind"]}, "The sea.", "The wind."),
    "keywords:letter_frequency": (
        {"letter": "q", "let_frequency": 2, "let_relation": "at least"}, "Quite quiet.", "Quite.",
    ),
    "language:response_language": ({"language": "de"}, GERMAN, ENGLISH),
    # "Dr." ends no sentence: known to a trained model, not to a rule.
    "length_constraints:number_sentences": (
        {"num_sentences": 3, "relation": "at least"},
        "Dr. Smith came in. He sat down. He left.",
        "Dr. Smith came in. He left.",
    ),
    "length_constraints:number_paragraphs": ({"num_paragraphs": 2}, "One.\n***\nTwo.", "One."),
    "length_constraints:number_words": (
        {"num_words": 3, "relation": "at least"}, "The calm sea.", "The sea.",
    ),
    "length_constraints:nth_paragraph_first_word": (
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "sea"},
        "One.\n\nSea two.",
        "Sea.\n\nTwo.",
    ),
    "detectable_content:number_placeholders": ({"num_placeholders": 2}, "[a] and [b]", "[a]"),
    "detectable_content:postscript": ({"postscript_marker": "P.S."}, "Hm.\nP.S. More.", "Hm."),
    "detectable_format:number_bullet_lists": ({"num_bullets": 2}, "* a\n* b", "* a"),
    "detectable_format:constrained_response": ({}, "My answer is yes.", "Yes, surely."),
    "detectable_format:number_highlighted_sections": (
        {"num_highlights": 2}, "*sea* and *wind*", "*sea* and wind",
    ),
    "detectable_format:multiple_sections": (
        {"section_spliter": "Section", "num_sections": 2},
        "Section 1\nSea.\nSection 2\nWind.",
        "Section 1\nSea.",
    ),
    "detectable_format:json_format": ({}, '```json\n{"sea": ["calm"]}\n```', "sea: calm"),
    "detectable_format:title": ({}, "<<The sea>>\nIt is calm.", "The sea\nIt is calm."),
    "combination:two_responses": ({}, "It is calm.******It is not.", "It is calm.******"),
    "combination:repeat_prompt": (
        {"prompt_to_repeat": "Say how it is."}, "Say how it is. Calm.", "Calm.",
    ),
    "startend:end_checker": ({"end_phrase": "That is all."}, "Calm. That is all.", "Calm."),
    "change_case:capital_word_frequency": (
        {"capital_frequency": 2, "capital_relation": "at least"}, "THE SEA is calm.", "THE sea.",
    ),
    "change_case:english_capital": ({}, ENGLISH.upper(), ENGLISH),
    "change_case:english_lowercase": ({}, ENGLISH.lower(), ENGLISH),
    "punctuation:no_comma": ({}, "Calm and blue.", "Calm, and blue."),
    "startend:quotation": ({}, '"It is calm."', '"It" is calm.'),
}  # fmt: skip


@pytest.fixture(scope="module")
def instructions(tmp_path_factory: pytest.TempPathFactory) -> LoadedBenchmark:
    data = tmp_path_factory.mktemp("data")
    rows = [
        {"key": n, "prompt": "Say how it is.", "instruction_id_list": [name], "kwargs": [given]}
        for n, (name, (given, _, _)) in enumerate(INSTRUCTIONS.items())
    ]
    lines(data / "ifeval/input_data.jsonl", rows)
    return load_tasks(suites.find("ifeval"), data)


def followed(loaded: LoadedBenchmark, answer: Callable[[Any, Doc], str]) -> dict[str, bool]:
    scored = scores(loaded, answer)
    return {
        name: m["prompt_level_strict_acc"] for name, m in zip(INSTRUCTIONS, scored, strict=True)
    }


def test_every_kind_of_instruction(instructions: LoadedBenchmark) -> None:
    from lm_eval.tasks.ifeval.instructions_registry import INSTRUCTION_DICT

    assert set(INSTRUCTIONS) == set(INSTRUCTION_DICT)
    assert len(INSTRUCTIONS) == 25
    good = followed(instructions, lambda task, doc: INSTRUCTIONS[doc["instruction_id_list"][0]][1])
    assert [name for name, ok in good.items() if not ok] == []
    bad = followed(instructions, lambda task, doc: INSTRUCTIONS[doc["instruction_id_list"][0]][2])
    assert [name for name, ok in bad.items() if ok] == []
    assert not any(followed(instructions, lambda task, doc: " \n").values())


@pytest.mark.parametrize("answer", ["[" * 5000, '{"a":' * 2000, "\ud800", "\0" * 99, "<" * 3000])
def test_an_answer_without_sense_ends_no_run(instructions: LoadedBenchmark, answer: str) -> None:
    result = followed(instructions, lambda task, doc: answer)
    assert not result["detectable_format:json_format"]


def test_a_language_is_guessed_the_same_way_each_time(instructions: LoadedBenchmark) -> None:
    # English, Italian, Estonian: without a seed the guess changes from call to call.
    answer = "Hotel Taxi Radio"
    result = [followed(instructions, lambda task, doc: answer) for _ in range(8)]
    assert all(f == result[0] for f in result)


# ---- Programs


def test_programs_are_right_when_their_tests_pass(tmp_path: Path) -> None:
    from gemmule.sandbox import Sandbox

    try:
        sandbox = Sandbox.open(accept_weaker=True)
    except UserError as e:
        pytest.skip(str(e))
    rows = [
        {"task_id": n, "text": "Add.", "code": "def add(a, b):\r\n    return a + b",
         "test_setup_code": "one = 1", "test_list": ["assert add(one, 2) == 3"] * 3}
        for n in (2, 3, 4, 11)
    ]  # fmt: skip
    lines(tmp_path / "mbpp/mbpp.jsonl", rows)
    loaded = load_tasks(suites.find("mbpp"), tmp_path, sandbox)
    assert score(loaded, GOLD["mbpp"]) == 1
    assert score(loaded, lambda task, doc: "def add(a, b): return a - b\n[DONE]") == 0
    assert score(loaded, lambda task, doc: "raise SystemExit") == 0
    assert score(loaded, lambda task, doc: "") == 0
    (task,) = loaded.tasks.values()
    (graded,) = task._filters[0].filters[0]().apply([["add = 1"]], [task.eval_docs[0]])
    assert graded["status"] == "failed"
    assert "TypeError: 'int' object is not callable" in graded["stderr"]
