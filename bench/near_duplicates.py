"""Near-duplicates by MinHash: MB/s, and recall and precision on planted copies.

Documents are pieces of Python's own library of about 3 kB. A third of them have a copy in which
some words are replaced. All contestants use runs of 5 words and 112 hashes in 14 bands of 8, and
say of each document whether it is a near-duplicate of an earlier one. Each is a process of its own
on one thread; seconds are of processor time, from text to answer.

- gemmule: as `gemmule data` does it;
- gemmule-112: the same words and bands with 112 hashes instead of one permutation;
- rensa, datasketch: the libraries, given the runs of words;
- datatrove: its signatures, from its own runs of words split at spaces; its other stages, which
  sort files, are left out.

Recall is the share of the copies that are found among those whose exact Jaccard similarity to the
original is at least 0.8; what the bands promise for them is printed with it. False alarms are
documents that are found although their similarity to every earlier one is below 0.5.

    pip install rensa datasketch datatrove
"""

import argparse
import importlib.util
import itertools
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

import harness
from gemmule.console import table
from gemmule.data.minhash import BANDS, HASHES, ROWS, SHINGLE
from gemmule.data.word_hashes import BYTES_AT_ONCE, JoinedTexts, encoded, mixed, normalize

MODES = ("gemmule", "gemmule-112", "rensa", "datasketch", "datatrove")
PIECE = 3000  # characters
_SEED = 0

Flags = Sequence[bool]


def corpus(pieces: int) -> tuple[list[str], list[float]]:
    """Documents, and of each its Jaccard similarity to its original; 0: it is no copy."""
    from gemmule.data.read_log import ReadLog
    from gemmule.data.sources import find_source

    draw = random.Random(_SEED)
    texts: dict[str, None] = {}
    for document in find_source(None).documents(ReadLog()):
        for start in range(0, len(document.text) - PIECE, PIECE):
            texts[document.text[start : start + PIECE]] = None
    documents, similarities = [], []
    for number, text in enumerate(draw.sample(list(texts), min(pieces, len(texts)))):
        documents.append(text)
        similarities.append(0.0)
        if number % 3 == 0:
            copy = _changed(draw, text, draw.uniform(0, 0.06))
            documents.append(copy)
            similarities.append(jaccard(set(_shingles(text)), set(_shingles(copy))))
    return documents, similarities


def _changed(draw: random.Random, text: str, share: float) -> str:
    words = text.split(" ")
    for n in draw.sample(range(len(words)), round(share * len(words))):
        words[n] = f"changed{draw.randrange(10**6)}"
    return " ".join(words)


def _shingles(text: str) -> list[str]:
    words = normalize(encoded(text)).decode().split()
    return [" ".join(words[n : n + SHINGLE]) for n in range(len(words) - SHINGLE + 1)]


def jaccard(a: set[str], b: set[str]) -> float:
    """Similarity of two sets of runs of words."""
    both = len(a & b)
    return both / max(1, len(a) + len(b) - both)


def gemmule(texts: Sequence[str]) -> Flags:
    from gemmule.data.minhash import BandKeys
    from gemmule.data.near_duplicates import clusters

    keys = BandKeys()
    for text in texts:
        keys.add(text)
    return [n != cluster for n, cluster in enumerate(clusters(keys.keys()).tolist())]


def gemmule_112(texts: Sequence[str]) -> Flags:
    from gemmule.data.minhash import keys_of
    from gemmule.data.near_duplicates import clusters

    numbers = mixed(np.arange(2 * HASHES, dtype=np.uint64))
    factors, offsets = numbers[:HASHES] | np.uint64(1), numbers[HASHES:]
    parts, group, size = [], [], 0
    for n, text in enumerate(texts):
        group.append(normalize(encoded(text)))
        size += len(group[-1])
        if size < BYTES_AT_ONCE and n + 1 < len(texts):
            continue
        hashes, documents, _ = JoinedTexts(group).whole_grams(SHINGLE)
        starts = np.searchsorted(documents, np.arange(len(group)))
        minima = [np.minimum.reduceat(mixed(hashes * f + o), starts) for f, o in
                  zip(factors, offsets, strict=True)]  # fmt: skip
        parts.append(keys_of(np.stack(minima, axis=1)))
        group, size = [], 0
    return [n != c for n, c in enumerate(clusters(np.concatenate(parts)).tolist())]


def rensa(texts: Sequence[str]) -> Flags:
    import rensa

    sets = [_shingles(text) for text in texts]
    matrix = rensa.RMinHash.digest_matrix_from_token_sets(sets, HASHES, _SEED)
    index = rensa.RMinHashLSH(0.0, HASHES, BANDS)
    return list(index.insert_matrix_and_query_duplicate_flags(matrix))


def datasketch(texts: Sequence[str]) -> Flags:
    from datasketch import MinHash, MinHashLSH

    index = MinHashLSH(num_perm=HASHES, params=(BANDS, ROWS))
    flags = []
    for n, text in enumerate(texts):
        minhash = MinHash(num_perm=HASHES, seed=_SEED)
        minhash.update_batch([shingle.encode() for shingle in _shingles(text)])
        flags.append(bool(index.query(minhash)))
        index.insert(n, minhash)
    return flags


