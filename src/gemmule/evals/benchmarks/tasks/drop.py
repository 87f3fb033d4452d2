"""DROP (Dua et al., 2019): questions about a passage that take counting or comparing."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gemmule.errors import DataError
from gemmule.evals.benchmarks import local_files
from gemmule.evals.benchmarks.benchmark import SAME_FILE, Benchmark, Doc, LocalData

_PAIR: local_files.Fields = {"question": str, "answer": dict, "query_id": str}
_ANSWER: local_files.Fields = {"number": (str, int, float), "date": dict, "spans": list}
_DATE = ("day", "month", "year")
_FIXTURE = "drop_fixture/drop.json"  # three passages that show the format


def drop(folder: Path) -> LocalData:
    """Reads drop_dataset_dev.json, and drop_dataset_train.json for the few-shot examples."""
    dev, train = folder / "drop_dataset_dev.json", folder / "drop_dataset_train.json"
    few = folder.parent / _FIXTURE
    if not dev.exists() and few.exists():
        asked = _rows(few)
        note = (
            f"{len(asked)} questions, few-shot examples from among them: a test of the format, not "
            "a score"
        )
        return LocalData({"drop": {"validation": asked}}, [few], (note,), {"drop": SAME_FILE})
    return LocalData({"drop": {"validation": _rows(dev), "train": _rows(train)}}, [dev, train])


def _rows(path: Path) -> list[Doc]:
    """Reads passages with their questions, one document per question as on the hub."""
    document = local_files.json_document(path)
    if not isinstance(document, dict):
        raise DataError(f"{path}: {type(document).__name__}; expected an object of passages")
    rows = []
    for section, entry in document.items():
        passage = local_files.checked(path, section, entry, {"passage": str, "qa_pairs": list})
        for number, pair in enumerate(passage["qa_pairs"], 1):
            place = f"{section}, question {number}"
            asked = local_files.checked(path, place, pair, _PAIR)
            others = {"validated_answers": [], **asked}  # a training split has none of them
            local_files.checked(path, place, others, {"validated_answers": list})
            given = [asked["answer"], *others["validated_answers"]]
            parsed = [_answer(path, place, answer) for answer in given]
            answers = [a for a in parsed if any(a.values())]  # some annotators gave none
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
    return local_files.not_empty(path, rows)


def _answer(path: Path, place: str, answer: Any) -> Doc:
    fields = local_files.checked(path, place, answer, _ANSWER)
    given = {part: str(fields["date"].get(part) or "") for part in _DATE}
    date = given if any(given.values()) else {}
    spans = local_files.texts(path, place, "spans", fields["spans"]) if fields["spans"] else []
    return {"number": str(fields["number"]), "date": date, "spans": spans}


def _question(doc: Doc) -> str:
    return f"Passage: {doc['passage']}\nQuestion: {doc['question']}\nAnswer:"


def _gold(doc: Doc) -> str:
    return ", ".join(doc["answers"][0])


def scores(doc: Doc, results: Sequence[str]) -> dict[str, float]:
    """Exact match and F1 of DROP's own evaluator, which takes a list of spans.

    An answer is read as one span, and as comma-separated spans as in the few-shot examples; the
    better reading counts. lm-eval knows only the first reading, in which an answer of two spans
    scores at most one half.
    """
    from lm_eval.tasks.drop import utils

    answer = results[0].strip()
    readings = [[answer], [span for span in answer.split(", ") if span.strip()] or [answer]]
    evaluator: Any = utils
    by_reading = [evaluator.process_results(doc, reading) for reading in readings]
    return {key: float(max(s[key] for s in by_reading)) for key in ("em", "f1")}


# lm-eval's prompt is not made for few-shot examples: each would end with the names of the answer's
# fields instead of an answer. This is the prompt of the GPT-3 paper, and lm-eval's at first. An
# answer ends with its line: lm-eval ends it at a full stop, which rules out decimal fractions.
_SETTINGS: dict[str, Any] = {
    "doc_to_text": _question,
    "doc_to_target": _gold,
    "target_delimiter": " ",
    "process_results": scores,
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
