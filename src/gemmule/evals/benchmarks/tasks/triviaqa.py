"""TriviaQA (Joshi et al., 2017): quiz questions, answered from memory."""

from pathlib import Path
from typing import Any

from gemmule.errors import DataError
from gemmule.evals.benchmarks import local_files
from gemmule.evals.benchmarks.benchmark import ONE_LINE, SAME_FILE, Benchmark, LocalData

_FIELDS = {"context": str, "answer": str, "aliases": list}
_BEFORE, _AFTER = "Question: ", "\nAnswer:"

# An answer ends with its line. lm-eval also ends it at a full stop or comma, which rules out
# "St. Louis". Its few-shot examples show the first alias, which may be anything: for "What
# nationality was sculptor Constantin Brancusi?" it is "Autobiographie erotique".
_SETTINGS: dict[str, Any] = {
    "fewshot_config": {"doc_to_target": "{{answer.value}}"},
    "generation_kwargs": ONE_LINE,
}


def triviaqa(folder: Path) -> LocalData:
    """Reads triviaqa_sm_sub.jsonl: context (the prompt, "Question: …"), answer, aliases."""
    path = folder / "triviaqa_sm_sub.jsonl"
    asked = []
    for number, row in enumerate(local_files.jsonl(path, _FIELDS), 1):
        text, aliases = row["context"], row["aliases"]
        if not (text.startswith(_BEFORE) and text.endswith(_AFTER)):
            raise DataError(f"{path}:{number}: context is not {_BEFORE!r}, a question, {_AFTER!r}")
        local_files.texts(path, number, "aliases", aliases)
        question = text[len(_BEFORE) : -len(_AFTER)]
        answer = {"value": row["answer"], "aliases": aliases}
        asked.append({"question": question, "answer": answer})
    note = f"{len(asked):,} questions, and examples from among them (never the evaluated one)"
    return LocalData(
        {"triviaqa": {"validation": asked}}, [path], (note,), overrides={"triviaqa": SAME_FILE}
    )


BENCHMARKS = (
    Benchmark(
        name="triviaqa",
        title="TriviaQA",
        tasks=("triviaqa",),
        shots=5,
        metric="exact_match",
        kind="generation",
        chance=None,
        folder="triviaqa",
        local=triviaqa,
        filter="remove_whitespace",
        overrides=_SETTINGS,
    ),
)
