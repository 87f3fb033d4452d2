"""Multiple choice: local rows become lm-eval's own prompts, and the right answer stays right."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from gemmule.errors import DataError
from gemmule.evals.benchmarks import checksums, local_files
from gemmule.evals.benchmarks.lm_eval_tasks import LoadedBenchmark, Unavailable, load_tasks
from gemmule.evals.benchmarks.tasks import arc, boolq, hellaswag, mmlu, piqa, siqa, winogrande

pytest.importorskip("lm_eval")
ARC_E, ARC_C = arc.BENCHMARKS
(PIQA,) = piqa.BENCHMARKS
(SIQA,) = siqa.BENCHMARKS
(BOOLQ,) = boolq.BENCHMARKS
(WINOGRANDE,) = winogrande.BENCHMARKS
HELLASWAG, HELLASWAG_0 = hellaswag.BENCHMARKS
MMLU, MMLU_CLOZE = mmlu.BENCHMARKS
SENTENCES = [("Ann", "Bea"), ("Cy", "Dan"), ("Eve", "Flo"), ("Gus", "Hal"), ("Ida", "Jo")]


def lines(path: Path, rows: list[Any]) -> None:
    """Texts as they are, anything else as JSON, one a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    texts = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(f"{line}\n" for line in texts), encoding="utf-8")


def prompts(loaded: LoadedBenchmark, task: str) -> list[tuple[str, str]]:
    """Context and continuation of each request."""
    made = loaded.tasks[task]
    made.build_all_requests(limit=None)
    return [i.args for i in made.instances]


def right(loaded: LoadedBenchmark, task: str) -> list[Any]:
    made = loaded.tasks[task]
    return [made.doc_to_target(doc) for doc in made.eval_docs]


# ---- ARC


def arc_folder(data: Path, shots: int = 25) -> None:
    rows = [
        {"query": "Question: What falls?", "choices": ["rain", "rock", "sun", "rain"], "gold": 1},
        {"query": "Question: What shines?", "choices": ["a", "b", "c", "sun"], "gold": 3},
    ]
    lines(data / "arc/arc_easy.jsonl", rows)
    lines(data / "arc/arc_challenge.jsonl", rows)
    template = (
        "Please choose the correct answer to the question: How many are {n}?\n\nAnswer1: one "
        "Answer2: {n}\n\nAnswer format: answer1/answer2"
    )
    train = [{"instruction": template.format(n=n), "answer": "answer2"} for n in range(shots)]
    (data / "arc/ARC-Challenge").mkdir()
    (data / "arc/ARC-Challenge/train.json").write_text(json.dumps(train))


