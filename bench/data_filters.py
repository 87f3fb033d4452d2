"""Redaction, decontamination and quality next to other libraries: MB/s, and what each finds.

The text is Python's own library, or --text. Each contestant is a process of its own on one thread;
seconds are of processor time.

- redaction: personal data and as many decoys (wrong check digits, names reserved for examples) are
  planted. gemmule's finder against presidio's regular expressions for the same kinds, without the
  language models. Recall is the share of planted data found, precision counts decoys as errors.
- decontamination: items of made-up sentences are planted in a tenth of the documents, in capitals
  and with other punctuation. gemmule against datatrove, both with 13 words in a row.
- quality: which half of the files is a piece of 60 words from? gemmule's classifier against
  fastText with word pairs, at its defaults and tuned, on the same held-out pieces.

    pip install presidio-analyzer datatrove xxhash fasttext-numpy2
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

import data_filters_peers
import harness
from gemmule.console import table
from gemmule.data.ngrams import N, NgramIndex, words
from gemmule.data.quality.fit import auc

PIECE = 3000  # characters
_SEED = 0
# The kinds that both know without words around them.
KINDS = (
    "payment card", "e-mail address", "telephone number", "bank account (IBAN)", "IP address",
)  # fmt: skip
_MODULES = {"presidio": "presidio_analyzer", "datatrove": "datatrove", "fasttext": "fasttext"}
_TUNED = {"epochs": 25, "rate": 0.5}
_DEFAULTS = {"epochs": 5, "rate": 0.1}


def documents_of(path: Path | None, megabytes: float) -> list[str]:
    """Documents of about so much text."""
    from gemmule.data.read_log import ReadLog
    from gemmule.data.sources import find_source

    documents: list[str] = []
    size = 0
    for document in find_source(path).documents(ReadLog()):
        documents.append(document.text)
        size += len(document.text)
        if size >= megabytes * 1e6:
            break
    return documents


def pieces_of(documents: Sequence[str]) -> list[str]:
    """Pieces of about 3 kB."""
    return [text[n : n + PIECE] for text in documents for n in range(0, len(text), PIECE)]


def redaction_materials(pieces: Sequence[str]) -> dict[str, Any]:
    """Pieces with planted data."""
    from gemmule.data.planted_personal_data import plant

    planted = [plant(text, 17 * n, 1) for n, text in enumerate(pieces)]
    spans = [[(p.start, p.end, p.kind, p.severity) for p in spans] for _, spans in planted]
    return {"texts": [text for text, _ in planted], "spans": spans}


def gemmule_redaction(materials: Mapping[str, Any]) -> data_filters_peers.Task:
    from gemmule.data.personal_data import find

    find("4111 1111 1111 1111, 123-45-6789")  # imports the check digits
    texts = materials["texts"]
    return lambda: [[(match.start, match.end) for match in find(text)] for text in texts]


def judged_redaction(result: Any, materials: Mapping[str, Any]) -> dict[str, Any]:
    data = caught = alarms = 0
    for matches, spans in zip(result, materials["spans"], strict=True):
        for start, end, kind, severity in spans:
            if kind in KINDS:
                hit = any(a < end and b > start for a, b in matches)
                data += bool(severity)
                caught += bool(severity) and hit
                alarms += not severity and hit
    return {"recall": caught / data, "precision": caught / max(1, caught + alarms), "planted": data}


def decontamination_materials(pieces: Sequence[str]) -> dict[str, Any]:
    """Pieces, a tenth of which have an item in it."""
    draw = random.Random(_SEED)
    vocabulary = sorted({word for text in pieces[:100] for word in words(text)})
    items = [
        " ".join(draw.choice(vocabulary) for _ in range(draw.randrange(15, 60)))
        for _ in range(2000)
    ]
    texts = []
    for n, text in enumerate(pieces):
        if n % 10 == 0:
            place = text.find("\n", draw.randrange(len(text))) + 1
            item = draw.choice((str.upper, str.title))(draw.choice(items)).replace(" ", ", ", 3)
            text = f"{text[:place]}{item}.\n{text[place:]}"  # noqa: PLW2901
        texts.append(text)
    return {"texts": texts, "items": items, "n": N}


def gemmule_decontamination(materials: Mapping[str, Any]) -> data_filters_peers.Task:
    from gemmule.data.decontamination import Decontaminator

    decontaminator = Decontaminator(NgramIndex({"items": materials["items"]}, materials["n"]))
    texts = materials["texts"]
    decontaminator.apply(texts[:10])
    return lambda: [result.text is None for result in decontaminator.apply(texts)]


def judged_decontamination(result: Any, materials: Mapping[str, Any]) -> dict[str, Any]:
    planted = [n % 10 == 0 for n in range(len(result))]
    pairs = list(zip(result, planted, strict=True))
    return {
        "recall": sum(flag and own for flag, own in pairs) / sum(planted),
        "false_alarms": sum(flag and not own for flag, own in pairs),
        "planted": sum(planted),
    }


def quality_materials(documents: Sequence[str]) -> dict[str, Any]:
    """Pieces of 60 words of every other document and of the rest; a fifth is held out."""
    draw = random.Random(_SEED)
    rows: dict[bool, dict[str, None]] = {True: {}, False: {}}
    for number, text in enumerate(documents):
        own = words(text)
        for n in range(0, len(own) - 60, 60):
            rows[number % 2 == 0][" ".join(own[n : n + 60])] = None
    labelled = [(text, good) for good, texts in rows.items() for text in texts]
    draw.shuffle(labelled)
    heldout = labelled[: len(labelled) // 5]
    return {
        "train": labelled[len(heldout) :],
        "texts": [text for text, _ in heldout],
        "good": [good for _, good in heldout],
    }


def gemmule_quality(materials: Mapping[str, Any]) -> data_filters_peers.Task:
    from gemmule.data.quality.fit import FitConfig, fit

    with tempfile.TemporaryDirectory() as folder:
        for name in (True, False):
            lines = [
                json.dumps({"text": text}) for text, good in materials["train"] if good is name
            ]
            (Path(folder) / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
        # As good as nothing is held out: the pieces that are judged are others.
        classifier, _ = fit(
            FitConfig(
                good=Path(folder) / "True.jsonl", bad=Path(folder) / "False.jsonl", heldout=0.01
            )
        )
    return lambda: classifier.probabilities(materials["texts"])


def judged_quality(result: Any, materials: Mapping[str, Any]) -> dict[str, Any]:
    scores, good = np.array(result), np.array(materials["good"])
    right = (scores >= 0.5) == good
    return {
        "auc": auc(scores[good], scores[~good])["value"],
        "accuracy": float((right[good].mean() + right[~good].mean()) / 2),
        "heldout": len(good),
    }


PARTS = {
    "redaction": (judged_redaction, ("gemmule-redaction", "presidio")),
    "decontamination": (judged_decontamination, ("gemmule-decontamination", "datatrove")),
    "quality": (judged_quality, ("gemmule-quality", "fasttext", "fasttext-defaults")),
}
OURS = {
    "gemmule-redaction": gemmule_redaction,
    "gemmule-decontamination": gemmule_decontamination,
    "gemmule-quality": gemmule_quality,
}


def _has(python: str, mode: str) -> bool:
    """Whether an interpreter can run a contestant."""
    if mode in OURS:
        return True
    module = _MODULES[mode.partition("-")[0]]
    code = f"import importlib.util, sys; sys.exit(not importlib.util.find_spec({module!r}))"
    return subprocess.run([python, "-c", code], check=False).returncode == 0


def _contest(
    part: str, materials: Mapping[str, Any], args: argparse.Namespace, folder: Path
) -> dict[str, Any]:
    judge, modes = PARTS[part]
    installed = [mode for mode in modes if _has(args.peers, mode)]
    with ExitStack() as stack:
        workers = []
        for mode in installed:
            peer = mode.partition("-")[0]
            given = {**materials, **(_DEFAULTS if mode == "fasttext-defaults" else _TUNED)}
            path = folder / f"{mode}.json"
            path.write_text(json.dumps(given), encoding="utf-8")
            script = __file__ if mode in OURS else data_filters_peers.__file__
            python = sys.executable if mode in OURS else args.peers
            settings = {"materials": str(path), "contestant": mode if mode in OURS else peer}
            workers.append(stack.enter_context(harness.Worker(str(script), mode, settings, python)))
        replies, _ = harness.take_turns(workers, args.rounds)
    size = sum(len(text.encode()) for text in materials["texts"])
    results: dict[str, Any] = {}
    for mode in installed:
        seconds = harness.median([reply["seconds"] for reply in replies[mode]])
        results[mode] = {
            "mb_per_second": harness.rounded(size / 1e6 / seconds),
            "prepared_seconds": harness.rounded(replies[mode][0]["prepared_seconds"]),
            **judge(replies[mode][0]["result"], materials),
        }
    ours = results[installed[0]]["mb_per_second"]
    return {
        "bytes": size,
        "contestants": results,
        "gemmule_against": {
            mode: harness.rounded(ours / of["mb_per_second"])
            for mode, of in results.items()
            if mode not in OURS
        },
    }


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """The whole report."""
    documents = documents_of(args.text, 0.3 if args.toy else args.megabytes)
    pieces = pieces_of(documents)
    makers = {
        "redaction": lambda: redaction_materials(pieces),
        "decontamination": lambda: decontamination_materials(pieces),
        "quality": lambda: quality_materials(documents),
    }
    parts = {}
    with tempfile.TemporaryDirectory() as folder:
        for part in args.parts:
            parts[part] = _contest(part, makers[part](), args, Path(folder))
    return {"settings": {"rounds": args.rounds, "documents": len(documents)}, **parts}


def show(report: Mapping[str, Any]) -> None:
    """Prints a table for each part."""
    for part in PARTS:
        if part not in report:
            continue
        rows = []
        for mode, of in report[part]["contestants"].items():
            facts = [f"{k} {v:.4g}" for k, v in of.items() if k != "mb_per_second"]
            factor = report[part]["gemmule_against"].get(mode, 1)
            rows.append([mode, f"{of['mb_per_second']:.3g}", f"{factor:.3g}", ", ".join(facts)])
        title = f"{part}, {report[part]['bytes'] / 1e6:.1f} MB"
        table(["", "MB/s", "gemmule against it", ""], rows, title=title)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="Example: python bench/data_filters.py --json bench/results/data_filters.json",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each contestant")
    parser.add_argument("--megabytes", type=float, default=8, help="text of each part")
    parser.add_argument("--text", type=Path, help="file, folder or glob of text")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--peers", default=sys.executable, help="Python that has the libraries")
    parser.add_argument("--toy", action="store_true", help="little text: does it work at all?")
    parser.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    return harness.run(
        args, measure, show, lambda settings: data_filters_peers.build(settings, OURS)
    )


if __name__ == "__main__":
    sys.exit(main())
