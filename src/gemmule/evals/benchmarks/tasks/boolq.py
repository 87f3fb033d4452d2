"""BoolQ (Clark et al., 2019): yes-or-no questions about a passage."""

from pathlib import Path

from gemmule.evals.benchmarks import local_files
from gemmule.evals.benchmarks.benchmark import Benchmark, LocalData

_FIELDS = {"passage": str, "question": str, "label": bool}


def boolq(folder: Path) -> LocalData:
    """Reads val.jsonl in SuperGLUE's form; the hub has 0 for false and 1 for true."""
    path = folder / "val.jsonl"
    asked = [
        {"passage": row["passage"], "question": row["question"], "label": int(row["label"])}
        for row in local_files.jsonl(path, _FIELDS)
    ]
    return LocalData({"boolq": {"validation": asked}}, [path])


BENCHMARKS = (
    Benchmark(
        name="boolq",
        title="BoolQ",
        tasks=("boolq",),
        shots=0,
        metric="acc",
        kind="choice",
        chance=0.5,
        folder="boolq",
        local=boolq,
    ),
)
