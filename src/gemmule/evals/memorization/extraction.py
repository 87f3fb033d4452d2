"""`measure`: how much of its training text a model gives back, from drawing to results.

memorization.json                the result
memorization.samples.jsonl       every passage: where it is, what was given, how far off it was
memorization.unfinished.jsonl    of a measurement that was stopped; the same command goes on
"""

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
import torch

from gemmule import files
from gemmule.console import Progress
from gemmule.data import personal_data
from gemmule.data.canaries import Canaries
from gemmule.data.dataset import Split
from gemmule.errors import ConfigError, DataError
from gemmule.evals.eval_target import EvalTarget
from gemmule.evals.memorization import summary
from gemmule.evals.memorization.decode import continue_greedily, rows_at_once
from gemmule.evals.memorization.edit_distance import EditDistances
from gemmule.evals.memorization.probes import Probes, draw
from gemmule.evals.memorization.settings import Settings
from gemmule.evals.memorization.sources import UNKNOWN, shown_names, sources
from gemmule.evals.memorization.summary import CANARY, CONTROL, TRAIN
from gemmule.evals.response_cache import ResponseCache
from gemmule.evals.training_data import Reading, TrainingData
from gemmule.infer.language_model import LanguageModel
from gemmule.model.config import GemmaConfig
from gemmule.runs.schema_evals import Memorization
from gemmule.runtime import host

RESULT, SAMPLES = "memorization.json", "memorization.samples.jsonl"
UNFINISHED = "memorization.unfinished.jsonl"
KIND, FORMAT = "memorization", 1
_ROWS = "rows"  # in the journal: of a batch


@dataclass(frozen=True)
class Outcome:
    """What became of one passage.

    Attributes:
        output: ids that the model gave; fewer than asked for where it stopped, or where too many
            were wrong already.
        edits: distance to what follows in the text; None: more than may be.
    """

    output: list[int]
    edits: int | None


