"""`measure`: how much of its training text a model reproduces, from drawing passages to results.

memorization.json                the result
memorization.samples.jsonl       every passage: where it is, the model's output, its distance
memorization.unfinished.jsonl    response cache of a measurement that was stopped; the same command
                                 resumes it

Passages are continued by the engine on a batch-invariant runner, so a sample does not depend on the
other passages, on how many run together, or on where a measurement was stopped.
"""

import itertools
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gemmule import files
from gemmule.console import Progress
from gemmule.data import personal_data
from gemmule.data.canaries import Canaries
from gemmule.data.dataset import Split
from gemmule.errors import ConfigError, DataError
from gemmule.evals.eval_target import EvalTarget
from gemmule.evals.memorization import summary
from gemmule.evals.memorization.edit_distance import EditDistances
from gemmule.evals.memorization.probes import Probes, draw
from gemmule.evals.memorization.settings import Settings
from gemmule.evals.memorization.sources import UNKNOWN, shown_names, sources
from gemmule.evals.memorization.summary import CANARY, CONTROL, TRAIN
from gemmule.evals.response_cache import ResponseCache
from gemmule.evals.training_data import Reading, TrainingData
from gemmule.infer.core.cache_size import affordable_pages
from gemmule.infer.core.pages import max_pages
from gemmule.infer.core.request import Request
from gemmule.infer.core.sampling import SamplingParams
from gemmule.infer.driver import Engine
from gemmule.infer.language_model import LanguageModel
from gemmule.infer.runners.choose import make_batch_runner
from gemmule.model.config import GemmaConfig
from gemmule.runs.schema_evals import Memorization

RESULT, SAMPLES = "memorization.json", "memorization.samples.jsonl"
UNFINISHED = "memorization.unfinished.jsonl"
KIND, FORMAT = "memorization", 1
_MAX_ROWS = 256  # passages that run together; more do not make it faster
_PART = 8192  # passages whose tokens are in memory at once
_SAVE_SECONDS = 1.0


@dataclass(frozen=True)
class Outcome:
    """Result for one passage.

    Attributes:
        output: ids that the model generated; fewer than asked for if it stopped, or if too many
            were wrong already.
        edits: edit distance to what follows in the text; None: more than are allowed.
    """

    output: list[int]
    edits: int | None


@dataclass(frozen=True)
class Passages:
    """Passages of one kind.

    Attributes:
        kind: train, control or canary.
        probes: places of the passages.
        facts: further fields of each passage's sample.
        why_none: the reason if there is no passage.
    """

    kind: str
    probes: Probes
    facts: Sequence[dict[str, Any]]
    why_none: str | None = None


