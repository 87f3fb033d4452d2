"""DROP (Dua et al., 2019): reading a passage, then counting, comparing and sorting."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gemmule.errors import DataError
from gemmule.evals.benchmarks import local_files
from gemmule.evals.benchmarks.benchmark import SAME_FILE, Benchmark, Local, Row

_PAIR: local_files.Fields = {"question": str, "answer": dict, "query_id": str}
_ANSWER: local_files.Fields = {"number": (str, int, float), "date": dict, "spans": list}
_DATE = ("day", "month", "year")
_FIXTURE = "drop_fixture/drop.json"  # three passages, to try the format on


def drop(folder: Path) -> Local:
    """drop_dataset_dev.json, and drop_dataset_train.json for the examples."""
    dev, train = folder / "drop_dataset_dev.json", folder / "drop_dataset_train.json"
    few = folder.parent / _FIXTURE
    if not dev.exists() and few.exists():
        asked = _rows(few)
        note = (
            f"{len(asked)} questions, examples from among them: this tries the format, and is no "
            "score"
        )
        return Local({"drop": {"validation": asked}}, [few], (note,), {"drop": SAME_FILE})
    return Local({"drop": {"validation": _rows(dev), "train": _rows(train)}}, [dev, train])


def _rows(path: Path) -> list[Row]:
    """Passages with their questions, one row a question as on the hub."""
    document = local_files.json_document(path)
    if not isinstance(document, dict):
        raise DataError(f"{path}: {type(document).__name__}; expected an object of passages")
    rows = []
    for section, entry in document.items():
        passage = local_files.checked(path, section, entry, {"passage": str, "qa_pairs": list})
        for number, pair in enumerate(passage["qa_pairs"], 1):
            place = f"{section}, question {number}"
            asked = local_files.checked(path, place, pair, _PAIR)
            others = {"validated_answers": [], **asked}  # a training split has none
            local_files.checked(path, place, others, {"validated_answers": list})
            given = [asked["answer"], *others["validated_answers"]]
            found = [_answer(path, place, answer) for answer in given]
            answers = [a for a in found if any(a.values())]  # some people gave none
            if not answers:
                raise DataError(f"{path}:{place}: an answer without number, date or spans")
            rows.append(
                {
                    "section_id": section,
                    "query_id": asked["query_id"],
                    "passage": passage["passage"],
                    "question": asked["question"],
                    "answer": answers[0],
                    "validated_answers": {k: [a[k] for a in answers[1:]] for k in answers[0]},
                }
            )
    return local_files.some(path, rows)


def _answer(path: Path, place: str, answer: Any) -> Row:
    found = local_files.checked(path, place, answer, _ANSWER)
    given = {part: str(found["date"].get(part) or "") for part in _DATE}
    date = given if any(given.values()) else {}
    spans = local_files.texts(path, place, "spans", found["spans"]) if found["spans"] else []
    return {"number": str(found["number"]), "date": date, "spans": spans}


def _question(doc: Row) -> str:
    return f"Passage: {doc['passage']}\nQuestion: {doc['question']}\nAnswer:"


def _gold(doc: Row) -> str:
    return ", ".join(doc["answers"][0])


def marks(doc: Row, results: Sequence[str]) -> dict[str, float]:
    """Exact match and F1 of DROP's own evaluator, which takes a list of spans.

    An answer is read as one span, and as spans with commas between, as the examples have them;
    the better reading counts. lm-eval knows the first one only, by which two spans can get half
    a mark at most.
    """
    from lm_eval.tasks.drop import utils

    answer = results[0].strip()
    readings = [[answer], [span for span in answer.split(", ") if span.strip()] or [answer]]
    evaluator: Any = utils
    found = [evaluator.process_results(doc, reading) for reading in readings]
    return {key: float(max(marks[key] for marks in found)) for key in ("em", "f1")}


# lm-eval's prompt has no examples in mind: theirs would end with the names of the answer's fields
# instead of an answer. This is the form that GPT-3 was asked in and lm-eval had at first.
# An answer ends with its line: lm-eval ends it at a full stop, so that no fraction can be given.
_SETTINGS: dict[str, Any] = {
    "doc_to_text": _question,
    "doc_to_target": _gold,
    "target_delimiter": " ",
    "process_results": marks,
    "fewshot_split": "train",
    "generation_kwargs": {"until": ["\n"], "do_sample": False, "max_gen_toks": 64},
}

BENCHMARKS = (
    Benchmark(
        name="drop",
        title="DROP",
        tasks=("drop",),
        shots=3,
        metric="f1",
        kind="generation",
        chance=None,
        folder="drop",
        local=drop,
        overrides=_SETTINGS,
    ),
)
