"""What redaction, decontamination and clusters of near-duplicates change in a small model.

A corpus of real text, with planted personal data, items of benchmarks and near-copies, is prepared
by recipes that differ in one stage, and the same student reads each for as many tokens: raw,
redact, decontaminate, group and drop (what becomes of near-duplicates), and all of them. Less text
is then read more often; in the versions named "-passes" it is read as often as raw. Measured are,
in bits per byte, the version's own held-out text, clean text that is the same for all, and items of
the benchmarks that were planted and that were not; the audit of memorization; and how many of the
personal data a model reproduces after the text that stood before them.

Each seed has a corpus of its own. Everything is in the folder --out: finished parts are not run
again, and a killed run goes on. What was expected before the first run, and what came out, is in
docs/data-effects.md.

    python bench/data_effects.py --text peps --benchmark gsm8k/test.jsonl
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import data_effects_corpus as corpora
import data_effects_report as results
import harness
import resumable
from data_effects_measure import bits_per_byte, recalled
from gemmule import files
from gemmule.data.dataset import Dataset
from gemmule.data.recipe.run import run_recipe
from gemmule.data.recipe.settings import Recipe
from gemmule.evals.memorization.run_memorization import run_memorization
from gemmule.evals.memorization.settings import Settings
from gemmule.infer.language_model import load
from gemmule.model.tokenizer import Tokenizer, train_tokenizer
from gemmule.runs.layout import RunLayout
from gemmule.runtime import host
from gemmule.train.config import RunConfig

_ACTIONS = {"group": "group", "drop": "drop", "all": "drop"}  # of the rest: "ignore"
_REDACTED, _DECONTAMINATED = ("redact", "all"), ("decontaminate", "all")
_PASSES = "-passes"  # fewer steps: as many passes over what is left as raw has
VERSIONS = (
    "raw", "redact", "decontaminate", "group", "drop", "all",
    "decontaminate-passes", "group-passes", "drop-passes", "all-passes",
)  # fmt: skip
_TOKENIZER_TEXTS = 3000
_KEY = "the same for all seeds"


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """What all versions share."""
    toy = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "head_dim": 8}
    sizes = (
        corpora.Sizes(600, 8, 4, 12, 6, 4, 6)
        if args.toy
        else corpora.Sizes(900, 50, 12, 24, 15, 12, 40)
    )
    return {
        "toy": args.toy, "sizes": asdict(sizes),
        "vocab_size": 600 if args.toy else 2048,
        "model": {"preset": "1m", **(toy if args.toy else {})},
        "steps": 2 if args.toy else args.steps, "seq_len": 256, "batch_size": 4,
        "learning_rate": 0.012, "embedding_learning_rate": 0.024, "weight_decay": 0.1,
        "split": {"validation": 0.05, "heldout": 0.15},
        "probes": 20 if args.toy else 600, "prompt_tokens": 50, "continuation_tokens": 50,
        "compile": False, "dtype": "float32", "threads": args.threads,
    }  # fmt: skip


class Experiment:
    """Prepares, trains and measures in a folder; what is finished there is left as it is.

    Args:
        settings: as `settings_of` returns them.
        texts: files of real text; none: Python's library.
        benchmarks: files of benchmarks.
        out: the folder.
    """

    def __init__(
        self,
        settings: Mapping[str, Any],
        texts: Sequence[Path],
        benchmarks: Sequence[Path],
        out: Path,
    ) -> None:
        self.settings, self.out = settings, out
        self._texts, self._benchmarks = texts, tuple(benchmarks)

    @cached_property
    def _pool(self) -> corpora.Pool:
        return corpora.Pool.of(self._texts, self._benchmarks, self.settings["sizes"]["piece"])

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        """One for all, of text without anything planted."""
        folder = self.out / "tokenizer"
        if not folder.is_dir():
            texts = self._pool.pieces
            step = max(1, len(texts) // _TOKENIZER_TEXTS)
            made = train_tokenizer(texts[::step], self.settings["vocab_size"])
            with files.atomic_dir(folder) as partial:
                made.save(partial)
        return Tokenizer.load(folder)

    def run_folder(self, version: str, seed: int) -> Path:
        """Folder of a student."""
        return self.out / "runs" / f"{version}-seed{seed}"

    def finish(self, version: str, seed: int) -> None:
        """Everything of one version and seed that is not there."""
        measured = self._measured(version, seed)
        if measured.is_file():
            return
        folder = self.out / "corpora" / f"seed{seed}"
        if folder.is_dir():
            corpus = corpora.Corpus.open(folder)
        else:
            corpus = corpora.make(self._pool, corpora.Sizes(**self.settings["sizes"]), seed, folder)
        raw = self._prepare("raw", seed, corpus)
        data = self._prepare(version.removesuffix(_PASSES), seed, corpus)
        steps = self.settings["steps"]
        if version.endswith(_PASSES):
            share = data.split("train").token_count / raw.split("train").token_count
            steps = max(1, round(steps * share))
        self._train(version, seed, data, steps)
        files.write_json(measured, self._measure(version, seed, corpus, data, raw))

    def _measured(self, version: str, seed: int) -> Path:
        return self.run_folder(version, seed) / "measured.json"

    def _prepare(self, version: str, seed: int, corpus: corpora.Corpus) -> Dataset:
        """The corpus after the stages of a version."""
        recipe: dict[str, Any] = {
            "sources": [{"name": "corpus", "path": str(corpus.documents)}],
            "near_duplicates": {"action": _ACTIONS.get(version, "ignore")},
            "split": self.settings["split"],
        }
        if version in _REDACTED:
            recipe["redact"] = {"key": _KEY}
        if version in _DECONTAMINATED:
            recipe["decontaminate"] = {"benchmarks": [str(path) for path in self._benchmarks]}
        out = self.out / "data" / f"{version}-seed{seed}"
        return run_recipe(Recipe.parse(recipe), self._tokenizer, out, workers=1)

    def _train(self, version: str, seed: int, data: Dataset, steps: int) -> None:
        settings = self.settings
        rates = ("learning_rate", "embedding_learning_rate", "weight_decay")
        values = {
            "steps": steps,
            "seed": seed,
            "data": {"path": str(data.path), **{k: settings[k] for k in ("seq_len", "batch_size")}},
            "model": settings["model"],
            "optimizer": {k: settings[k] for k in rates},
            "evaluation": {
                "every": steps, "tokens": settings["seq_len"],
                "heldout_tokens": settings["seq_len"],  # what counts is measured afterwards
            },
            "checkpoint": {"keep": 1, "minutes": 2.0},
            "runtime": {k: settings[k] for k in ("compile", "dtype", "threads")},
        }  # fmt: skip
        folder = self.run_folder(version, seed)
        if not RunLayout(folder).finished:
            resumable.train(RunConfig.parse(values), folder, label=folder.name)

    def _measure(
        self, version: str, seed: int, corpus: corpora.Corpus, data: Dataset, raw: Dataset
    ) -> dict[str, Any]:
        """All figures of a student."""
        run, settings = self.run_folder(version, seed), self.settings
        audit = Settings(
            settings["probes"], settings["prompt_tokens"], settings["continuation_tokens"], seed
        )
        memorized = run_memorization(str(run), audit)
        lm, room = load(str(run)), settings["seq_len"] - 1
        heldout = data.split("heldout")
        own = [heldout.document(n)[1:-1].tolist() for n in range(heldout.document_count)]
        texts = {"clean": corpus.clean, "planted": corpus.planted, "fresh": corpus.fresh}
        funnel = files.read_json(data.path / "funnel.json")
        return {
            "documents": {
                name: part["documents"] for name, part in data.manifest["splits"].items()
            },
            "train_tokens": data.split("train").token_count,
            "near_duplicates": funnel["near_duplicates"],
            "stages": funnel["total"]["stages"],
            "heldout": bits_per_byte(lm, own, room),
            **{
                name: bits_per_byte(lm, map(self._tokenizer.encode, part), room)
                for name, part in texts.items()
            },
            "memorization": {
                k: memorized[k] for k in ("train", "control", "sources", "personal_data")
            },
            "values": recalled(lm, corpus.values, raw, settings["prompt_tokens"]),
        }

    def finished(self) -> list[dict[str, Any]]:
        """The figures of the students that are measured."""
        runs = []
        for version in VERSIONS:
            for path in sorted((self.out / "runs").glob(f"{version}-seed*/measured.json")):
                seed = int(path.parent.name.removeprefix(f"{version}-seed"))
                runs.append({"version": version, "seed": seed, **files.read_json(path)})
        return runs


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Runs what is missing, and reports what there is."""
    settings = settings_of(args)
    out = args.out / "toy" if args.toy else args.out
    texts, benchmarks = args.text, args.benchmark
    if args.toy:
        texts, benchmarks = corpora.toy(out)
    experiment = Experiment(settings, texts, benchmarks, out)
    if not args.report:
        for seed in args.seeds:
            for version in args.versions:
                experiment.finish(version, seed)
    return {"settings": settings, **results.summarize(experiment.finished())}


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0],
        epilog="Example: python bench/data_effects.py --text peps --benchmark gsm8k/test.jsonl",
    )
    parser.add_argument(
        "--text", type=Path, nargs="+", default=[], help="default: Python's library"
    )
    parser.add_argument("--benchmark", type=Path, nargs="+", default=[], help="files of items")
    parser.add_argument("--steps", type=int, default=160, help="of 1,024 tokens")
    parser.add_argument("--out", type=Path, default=Path("runs/data-effects"))
    parser.add_argument("--versions", nargs="+", choices=VERSIONS, default=list(VERSIONS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=host.usable_cores())
    parser.add_argument("--toy", action="store_true", help="tiny shapes: does it work at all?")
    parser.add_argument("--report", action="store_true", help="train nothing: what is there?")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there")
    return harness.run(parser.parse_args(), measure, results.show)


if __name__ == "__main__":
    sys.exit(main())