def test_arc(tmp_path: Path) -> None:
    arc_folder(tmp_path)
    easy = load_tasks(ARC_E, tmp_path)
    asked = prompts(easy, "arc_easy")
    # "rain" stood there twice.
    assert [a for _, a in asked] == [" rain", " rock", " sun", " a", " b", " c", " sun"]
    assert asked[0][0] == "Question: What falls?\nAnswer:"
    assert right(easy, "arc_easy") == [1, 3]
    context, _ = prompts(load_tasks(ARC_C, tmp_path), "arc_challenge")[0]
    *examples, last = context.split("\n\n")
    assert sorted(examples) == sorted(
        f"Question: How many are {n}?\nAnswer: {n}" for n in range(25)
    )
    assert last == "Question: What falls?\nAnswer:"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"query": "q", "choices": ["a", "b"], "gold": 2}, ":2: gold is 2; there are 2 choices"),
        ({"query": "q", "choices": ["a", "b"], "gold": -1}, ":2: gold is -1"),
        ({"query": "q", "choices": ["a", 1], "gold": 0}, r":2: choices is \['a', 1\]"),
        ({"query": "q", "choices": [], "gold": 0}, r":2: choices is \[\]"),
        ({"query": "q", "gold": 0}, ":2: no field 'choices'"),
    ],
)
def test_a_broken_arc_row_is_named(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    lines(tmp_path / "arc_easy.jsonl", [{"query": "q", "choices": ["a", "b"], "gold": 0}, row])
    with pytest.raises(DataError, match=rf"arc_easy\.jsonl{message}"):
        arc.easy(tmp_path)


@pytest.mark.parametrize("answer", ["answer3", "answer0", "answer\u00b2", "2"])
def test_a_broken_arc_example_is_named(tmp_path: Path, answer: str) -> None:
    arc_folder(tmp_path)
    train = tmp_path / "arc/ARC-Challenge/train.json"
    train.write_text(
        json.dumps(
            [
                *json.loads(train.read_text())[:1],
                {"instruction": "q\n\nAnswer1: a Answer2: b", "answer": answer},
            ]
        )
    )
    with pytest.raises(DataError, match=r"train\.json: entry 2 is not a question with answers"):
        arc.challenge(tmp_path / "arc")


# ---- PIQA, SIQA, BoolQ


def test_piqa(tmp_path: Path) -> None:
    rows = [{"goal": f"Goal {n}", "sol1": "do this", "sol2": "do that"} for n in range(2)]
    lines(tmp_path / "piqa/valid.jsonl", rows)
    (tmp_path / "piqa/valid-labels.lst").write_text("1\r\n0\r\n")
    loaded = load_tasks(PIQA, tmp_path)
    assert prompts(loaded, "piqa")[:2] == [
        ("Question: Goal 0\nAnswer:", " do this"),
        ("Question: Goal 0\nAnswer:", " do that"),
    ]
    assert right(loaded, "piqa") == [1, 0]
    assert loaded.notes == [
        "2 files are not the published ones: piqa/valid.jsonl, …, piqa/valid-labels.lst"
    ]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("1\n", r"valid\.jsonl has 2 lines and .*valid-labels\.lst has 1: they must agree"),
        ("1\n0\n1\n", r"valid\.jsonl ends before line 3"),
        ("1\n2\n", r"valid-labels\.lst:2: label '2'; expected 0 or 1"),
        ("1\n\n1", r"has 3: they must agree"),
        ("", r"valid-labels\.lst is empty"),
    ],
)
def test_labels_must_fit_their_questions(tmp_path: Path, labels: str, message: str) -> None:
    lines(tmp_path / "valid.jsonl", [{"goal": "g", "sol1": "a", "sol2": "b"}] * 2)
    (tmp_path / "valid-labels.lst").write_text(labels)
    with pytest.raises(DataError, match=message):
        piqa.piqa(tmp_path)


def siqa_row(**other: Any) -> dict[str, Any]:
    row = {"context": "Ann won.", "question": "How does she feel?", "answer": "glad"}
    return {**row, "options": ["sad", "glad", "tired"], **other}


