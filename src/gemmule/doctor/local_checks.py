"""The checks of a model that runs in this process."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from gemmule.doctor import reference, stress
from gemmule.doctor.bugs import known_bugs
from gemmule.doctor.findings import Finding, property_row
from gemmule.doctor.local import LocalModel
from gemmule.doctor.probe import Probe, distance
from gemmule.doctor.reference import Numerics, Variant
from gemmule.doctor.report import CANNOT_TELL, FAIL, PASS, Row, number
from gemmule.model.config import GemmaConfig

PAD = 0
_EXACT_PARAMETERS = 30_000_000  # the reference is fp64 up to here, fp32 beyond


@dataclasses.dataclass(frozen=True)
class Subject:
    """A model with the weights it has, the prompt it is examined on, and its comparison.

    Attributes:
        name: which weights, for the table.
        model: the model.
        weights: the same weights, for the reference.
        config: its shape.
        ids: the prompt.
        logits: what the model makes of it, [T, V].
        probe: that, compared.
        stressed: small enough for every measurement.
    """

    name: str
    model: LocalModel
    weights: Mapping[str, Tensor]
    config: GemmaConfig
    ids: list[int]
    logits: Tensor
    probe: Probe
    stressed: bool


def subject(
    name: str,
    model: LocalModel,
    weights: Mapping[str, Tensor],
    config: GemmaConfig,
    ids: list[int],
    stressed: bool = True,
    start: int = 0,
    tick: Callable[[], None] = lambda: None,
) -> Subject:
    """Runs `model` on `ids`, from position `start`, and sets the reference against it."""
    got = model.logits(torch.tensor([ids]), start=start)[0]

    def expect(variants: Sequence[Variant], numerics: Numerics) -> list[Tensor]:
        return reference.logits(weights, config, ids, variants, numerics, start, tick)

    exact = config.parameters <= _EXACT_PARAMETERS
    numerics = Numerics(torch.float64 if exact else torch.float32, model.dtype)
    probe = Probe(
        name,
        got,
        expect,
        numerics,
        known_bugs(config),
        measures_effects=stressed,
        pairs=stressed,
    )
    return Subject(name, model, weights, config, ids, got, probe, stressed)


def stressed_subject(
    model: LocalModel, config: GemmaConfig, dtype: torch.dtype, start: int = 0
) -> Subject:
    """A small sibling of `model` with large weights."""
    small = stress.stressed_config(config)
    weights = stress.stressed_weights(small, dtype)
    name = f"stressed weights, {str(dtype).removeprefix('torch.')}"
    if start:
        name = f"{name}, positions from {start}"
    ids = stress.stressed_ids(small)
    return subject(name, model.sibling(small, weights), weights, small, ids, start=start)


def restless_subject(s: Subject) -> Subject:
    """The same shape with weights under which the next token depends on the whole context."""
    weights = stress.restless(s.weights)
    model = s.model.sibling(s.config, weights)
    return subject(f"restless {s.name}", model, weights, s.config, s.ids)


def finite_row(subjects: Sequence[Subject], loud: Tensor) -> Row:
    """No NaN and no Inf.

    Args:
        subjects: their logits are looked at.
        loud: logits of a model whose activations are as large as Gemma 2's, in its dtype.
    """
    parts = {s.name: s.logits for s in subjects} | {"activations beyond 65504": loud}
    bad = {name: int((~x.isfinite()).sum()) for name, x in parts.items()}
    wrong = {name: n for name, n in bad.items() if n}
    total = sum(x.numel() for x in parts.values())
    check = "finite logits"
    if wrong:
        figure = f"{sum(wrong.values()):,} of {total:,}"
        where = ", ".join(wrong)
        return Row(
            check, FAIL, figure,
            f"NaN or Inf with {where}. float16 ends at 65504 and Gemma 2's activations do not: "
            "use bfloat16 or float32.",
        )  # fmt: skip
    return Row(check, PASS, f"{total:,} finite", "no NaN or Inf, with activations beyond 65504 too")


def loud_logits(model: LocalModel, config: GemmaConfig, dtype: torch.dtype) -> Tensor:
    """Logits of a small sibling whose residuals exceed what float16 can hold."""
    small = stress.stressed_config(config)
    weights = stress.loud(stress.stressed_weights(small, dtype))
    tokens = torch.tensor([stress.stressed_ids(small)])
    return model.sibling(small, weights).logits(tokens)


def tied_row(sharp: Subject, model: LocalModel) -> Row:
    """Doubling a token's embedding must move that token's logit.

    Args:
        sharp: a stressed subject.
        model: the user's own, whose head is looked at.
    """
    check = "tied head"
    good = "the head is the embedding"
    token = next(i for i in range(1, sharp.config.vocab_size) if i not in sharp.ids)
    weights = dict(sharp.weights)
    embedding = weights["embed_tokens.weight"].clone()
    embedding[token] *= 2
    weights["embed_tokens.weight"] = embedding
    moved = sharp.model.sibling(sharp.config, weights).logits(torch.tensor([sharp.ids]))[0]
    change = _largest(moved[:, token] - sharp.logits[:, token])
    n = Numerics(activation=sharp.model.dtype)
    expected = reference.logits(weights, sharp.config, sharp.ids, numerics=n)[0]
    effect = _largest(expected[:, token] - sharp.probe.healthy[:, token])
    if not math.isfinite(change):
        return Row(check, CANNOT_TELL, "not finite", "mend the numbers that are not finite first")
    untied = model.untied_head()
    if untied or change < effect / 4:
        return Row(
            check, FAIL, f"moved {number(change)} of {number(effect)}",
            f"{untied or 'the head does not follow the embedding'}. Gemma 2 has no head of its "
            "own: tie it, and drop any lm_head.weight.",
        )  # fmt: skip
    return Row(check, PASS, f"moved {number(change)}; bug 0", good)


def _largest(x: Tensor) -> float:
    return x.double().abs().max().item()


def padding_findings(s: Subject, side: str) -> Finding:
    """A batch of unequal rows, padded on `side`, against each row alone."""
    T = len(s.ids)
    rows = [s.ids[:n] for n in ((T, T * 2 // 3, T // 4) if s.stressed else (T, T // 2))]
    tokens = torch.full((len(rows), T), PAD)
    mask = torch.zeros_like(tokens)
    places = []
    for i, row in enumerate(rows):
        place = slice(T - len(row), T) if side == "left" else slice(0, len(row))
        tokens[i, place], mask[i, place] = torch.tensor(row), 1
        places.append(place)
    padded = s.model.logits(tokens, mask)
    alone = [s.logits[: len(row)] for row in rows]  # causal: a prefix is a row
    errors = [
        distance(padded[i, place], a)
        for i, (place, a) in enumerate(zip(places, alone, strict=True))
    ]
    short = rows[-1]
    pads = [PAD] * (T - len(short))
    effect = None
    if side == "left":  # what comes of seeing the padding
        seen = s.model.logits(torch.tensor([pads + short]))[0, len(pads) :]
        effect = distance(seen, alone[-1])
    elif s.stressed:
        open_ = Variant(causal=False)
        n = Numerics(activation=s.model.dtype)
        seen = reference.logits(s.weights, s.config, short + pads, [open_], n)[0]
        effect = distance(seen[: len(short)], s.probe.healthy[: len(short)])
    return Finding(s.name, max(errors), s.probe.tolerance, effect)


def batch_finding(s: Subject) -> Finding:
    """Rows of one length together, against each alone; through the cache too."""
    other = s.ids[::-1]
    third = s.ids[1:] + s.ids[:1]
    rows = [s.ids, other, third] if s.stressed else [s.ids, other]
    tokens = torch.tensor(rows)
    alone = [s.logits, *(s.model.logits(tokens[i : i + 1])[0] for i in range(1, len(rows)))]
    pairs = list(zip(s.model.logits(tokens), alone, strict=True))
    if s.stressed:
        chunks = _chunks(s, len(s.ids) // 2)
        together = s.model.decode(tokens, chunks)
        pairs += [
            (together[i], s.model.decode(tokens[i : i + 1], chunks)[0]) for i in range(len(rows))
        ]
    error = max(distance(a, b) for a, b in pairs)
    return Finding(s.name, error, s.probe.tolerance, distance(alone[1], alone[0]))


def _chunks(s: Subject, prefill: int) -> list[int]:
    return [prefill] + [1] * (len(s.ids) - prefill)


def decode_findings(s: Subject) -> tuple[list[Finding], list[Finding]]:
    """Cached decoding against the whole row at once.

    Returns:
        What holds while every key is in the window, and what holds beyond.
    """
    T, W = len(s.ids), s.config.sliding_window
    plans = [_chunks(s, T - 8)]
    if s.stressed:
        plans = [_chunks(s, stress.PREFILL), _chunks(s, T // 2), [7, 13, 1, 1, T - 22]]
    within: list[Finding] = []
    beyond: list[Finding] = []
    tokens = torch.tensor([s.ids])
    for chunks in plans:
        got = s.model.decode(tokens, chunks)[0]
        # What a cache that lost the first token would give.
        lost = torch.cat((s.logits[:1], s.model.logits(tokens[:, 1:])[0]))
        for found, part in ((within, slice(1, W)), (beyond, slice(W, T))):
            if part.start >= min(part.stop, T):
                continue
            error = distance(got[part], s.logits[part])
            effect = distance(lost[part], s.logits[part])
            if found is beyond and s.stressed:
                effect = min(
                    distance(e[part], s.probe.healthy[part])
                    for e in s.probe.expected([Variant(window=None), Variant(window=-1)])
                )
            note = _name_of_decode_bug(s, got) if error > s.probe.tolerance else ""
            found.append(Finding(s.name, error, s.probe.tolerance, effect, note))
    return within, beyond


def _name_of_decode_bug(s: Subject, got: Tensor) -> str:
    """What a known bug, present in the cached path alone, would explain."""
    probe = s.probe.with_values(got)
    if not probe.causes:
        return ""
    names = " and the ".join(bug.name for bug in probe.causes)
    return f"With a cache, the {names}."


def generation_finding(s: Subject) -> Finding:
    """Greedy generation of a batch of unequal prompts takes each row's likeliest tokens."""
    T, count = len(s.ids), 12
    prompts = [s.ids[at : at + length] for at, length in enumerate((T * 3 // 4, 13, 8, 5, 3, 2, 1))]
    generated = s.model.complete(prompts, count)
    error = effect = 0.0
    longest = max(map(len, prompts))
    for prompt, ids in zip(prompts, generated, strict=True):
        row = s.model.logits(torch.tensor([[*prompt, *ids]]))[0].double()
        steps = row[len(prompt) - 1 : -1]
        chosen = steps.gather(1, torch.tensor(ids)[:, None])[:, 0]
        error = max(error, _largest(steps.amax(-1) - chosen))
        if len(ids) != count:
            error = math.inf
        pads = [PAD] * (longest - len(prompt))
        seen = s.model.logits(torch.tensor([pads + prompt]))[0, -1]
        effect = max(effect, (steps[0].max() - steps[0, seen.argmax()]).item())
    # One logit of thousands may be several times the root mean square away.
    return Finding(s.name, error, 4 * s.probe.tolerance, effect)


def invariance_rows(subjects: Sequence[Subject], tick: Callable[[str], None]) -> list[Row]:
    """Padding, batches, cache and generation.

    Args:
        subjects: the sharpest first.
        tick: told what comes next.
    """
    rows = []
    for side in ("left", "right"):
        tick(f"{side} padding")
        rows.append(
            property_row(
                f"{side} padding",
                [padding_findings(s, side) for s in subjects],
                f"padding on the {side} changes nothing",
                "padding changes the logits of real tokens: mask it in every layer, and count "
                "positions from the first token",
            )
        )
    tick("batch")
    rows.append(
        property_row(
            "batch invariance",
            [batch_finding(s) for s in subjects],
            "a row in a batch gets what it gets alone",
            "a row's logits depend on the rows beside it",
        )
    )
    tick("cache")
    within, beyond = [], []
    for s in subjects:
        in_window, past_window = decode_findings(s)
        within += in_window
        beyond += past_window
    rows.append(
        property_row(
            "prefill = decode",
            within,
            "step by step through the cache gives what one pass gives",
            "cached decoding gives other logits than one pass over the row",
        )
    )
    rows.append(
        property_row(
            "cache past the window",
            beyond,
            "local layers keep the right keys once the window is full",
            "with a cache, logits are wrong once the text is longer than the window: look at "
            "which keys local layers keep, and at their mask",
        )
    )
    tick("generation")
    rows.append(
        property_row(
            "batched generation",
            [generation_finding(restless_subject(subjects[0]))],
            "greedy generation takes each row's likeliest tokens",
            "generating several prompts at once takes tokens that are not the likeliest",
        )
    )
    return rows
