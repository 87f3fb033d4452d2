"""GSM8K (Cobbe et al., 2021): arithmetic in words, reasoned about before answering."""

from pathlib import Path
from typing import Any

from gemmule.errors import DataError
from gemmule.evals.benchmarks import local_files
from gemmule.evals.benchmarks.benchmark import Benchmark, Local, Row

# lm-eval's, and room for the longest of the published answers: it says no length, and the 256
# tokens that it then allows end some of them before their last line.
_SETTINGS: dict[str, Any] = {
    "generation_kwargs": {
        "until": ["Question:", "</s>", "<|im_end|>"],
        "do_sample": False,
        "temperature": 0.0,
        "max_gen_toks": 512,
    }
}


def gsm8k(folder: Path) -> Local:
    """test.jsonl, and train.jsonl for the examples; both have the hub's columns."""
    test, train = folder / "test.jsonl", folder / "train.jsonl"
    return Local({"gsm8k": {"test": _rows(test), "train": _rows(train)}}, [test, train])


def _rows(path: Path) -> list[Row]:
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
        # An answer counts when it ends as the examples do: "#### 18".
        filter="strict-match",
        overrides=_SETTINGS,
    ),
)