def test_siqa(tmp_path: Path) -> None:
    twice = siqa_row(options=["glad", "glad", "sad"])
    lines(tmp_path / "siqa/dev.jsonl", [siqa_row(), siqa_row(answer="tired"), twice])
    loaded = load_tasks(SIQA, tmp_path)
    assert prompts(loaded, "social_iqa")[:3] == [
        ("Q: Ann won. How does she feel?\nA:", f" {answer}") for answer in ("sad", "glad", "tired")
    ]
    assert right(loaded, "social_iqa") == [1, 2, 0]
    assert loaded.notes[0] == "1 of 3 questions have the right answer twice"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (siqa_row(answer="angry"), ":2: the answer 'angry' is not among the options"),
        (siqa_row(options=["glad", "sad"]), ":2: 2 options; expected 3"),
        (siqa_row(options="glad"), ":2: options is 'glad'; expected a list"),
    ],
)
def test_a_broken_siqa_row_is_named(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    lines(tmp_path / "dev.jsonl", [siqa_row(), row])
    with pytest.raises(DataError, match=rf"dev\.jsonl{message}"):
        siqa.siqa(tmp_path)


def test_boolq(tmp_path: Path) -> None:
    rows = [{"passage": "Snow is white.", "question": "is snow white", "idx": 0, "label": True}]
    rows.append({**rows[0], "label": False})
    lines(tmp_path / "boolq/val.jsonl", rows)
    loaded = load_tasks(BOOLQ, tmp_path)
    context = "Snow is white.\nQuestion: is snow white?\nAnswer:"
    assert prompts(loaded, "boolq")[:2] == [(context, " no"), (context, " yes")]
    assert right(loaded, "boolq") == [1, 0]
    lines(tmp_path / "boolq/val.jsonl", [rows[0], {**rows[0], "label": 1}])
    with pytest.raises(DataError, match=r"val\.jsonl:2: label is 1; expected true/false"):
        load_tasks(BOOLQ, tmp_path)


# ---- Winogrande, HellaSwag: the examples are other questions


def winogrande_row(one: str, two: str, answer: str = "option2") -> dict[str, str]:
    template = (
        "Please choose the correct answer to fill in the blank to complete the given sentence: "
        f"{one} met {two} because _ was early.\n\n"
        f"Option1: {one} Option2: {two} Answer format: option1/option2"
    )
    return {"instruction": template, "answer": answer}


def winogrande_folder(data: Path, rows: list[dict[str, str]]) -> None:
    (data / "winogrande").mkdir()
    (data / "winogrande/test.json").write_text(json.dumps(rows))


def test_winogrande(tmp_path: Path) -> None:
    rows = [winogrande_row(*pair) for pair in SENTENCES]
    winogrande_folder(tmp_path, [*rows, winogrande_row("Kit", "Lea", "option1")])
    loaded = load_tasks(WINOGRANDE, tmp_path)
    asked = prompts(loaded, "winogrande")
    assert len(asked) == 12
    context, continuation = asked[-1]
    *examples, last = context.split("\n\n")
    assert (last, continuation) == ("Kit met Lea because Lea", " was early.")
    assert asked[-2][0].endswith("\n\nKit met Lea because Kit")
    assert sorted(examples) == [f"{a} met {b} because {b} was early." for a, b in SENTENCES]
    made = loaded.tasks["winogrande"]
    assert [made.doc_to_text(doc) for doc in made.eval_docs] == [1, 1, 1, 1, 1, 0]
    assert loaded.notes[0] == "the examples are other questions of the validation set"


def test_what_is_asked_is_never_an_example(tmp_path: Path) -> None:
    # Six questions of which five are shown: all but the one that is asked, always.
    winogrande_folder(tmp_path, [winogrande_row(*p) for p in [*SENTENCES, ("Kit", "Lea")]])
    for context, _ in prompts(load_tasks(WINOGRANDE, tmp_path), "winogrande"):
        *examples, last = context.split("\n\n")
        asked = last.partition(" because")[0]
        assert len(examples) == 5
        assert not any(asked in example for example in examples)


@pytest.mark.parametrize(
    "row",
    [
        winogrande_row("Ann", "Bea", "option3"),
        winogrande_row("A_n", "Bea"),
        {"instruction": "Ann met _.", "answer": "option1"},
    ],
)
def test_a_broken_winogrande_row_is_named(tmp_path: Path, row: dict[str, str]) -> None:
    winogrande_folder(tmp_path, [winogrande_row("Ann", "Bea"), row])
    with pytest.raises(DataError, match=r"test\.json: entry 2 is not a sentence with one _ and"):
        load_tasks(WINOGRANDE, tmp_path)


def hellaswag_folder(data: Path, pairs: list[tuple[str, str]]) -> Path:
    folder = data / "hellaswag_800"
    lines(folder / "hellaswag_val_correct.txt.800", [right for right, _ in pairs])
    lines(folder / "hellaswag_val_wrong.txt.800", [wrong for _, wrong in pairs])
    return folder


def test_hellaswag(tmp_path: Path) -> None:
    pairs = [(f"Scene {n}. he sits down.", f"Scene {n}. he sings a song.") for n in range(12)]
    hellaswag_folder(tmp_path, pairs)
    loaded = load_tasks(HELLASWAG, tmp_path)
    asked = prompts(loaded, "hellaswag")
    assert len(asked) == 24
    for n in range(12):
        (context, first), (_, second) = asked[2 * n : 2 * n + 2]
        *examples, last = context.split("\n\n")
        assert last == f"Scene {n}. he"
        assert len(set(examples)) == 10
        assert all(e.endswith(" he sits down.") and f"Scene {n}." not in e for e in examples)
        assert (first, second)[right(loaded, "hellaswag")[n]] == " sits down."
    assert right(loaded, "hellaswag") == [1, 0] * 6  # not always the first
    assert loaded.notes[0] == "12 questions, two endings each: not comparable with published scores"
    assert loaded.benchmark.chance == 0.5
    assert HELLASWAG.chance == 0.25
    bare = prompts(load_tasks(HELLASWAG_0, tmp_path), "hellaswag")
    assert bare[0] == ("Scene 0. he", " sings a song.")


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (("He sits.", "She sings."), r"wrong\.txt\.800:2: not a context and an ending"),
        (("He sits.", "He sits."), r":2: not a context"),
        (("He sits.", "He sits. down"), r":2: not a context"),
        (("", "He sits."), r":2: not a context"),
    ],
)
def test_a_broken_hellaswag_line_is_named(
    tmp_path: Path, pair: tuple[str, str], message: str
) -> None:
    good = ("He sits.", "He sings.")
    with pytest.raises(DataError, match=message):
        hellaswag.hellaswag(hellaswag_folder(tmp_path, [good, pair, good]))


