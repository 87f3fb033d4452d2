"""The stage "decontaminate": text of benchmarks is taken out."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pydantic

from gemmule import files
from gemmule.data import benchmark_texts
from gemmule.data.benchmark_texts import Benchmark
from gemmule.data.decontamination import Decontaminated, Decontaminator
from gemmule.data.ngrams import N, NgramIndex
from gemmule.data.recipe.stage import Outcome, Stage, StageSettings, dropped, fingerprint
from gemmule.data.sources import Document
from gemmule.errors import ConfigError

BENCHMARKS = "benchmarks.json"  # file of the artifact
_VERSION = 1


class DecontaminateSettings(StageSettings):
    """Settings of the stage.

    Attributes:
        benchmarks: files of benchmarks, see benchmark_texts.py.
        take_out: "documents" drops a document that shares text with a benchmark, "lines" only its
            lines that hold that text.
        n: words in a row that count as shared. At most as many as the check after training takes,
            so that the check finds nothing. Items of fewer words are not looked for.
    """

    benchmarks: tuple[Path, ...] = pydantic.Field(min_length=1)
    take_out: Literal["documents", "lines"] = "documents"
    n: int = pydantic.Field(default=N, ge=5, le=N)

    def named_files(self) -> tuple[Path, ...]:
        """The benchmarks."""
        return self.benchmarks

    def fit(self, folder: Path) -> None:
        """Copies the benchmarks' texts, so that they cannot change while the recipe runs."""
        if not (folder / BENCHMARKS).is_file():
            benchmarks = [b for path in self.benchmarks for b in benchmark_texts.read(path)]
            names = [benchmark.name for benchmark in benchmarks]
            twice = [name for name in names if names.count(name) > 1]
            if twice:
                raise ConfigError(f"two benchmarks are named {twice[0]!r}: give each once")
            folder.mkdir(parents=True, exist_ok=True)
            files.write_json(folder / BENCHMARKS, [b.json() for b in benchmarks])

    def open(self, folder: Path) -> Stage:
        """The stage."""
        given = files.read_json(folder / BENCHMARKS)
        return Decontaminate(self, [Benchmark(**entry) for entry in given])


class Decontaminate(Stage):
    """Drops documents, or lines, that share n words in a row with a benchmark."""

    name = "decontaminate"

    def __init__(self, settings: DecontaminateSettings, benchmarks: Sequence[Benchmark]) -> None:
        self._benchmarks, self._n = benchmarks, settings.n
        self._index = NgramIndex({b.name: b.texts for b in benchmarks}, settings.n)
        self._decontaminator = Decontaminator(self._index, settings.take_out == "documents")
        # The files' paths do not matter, what is in them does.
        named = settings.model_copy(update={"benchmarks": ()})
        digests = [f"{b.name} {benchmark_texts.digest(b.texts)}".encode() for b in benchmarks]
        self.fingerprint = fingerprint(self.name, _VERSION, named, *digests)

    def about(self) -> dict[str, Any]:
        """What the corpus is decontaminated against."""
        short = self._index.short()
        return {
            "n": self._n,
            "benchmarks": [
                {
                    "name": b.name,
                    "sha256": b.sha256,
                    "items": len(b.texts),
                    "too_short": short[b.name],
                }
                for b in self._benchmarks
            ],
        }

    def apply(self, document: Document) -> Outcome:
        """The document without benchmarks' text."""
        return self.apply_batch([document])[0]

    def apply_batch(self, documents: Sequence[Document]) -> list[Outcome]:
        """All documents' words are hashed at once."""
        results = self._decontaminator.apply([document.text for document in documents])
        return [_outcome(result) for result in results]


def _outcome(result: Decontaminated) -> Outcome:
    counts = dict.fromkeys(result.benchmarks, 1)
    if result.text is None:
        return dropped("text of a benchmark", counts)
    return Outcome(result.text, counts=counts)