def measure(
    target: EvalTarget,
    training: TrainingData,
    settings: Settings,
    *,
    also_read_by: Sequence[Reading] = (),
    fresh: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measures how much of its training text a model reproduces.

    A finished measurement with the same settings is left as it is; a stopped one is resumed.

    Args:
        target: the model, and the folder for results.
        training: its training text.
        settings: which passages to draw, and what counts as memorized.
        also_read_by: text that other runs read; only passages that all of them read are drawn.
        fresh: start again, even if there is a result.
        progress: called as progress(done, total, "probes").

    Returns:
        The content of memorization.json.

    Raises:
        UserError: if text, model and settings do not fit together, or a measurement with other
            settings was begun in the same folder.
    """
    personal_data.check_installed()
    _check(target.lm, training, settings)
    passages = _passages(training, settings, also_read_by)
    header = _header(target, training, settings, passages)
    out = target.folder
    if not fresh:
        result = finished(out, header)
        if result is not None:
            return result
    cache = _response_cache(out / UNFINISHED, header, fresh)
    entries = _try_all(target.lm, settings, passages, cache, progress)
    samples = [entry["sample"] for entry in entries]
    result = {
        "format": FORMAT,
        "kind": KIND,
        "gemmule": metadata.version("gemmule"),
        "model": target.identity,
        "measured": header,
        "data": _about_data(training, passages),
        **summary.summarize(samples, {p.kind: p.why_none for p in passages}),
        "seconds": round(math.fsum(entry["seconds"] for entry in entries), 3),
        "notes": _notes(training, settings, passages),
    }
    files.write_text(out / SAMPLES, "".join(json.dumps(s) + "\n" for s in samples))
    Memorization.parse(result, RESULT).write(out / RESULT)
    cache.path.unlink()
    return result


def finished(folder: Path, header: dict[str, Any]) -> dict[str, Any] | None:
    """Returns the result in `folder` if it is that of the same measurement, else None."""
    try:
        result = files.read_json(folder / RESULT)
    except (OSError, ValueError):
        return None
    if not isinstance(result, dict) or not isinstance(result.get("measured"), dict):
        return None
    same = result["measured"] == header
    return result if same and (folder / SAMPLES).is_file() else None


def read_samples(folder: Path) -> list[dict[str, Any]]:
    """Returns all samples of the finished measurement in `folder`."""
    lines = (folder / SAMPLES).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


class Extractor:
    """Lets a model continue the beginnings of passages, many together.

    Attributes:
        rows: how many passages run together; outcomes do not depend on it.
    """

    def __init__(self, lm: LanguageModel, settings: Settings, rows: int | None = None) -> None:
        """Makes an engine with a pool of pages for `rows` passages.

        Args:
            lm: the model; its weights are read, not copied.
            settings: where a prompt ends, and how many edits are allowed.
            rows: how many passages to run together; None: as many as are of use and fit in memory.
        """
        self._settings, self._tokenizer = settings, lm.tokenizer
        runner = make_batch_runner(lm.model)
        # <bos> takes one place, and the last token is never read.
        pages = max_pages(settings.length, lm.config.sliding_window) + 2
        self.rows = rows or max(1, min(_MAX_ROWS, affordable_pages(runner) // pages))
        cache_bytes = self.rows * pages * runner.page_bytes
        self._engine = Engine(runner, lm.tokenizer, cache_bytes=cache_bytes)

    def outcomes(self, tokens_BL: npt.NDArray[np.int64]) -> Iterator[tuple[int, Outcome]]:
        """Continues each passage's first tokens, and compares with what follows in the text.

        A passage is given up as soon as its distance must end above `settings.max_edits`.

        Args:
            tokens_BL: passages of prompt and continuation.

        Yields:
            For each passage, in the order in which they end, its row in `tokens_BL` and the
            outcome.
        """
        settings, tokenizer, engine = self._settings, self._tokenizer, self._engine
        params = SamplingParams(temperature=0.0, max_new_tokens=settings.continuation_tokens)
        distances = EditDistances(tokens_BL[:, settings.prompt_tokens :])
        waiting = iter(enumerate(tokens_BL[:, : settings.prompt_tokens].tolist()))
        running: dict[int, int] = {}
        outputs: dict[int, list[int]] = {}
        while True:
            for row, prompt in itertools.islice(waiting, self.rows - len(running)):
                running[engine.submit(Request([tokenizer.bos_id, *prompt], params))] = row
                outputs[row] = []
            if not running:
                return
            updates = [
                (output.request_id, running[output.request_id], output.ids, output.finished)
                for output in engine.step()
                if output.request_id in running
            ]
            # A step gives each passage at most one token.
            new = [(row, ids[0]) for _, row, ids, _ in updates if ids]
            new = [(row, token) for row, token in new if token not in tokenizer.stop_ids]
            for row, token in new:
                outputs[row].append(token)
            if new:
                distances.push(*np.array(new).T)
            changed = np.array([row for _, row, _, _ in updates], np.int64)
            hopeless = distances.lower_bound(changed) > settings.max_edits
            for (request_id, row, _, ended), lost in zip(updates, hopeless.tolist(), strict=True):
                if not (ended or lost):
                    continue
                engine.cancel(request_id)  # does nothing if it has ended
                del running[request_id]
                edits = int(distances.distances[row])
                within = edits <= settings.max_edits
                yield row, Outcome(outputs.pop(row), edits if within else None)


def check_context(config: GemmaConfig, settings: Settings) -> None:
    """Checks that passages fit into a model's context.

    Raises:
        ConfigError: if prompt and continuation are longer than the context.
    """
    context = config.max_position_embeddings
    if settings.length > context:  # <bos> takes one place, and the last token is never read
        raise ConfigError(
            f"{settings.prompt_tokens} tokens of prompt and {settings.continuation_tokens} of "
            f"continuation do not fit into this model's context of {context}: fewer of both "
            "(prompt_tokens, continuation_tokens) are needed"
        )


def _check(lm: LanguageModel, training: TrainingData, settings: Settings) -> None:
    ours, theirs = lm.tokenizer.fingerprint, training.dataset.manifest["tokenizer"]
    if ours != theirs:
        raise DataError(
            f"{training.dataset.path} was made with another tokenizer (fingerprint {theirs[:12]}) "
            f"than the model's ({ours[:12]}): the model read other tokens"
        )
    check_context(lm.config, settings)


def _passages(
    training: TrainingData, settings: Settings, also_read_by: Sequence[Reading]
) -> list[Passages]:
    train = training.dataset.split("train")
    canaries = Canaries.of(training.dataset)
    planted = canaries.documents if canaries else range(0)
    readings = [*([training.reading] if training.reading else []), *also_read_by]
    probes = draw(train, settings.probes, settings.length, settings.seed, readings, planted)
    if not len(probes):
        raise DataError(_too_short(probes, settings))
    location = str(training.dataset.manifest.get("source", ""))
    names = list(train.document_names())
    source_of = sources(names, location)
    shown = list(shown_names(names, location))
    times = _times(training.reading, probes.starts, settings.length)
    facts = [
        {"name": shown[document], "source": source_of[document], "times_read": times_read}
        for document, times_read in zip(probes.documents.tolist(), times, strict=True)
    ]
    passages = [Passages(TRAIN, probes, facts), _control(training, settings)]
    if canaries is not None:
        passages.append(_canaries(training, settings, canaries, train))
    return passages


def _times(
    reading: Reading | None, starts: npt.NDArray[np.int64], length: int
) -> list[int] | list[None]:
    if reading is None:
        return [None] * len(starts)
    times: list[int] = reading.of_spans(starts, length).tolist()
    return times


def _control(training: TrainingData, settings: Settings) -> Passages:
    """Draws passages of text that the run never read, in the same way."""
    heldout = training.dataset.split("heldout")
    probes = draw(heldout, settings.probes, settings.length, settings.seed)
    why = None if len(probes) else "held-out text: " + _too_short(probes, settings)
    return Passages(CONTROL, probes, [{}] * len(probes), why)


def _canaries(
    training: TrainingData, settings: Settings, canaries: Canaries, train: Split
) -> Passages:
    """Takes one passage of each canary, from its beginning."""
    documents = np.array([canaries.document_of(n) for n in range(len(canaries.repeats))])
    starts = train.document_starts()[documents] + 1
    lengths = np.array([len(train.document(n)) - 2 for n in documents.tolist()])
    enough = bool((lengths >= settings.length).all())
    if not enough:
        documents, starts = documents[:0], starts[:0]
    zeros = np.zeros(len(documents), np.int64)
    count = len(documents)
    probes = Probes(train, settings.length, documents, zeros, starts, count, count)
    facts = [{"repeats": repeats} for repeats in canaries.repeats][:count]
    why = None if enough else f"canaries are shorter than {settings.length} tokens"
    if training.reading is not None:
        # A canary is in the data several times; what counts is how often any of them was read.
        times = np.zeros(len(canaries.repeats), np.int64)
        every = train.document_starts()[list(canaries.documents)] + 1
        np.add.at(times, list(canaries.numbers), training.reading.of_spans(every, settings.length))
        facts = [{**fact, "times_read": n} for fact, n in zip(facts, times.tolist(), strict=False)]
    return Passages(CANARY, probes, facts, why)


def _too_short(probes: Probes, settings: Settings) -> str:
    split = probes.split
    longest = int(np.diff(np.append(split.document_starts(), split.token_count)).max(initial=2)) - 2
    if not probes.places:
        return (
            f"none of the {split.document_count} documents of {split.name} has {settings.length} "
            f"tokens (the longest has {longest}): lower --prompt-tokens and --continuation-tokens"
        )
    return (
        f"of {probes.places:,} places in {split.name} where a passage of {settings.length} tokens "
        "fits, training read none whole"
    )


def _header(
    target: EvalTarget,
    training: TrainingData,
    settings: Settings,
    passages: Sequence[Passages],
) -> dict[str, Any]:
    """Everything that a measurement depends on: equal headers give equal results."""
    return {
        "format": FORMAT,
        "settings": settings.json(),
        "model": target.cache_key,
        "data": training.dataset.fingerprint,
        "passages": {p.kind: p.probes.digest for p in passages},
    }


def _response_cache(path: Path, header: dict[str, Any], fresh: bool) -> ResponseCache:
    """Opens the samples that are there already, by passage."""
    if fresh:
        with files.writing_to(path):
            path.unlink(missing_ok=True)
    try:
        return ResponseCache(path, header)
    except ConfigError:
        raise ConfigError(
            f"{path} holds an unfinished measurement of another model, or with other settings: "
            "finish it with the command that began it, or start again with --fresh"
        ) from None


def _try_all(
    lm: LanguageModel,
    settings: Settings,
    passages: Sequence[Passages],
    cache: ResponseCache,
    progress: Progress | None,
) -> list[dict[str, Any]]:
    """Tries the passages that are not in the cache; returns all entries in order."""
    keys = [[f"{part.kind}:{i}" for i in range(len(part.probes))] for part in passages]
    total = sum(map(len, keys))
    done = sum(key in cache.responses for part_keys in keys for key in part_keys)
    if done < total:
        extractor = Extractor(lm, settings)
    for part, part_keys in zip(passages, keys, strict=True):
        missing = np.array(
            [i for i, key in enumerate(part_keys) if key not in cache.responses], np.int64
        )
        for first in range(0, len(missing), _PART):
            chosen = missing[first : first + _PART]
            tokens_BL = part.probes.tokens(chosen)
            outcomes = extractor.outcomes(tokens_BL)
            for entries in _saved_together(lm, settings, part, chosen, tokens_BL, outcomes):
                cache.add((part_keys[entry["sample"]["probe"]], entry) for entry in entries)
                done += len(entries)
                if progress:
                    progress(done, total, "probes")
    return [cache.responses[key] for part_keys in keys for key in part_keys]


def _saved_together(
    lm: LanguageModel,
    settings: Settings,
    part: Passages,
    chosen: npt.NDArray[np.int64],
    tokens_BL: npt.NDArray[np.int64],
    outcomes: Iterator[tuple[int, Outcome]],
) -> Iterator[list[dict[str, Any]]]:
    """Makes samples of outcomes, and groups those of about a second, to be saved together."""
    samples: list[dict[str, Any]] = []
    began = time.perf_counter()
    for row, outcome in outcomes:
        tokens = tokens_BL[row].tolist()
        samples.append(_sample(lm, settings, part, int(chosen[row]), tokens, outcome))
        if time.perf_counter() - began > _SAVE_SECONDS:
            yield _entries(samples, began)
            samples, began = [], time.perf_counter()
    if samples:
        yield _entries(samples, began)


def _entries(samples: Sequence[dict[str, Any]], began: float) -> list[dict[str, Any]]:
    seconds = (time.perf_counter() - began) / len(samples)
    return [{"seconds": round(seconds, 6), "sample": sample} for sample in samples]


def _sample(
    lm: LanguageModel,
    settings: Settings,
    part: Passages,
    index: int,
    tokens: list[int],
    outcome: Outcome,
) -> dict[str, Any]:
    prompt, gold = tokens[: settings.prompt_tokens], tokens[settings.prompt_tokens :]
    memorized = outcome.edits is not None
    scan = personal_data.scan(lm.tokenizer, prompt, gold, outcome.output, memorized)
    shown: dict[str, Any] = {"prompt": prompt, "gold": gold, "output": outcome.output}
    if scan.anywhere:  # ids would spell it out; the place in the corpus is enough
        shown = dict.fromkeys(shown)
    return {
        "set": part.kind,
        "probe": index,
        "document": int(part.probes.documents[index]),
        "position": int(part.probes.positions[index]),
        **part.facts[index],
        "edits": outcome.edits,
        "exact": outcome.edits == 0,
        "approximate": memorized,
        "personal": scan.in_text,
        "personal_recalled": scan.recalled,
        **shown,
    }


def _about_data(training: TrainingData, passages: Sequence[Passages]) -> dict[str, Any]:
    dataset, (train, control) = training.dataset, passages[:2]
    return {
        "name": dataset.name,
        "licence": dataset.licence,
        "fingerprint": dataset.fingerprint,
        "train_tokens": train.probes.split.token_count,
        "places": train.probes.places,
        "places_read": train.probes.allowed,
        "control_places": control.probes.places,
    }


def _notes(training: TrainingData, settings: Settings, passages: Sequence[Passages]) -> list[str]:
    train = passages[0]
    notes = list(training.notes)
    if len(train.probes) < settings.probes:
        notes.append(
            f"there are only {len(train.probes):,} passages of {settings.length} tokens: all were "
            f"tried, and {settings.probes:,} were asked for"
        )
    if any(fact["source"] == UNKNOWN for fact in train.facts):
        notes.append(
            "the data folder is of an earlier version, which did not record the file that each "
            "document came from: make it again with gemmule data to have sources"
        )
    notes += [p.why_none for p in passages if p.why_none]
    return notes
