"""The checks of a model that runs in this process."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from gemmule.doctor import reference, stress
from gemmule.doctor.bugs import Bug, known_bugs
from gemmule.doctor.findings import Finding, property_row, unless
from gemmule.doctor.local import LocalModel
from gemmule.doctor.probe import Probe, distance
from gemmule.doctor.reference import Numerics, Variant
from gemmule.doctor.report import CANNOT_TELL, FAIL, PASS, Check, number
from gemmule.model.config import GemmaConfig

PAD = 0
_EXACT_PARAMETERS = 30_000_000  # the reference is fp64 up to this size, fp32 above
_LIGHT_PARAMETERS = 300_000_000  # passes over larger models cost seconds: few are made


@dataclasses.dataclass(frozen=True)
class TestedModel:
    """A model with its weights, the prompt that it is tested on, and the comparison.

    Attributes:
        name: the weights, for the table.
        model: the model.
        weights: the same weights, for the reference.
        config: its shape.
        ids: the prompt.
        logits: the model's logits for the prompt, [T, V].
        probe: the comparison of these logits with the reference.
        stressed: whether it is small enough for every measurement.
    """

    name: str
    model: LocalModel
    weights: Mapping[str, Tensor]
    config: GemmaConfig
    ids: list[int]
    logits: Tensor
    probe: Probe
    stressed: bool


@dataclasses.dataclass(frozen=True)
class Prompt:
    """Tokens, and the position of the first."""

    ids: list[int]
    start: int = 0


def tested_model(
    name: str,
    model: LocalModel,
    weights: Mapping[str, Tensor],
    config: GemmaConfig,
    prompt: Prompt,
    stressed: bool = True,
    suspects: Sequence[Bug] = (),
    tick: Callable[[], None] = lambda: None,
) -> TestedModel:
    """Runs `model` on a prompt, next to the reference.

    Args:
        name: the weights, for the table.
        model: the model.
        weights: its weights.
        config: its shape.
        prompt: the prompt.
        stressed: whether it is small enough for every measurement.
        suspects: bugs found elsewhere in the implementation.
        tick: called after each layer of the reference.
    """
    ids, start = prompt.ids, prompt.start
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
        pairs=stressed and not start,
        suspects=suspects,
    )
    return TestedModel(name, model, weights, config, ids, got, probe, stressed)


def stressed_model(
    model: LocalModel,
    config: GemmaConfig,
    dtype: torch.dtype,
    start: int = 0,
    suspects: Sequence[Bug] = (),
) -> TestedModel:
    """A small sibling of `model` with large weights."""
    small = stress.stressed_config(config)
    weights = stress.stressed_weights(small, dtype)
    name = f"stressed weights, {str(dtype).removeprefix('torch.')}"
    if start:
        name = f"{name}, positions from {start}"
    prompt = Prompt(stress.stressed_ids(small), start)
    sibling = model.sibling(small, weights)
    return tested_model(name, sibling, weights, small, prompt, suspects=suspects)


def restless_model(s: TestedModel) -> TestedModel:
    """The same shape with weights that make the next token depend on the whole context."""
    weights = stress.restless(s.weights)
    model = s.model.sibling(s.config, weights)
    return tested_model(
        f"restless {s.name}", model, weights, s.config, Prompt(s.ids), suspects=s.probe.causes or ()
    )


def finite_row(tested: Sequence[TestedModel], loud: Tensor) -> Check:
    """No NaN and no Inf.

    Args:
        tested: models whose logits are checked.
        loud: logits of a model whose activations are as large as Gemma 2's, in its dtype.
    """
    parts = {s.name: s.logits for s in tested} | {"activations above 65504": loud}
    bad = {name: int((~x.isfinite()).sum()) for name, x in parts.items()}
    wrong = {name: n for name, n in bad.items() if n}
    total = sum(x.numel() for x in parts.values())
    check = "finite logits"
    if wrong:
        figure = f"{sum(wrong.values()):,} of {total:,}"
        where = ", ".join(wrong)
        return Check(
            check, FAIL, figure,
            f"NaN or Inf with {where}. The maximum of float16 is 65504, and Gemma 2's activations "
            "exceed it: use bfloat16 or float32.",
        )  # fmt: skip
    return Check(
        check, PASS, f"{total:,} finite", "no NaN or Inf, even with activations above 65504"
    )


def loud_logits(model: LocalModel, config: GemmaConfig, dtype: torch.dtype) -> Tensor:
    """Logits of a small sibling whose residuals exceed what float16 can hold."""
    small = stress.stressed_config(config)
    weights = stress.loud(stress.stressed_weights(small, dtype))
    tokens = torch.tensor([stress.stressed_ids(small)])
    return model.sibling(small, weights).logits(tokens)


def tied_row(sharp: TestedModel, model: LocalModel) -> Check:
    """Doubling a token's embedding must move that token's logit.

    Args:
        sharp: a stressed model.
        model: the user's model, whose head is inspected.
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
        return Check(check, CANNOT_TELL, "not finite", "fix the numbers that are not finite first")
    untied = model.untied_head()
    if untied or change < effect / 4:
        return Check(
            check, FAIL, f"moved {number(change)} of {number(effect)}",
            f"{untied or 'the head does not follow the embedding'}. Gemma 2 has no head of its "
            "own: tie it, and drop any lm_head.weight.",
        )  # fmt: skip
    return Check(check, PASS, f"moved {number(change)}; bug 0", good)


