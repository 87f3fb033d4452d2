"""Peak memory of a recipe on corpora of growing size, in one process, with a limit, and killed.

The text is Python's library again and again. In each round other words are replaced, so that no two
rounds are near-duplicates, but every tenth document comes twice and every twentieth again with one
line more. All stages run that need no other package: normalize, heuristics, near-duplicates, split.
`--limit` sets RLIMIT_DATA: whatever a process allocates beyond it fails.

    python bench/data_memory.py --sizes 1 2 4 8 --limit 4
    python bench/data_memory.py --sizes 2 --limit 4 --kills 5
"""

import argparse
import itertools
import json
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import harness
from gemmule.console import table

_FILE_BYTES = 128 * 1024 * 1024
_COMMON = (" the ", " of ", " and ", " a ", " is ", " in ", " self.", " return ", " not ", " if ")
GB = 10**9


def documents(size: int) -> Iterator[str]:
    """Documents of `size` bytes in all."""
    from gemmule.data.read_log import ReadLog
    from gemmule.data.sources import find_source

    texts = [d.text for d in find_source(None).documents(ReadLog()) if len(d.text) > 500]
    pieces = [text[n : n + 4000] for text in texts for n in range(0, len(text) - 500, 4000)]
    done = 0
    for number in itertools.count():
        for place, piece in enumerate(pieces):
            text = piece
            for word in _COMMON:  # each few words of a run: its shingles are others
                text = text.replace(word, f"{word.rstrip()}{number} ")
            copies = [text] * (2 if place % 10 == 0 else 1)
            copies += [text + "\nOne line more."] * (place % 20 == 0)
            for copy in copies:
                yield copy
                done += len(copy.encode())
            if done >= size:
                return


def write_corpus(folder: Path, size: int) -> None:
    """JSON lines of `size` bytes of text, in files of 128 MiB."""
    folder.mkdir(parents=True)
    number, written = 0, _FILE_BYTES
    file = None
    for text in documents(size):
        if written >= _FILE_BYTES:
            if file is not None:
                file.close()
            file = (folder / f"{number:04d}.jsonl").open("w", encoding="utf-8")
            number, written = number + 1, 0
        assert file is not None
        written += file.write(json.dumps({"text": text}) + "\n")
    if file is not None:
        file.close()


def child(folder: Path, out: Path, limit: float | None) -> int:
    """Runs the recipe; prints peak memory after each phase and the fingerprint."""
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (int(limit * GB), int(limit * GB)))
    from gemmule.data.recipe.run import run_recipe
    from gemmule.data.recipe.settings import Recipe
    from gemmule.model.tokenizer import Tokenizer

    peaks: dict[str, int] = {}
    names: list[str] = []

    def note() -> None:
        if names:
            peaks[names[-1]] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def stage(name: str) -> None:
        note()
        names.append(name)

    recipe = Recipe.parse(
        {
            "sources": [{"name": "text", "path": folder / "corpus"}],
            "normalize": {},
            "heuristics": {"rules": ["gopher_repetition", "code"]},
        }
    )
    tokenizer = Tokenizer.load(folder / "tokenizer")
    dataset = run_recipe(recipe, tokenizer, out, workers=1, stage=stage)
    note()
    print(json.dumps({"peaks": peaks, "fingerprint": dataset.fingerprint}))
    return 0


def _start(folder: Path, out: Path, limit: float | None) -> "subprocess.Popen[str]":
    command = [sys.executable, __file__, "--child", str(folder), str(out)]
    more = [] if limit is None else ["--limit", str(limit)]
    return subprocess.Popen([*command, *more], stdout=subprocess.PIPE, text=True)


def run_whole(folder: Path, out: Path, limit: float | None) -> dict[str, Any]:
    """Runs the recipe to its end: what the process printed, and seconds."""
    began = time.monotonic()
    process = _start(folder, out, limit)
    printed = process.communicate()[0]
    if process.returncode:
        raise harness.WorkerError(f"the recipe ended with code {process.returncode}")
    return {**json.loads(printed), "seconds": harness.rounded(time.monotonic() - began)}


def run_killed(folder: Path, out: Path, limit: float | None, kills: int, whole: float) -> int:
    """Kills runs that go on from each other at random moments; how often it came to that."""
    draw = random.Random(0)
    killed = 0
    for _ in range(kills):
        process = _start(folder, out, limit)
        try:
            process.wait(draw.uniform(1, max(2, whole / kills)))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            killed += 1
        process.communicate()
    return killed


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """The whole report."""
    from gemmule.model.tokenizer import train_tokenizer

    rows = []
    for size in args.sizes:
        with tempfile.TemporaryDirectory(dir=args.folder) as name:
            folder = Path(name)
            write_corpus(folder / "corpus", int(size * GB))
            train_tokenizer(list(itertools.islice(documents(10**6), 200)), 2000).save(
                folder / "tokenizer"
            )
            row = {"gb": size, **run_whole(folder, folder / "data", args.limit)}
            if args.kills:
                shutil.rmtree(folder / "data")
                row["killed"] = run_killed(
                    folder, folder / "data", args.limit, args.kills, row["seconds"]
                )
                row["same_after_kills"] = (
                    run_whole(folder, folder / "data", args.limit)["fingerprint"]
                    == row["fingerprint"]
                )
            rows.append(row)
            harness.say(f"{size} GB: {row}")
    return {"settings": {"limit_gb": args.limit, "kills": args.kills}, "runs": rows}


def show(report: Mapping[str, Any]) -> None:
    """Prints the report as a table."""
    rows = [
        [
            f"{row['gb']:g}",
            *(f"{peak / 1e6:,.0f}" for peak in row["peaks"].values()),
            f"{row['gb'] * 1000 / row['seconds']:.3g}",
            {True: "yes", False: "NO"}.get(row.get("same_after_kills"), ""),
        ]
        for row in report["runs"]
    ]
    phases = list(report["runs"][0]["peaks"])
    table(["GB", *phases, "MB/s", "same bytes after kills"], rows, title="peak memory so far, MB")


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there")
    parser.add_argument("--sizes", type=float, nargs="+", default=[1, 2], help="GB of text")
    parser.add_argument("--limit", type=float, help="GB of memory that a process may allocate")
    parser.add_argument("--kills", type=int, default=0, help="how often each run is killed")
    parser.add_argument("--folder", type=Path, help="where corpora are written; default: temporary")
    parser.add_argument("--child", type=Path, nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return child(*args.child, args.limit)
    return harness.run(args, measure, show)


if __name__ == "__main__":
    sys.exit(main())
