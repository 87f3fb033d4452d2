"""BIG-Bench Hard (Suzgun et al., 2022): 27 tasks with step-by-step reasoning."""

from pathlib import Path
from typing import Any

from gemmule.errors import DataError
from gemmule.evals.benchmarks import local_files
from gemmule.evals.benchmarks.benchmark import Benchmark, LocalData

_PARTS = (
    "boolean_expressions",
    "causal_judgement",
    "date_understanding",
    "disambiguation_qa",
    "dyck_languages",
    "formal_fallacies",
    "geometric_shapes",
    "hyperbaton",
    "logical_deduction_five_objects",
    "logical_deduction_seven_objects",
    "logical_deduction_three_objects",
    "movie_recommendation",
    "multistep_arithmetic_two",
    "navigate",
    "object_counting",
    "penguins_in_a_table",
    "reasoning_about_colored_objects",
    "ruin_names",
    "salient_translation_error_detection",
    "snarks",
    "sports_understanding",
    "temporal_sequences",
    "tracking_shuffled_objects_five_objects",
    "tracking_shuffled_objects_seven_objects",
    "tracking_shuffled_objects_three_objects",
    "web_of_lies",
    "word_sorting",
)
_TASK = "bbh_cot_fewshot_"

# As in lm-eval, except for the stop string "Q:", which is "Q" there: seven answers are "(Q)".
_SETTINGS: dict[str, Any] = {
    "generation_kwargs": {
        "until": ["</s>", "Q:", "\n\n"],
        "do_sample": False,
        "temperature": 0.0,
        "max_gen_toks": 1024,
    }
}


def bbh(folder: Path) -> LocalData:
    """Reads bbh/TASK.json, an object with `examples`: input and target.

    The few-shot examples with their reasoning are in lm-eval.
    """
    paths = [folder / "bbh" / f"{part}.json" for part in _PARTS]
    splits = {_TASK + part: {"test": _rows(path)} for part, path in zip(_PARTS, paths, strict=True)}
    return LocalData(splits, paths)


def _rows(path: Path) -> list[dict[str, str]]:
    document = local_files.checked(path, "", local_files.json_document(path), {"examples": list})
    rows = []
    for number, example in enumerate(document["examples"], 1):
        place = f"example {number}"
        row = local_files.checked(path, place, example, {"input": str, "target": str})
        if not row["target"].strip():
            raise DataError(f"{path}:{place}: target is empty")
        rows.append({"input": row["input"], "target": row["target"]})
    return local_files.not_empty(path, rows)


BENCHMARKS = (
    Benchmark(
        name="bbh",
        title="BBH",
        tasks=tuple(_TASK + part for part in _PARTS),
        shots=3,
        metric="exact_match",
        kind="generation",
        chance=0.26,  # guessing among a question's options; 0 for a question without options
        folder="bbh",
        local=bbh,
        filter="get-answer",
        overrides=_SETTINGS,
    ),
)
