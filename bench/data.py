"""Stages of a recipe next to other libraries: MB/s of one core, and how often verdicts agree.

The text is Python's library in pieces of 500 to 6,000 characters, and the files of --text. Each
contestant is a process of its own on one thread; seconds are of processor time, medians of turns.

- heuristics: Gopher's rules on repetition and on quality, C4's, and FineWeb's, each alone, against
  datatrove's filters of the same limits with the tokenizer that it uses for English (spaCy).
- language: py3langid as the stage runs it, against lingua. Only agreement can be counted, because
  the text says nothing of its language.
- exact: how many documents repeat an earlier one, a tenth do; against polars and duckdb.

Redaction, decontamination and quality are in bench/data_filters.py, near-duplicates in
bench/near_duplicates.py, memory in bench/data_memory.py.

    pip install datatrove spacy lingua-language-detector polars duckdb
"""

import argparse
import importlib.util
import json
import random
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from importlib import metadata
from pathlib import Path
from typing import Any

import harness
from gemmule.console import table
from gemmule.data.sources import Document

RULES = ("gopher_repetition", "gopher_quality", "c4", "fineweb")
# Task, contestants, and the package that a contestant needs; the first one is ours.
TASKS: dict[str, dict[str, str]] = {
    **{rule: {"gemmule": "gemmule", "datatrove": "spacy"} for rule in RULES},
    "language": {"gemmule": "py3langid", "lingua": "lingua"},
    "exact": {"gemmule": "gemmule", "polars": "polars", "duckdb": "duckdb"},
}
_DISTRIBUTIONS = {"lingua": "lingua-language-detector"}
_SEED = 0

Verdicts = Sequence[Any]


