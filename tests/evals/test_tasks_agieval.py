"""AGIEval: its own prompts and examples, from its own files."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from gemmule.errors import DataError
from gemmule.evals.benchmarks.lm_eval_tasks import LoadedBenchmark, load_tasks
from gemmule.evals.benchmarks.tasks import agieval

pytest.importorskip("lm_eval")
(AGIEVAL,) = agieval.BENCHMARKS


def prompts(loaded: LoadedBenchmark, task: str) -> list[tuple[str, str]]:
    """Context and continuation of each request."""
    made = loaded.tasks[task]
    made.build_all_requests(limit=None)
    return [i.args for i in made.instances]


def exam_row(part: str, n: int = 0, **other: Any) -> dict[str, Any]:
    row: dict[str, Any] = {"passage": f"Passage {n}.", "question": f"Which {n}?", "other": None}
    if part == "math":
        return {**row, "passage": None, "options": None, "answer": f"{n}", **other}
    return {**row, "options": ["(A)one", "(B)two", "(C)three"], "label": "B", **other}


def agieval_folder(data: Path, **rows: dict[str, Any]) -> Path:
    """A question and three examples of each part, four of math; `rows` by part go after them."""
    folder = data / "agieval"
    columns = [p for p in agieval.PARTS if p != "sat-en-without-passage"]
    table: list[list[str]] = [["", *columns]]
    for n in range(1, 5):
        cells = [str(exam_row(p, n)) if n < 4 or p == "math" else "" for p in columns]
        table += [[f"sample {n}", *cells], [f"explanation {n}", *(c and "why" for c in cells)]]
    for part in agieval.PARTS:
        more = rows.get(part.replace("-", "_"))
        path = folder / f"data/v1/{part}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        asked = [exam_row(part), *([more] if more else [])]
        path.write_text("".join(f"{json.dumps(row)}\n" for row in asked))
    with (folder / "data/few_shot_prompts.csv").open("w", newline="", encoding="utf-8") as f:
        csv.writer(f).writerows(table)
    return folder


def test_agieval(tmp_path: Path) -> None:
    agieval_folder(tmp_path)
    loaded = load_tasks(AGIEVAL, tmp_path)
    assert list(loaded.tasks) == list(AGIEVAL.tasks)
    assert loaded.notes[0] == "3 to 4 examples, by part"
    asked = prompts(loaded, "agieval_lsat_ar")
    assert [a for _, a in asked] == [" (A)one", " (B)two", " (C)three"]

    def form(n: int) -> str:
        return (
            f"Passage {n}.Q: Which {n}? Answer Choices: (A)one (B)two (C)three\n"
            "A: Among A through C, the answer is"
        )

    shown = "".join(f"{form(n)} (B)two\n\n" for n in (1, 2, 3))
    assert asked[0][0] == shown + form(0)
    assert loaded.tasks["agieval_lsat_ar"].eval_docs[0]["gold"] == [1]
    assert prompts(loaded, "agieval_sat_en_without_passage")[0][0] == (shown + form(0)).replace(
        "Passage 0.", ""
    ).replace("Passage 1.", "").replace("Passage 2.", "").replace("Passage 3.", "")
    written = "".join(f"Q: Which {n}?\nA: The answer is {n}\n\n" for n in (1, 2, 3, 4))
    assert prompts(loaded, "agieval_math")[0][0] == f"{written}Q: Which 0?\nA: The answer is"


def test_agieval_scores_what_is_right(tmp_path: Path) -> None:
    agieval_folder(tmp_path)
    tasks = load_tasks(AGIEVAL, tmp_path).tasks
    choice, math = tasks["agieval_sat_math"], tasks["agieval_math"]
    sure = [(-9.0, False), (-1.0, False), (-9.0, False)]
    assert choice.process_results(choice.eval_docs[0], sure)["acc"] == 1.0
    assert choice.process_results(choice.eval_docs[0], sure[::-1][1:] + sure[:1])["acc"] == 0.0
    assert math.process_results(math.eval_docs[0], [" $0$."])["acc"] == 1
    assert math.process_results(math.eval_docs[0], [" $1$."])["acc"] == 0


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"label": "D"}, r":2: label is 'D'; there are 3 options, A to C"),
        ({"label": "AB"}, r":2: label is 'AB'"),
        ({"label": None}, r":2: label is None; expected text"),
        ({"options": ["x"]}, r":2: options is \['x'\]; expected a list of 2 to 26"),
        ({"options": list("abcdefgh")}, r":2: label is 'B'; there are 8 options, A to G"),
        ({"passage": 3}, r":2: passage is 3; expected text or null"),
    ],
)
def test_a_broken_agieval_row_is_named(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    folder = agieval_folder(tmp_path, lsat_rc=exam_row("lsat-rc", **row))
    with pytest.raises(DataError, match=rf"lsat-rc\.jsonl{message}"):
        agieval.agieval(folder)


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("__import__('os')", "lsat-ar is not an example"),
        ("(" * 10_000, "lsat-ar is not an example"),
        ("-" * 100_000 + "1", "lsat-ar is not an example"),
        ("[1]", "list; expected an object"),
        ("{'question': 'q'}", "no field 'label'"),
        (str(exam_row("lsat-ar", label="Z")), "label is 'Z'"),
    ],
)
def test_a_broken_agieval_example_is_named(tmp_path: Path, cell: str, message: str) -> None:
    folder = agieval_folder(tmp_path)
    path = folder / "data/few_shot_prompts.csv"
    with path.open(newline="", encoding="utf-8") as f:
        table = list(csv.reader(f))
    table[3][table[0].index("lsat-ar")] = cell
    with path.open("w", newline="", encoding="utf-8") as f:
        csv.writer(f).writerows(table)
    with pytest.raises(DataError, match=rf"few_shot_prompts\.csv:4: {message}"):
        agieval.agieval(folder)