# ---- MMLU


def write_csv(path: Path, rows: list[list[Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as f:
        csv.writer(f).writerows([["question", *(f"choice{i}" for i in range(4)), "answer"], *rows])


def mmlu_folder(data: Path) -> Path:
    for subject in mmlu.SUBJECTS:
        shown = [[f"Example {n}?", "one", "two", "three", "four", n % 4] for n in range(5)]
        write_csv(data / f"mmlu/dev/{subject}_dev.csv", shown)
        asked = [f" Which,\nin {subject}? ", "0", "1", "2", "3", 2]
        write_csv(data / f"mmlu/test/{subject}_test.csv", [asked])
    return data / "mmlu"


def test_mmlu(tmp_path: Path) -> None:
    mmlu_folder(tmp_path)
    loaded = load_tasks(MMLU, tmp_path)
    assert list(loaded.tasks) == list(MMLU.tasks)
    assert len(loaded.tasks) == 57
    asked = prompts(loaded, "mmlu_college_physics")
    assert [a for _, a in asked] == [" A", " B", " C", " D"]
    context = asked[0][0]
    assert context.startswith(
        "The following are multiple choice questions (with answers) about college physics.\n\n"
        "Example 0?\nA. one\nB. two\nC. three\nD. four\nAnswer: A\n\nExample 1?\n"
    )
    assert context.endswith(
        "Answer: A\n\nWhich,\nin college_physics?\nA. 0\nB. 1\nC. 2\nD. 3\nAnswer:"
    )
    assert context.count("Answer: ") == 5
    assert right(loaded, "mmlu_college_physics") == [2]
    assert len(loaded.files) == 114


def test_mmlu_by_its_answers_words(tmp_path: Path) -> None:
    mmlu_folder(tmp_path)
    loaded = load_tasks(MMLU_CLOZE, tmp_path)
    asked = prompts(loaded, "mmlu_college_physics_continuation")
    assert [a for _, a in asked] == [" 0", " 1", " 2", " 3"]
    assert asked[0][0] == (
        "The following are questions (with answers) about college physics.\n\n"
        "Question: Which,\nin college_physics?\nAnswer:"
    )
    assert right(loaded, "mmlu_college_physics_continuation") == [2]
    made = loaded.tasks["mmlu_college_physics_continuation"]
    scores = [(-4.0, False), (-3.0, False), (-1.0, False), (-2.0, False)]
    assert made.process_results(made.eval_docs[0], scores)["acc_norm"] == 1.0


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (["q", "a", "b", "c", "d", 4], ":3: answer is '4'; expected 0 to 3"),
        (["q", "a", "b", "c", "d", "B"], ":3: answer is 'B'"),
        (["q", "a", "b", "c"], ":3: nothing in column 'choice3'"),
        (["q", "a", "b", " ", "d", 0], ":3: choices is .*expected a list of 2 to 26 texts"),
    ],
)
def test_a_broken_mmlu_row_is_named(tmp_path: Path, row: list[Any], message: str) -> None:
    folder = mmlu_folder(tmp_path)
    write_csv(folder / "dev/virology_dev.csv", [["q", "a", "b", "c", "d", 0], row])
    with pytest.raises(DataError, match=rf"virology_dev\.csv{message}"):
        mmlu.mmlu(folder)


def test_one_subject_s_absence_leaves_the_row_out(tmp_path: Path) -> None:
    missing = mmlu_folder(tmp_path) / "test/sociology_test.csv"
    missing.unlink()
    with pytest.raises(
        Unavailable, match=r"^there is no mmlu/test/sociology_test\.csv in the data folder$"
    ):
        load_tasks(MMLU, tmp_path)


# ---- what is not there, and what stands in another's place


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"^there is no siqa/dev\.jsonl in the data folder$"):
        load_tasks(SIQA, tmp_path)


def test_a_wrong_split_is_refused_by_its_sum(tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / "siqa/dev.jsonl"
    lines(path, [siqa_row()])
    known = {"siqa/dev.jsonl": "0" * 40, "siqa/train.jsonl": local_files.git_blob_sha1(path)}
    monkeypatch.setattr(checksums, "KNOWN", known)
    with pytest.raises(DataError, match=r"dev\.jsonl has the content of siqa/train\.jsonl"):
        load_tasks(SIQA, tmp_path)
