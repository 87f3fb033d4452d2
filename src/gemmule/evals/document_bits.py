"""Scores each document of a corpus by the bits per byte that a model needs for it."""

import itertools
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from gemmule import files
from gemmule.console import Progress
from gemmule.data.quality.bands import BITS_EDGES, Bands
from gemmule.data.quality.teacher_bits import ABOUT, TeacherBits, digest
from gemmule.data.sources import Document
from gemmule.errors import ConfigError, DataError
from gemmule.evals.eval_target import EvalTarget
from gemmule.evals.response_cache import ResponseCache
from gemmule.infer.prefix_scoring import ContinuationGroup
from gemmule.runs import lock

REPORT, RESPONSES = "report.json", "bits.unfinished.jsonl"
_AT_ONCE = 64
_CHARACTERS_PER_TOKEN = 16  # more than any tokenizer needs on average


def score_documents(
    target: EvalTarget,
    documents: Iterable[Document],
    *,
    tokens: int = 1024,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Scores documents, and writes their bits per byte and a report to the target's folder.

    Scores are kept as they come: after an interruption the same call continues, and later calls
    score only what is new. A score depends on the document alone.

    Args:
        target: the model, and the folder to write.
        documents: the documents, which are read once.
        tokens: tokens of a document that count, from its beginning on.
        progress: called as progress(done, 0, "documents").

    Returns:
        The report: bands of scores, and what a limit at each would drop.

    Raises:
        ConfigError: for a number of tokens that is too small, or scores of another model there.
        DataError: when there is no document.
    """
    if tokens < 2:
        raise ConfigError(f"tokens is {tokens}: use at least 2")
    tokens = min(tokens, target.lm.config.max_position_embeddings)
    with lock.locked(target.folder):
        depends_on = {**target.cache_key, "tokens": tokens}
        earlier = _earlier(target.folder, depends_on)
        cache = ResponseCache(target.folder / RESPONSES, depends_on)
        bands = Bands(BITS_EDGES)
        scores: dict[int, float] = {}
        for group in _groups(documents):
            known = {} if earlier is None else {d.text: earlier.of(d.text) for d in group}
            _score(target, [d for d in group if known.get(d.text) is None], tokens, cache)
            for document in group:
                key = digest(document.text)
                if key not in scores:
                    score = known.get(document.text)
                    scores[key] = cache.responses[str(key)] if score is None else score
                    bands.add(scores[key], document)
            if progress:
                progress(len(scores), 0, "documents")
        if not scores:
            raise DataError("there is no document to score")
        about = {
            "teacher": target.identity,
            "tokens": tokens,
            "documents": len(scores),
            "depends_on": depends_on,
        }
        made = TeacherBits.made(scores, about)
        report = {**about, "fingerprint": made.fingerprint, "bands": bands.json()}
        files.write_json(target.folder / REPORT, report)
        made.save(target.folder)
        (target.folder / RESPONSES).unlink()
    return report


def _earlier(folder: Path, depends_on: dict[str, Any]) -> TeacherBits | None:
    """Scores that the same call wrote before, perhaps for other documents."""
    if not (folder / ABOUT).is_file():
        return None
    earlier = TeacherBits.open(folder)
    if earlier.about.get("depends_on") != depends_on:
        raise ConfigError(
            f"{folder} has the scores of another model, or with other settings: choose another "
            "--out, or delete it"
        )
    return earlier


def _groups(documents: Iterable[Document]) -> Iterator[list[Document]]:
    usable = (document for document in documents if document.text.strip())
    while group := list(itertools.islice(usable, _AT_ONCE)):
        yield group


def _score(
    target: EvalTarget, documents: Iterable[Document], tokens: int, cache: ResponseCache
) -> None:
    """Adds the scores of those that have none."""
    tokenizer = target.lm.tokenizer
    missing = {digest(document.text): document.text for document in documents}
    texts = {key: text for key, text in missing.items() if str(key) not in cache.responses}
    if not texts:
        return
    ids = [
        tokenizer.encode(text[: _CHARACTERS_PER_TOKEN * tokens], bos=True)[:tokens]
        for text in texts.values()
    ]
    keys = list(texts)
    groups = [ContinuationGroup(own[:1], [own[1:]]) for own in ids]
    entries = []
    for places, results in target.lm.score_continuations(groups):
        for place, (score,) in zip(places, results, strict=True):
            nats = -math.fsum(score.log_probs)
            size = len(tokenizer.decode_bytes(ids[place][1:]))
            entries.append((str(keys[place]), nats / math.log(2) / max(1, size)))
    cache.add(entries)