class _Spaces:
    """A tokenizer of words for datatrove, whose own would be fetched."""

    def word_tokenize(self, text: str) -> list[str]:
        return text.split()


def datatrove(texts: Sequence[str]) -> Flags:
    import xxhash
    from datatrove.pipeline.dedup import minhash

    minhash.load_word_tokenizer = lambda language: _Spaces()
    with tempfile.TemporaryDirectory() as folder:
        stage = minhash.MinhashDedupSignature(folder)
        # The same hash, of bytes: xxhash 4 takes no strings.
        stage._hash_func = lambda shingle: xxhash.xxh64_intdigest(shingle.encode())
        seen: set[tuple[int, ...]] = set()
        flags = []
        for text in texts:
            keys = {(band, *rows) for band, rows in
                    enumerate(stage.get_signature(stage.get_shingles(text)))}  # fmt: skip
            flags.append(not keys.isdisjoint(seen))
            seen |= keys
    return flags


CONTESTANTS: Mapping[str, Callable[[Sequence[str]], Flags]] = {
    "gemmule": gemmule,
    "gemmule-112": gemmule_112,
    "rensa": rensa,
    "datasketch": datasketch,
    "datatrove": datatrove,
}


def build(settings: Mapping[str, Any]) -> harness.Handler:
    """A contestant: answers with its flags and its seconds of processor time."""
    texts = json.loads(Path(settings["texts"]).read_text())
    find = CONTESTANTS[settings["mode"]]
    find(texts[:50])

    def handle(request: Mapping[str, Any]) -> harness.Reply:
        began = time.process_time()
        flags = find(texts)
        return {"seconds": time.process_time() - began, "flags": [bool(flag) for flag in flags]}

    return handle


def judged(flags: Flags, similarities: Sequence[float], sets: Sequence[set[str]]) -> dict[str, Any]:
    """Recall on the copies, and false alarms among documents that are none."""
    alike = [flag for flag, s in zip(flags, similarities, strict=True) if s >= 0.8]
    alarms = [n for n, s in enumerate(similarities) if flags[n] and s < 0.5]
    false = sum(
        all(jaccard(sets[n], other) < 0.5 for other in itertools.islice(sets, n)) for n in alarms
    )
    return {"recall": sum(alike) / len(alike), "false_alarms": false, "found": sum(flags)}


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """The whole report."""
    texts, similarities = corpus(200 if args.toy else args.pieces)
    size = sum(len(text.encode()) for text in texts)
    installed = [m for m in args.modes if m.startswith("gemmule") or importlib.util.find_spec(m)]
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        listed = Path(folder) / "texts.json"
        listed.write_text(json.dumps(texts))
        workers = [
            stack.enter_context(harness.Worker(__file__, mode, {"texts": str(listed)}))
            for mode in installed
        ]
        replies, _ = harness.take_turns(workers, args.rounds)
    results, sets = {}, [set(_shingles(text)) for text in texts]
    for mode in installed:
        seconds = harness.median([reply["seconds"] for reply in replies[mode]])
        figures = judged(replies[mode][0]["flags"], similarities, sets)
        results[mode] = {"mb_per_second": harness.rounded(size / 1e6 / seconds), **figures}
    alike = [s for s in similarities if s >= 0.8]
    return {
        "settings": {"rounds": args.rounds, "documents": len(texts), "bytes": size,
                     "copies": sum(s > 0 for s in similarities), "judged": len(alike)},
        "libraries": {m: metadata.version(m) for m in installed if not m.startswith("gemmule")},
        "promised_recall": float(np.mean([1 - (1 - s**ROWS) ** BANDS for s in alike])),
        "contestants": results,
        "gemmule_against": {
            mode: harness.rounded(results["gemmule"]["mb_per_second"] / of["mb_per_second"])
            for mode, of in results.items()
            if mode != "gemmule"
        },
    }  # fmt: skip


def show(report: Mapping[str, Any]) -> None:
    """Prints the report as a table."""
    rows = [
        [
            mode,
            f"{of['mb_per_second']:.3g}",
            f"{report['gemmule_against'].get(mode, 1):.3g}",
            f"{of['recall']:.1%}",
            str(of["false_alarms"]),
        ]
        for mode, of in report["contestants"].items()
    ]
    table(
        ["", "MB/s", "gemmule against it", "recall", "false alarms"], rows,
        title=f"{report['settings']['documents']:,} documents, {report['settings']['judged']} "
        f"copies at 0.8 or more; promised recall {report['promised_recall']:.1%}",
    )  # fmt: skip


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="Example: python bench/near_duplicates.py --json bench/results/near_duplicates.json",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each contestant")
    parser.add_argument("--pieces", type=int, default=2400, help="documents without copies")
    parser.add_argument("--toy", action="store_true", help="few documents: does it work at all?")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    parser.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    return harness.run(args, measure, show, build)


if __name__ == "__main__":
    sys.exit(main())
