"""The other libraries of bench/data_filters.py. Any interpreter that has them can run it."""

import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from worker_side import Handler, Reply, serve

# Its regular expressions for the kinds that gemmule looks for, too. Those it gives a score below
# this are guesses that wait for a word nearby, which its language models would look for.
_PRESIDIO = (
    "CreditCardRecognizer", "IbanRecognizer", "EmailRecognizer", "IpRecognizer", "UsSsnRecognizer",
    "PhoneRecognizer", "UkNinoRecognizer", "UsPassportRecognizer", "NhsRecognizer",
    "EsNifRecognizer", "ItFiscalCodeRecognizer", "AuTfnRecognizer", "PlPeselRecognizer",
    "FiPersonalIdentityCodeRecognizer", "InAadhaarRecognizer", "CaSinRecognizer", "KrRrnRecognizer",
    "SePersonnummerRecognizer", "TrNationalIdRecognizer", "DeTaxIdRecognizer",
)  # fmt: skip
_SCORE = 0.4
Task = Callable[[], Any]


def presidio(materials: Mapping[str, Any]) -> Task:
    """Spans found in each text."""
    from presidio_analyzer import predefined_recognizers

    recognizers = [getattr(predefined_recognizers, name)() for name in _PRESIDIO]

    def find() -> list[list[tuple[int, int]]]:
        return [
            [
                (result.start, result.end)
                for recognizer in recognizers
                for result in recognizer.analyze(text, recognizer.supported_entities, None) or ()
                if result.score >= _SCORE
            ]
            for text in materials["texts"]
        ]

    return find


class _Spaces:
    """A tokenizer of words for datatrove, whose own would be fetched."""

    def word_tokenize(self, text: str) -> list[str]:
        return text.split()


def datatrove(materials: Mapping[str, Any]) -> Task:
    """Whether each text shares an n-gram with an item."""
    import xxhash
    from datatrove.data import Document
    from datatrove.pipeline.decont import n_grams

    n_grams.load_word_tokenizer = lambda language: _Spaces()
    n_grams.NGramsDecontIndexer._requires_dependencies = []  # lighteval, for tasks from the hub
    config = n_grams.NGramsDecontConfig(n_grams=materials["n"])
    folder = tempfile.mkdtemp()
    stages: Sequence[Any] = (
        n_grams.NGramsDecontIndexer(folder, config=config),
        n_grams.NGramsDecontFilter(folder, config=config),
    )
    for stage in stages:  # the same hash, of bytes: xxhash 4 takes no strings
        stage.hash_func = lambda gram: xxhash.xxh64_intdigest(gram.encode())
    indexer, check = stages
    check._index_hashes = {h: "items" for item in materials["items"]
                           for h in indexer.compute_hashes(item)}  # fmt: skip

    def find() -> list[bool]:
        return [check.filter(Document(text, str(n))) is not True
                for n, text in enumerate(materials["texts"])]  # fmt: skip

    return find


def fasttext(materials: Mapping[str, Any]) -> Task:
    """Probabilities of the held-out texts."""
    import fasttext as library

    with tempfile.NamedTemporaryFile("w", suffix=".txt", delete=False) as file:
        for text, good in materials["train"]:
            file.write(f"__label__{'good' if good else 'bad'} {text}\n")
    model = library.train_supervised(
        file.name, wordNgrams=2, epoch=materials["epochs"], lr=materials["rate"], thread=1, seed=0,
        verbose=0,
    )  # fmt: skip
    Path(file.name).unlink()

    def score() -> list[float]:
        scores = []
        for text in materials["texts"]:
            labels, probabilities = model.predict(text, k=2)
            by_label = dict(zip(labels, probabilities, strict=True))
            scores.append(float(by_label["__label__good"]))
        return scores

    return score


PEERS = {"presidio": presidio, "datatrove": datatrove, "fasttext": fasttext}


def build(settings: Mapping[str, Any], contestants: Mapping[str, Any]) -> Handler:
    """A contestant: answers with its result, and its seconds of processor time."""
    materials = json.loads(Path(settings["materials"]).read_text(encoding="utf-8"))
    began = time.process_time()
    task = contestants[settings["contestant"]](materials)
    prepared = time.process_time() - began

    def handle(request: Mapping[str, Any]) -> Reply:
        began = time.process_time()
        result = task()
        return {
            "seconds": time.process_time() - began,
            "prepared_seconds": prepared,
            "result": result,
        }

    return handle


if __name__ == "__main__":
    given = json.loads(sys.argv[sys.argv.index("--worker") + 1])
    serve(lambda: build(given, PEERS))
