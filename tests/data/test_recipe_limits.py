"""What users of other tools complain of: hanging, texts that are too long, results that are empty.

The numbers are those of the reports: datatrove #157, #222, #298, #301, #397; dolma #150, #218;
presidio #957. That results are never empty without an error, that damaged files are told, and that
the number of processes changes nothing is in test_recipe.py and test_sorting.py.
"""

import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gemmule.data.recipe import filtering
from gemmule.data.recipe.run import run_recipe
from gemmule.data.recipe.settings import Recipe
from gemmule.errors import DataError
from gemmule.model.tokenizer import Tokenizer

BENCH = Path(__file__).parents[2] / "bench/data_memory.py"


def recipe(folder: Path, **tables: Any) -> Recipe:
    return Recipe.parse({"sources": [{"name": "a", "path": folder}], "normalize": {}, **tables})


def ends(job: Any) -> str:
    """What the system does to a process for want of memory."""
    os._exit(9)


def test_a_worker_that_is_ended_is_an_error_and_not_a_wait(
    text_folder: Path, pieces: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filtering, "_work", ends)
    with pytest.raises(DataError, match=r"ended by the system.*fewer --workers"):
        run_recipe(recipe(text_folder), pieces, tmp_path / "out", workers=2)
    monkeypatch.undo()
    made = run_recipe(recipe(text_folder), pieces, tmp_path / "out", workers=1)
    assert made.manifest["splits"]["train"]["documents"] > 50


def test_a_document_of_two_million_characters(
    pieces: Tokenizer, text_folder: Path, tmp_path: Path
) -> None:
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefgh", k=6)) for _ in range(5000)]
    lines = (" ".join(draw.choices(words, k=12)) + "." for _ in range(24_000))
    (tmp_path / "long").mkdir()
    (tmp_path / "long/long.txt").write_text("\n".join(lines))
    rules = ["gopher_repetition", "c4", "fineweb", "code"]
    wanted = Recipe.parse(
        {
            "sources": [
                {"name": "short", "path": text_folder},
                {"name": "long", "path": tmp_path / "long"},
            ],
            "normalize": {},
            "heuristics": {"rules": rules, "by_source": {"short": []}},
        }
    )
    made = run_recipe(wanted, pieces, tmp_path / "out", workers=1)
    assert made.manifest["sources"]["long"]["bytes"] > 2_000_000


def test_one_document_for_all_others(pieces: Tokenizer, tmp_path: Path) -> None:
    """Every key is the same: sorting and clusters cost what they cost otherwise."""
    draw = random.Random(0)
    text = " ".join("".join(draw.choices("abcdefgh", k=6)) for _ in range(300))
    lines = [f'{{"text": "{text} and {n}"}}\n' for n in range(2000)]
    (tmp_path / "a.jsonl").write_text("".join(lines))
    wanted = recipe(tmp_path / "a.jsonl", near_duplicates={"action": "drop"})
    with pytest.raises(DataError, match=r"1 document\(s\) are left"):
        run_recipe(wanted, pieces, tmp_path / "out", workers=1)


@pytest.mark.slow
def test_memory_does_not_grow_and_kills_change_nothing(tmp_path: Path) -> None:
    """2 GB (or GEMMULE_CORPUS_GB) within 4 GB of memory, killed five times."""
    size = os.environ.get("GEMMULE_CORPUS_GB", "2")
    report = tmp_path / "report.json"
    command = [sys.executable, str(BENCH), "--sizes", size, "--limit", "4", "--kills", "5"]
    subprocess.run(
        [*command, "--folder", str(tmp_path), "--json", str(report)], check=True, timeout=6 * 3600
    )
    from gemmule import files

    (run,) = files.read_json(report)["runs"]
    assert run["same_after_kills"]
    assert run["killed"] >= 1
    assert max(run["peaks"].values()) < 2 * 10**9
