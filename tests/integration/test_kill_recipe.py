"""A recipe killed at any moment and run again ends in the same bytes as one never killed."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gemmule.model.tokenizer import Tokenizer

RUN = """
import sys
from pathlib import Path
from gemmule.data.recipe import chunks, work
from gemmule.data.recipe.run import run_recipe
from gemmule.data.recipe.settings import Recipe
from gemmule.model.tokenizer import Tokenizer

if __name__ == "__main__":
    folder, out, workers = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    chunks.CHARACTERS, work._UNIT_BYTES = 20_000, 60_000
    recipe = Recipe.load(folder / "recipe.toml")
    run_recipe(recipe, Tokenizer.load(folder / "tokenizer"), out, workers=workers)
"""
WORDS = ["the", "ship", "captain", "of", "and", "to", "that", "have", "with", "between", "letter"]
KILLED = -signal.SIGKILL


def text(seed: int) -> str:
    draw = random.Random(seed)
    own = ["".join(draw.choices("bcdefgilmnoprstu", k=6)) for _ in range(40)]
    lines = (" ".join(draw.choices(WORDS + own, k=11)) + "." for _ in range(draw.randrange(90)))
    return "\n".join(lines)


@pytest.fixture(scope="module")
def corpus(pieces: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    pieces.save(folder / "tokenizer")
    (folder / "run.py").write_text(RUN)
    (folder / "text").mkdir()
    for seed in range(300):
        # Every tenth text twice, the second time a little changed.
        copy = text(seed - 1) + "\nAnd so on." if seed % 10 == 9 else text(seed)
        (folder / f"text/{seed:03d}.txt").write_text(copy)
    (folder / "recipe.toml").write_text(
        f'[[sources]]\nname = "a"\npath = "{folder}/text"\n[normalize]\n'
        '[heuristics]\nrules = ["gopher_repetition"]\n[near_duplicates]\naction = "drop"\n'
    )
    return folder


def run(corpus: Path, out: Path, workers: int = 1, kill_after: float | None = None) -> int:
    command = [sys.executable, str(corpus / "run.py"), str(corpus), str(out), str(workers)]
    with subprocess.Popen(command, start_new_session=True) as process:
        try:
            return process.wait(120 if kill_after is None else kill_after)
        except subprocess.TimeoutExpired:
            process.kill()  # this process alone: its workers are to notice
            code = process.wait()
            assert _ends(process.pid), "workers of a killed run go on"
            return code


def _ends(group: int) -> bool:
    """Whether all processes of a group end soon."""
    for _ in range(100):
        with contextlib.suppress(PermissionError):
            try:
                os.killpg(group, 0)
            except ProcessLookupError:
                return True
        time.sleep(0.05)
    return False


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in folder.rglob("*")
        if p.is_file() and p.name != ".lock"
    }


@pytest.fixture(scope="module")
def unbroken(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("unbroken") / "data"
    assert run(corpus, out) == 0
    return content(out)


@pytest.mark.parametrize(("seed", "workers"), [(0, 1), pytest.param(1, 2, marks=pytest.mark.slow)])
def test_killed_again_and_again_at_random_moments(
    seed: int, workers: int, corpus: Path, unbroken: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "data"
    moments = random.Random(seed)
    for _ in range(3):
        assert run(corpus, out, workers, moments.uniform(0.8, 2.2)) in (KILLED, 0)
    assert run(corpus, out, workers) == 0
    assert content(out) == unbroken