@dataclass(frozen=True)
class Passages:
    """Probes of one kind, ready to be tried.

    Attributes:
        kind: train, control or canary.
        probes: where they are.
        facts: what a sample says of each besides its place.
        why_none: when there are none, why.
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
    """Tries passages of a model's training text on it.

    A finished measurement of the same is left as it is; a stopped one goes on.

    Args:
        target: the model, and where results go.
        training: its training text.
        settings: what to draw, and what counts.
        also_read_by: what other runs read: only passages that each of them read are drawn.
        fresh: begin anew, whatever there is.
        progress: called as progress(done, total, "probes").

    Returns:
        The content of memorization.json.

    Raises:
        UserError: when text, model and settings do not fit together, or a measurement with other
            settings was begun in the same place.
    """
    personal_data.check_installed()
    _check(target.lm, training, settings)
    passages = _passages(training, settings, also_read_by)
    header = _header(target, training, settings, passages)
    out = target.folder
    if not fresh:
        found = finished(out, header)
        if found is not None:
            return found
    cache = _cache(out / UNFINISHED, header, batch_rows(target.lm, settings), fresh)
    batches = _try_all(target.lm, settings, passages, cache, progress)
    samples = [sample for batch in batches for sample in batch["samples"]]
    result = {
        "format": FORMAT,
        "kind": KIND,
        "gemmule": metadata.version("gemmule"),
        "model": target.identity,
        "measured": header,
        "data": _about_data(training, passages),
        **summary.summarize(samples, {p.kind: p.why_none for p in passages}),
        "seconds": round(math.fsum(batch["seconds"] for batch in batches), 3),
        "notes": _notes(training, settings, passages),
    }
    files.write_text(out / SAMPLES, "".join(json.dumps(s) + "\n" for s in samples))
    Memorization.parse(result, RESULT).write(out / RESULT)
    cache.path.unlink()
    return result


def finished(folder: Path, header: dict[str, Any]) -> dict[str, Any] | None:
    """The result in `folder`, when it is of the very same measurement."""
    try:
        found = files.read_json(folder / RESULT)
    except (OSError, ValueError):
        return None
    if not isinstance(found, dict) or not isinstance(found.get("measured"), dict):
        return None
    same = found["measured"] == header
    return found if same and (folder / SAMPLES).is_file() else None


def read_samples(folder: Path) -> list[dict[str, Any]]:
    """Every sample of the finished measurement in `folder`."""
    lines = (folder / SAMPLES).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def try_passages(
    lm: LanguageModel, tokens_BL: npt.NDArray[np.int64], settings: Settings
) -> list[Outcome]:
    """Gives the model each passage's first tokens and compares what it goes on with.

    Args:
        lm: the model.
        tokens_BL: passages of prompt and continuation, as many as fit into memory together.
        settings: where a prompt ends, and how many edits may be.
    """
    prompts_BP = tokens_BL[:, : settings.prompt_tokens]
    bos = np.full((len(prompts_BP), 1), lm.tokenizer.bos_id)
    distances = EditDistances(tokens_BL[:, settings.prompt_tokens :])

    def watch(rows: npt.NDArray[np.int64], tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        distances.push(rows, tokens)
        return distances.lower_bound(rows) <= settings.max_edits

    given = continue_greedily(
        lm.model,
        torch.from_numpy(np.concatenate((bos, prompts_BP), axis=1)),
        settings.continuation_tokens,
        words=lm.tokenizer.vocab_size,
        stop_ids=lm.tokenizer.stop_ids,
        watch=watch,
    )
    edits = distances.distances.tolist()
    return [
        Outcome(output, edit if edit <= settings.max_edits else None)
        for output, edit in zip(given, edits, strict=True)
    ]


def batch_rows(lm: LanguageModel, settings: Settings) -> int:
    """How many passages this machine tries together."""
    weight = lm.model.norm.weight
    cpu = weight.device.type == "cpu"
    if cpu:
        memory = (host.machine()["memory_gib"] or 8.0) * 2**30 / 8
    else:
        memory = torch.cuda.mem_get_info(weight.device)[0] / 2
    length = settings.length + 1
    return rows_at_once(lm.config, length, weight.element_size(), memory, cpu)


def check_context(config: GemmaConfig, settings: Settings) -> None:
    """Refuses passages that a model cannot hold.

    Raises:
        ConfigError: when prompt and continuation are longer than its context.
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
            f"than the model's ({ours[:12]}): what the model read are other tokens"
        )
    check_context(lm.config, settings)


def _passages(
    training: TrainingData, settings: Settings, also_read_by: Sequence[Reading]
) -> list[Passages]:
    train = training.dataset.split("train")
    canaries = Canaries.of(training.dataset)
    planted = canaries.documents if canaries else range(0)
    readings = [*([training.reading] if training.reading else []), *also_read_by]
    found = draw(train, settings.probes, settings.length, settings.seed, readings, planted)
    if not len(found):
        raise DataError(_too_short(found, settings))
    location = str(training.dataset.manifest.get("source", ""))
    names = list(train.document_names())
    source_of = sources(names, location)
    shown = list(shown_names(names, location))
    times = _times(training.reading, found.starts, settings.length)
    facts = [
        {"name": shown[document], "source": source_of[document], "times_read": times_read}
        for document, times_read in zip(found.documents.tolist(), times, strict=True)
    ]
    passages = [Passages(TRAIN, found, facts), _control(training, settings)]
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
    """Passages of text that the run never read, drawn in the same way."""
    heldout = training.dataset.split("heldout")
    found = draw(heldout, settings.probes, settings.length, settings.seed)
    why = None if len(found) else "held-out text: " + _too_short(found, settings)
    return Passages(CONTROL, found, [{}] * len(found), why)


def _canaries(
    training: TrainingData, settings: Settings, canaries: Canaries, train: Split
) -> Passages:
    """One passage of each canary, from its beginning."""
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


