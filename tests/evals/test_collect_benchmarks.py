"""What is collected of benchmarks is what is looked for afterwards: the check finds none of it."""

import gzip
import json
import random
from pathlib import Path

import pytest

from gemmule.data import benchmark_texts
from gemmule.data.decontamination import Decontaminator
from gemmule.data.ngrams import NgramIndex
from gemmule.data.prepare import prepare
from gemmule.errors import DataError
from gemmule.evals.benchmarks import evaluate
from gemmule.evals.benchmarks.collect import collect
from gemmule.evals.benchmarks.lm_eval_tasks import load_tasks
from gemmule.evals.benchmarks.settings import EvalSettings
from gemmule.evals.benchmarks.suites import find
from gemmule.evals.contamination import contaminated
from gemmule.model.tokenizer import Tokenizer

pytest.importorskip("lm_eval", reason="needs lm-eval, of the extra eval")
WORDS = [f"word{n}" for n in range(300)]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Questions of two benchmarks, one of which asks for programs."""
    folder = tmp_path_factory.mktemp("benchmarks")
    draw = random.Random(0)

    def text(count: int) -> str:
        return " ".join(draw.choice(WORDS) for _ in range(count))

    (folder / "piqa").mkdir()
    rows = [{"goal": text(12), "sol1": text(6), "sol2": text(6)} for _ in range(8)]
    (folder / "piqa/valid.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "piqa/valid-labels.lst").write_text("0\n1\n" * 4)
    (folder / "humaneval").mkdir()
    problems = [
        {
            "task_id": f"HumanEval/{n}", "prompt": f"def f{n}():\n    '''{text(15)}'''\n",
            "entry_point": f"f{n}", "canonical_solution": "    return 1\n",
            "test": f"def check(f):\n    assert f() == {n}\n",
        }
        for n in range(3)
    ]  # fmt: skip
    lines = "".join(json.dumps(problem) + "\n" for problem in problems)
    (folder / "humaneval/HumanEval.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    return folder


def test_collected_texts_are_those_that_are_checked(data_dir: Path, tmp_path: Path) -> None:
    settings = EvalSettings(tasks=("piqa", "humaneval", "boolq"), data_dir=data_dir)
    benchmarks, missing = collect(settings)
    assert [(b.name, len(b.texts)) for b in benchmarks] == [("PIQA", 8), ("HumanEval", 3)]
    assert missing == {"BoolQ": "there is no boolq/val.jsonl in the data folder"}
    (task,) = load_tasks(find("piqa"), data_dir).tasks.values()
    checked = [evaluate._text({"doc": document}) for document in task.eval_docs]
    assert list(benchmarks[0].texts) == checked
    benchmark_texts.write(tmp_path / "all.json", benchmarks)
    assert benchmark_texts.read(tmp_path / "all.json") == benchmarks
    with pytest.raises(DataError, match="none of the benchmarks is available"):
        collect(EvalSettings(tasks=("boolq",), data_dir=data_dir))


def test_the_check_afterwards_finds_none(data_dir: Path, pieces: Tokenizer, tmp_path: Path) -> None:
    """In a corpus with every item in it, the check of `gemmule eval` finds all, then none."""
    (benchmark,) = collect(EvalSettings(tasks=("piqa",), data_dir=data_dir))[0]
    draw = random.Random(1)
    texts = []
    for n in range(48):
        lines = [" ".join(draw.choice(WORDS) for _ in range(25)) for _ in range(3)]
        if n % 5:
            lines.insert(1, benchmark.texts[n % 8].upper())
        texts.append("\n".join(lines))
    items = {"piqa": benchmark.texts}
    index = NgramIndex({benchmark.name: benchmark.texts})
    shared = {}
    for name, decontaminator in (
        ("as it is", None),
        ("documents", Decontaminator(index)),
        ("lines", Decontaminator(index, whole=False)),
    ):
        folder = tmp_path / name
        folder.mkdir()
        kept = texts
        if decontaminator is not None:
            kept = [r.text for r in decontaminator.apply(texts) if r.text is not None]
        for n, text in enumerate(kept):
            (folder / f"{n}.txt").write_text(text)
        data = prepare(
            folder, pieces, tmp_path / f"{name} data", validation=0.01, heldout=0.01,
            near_duplicates="ignore",
        )  # fmt: skip
        report = contaminated("any/model", items, data=data.path)
        shared[name] = len(report.tasks["piqa"].contaminated)
    assert shared == {"as it is": 8, "documents": 0, "lines": 0}
