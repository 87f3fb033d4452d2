"""What a recipe did: the funnel of each source, examples of what fell out, and the manifest."""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from gemmule.data.corpus import SPLITS
from gemmule.data.dataset import FORMAT, TOKENS_BY
from gemmule.data.prepare import describe_split, fingerprint_of
from gemmule.data.recipe.documents import KINDS, read_documents
from gemmule.data.recipe.funnel import Example, add, fewest
from gemmule.data.recipe.sharding import read_shards
from gemmule.data.recipe.stage import Stage
from gemmule.data.recipe.work import Work
from gemmule.data.records import no_field
from gemmule.errors import DataError
from gemmule.model.tokenizer import Tokenizer

FUNNEL = "funnel.json"
_SHOWN = 3  # names kept of each reason in the manifest


def funnels(work: Work) -> dict[str, dict[str, Any]]:
    """The funnel of each source, up to the stages that are about all documents at once.

    Raises:
        DataError: when nothing was read from a source, or nothing is left of it.
    """
    of_source: dict[str, dict[str, Any]] = {}
    left_out: dict[str, Counter[str]] = {}
    fields: dict[str, dict[str, None]] = {}
    for unit in work.units:
        of_source.setdefault(unit.source, {"read": [0, 0], "stages": {}, "lengths": {}})
        record = work.unit_record(unit)
        left_out.setdefault(unit.source, Counter()).update(record["left_out"])
        fields.setdefault(unit.source, {}).update(dict.fromkeys(record["fields"]))
    for chunk in work.chunks():
        add(of_source[chunk.source], chunk.record()["funnel"])
    for settings in work.recipe.sources:
        name, total = settings.name, of_source[settings.name]
        if not total["read"][0]:
            if fields[name]:
                raise DataError(
                    no_field(str(settings.path), settings.field or "text", fields[name])
                )
            reasons = ", ".join(f"{count:,} {why}" for why, count in left_out[name].items())
            raise DataError(
                f"source {name!r}: no text in {settings.path} ({reasons or 'it is empty'}): "
                "correct its path and field, or remove it"
            )
        if not _left(total)[0]:
            raise DataError(
                f"source {name!r}: nothing is left of {total['read'][0]:,} documents: "
                f"{_reasons(total)}: relax the stages that dropped them, or remove the source"
            )
    return of_source


def _left(funnel: Mapping[str, Any]) -> list[int]:
    """Documents and bytes after the last stage."""
    last: list[int] = list(funnel["stages"].values())[-1]["passed"]
    return last


def _reasons(funnel: Mapping[str, Any]) -> str:
    counts: Counter[str] = Counter()
    for name, stage in funnel["stages"].items():
        for reason, (documents, _) in stage["dropped"].items():
            counts[f"{reason} ({name})"] += documents
    return ", ".join(f"{count:,} {reason}" for reason, count in counts.most_common(5))


def full_funnel(work: Work, stages: Sequence[Stage], tokens: Mapping[str, int]) -> dict[str, Any]:
    """The whole funnel, as funnel.json holds it.

    Args:
        work: the recipe at work, all phases done.
        stages: its stages.
        tokens: number of tokens of each source.
    """
    record, _ = read_documents(work)
    sources = funnels(work)
    for name, total in sources.items():
        counted = record["totals"][name]
        dropped = {why: counted[why] for why in KINDS.values() if counted[why][0]}
        kept = [sum(counted[split][i] for split in SPLITS) for i in range(2)]
        total["stages"]["near_duplicates"] = {"passed": kept, "dropped": dropped, "counts": {}}
        total["splits"] = {split: counted[split] for split in SPLITS}
        total["tokens"] = tokens[name]
    whole: dict[str, Any] = {}
    for total in sources.values():
        add(whole, total)
    return {
        "stages": ["read", *(stage.name for stage in stages), "near_duplicates"],
        "total": whole,
        "sources": sources,
        "near_duplicates": record["near_duplicates"],
        "examples": [*_examples(work), *record["examples"]],
    }


def _examples(work: Work) -> list[dict[str, Any]]:
    examples: list[Example] = []
    for chunk in work.chunks():
        own = (Example(**each) for each in chunk.record()["examples"])
        examples = fewest([*examples, *own])
    return [dataclasses.asdict(example) for example in examples]


def manifest_of(
    work: Work,
    tokenizer: Tokenizer,
    plan: Mapping[str, Any],
    stages: Sequence[Stage],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The manifest, and the funnel; shards are verified first.

    Raises:
        DataError: when a phase is not done or a shard is not what was written.
    """
    entries = read_shards(work)
    tokens = Counter[str]()
    for _, entry in entries:
        tokens.update(entry[TOKENS_BY]["source"])
    record, _ = read_documents(work)
    funnel = full_funnel(work, stages, tokens)
    splits = {
        name: describe_split([entry for split, entry in entries if split == name])
        for name in SPLITS
    }
    dropped = Counter(work.left_out)
    notes: list[str] = []
    shown: dict[str, list[str]] = {}
    for unit in work.units:
        unit_record = work.unit_record(unit)
        dropped.update(unit_record["left_out"])
        notes += unit_record["notes"]
        for reason, names in unit_record["left_out_examples"].items():
            shown.setdefault(reason, []).extend(names)
    for stage in funnel["total"]["stages"].values():
        dropped.update({why: count for why, (count, _) in stage["dropped"].items()})
    for example in funnel["examples"]:
        shown.setdefault(example["reason"], []).append(example["key"])
    sources = {
        s.name: {
            "license": s.license,
            "path": str(s.path),
            "documents": _left(funnel["sources"][s.name])[0],
            "bytes": _left(funnel["sources"][s.name])[1],
            "tokens": tokens[s.name],
        }
        for s in work.recipe.sources
    }
    manifest = {
        **plan,
        "format": FORMAT,
        "source_fingerprint": record["fingerprint"],
        "fingerprint": fingerprint_of(splits, tokenizer),
        "source": ", ".join(str(s.path) for s in work.recipe.sources),
        "field": work.recipe.sources[0].field or "text",
        "in_sections": any(unit.in_sections for unit in work.units),
        "vocab_size": tokenizer.vocab_size,
        "shard_bytes": record["shard_bytes"],
        "splits": splits,
        "near_duplicates": record["near_duplicates"],
        "dropped": dict(dropped),
        "dropped_examples": {reason: names[:_SHOWN] for reason, names in shown.items()},
        "notes": list(dict.fromkeys(notes)),
        "sources": sources,
        "recipe": {
            # Who has the key can undo placeholders by trying, and a manifest is passed on.
            "settings": work.recipe.without_secrets().model_dump(mode="json", exclude_none=True),
            "stages": [
                {"name": stage.name, "fingerprint": stage.fingerprint, **stage.about()}
                for stage in stages
            ],
            "funnel": {
                name: {key: stage[key] for key in ("passed", "dropped", "counts")}
                for name, stage in funnel["total"]["stages"].items()
            },
            "read": funnel["total"]["read"],
        },
    }
    return manifest, funnel
