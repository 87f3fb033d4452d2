"""MMLU (Hendrycks et al., 2021): questions from 57 subjects with four answers each."""

import dataclasses
from pathlib import Path

from gemmule.errors import DataError
from gemmule.evals.benchmarks import local_files
from gemmule.evals.benchmarks.benchmark import Benchmark, Doc, LocalData

SUBJECTS = (
    "abstract_algebra",
    "anatomy",
    "astronomy",
    "business_ethics",
    "clinical_knowledge",
    "college_biology",
    "college_chemistry",
    "college_computer_science",
    "college_mathematics",
    "college_medicine",
    "college_physics",
    "computer_security",
    "conceptual_physics",
    "econometrics",
    "electrical_engineering",
    "elementary_mathematics",
    "formal_logic",
    "global_facts",
    "high_school_biology",
    "high_school_chemistry",
    "high_school_computer_science",
    "high_school_european_history",
    "high_school_geography",
    "high_school_government_and_politics",
    "high_school_macroeconomics",
    "high_school_mathematics",
    "high_school_microeconomics",
    "high_school_physics",
    "high_school_psychology",
    "high_school_statistics",
    "high_school_us_history",
    "high_school_world_history",
    "human_aging",
    "human_sexuality",
    "international_law",
    "jurisprudence",
    "logical_fallacies",
    "machine_learning",
    "management",
    "marketing",
    "medical_genetics",
    "miscellaneous",
    "moral_disputes",
    "moral_scenarios",
    "nutrition",
    "philosophy",
    "prehistory",
    "professional_accounting",
    "professional_law",
    "professional_medicine",
    "professional_psychology",
    "public_relations",
    "security_studies",
    "sociology",
    "us_foreign_policy",
    "virology",
    "world_religions",
)
_CHOICES = ("choice0", "choice1", "choice2", "choice3")


def mmlu(folder: Path) -> LocalData:
    """Reads test/SUBJECT_test.csv and dev/SUBJECT_dev.csv, 57 of each."""
    splits, files = {}, []
    for subject in SUBJECTS:
        test = folder / f"test/{subject}_test.csv"
        dev = folder / f"dev/{subject}_dev.csv"
        splits[f"mmlu_{subject}"] = {"test": _rows(test, subject), "dev": _rows(dev, subject)}
        files += [test, dev]
    return LocalData(splits, files)


def cloze(folder: Path) -> LocalData:
    """The same questions, for the tasks that score the answers' text instead of their letters."""
    local = mmlu(folder)
    splits = {_cloze(task): rows for task, rows in local.splits.items()}
    return dataclasses.replace(local, splits=splits)


def _cloze(task: str) -> str:
    return f"{task}_continuation"


def _rows(path: Path, subject: str) -> list[Doc]:
    rows = []
    columns = ("question", *_CHOICES, "answer")
    for line, row in local_files.numbered_table(path, columns):
        if row["answer"] not in {"0", "1", "2", "3"}:
            raise DataError(f"{path}:{line}: answer is {row['answer']!r}; expected 0 to 3")
        choices = local_files.options(path, line, "choices", [row[c] for c in _CHOICES])
        rows.append(
            {
                "question": row["question"],
                "subject": subject,
                "choices": choices,
                "answer": int(row["answer"]),
            }
        )
    return rows


BENCHMARKS = (
    Benchmark(
        name="mmlu",
        title="MMLU",
        tasks=tuple(f"mmlu_{subject}" for subject in SUBJECTS),
        shots=5,
        metric="acc",
        kind="choice",
        chance=0.25,
        folder="mmlu",
        local=mmlu,
    ),
    # A small model cannot tell which letter belongs to an answer; the answer's text may be easier.
    Benchmark(
        name="mmlu-cloze",
        title="MMLU (cloze)",
        tasks=tuple(_cloze(f"mmlu_{subject}") for subject in SUBJECTS),
        shots=0,
        metric="acc_norm",
        kind="choice",
        chance=0.25,
        folder="mmlu",
        local=cloze,
    ),
)
