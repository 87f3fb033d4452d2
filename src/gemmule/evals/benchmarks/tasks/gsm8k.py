"""GSM8K (Cobbe et al., 2021): arithmetic word problems with step-by-step reasoning."""

from pathlib import Path
from typing import Any

from gemmule.errors import DataError
from gemmule.evals.benchmarks import local_files
from gemmule.evals.benchmarks.benchmark import Benchmark, Doc, LocalData

# As in lm-eval, but longer: it sets no length and so allows 256 tokens, which cut some of the
# published answers before their last line.
_SETTINGS: dict[str, Any] = {
    "generation_kwargs": {
        "until": ["Question:", "</s>", "<|im_end|>"],
        "do_sample": False,
        "temperature": 0.0,
        "max_gen_toks": 512,
    }
}


def gsm8k(folder: Path) -> LocalData:
    """Reads test.jsonl, and train.jsonl for the few-shot examples, with the hub's columns."""
    test, train = folder / "test.jsonl", folder / "train.jsonl"
    return LocalData({"gsm8k": {"test": _rows(test), "train": _rows(train)}}, [test, train])


def _rows(path: Path) -> list[Doc]:
    rows = []
    for number, row in enumerate(local_files.jsonl(path, {"question": str, "answer": str}), 1):
        if "#### " not in row["answer"]:
            raise DataError(f"{path}:{number}: the answer has no last line '#### NUMBER'")
        rows.append({"question": row["question"], "answer": row["answer"]})
    return rows


BENCHMARKS = (
    Benchmark(
        name="gsm8k",
        title="GSM8K",
        tasks=("gsm8k",),
        shots=5,
        metric="exact_match",
        kind="generation",
        chance=None,
        folder="gsm8k",
        local=gsm8k,
        # An answer is correct only if it ends as the few-shot examples do: "#### 18".
        filter="strict-match",
        overrides=_SETTINGS,
    ),
)
