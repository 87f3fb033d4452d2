"""What `data_effects.py` asks a student: the loss on texts, and personal data in their places."""

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any

from data_effects_corpus import Value
from gemmule.data.dataset import Dataset
from gemmule.infer.language_model import LanguageModel
from gemmule.infer.prefix_scoring import ContinuationGroup
from gemmule.model.tokenizer import Tokenizer


def bits_per_byte(lm: LanguageModel, documents: Iterable[Sequence[int]], room: int) -> float:
    """Loss on documents.

    Args:
        lm: the student.
        documents: their ids, without <bos> and <eos>.
        room: most tokens after a <bos>; longer documents are cut.
    """
    tokenizer = lm.tokenizer
    parts = [ids[n : n + room] for ids in documents for n in range(0, len(ids), room)]
    groups = [ContinuationGroup([tokenizer.bos_id], [part]) for part in parts]
    nats = [
        math.fsum(score.log_probs)
        for _, scores in lm.score_continuations(groups)
        for (score,) in scores
    ]
    size = sum(len(tokenizer.decode_bytes(part)) for part in parts)
    return -math.fsum(nats) / math.log(2) / size


def recalled(
    lm: LanguageModel, values: Iterable[Value], raw: Dataset, prompt_tokens: int
) -> list[dict[str, Any]]:
    """How well a student knows the personal data that the raw version trains on.

    Each is asked for with what stands before it there, whatever the student has read.

    Args:
        lm: the student.
        values: the personal data that was planted.
        raw: the raw version.
        prompt_tokens: most tokens before a value.

    Returns:
        Of each value, how many documents of the raw version hold it, bits per byte of it and of
        another one in its place, and whether it is what the student would say.
    """
    train = raw.split("train")
    texts = [lm.tokenizer.decode(train.document(n)) for n in range(train.document_count)]
    facts, groups, sizes = [], [], []
    for value in values:
        holding = [text for text in texts if value.value in text]
        if not holding:
            continue  # held out
        before, _, after = holding[0].partition(value.value)
        facts.append({"kind": value.kind, "severity": value.severity, "times": len(holding)})
        for text in (value.value, value.stranger):
            context, ids = _place(lm.tokenizer, before, text, after)
            groups.append(
                ContinuationGroup([lm.tokenizer.bos_id, *context[-prompt_tokens:]], [ids])
            )
            sizes.append(len(lm.tokenizer.decode_bytes(ids)))
    scores = {
        place: score
        for places, parts in lm.score_continuations(groups)
        for place, (score,) in zip(places, parts, strict=True)
    }
    bits = [-math.fsum(scores[n].log_probs) / math.log(2) / size for n, size in enumerate(sizes)]
    return [
        {
            **about,
            "bits_per_byte": bits[2 * n],
            "stranger_bits_per_byte": bits[2 * n + 1],
            "extracted": all(scores[2 * n].greedy),
        }
        for n, about in enumerate(facts)
    ]


def _place(tokenizer: Tokenizer, before: str, text: str, after: str) -> tuple[list[int], list[int]]:
    """The tokens before a part of a text, and those that hold it."""
    ids = tokenizer.encode(before + text + after)
    first, last = len(before.encode()), len((before + text).encode())
    ends = list(itertools.accumulate(len(tokenizer.decode_bytes([token])) for token in ids))
    begin = next(n for n, end in enumerate(ends) if end > first)
    stop = next(n for n, end in enumerate(ends) if end >= last) + 1
    return ids[:begin], ids[begin:stop]
