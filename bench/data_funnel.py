"""What a recipe makes of a real corpus, in one process: the funnel, and seconds.

docs/data.md shows the result for the recipe in bench/data_funnel.toml: Python's library, and
corpora and benchmarks under the folders --corpora and --benchmarks.

    python bench/data_funnel.py --corpora corpora --benchmarks benchmarks --json funnel.json
"""

import argparse
import string
import sys
import tempfile
import time
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import harness
from gemmule import files
from gemmule.console import table

RECIPE = Path(__file__).parent / "data_funnel.toml"


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Everything of the report but machine and versions."""
    from gemmule.data.read_log import ReadLog
    from gemmule.data.recipe.results import FUNNEL
    from gemmule.data.recipe.run import run_recipe
    from gemmule.data.recipe.settings import Recipe
    from gemmule.data.sources import find_source
    from gemmule.model.tokenizer import train_tokenizer

    text = args.recipe.read_text(encoding="utf-8")
    places = {"corpora": args.corpora.resolve(), "benchmarks": args.benchmarks.resolve()}
    recipe = Recipe.parse(tomllib.loads(string.Template(text).substitute(places)))
    with tempfile.TemporaryDirectory() as name:
        library = find_source(None).documents(ReadLog())
        tokenizer = train_tokenizer((document.text for document in library), 4096)
        out = Path(name) / "data"
        began, used = time.monotonic(), time.process_time()
        dataset = run_recipe(recipe, tokenizer, out, workers=1, stage=harness.say)
        funnel = files.read_json(out / FUNNEL)
        return {
            "recipe": tomllib.loads(text),
            "seconds": harness.rounded(time.monotonic() - began),
            "cpu_seconds": harness.rounded(time.process_time() - used),
            "fingerprint": dataset.fingerprint,
            "funnel": {k: v for k, v in funnel.items() if k != "examples"},
        }


def show(report: Mapping[str, Any]) -> None:
    """Prints the funnel as docs/data.md has it."""
    funnel = report["funnel"]
    read = funnel["total"]["read"]
    rows = [["read", f"{read[0]:,}", f"{read[1] / 1e6:.1f}", ""]]
    for name in funnel["stages"]:
        stage = funnel["total"]["stages"][name]
        dropped = sorted(stage["dropped"].items(), key=lambda reason: -reason[1][0])
        shown = [f"{count[0]:,} {reason}" for reason, count in dropped[:3]]
        if len(dropped) > len(shown):
            rest = sum(count[0] for _, count in dropped[len(shown) :])
            shown.append(f"{rest:,} for {len(dropped) - len(shown)} other reasons")
        documents, size = stage["passed"]
        label = "usable text" if name == "read" else name
        rows.append([label, f"{documents:,}", f"{size / 1e6:.1f}", ", ".join(shown)])
    title = f"{report['seconds']:.0f} s, {report['cpu_seconds']:.0f} s of processor time"
    table(["after", "documents", "MB", "dropped"], rows, title=title)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpora", type=Path, required=True, metavar="DIR")
    parser.add_argument("--benchmarks", type=Path, required=True, metavar="DIR")
    parser.add_argument("--recipe", type=Path, default=RECIPE, metavar="FILE")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there")
    return harness.run(parser.parse_args(), measure, show)


if __name__ == "__main__":
    sys.exit(main())