def texts_of(paths: Sequence[Path], documents: int) -> list[str]:
    """Pieces of real text, a tenth of them twice."""
    from gemmule.data.read_log import ReadLog
    from gemmule.data.sources import find_source

    draw = random.Random(_SEED)
    pieces = []
    for path in (None, *paths):
        for document in find_source(path).documents(ReadLog()):
            start = 0
            while start < len(document.text):
                size = draw.randrange(500, 6000)
                pieces.append(document.text[start : start + size])
                start += size
    pieces = [piece for piece in pieces if piece.strip()]
    chosen = draw.sample(pieces, min(documents, len(pieces)))
    return chosen + draw.sample(chosen, len(chosen) // 10)


def _stage(table_name: str, **settings: Any) -> Callable[[Sequence[str]], Verdicts]:
    from gemmule.data.recipe.settings import Recipe

    recipe = Recipe.parse({"sources": [{"name": "a", "path": "."}], table_name: settings})
    ((_, table_settings),) = recipe.stages()
    stage = table_settings.open(Path())

    def verdicts(texts: Sequence[str]) -> Verdicts:
        outcomes = stage.apply_batch([Document("a", text) for text in texts])
        if table_name == "language":
            return [next(iter(outcome.counts)) for outcome in outcomes]
        return [outcome.text is not None for outcome in outcomes]

    return verdicts


def _datatrove(rule: str) -> Callable[[Sequence[str]], Verdicts]:
    from datatrove.data import Document as Theirs
    from datatrove.pipeline import filters

    made = {
        "gopher_repetition": filters.GopherRepetitionFilter,
        "gopher_quality": filters.GopherQualityFilter,
        "c4": lambda: filters.C4QualityFilter(filter_no_terminal_punct=False),
        "fineweb": filters.FineWebQualityFilter,
    }[rule]()

    def verdicts(texts: Sequence[str]) -> Verdicts:
        from datatrove.utils.text import split_into_parts

        split_into_parts.cache_clear()  # words of an earlier turn
        return [made.filter(Theirs(text=text, id="a")) is True for text in texts]

    return verdicts


def _lingua() -> Callable[[Sequence[str]], Verdicts]:
    from lingua import LanguageDetectorBuilder

    from gemmule.data.recipe.language import middle

    detector = LanguageDetectorBuilder.from_all_languages().build()

    def verdicts(texts: Sequence[str]) -> Verdicts:
        languages = [detector.detect_language_of(middle(text)) for text in texts]
        return [None if one is None else one.iso_code_639_1.name.lower() for one in languages]

    return verdicts


def _exact(texts: Sequence[str]) -> Verdicts:
    import numpy as np

    from gemmule.data.corpus import digest_of
    from gemmule.data.near_duplicates import join, resolve
    from gemmule.data.recipe.links import pairs_of
    from gemmule.data.recipe.sorting import SortedRuns

    digests = b"".join(map(digest_of, texts))
    halves = np.frombuffer(digests, ">u8").reshape(-1, 2).astype(np.uint64)
    cluster_of = np.arange(len(texts))
    with tempfile.TemporaryDirectory() as folder:
        runs = SortedRuns(Path(folder))
        runs.add(halves[:, 0], halves[:, 1], cluster_of.copy())
        for pairs in pairs_of(runs.blocks()):
            join(cluster_of, pairs)
        runs.close()
    resolve(cluster_of)
    return [int((cluster_of == np.arange(len(texts))).sum())]


def _polars(texts: Sequence[str]) -> Verdicts:
    import polars

    return [polars.DataFrame({"text": texts}).unique().height]


def _duckdb(texts: Sequence[str]) -> Verdicts:
    import duckdb
    import pyarrow

    rows = pyarrow.table({"text": texts})
    connection = duckdb.connect()
    connection.execute("set threads to 1")
    connection.register("rows", rows)
    result = connection.execute("select count(*) from (select distinct text from rows)")
    return [result.fetchone()[0]]


def contestant(task: str, mode: str) -> Callable[[Sequence[str]], Verdicts]:
    """What a contestant does with the texts."""
    if task == "exact":
        return {"gemmule": _exact, "polars": _polars, "duckdb": _duckdb}[mode]
    if mode == "lingua":
        return _lingua()
    if mode == "datatrove":
        return _datatrove(task)
    if task == "language":
        return _stage("language", min_confidence=0)
    return _stage("heuristics", rules=[task])


def build(settings: Mapping[str, Any]) -> harness.Handler:
    """A contestant in its process: answers with verdicts and seconds of processor time."""
    import time

    texts = json.loads(Path(settings["texts"]).read_text())
    task, _, mode = settings["mode"].partition("/")
    judge = contestant(task, mode)
    judge([*texts[:20], "語"])  # so that tables are made before the first turn

    def handle(request: Mapping[str, Any]) -> harness.Reply:
        began = time.process_time()
        verdicts = judge(texts)
        return {"seconds": time.process_time() - began, "verdicts": list(verdicts)}

    return handle


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """The whole report."""
    texts = texts_of(args.text, 60 if args.toy else args.documents)
    size = sum(len(text.encode()) for text in texts)
    results: dict[str, Any] = {}
    packages: set[str] = set()
    with tempfile.TemporaryDirectory() as folder:
        listed = Path(folder) / "texts.json"
        listed.write_text(json.dumps(texts))
        for task in args.tasks:
            modes = {m: p for m, p in TASKS[task].items() if importlib.util.find_spec(p)}
            packages |= set(modes.values()) - {"gemmule"}
            packages |= {mode for mode in modes if mode == "datatrove"}
            with ExitStack() as stack:
                workers = [
                    stack.enter_context(
                        harness.Worker(__file__, f"{task}/{mode}", {"texts": str(listed)})
                    )
                    for mode in modes
                ]
                replies, _ = harness.take_turns(workers, args.rounds)
            results[task] = compared(list(modes), {m: replies[f"{task}/{m}"] for m in modes}, size)
    return {
        "settings": {"rounds": args.rounds, "documents": len(texts), "bytes": size},
        "libraries": {p: metadata.version(_DISTRIBUTIONS.get(p, p)) for p in sorted(packages)},
        "tasks": results,
    }


def compared(
    modes: Sequence[str], replies: Mapping[str, Sequence[harness.Reply]], size: int
) -> dict[str, Any]:
    """Speed of each contestant, and how often its verdicts are those of the first."""
    ours = replies[modes[0]][0]["verdicts"]
    rows: dict[str, Any] = {}
    for mode in modes:
        seconds = harness.median([reply["seconds"] for reply in replies[mode]])
        theirs = replies[mode][0]["verdicts"]
        same = sum(a == b for a, b in zip(ours, theirs, strict=True))
        rows[mode] = {
            "mb_per_second": harness.rounded(size / 1e6 / seconds),
            "same_verdicts": harness.rounded(same / len(ours)),
        }
    first = rows[modes[0]]["mb_per_second"]
    for mode in modes[1:]:
        rows[mode]["gemmule_against"] = harness.rounded(first / rows[mode]["mb_per_second"])
    return rows


def show(report: Mapping[str, Any]) -> None:
    """Prints the report as a table."""
    rows = [
        [
            task if mode == "gemmule" else "",
            mode,
            f"{of['mb_per_second']:.3g}",
            f"{of['gemmule_against']:.3g}" if "gemmule_against" in of else "",
            f"{of['same_verdicts']:.2%}",
        ]
        for task, modes in report["tasks"].items()
        for mode, of in modes.items()
    ]
    settings = report["settings"]
    table(
        ["", "", "MB/s", "gemmule against it", "same verdicts"], rows,
        title=f"{settings['documents']:,} documents, {settings['bytes'] / 1e6:.1f} MB",
    )  # fmt: skip


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="Example: python bench/data.py --text books --json bench/results/data.json",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each contestant")
    parser.add_argument("--documents", type=int, default=2000, help="how many, without copies")
    parser.add_argument("--text", type=Path, nargs="+", default=[], help="more files of text")
    parser.add_argument("--toy", action="store_true", help="few documents: does it work at all?")
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    return harness.run(args, measure, show, build)


if __name__ == "__main__":
    sys.exit(main())