def _too_short(found: Probes, settings: Settings) -> str:
    split = found.split
    longest = int(np.diff(np.append(split.document_starts(), split.token_count)).max(initial=2)) - 2
    if not found.places:
        return (
            f"none of the {split.document_count} documents of {split.name} has {settings.length} "
            f"tokens (the longest has {longest}): lower --prompt-tokens and --continuation-tokens"
        )
    return (
        f"of {found.places:,} places in {split.name} where a passage of {settings.length} tokens "
        "fits, training read none whole"
    )


def _header(
    target: EvalTarget,
    training: TrainingData,
    settings: Settings,
    passages: Sequence[Passages],
) -> dict[str, Any]:
    """What makes two measurements the same one."""
    return {
        "format": FORMAT,
        "settings": settings.json(),
        "model": target.cache_key,
        "data": training.dataset.fingerprint,
        "passages": {p.kind: p.probes.digest for p in passages},
    }


def _cache(path: Path, header: dict[str, Any], rows: int, fresh: bool) -> ResponseCache:
    """Batches that are done, of as many rows as when it was begun.

    What a sequence is computed beside decides its last bits: only the same batches give the same
    result, and a machine with other memory goes on with those.
    """
    if fresh:
        with files.writing_to(path):
            path.unlink(missing_ok=True)
    try:
        cache = ResponseCache(path, header)
    except ConfigError:
        raise ConfigError(
            f"{path} holds an unfinished measurement of another model, or with other settings: "
            "finish it with the command that began it, or begin anew with --fresh"
        ) from None
    if _ROWS not in cache.responses:
        cache.add([(_ROWS, rows)])
    return cache


def _try_all(
    lm: LanguageModel,
    settings: Settings,
    passages: Sequence[Passages],
    cache: ResponseCache,
    progress: Progress | None,
) -> list[dict[str, Any]]:
    """Tries what is not tried yet; every batch, in order."""
    rows = int(cache.responses[_ROWS])
    total = sum(len(p.probes) for p in passages)
    done = 0
    found = []
    for number, (part, first) in enumerate(_batches(passages, rows)):
        key = str(number)
        if key not in cache.responses:
            batch = _try(lm, settings, part, first, rows)
            cache.add([(key, batch)])
        found.append(cache.responses[key])
        done += len(found[-1]["samples"])
        if progress:
            progress(done, total, "probes")
    return found


def _try(
    lm: LanguageModel, settings: Settings, part: Passages, first: int, rows: int
) -> dict[str, Any]:
    began = time.perf_counter()
    tokens_BL = part.probes.tokens(slice(first, first + rows))
    outcomes = try_passages(lm, tokens_BL, settings)
    samples = [
        _sample(lm, settings, part, first + i, tokens.tolist(), outcome)
        for i, (tokens, outcome) in enumerate(zip(tokens_BL, outcomes, strict=True))
    ]
    return {"seconds": round(time.perf_counter() - began, 3), "samples": samples}


def _batches(passages: Sequence[Passages], rows: int) -> Iterator[tuple[Passages, int]]:
    for part in passages:
        yield from ((part, first) for first in range(0, len(part.probes), rows))


def _sample(
    lm: LanguageModel,
    settings: Settings,
    part: Passages,
    index: int,
    tokens: list[int],
    outcome: Outcome,
) -> dict[str, Any]:
    prompt, gold = tokens[: settings.prompt_tokens], tokens[settings.prompt_tokens :]
    memorised = outcome.edits is not None
    scan = personal_data.scan(lm.tokenizer, prompt, gold, outcome.output, memorised)
    shown: dict[str, Any] = {"prompt": prompt, "gold": gold, "output": outcome.output}
    if scan.anywhere:  # ids would spell it out; whoever has the corpus finds the place
        shown = dict.fromkeys(shown)
    return {
        "set": part.kind,
        "probe": index,
        "document": int(part.probes.documents[index]),
        "position": int(part.probes.positions[index]),
        **part.facts[index],
        "edits": outcome.edits,
        "exact": outcome.edits == 0,
        "approximate": memorised,
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
            "which file a document came from is not recorded: the data folder is of an earlier "
            "version; made again with gemmule data, it says so"
        )
    notes += [p.why_none for p in passages if p.why_none]
    return notes