def _largest(x: Tensor) -> float:
    return x.double().abs().max().item()


def padding_finding(s: TestedModel, side: str) -> Finding:
    """A row padded on `side` against the row alone."""
    T = len(s.ids)
    errors, effect = [], None
    for length in (T * 2 // 3, T // 4) if s.stressed else (T // 2,):
        row, pads = s.ids[:length], [PAD] * (T - length)
        place = slice(T - length, T) if side == "left" else slice(0, length)
        tokens = torch.tensor([pads + row if side == "left" else row + pads])
        mask = torch.zeros_like(tokens)
        mask[:, place] = 1
        alone = s.logits[:length]  # causal: a prefix is a row
        errors.append(distance(s.model.logits(tokens, mask)[0, place], alone))
    if side == "left":  # what comes of seeing the padding
        effect = distance(s.model.logits(tokens)[0, place], alone)
    elif s.stressed:
        seeing = Variant(causal=False)
        n = Numerics(activation=s.model.dtype)
        seen = reference.logits(s.weights, s.config, tokens[0].tolist(), [seeing], n)[0]
        effect = distance(seen[place], s.probe.healthy[place])
    return Finding(s.name, max(errors), s.probe.own_tolerance, effect)


def batch_finding(s: TestedModel) -> Finding:
    """Rows of one length in a batch against each alone, with and without the cache."""
    other = s.ids[::-1]
    third = s.ids[1:] + s.ids[:1]
    rows = [s.ids, other, third] if s.stressed else [s.ids, other]
    tokens = torch.tensor(rows)
    alone = [s.logits, *(s.model.logits(tokens[i : i + 1])[0] for i in range(1, len(rows)))]
    pairs = list(zip(s.model.logits(tokens), alone, strict=True))
    if s.stressed:
        chunks = _chunks(s, len(s.ids) - 8)
        together = s.model.decode(tokens, chunks)
        pairs += [
            (together[i], s.model.decode(tokens[i : i + 1], chunks)[0]) for i in range(len(rows))
        ]
    error = max(distance(a, b) for a, b in pairs)
    return Finding(s.name, error, s.probe.own_tolerance, distance(alone[1], alone[0]))


def _chunks(s: TestedModel, prefill: int) -> list[int]:
    return [prefill] + [1] * (len(s.ids) - prefill)


def decode_findings(s: TestedModel) -> tuple[list[Finding], list[Finding]]:
    """Cached decoding against the whole row at once.

    Returns:
        Findings while the window fills, and findings once it is full.
    """
    T, W = len(s.ids), s.config.sliding_window
    plans = [_chunks(s, T - 5)]
    if s.stressed:
        plans = [_chunks(s, stress.PREFILL), [7, 13, 1, 1, T - 22]]
    within: list[Finding] = []
    beyond: list[Finding] = []
    tokens = torch.tensor([s.ids])
    for chunks in plans:
        got = s.model.decode(tokens, chunks)[0]
        # Results of a cache that lost the first token.
        lost = torch.cat((s.logits[:1], s.model.logits(tokens[:, 1:])[0]))
        for findings, part in ((within, slice(1, W - 1)), (beyond, slice(W - 1, T))):
            if part.start >= min(part.stop, T):
                continue
            error = distance(got[part], s.logits[part])
            effect = distance(lost[part], s.logits[part])
            if findings is beyond and s.stressed:
                effect = min(
                    distance(e[part], s.probe.healthy[part])
                    for e in s.probe.expected([Variant(window=None), Variant(window=-1)])
                )
            allowed = s.probe.own_tolerance
            note = _name_of_decode_bug(s, got) if error > allowed else ""
            findings.append(Finding(s.name, error, allowed, effect, note))
    return within, beyond


def _name_of_decode_bug(s: TestedModel, got: Tensor) -> str:
    """The known bugs that explain the difference if they are in the cached path alone."""
    probe = s.probe.with_values(got)
    if not probe.causes:
        return ""
    names = " and the ".join(bug.name for bug in probe.causes)
    return f"With a cache, the {names}."


def generation_finding(s: TestedModel) -> Finding:
    """Greedy generation for a batch of unequal prompts takes the most likely tokens."""
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
    # A single logit of thousands may deviate by several times the root mean square.
    return Finding(s.name, error, 4 * s.probe.own_tolerance, effect)


def invariance_rows(tested: Sequence[TestedModel], tick: Callable[[str], None]) -> list[Check]:
    """Padding, batches, cache and generation.

    Args:
        tested: models, the most sensitive first.
        tick: called with the name of the next stage.
    """
    light = [s for s in tested if s.config.parameters <= _LIGHT_PARAMETERS]
    rows = []
    for side, chosen in (("left", tested), ("right", light)):
        tick(f"{side} padding")
        rows.append(
            property_row(
                f"{side} padding",
                [padding_finding(s, side) for s in chosen],
                f"padding on the {side} changes nothing",
                "padding changes the logits of real tokens: mask it in every layer",
            )
        )
    tick("batch")
    rows.append(
        property_row(
            "batch invariance",
            [batch_finding(s) for s in light],
            "a row has the same logits in a batch as alone",
            "a row's logits depend on the other rows of the batch",
        )
    )
    tick("cache")
    within: list[Finding] = []
    beyond: list[Finding] = []
    for s in tested:
        filling, full = decode_findings(s)
        within += filling
        beyond += full
    rows.append(
        property_row(
            "prefill = decode",
            within,
            "decoding through the cache gives the logits of one pass",
            "decoding through the cache gives other logits than one pass over the row.",
        )
    )
    past = property_row(
        "cache past the window",
        beyond,
        "local layers keep the right keys once the window is full",
        "with a cache, logits are wrong once the window is full: check which keys local layers "
        "keep, and their mask",
    )
    rows.append(unless(past, ["prefill = decode"] if rows[-1].result == FAIL else []))
    tick("generation")
    generation = property_row(
        "batched generation",
        [generation_finding(restless_model(tested[0]))],
        "greedy generation takes each row's most likely tokens",
        "generation for a batch of prompts takes tokens that are not the most likely: check "
        "padding and positions during decoding",
    )
    rows.append(unless(generation, [row.check for row in rows if row.result == FAIL]))
    leaking = [bug.check for s in tested for bug in s.probe.causes or () if bug.leaks]
    return [unless(row, leaking) for row in rows]
