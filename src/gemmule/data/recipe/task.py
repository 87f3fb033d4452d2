"""One process's share of a phase: `python -m gemmule.data.recipe.task OUT PHASE RANK TASKS`.

Whatever starts processes can run a recipe: everything that one needs is in the folder OUT, once
`gemmule data` has started it there.
"""

import argparse
import os
import sys
import threading
import time
from pathlib import Path
from typing import Literal

from gemmule.data.prepare import TOKENIZER
from gemmule.data.recipe.run import PHASES, SETTINGS, Phase, finish, run_phase
from gemmule.data.recipe.settings import Recipe
from gemmule.data.recipe.work import Work
from gemmule.errors import GemmuleError
from gemmule.model.tokenizer import Tokenizer
from gemmule.runs.lock import locked

FINISH: Literal["finish"] = "finish"


def run_task(
    out: Path, phase: Phase | Literal["finish"], rank: int, tasks: int, workers: int = 1
) -> None:
    """Does one process's share of a phase, in a folder that was started.

    Args:
        out: the data folder.
        phase: the phase, or "finish" after all of them.
        rank: number of this process, from 0.
        tasks: number of processes.
        workers: processes and threads of this one's own.

    Raises:
        GemmuleError: as `run_phase`.
    """
    recipe, tokenizer = Recipe.load(out / SETTINGS), Tokenizer.load(out / TOKENIZER)
    work = Work.of(recipe, out)
    if phase == FINISH:
        with locked(out):
            finish(work, tokenizer)
    else:
        run_phase(work, phase, tokenizer, rank, tasks, workers)


def main() -> int:
    """Reads the command line; the exit code."""
    parser = argparse.ArgumentParser(prog="gemmule.data.recipe.task", description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("phase", choices=[*PHASES, FINISH])
    parser.add_argument("rank", type=int)
    parser.add_argument("tasks", type=int)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--parent", type=int, help="process with which this one ends")
    given = parser.parse_args()
    if given.parent is not None:
        threading.Thread(target=_follow, args=(given.parent,), daemon=True).start()
    try:
        run_task(given.out, given.phase, given.rank, given.tasks, given.workers)
    except GemmuleError as e:
        print(f"gemmule: {e}", file=sys.stderr)
        return e.exit_code
    return 0


def _follow(parent: int) -> None:
    """Ends this process when the one that started it has ended, however it did."""
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
