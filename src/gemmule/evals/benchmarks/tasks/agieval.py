"""AGIEval (Zhong et al., 2023): questions of admission exams, the English part."""

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gemmule.errors import DataError
from gemmule.evals.benchmarks import local_files
from gemmule.evals.benchmarks.benchmark import Benchmark, Doc, LocalData

# The parts that lm-eval counts as English, by file name.
CHOICE_PARTS = (
    "aqua-rat",
    "gaokao-english",
    "logiqa-en",
    "lsat-ar",
    "lsat-lr",
    "lsat-rc",
    "sat-en",
    "sat-en-without-passage",
    "sat-math",
)
PARTS = (*CHOICE_PARTS, "math")
_EXAMPLES_OF = {"sat-en-without-passage": "sat-en"}  # the same examples without their passages
_LETTERS = "ABCDEFG"


def agieval(folder: Path) -> LocalData:
    """Reads data/v1/PART.jsonl, and data/few_shot_prompts.csv: three to five examples of each."""
    examples = folder / "data/few_shot_prompts.csv"
    table = local_files.numbered_table(examples, tuple(p for p in PARTS if p not in _EXAMPLES_OF))
    splits, overrides, files = {}, {}, []
    for part in PARTS:
        path, task = folder / f"data/v1/{part}.jsonl", _task(part)
        fields = {"question": str, **({"answer": str} if part == "math" else {"label": str})}
        rows = local_files.jsonl(path, fields)
        splits[task] = {"test": [_row(path, n, part, row) for n, row in enumerate(rows, 1)]}
        shown = [_row(examples, line, part, row) for line, row in _examples(examples, table, part)]
        overrides[task] = _settings(shown)
        files.append(path)
    shots = [settings["num_fewshot"] for settings in overrides.values()]
    notes = (f"{min(shots)} to {max(shots)} examples, by part",)
    return LocalData(splits, [*files, examples], notes, overrides)


def _task(part: str) -> str:
    return f"agieval_{part.replace('-', '_')}"


def _settings(shown: list[Doc]) -> dict[str, Any]:
    """Settings that show these few-shot examples in order: lm-eval has none for AGIEval."""
    # The target is the column "answer"; lm-eval's own target is a list of indexes.
    first = {"sampler": "first_n", "samples": shown, "doc_to_target": "answer"}
    return {"num_fewshot": len(shown), "fewshot_config": first}


def _row(path: Path, line: int, part: str, row: Mapping[str, Any]) -> Doc:
    """A document with AGIEval's own zero-shot prompt, as on the hub."""
    passage = "" if part in _EXAMPLES_OF else row.get("passage") or ""
    if not isinstance(passage, str):
        raise DataError(f"{path}:{line}: passage is {passage!r}; expected text or null")
    asked = f"{passage}Q: {row['question']}"
    if part == "math":
        return {"query": f"{asked}\nA: The answer is", "answer": row["answer"]}
    local_files.checked(path, line, dict(row), {"options": list})
    options = local_files.options(path, line, "options", row["options"])
    letters = _LETTERS[: len(options)]
    if len(letters) < len(options) or len(row["label"]) != 1 or row["label"] not in letters:
        raise DataError(
            f"{path}:{line}: label is {row['label']!r}; there are {len(options)} options, "
            f"A to {letters[-1]}"
        )
    gold = letters.index(row["label"])
    return {
        "query": f"{asked} Answer Choices: {' '.join(options)}\n"
        f"A: Among A through {letters[-1]}, the answer is",
        "choices": options,
        "gold": [gold],
        "answer": options[gold],
    }


def _examples(
    path: Path, table: list[tuple[int, dict[str, str]]], part: str
) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """A part's few-shot examples: Python dicts in every other row, with explanations between."""
    column = _EXAMPLES_OF.get(part, part)
    for line, cells in table[::2]:
        if not cells[column]:
            continue
        try:
            row = ast.literal_eval(cells[column])
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as e:
            raise DataError(f"{path}:{line}: {column} is not an example ({e})") from None
        key = "answer" if part == "math" else "label"
        yield line, local_files.checked(path, line, row, {"question": str, key: str})


BENCHMARKS = (
    Benchmark(
        name="agieval",
        title="AGIEval",
        tasks=tuple(_task(part) for part in PARTS),
        shots=0,  # from the hub; three to five from files
        metric="acc",
        kind="choice",
        # 1,263 questions with five answers, 1,589 with four, and 1,000 with a written answer.
        chance=(1263 / 5 + 1589 / 4) / 3852,
        folder="agieval",
        local=agieval,
        hub_notes=("no examples: the report shows three to five",),
    ),
)
