"""Checks of an OpenAI-compatible completions endpoint, as far as it allows them.

It returns only log-probabilities, and only for the weights that it serves: of the whole text if
the server supports `echo`, otherwise of the most likely tokens after several prefixes.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from gemmule.console import ProgressBar
from gemmule.doctor import reference
from gemmule.doctor.bugs import known_bugs
from gemmule.doctor.findings import Finding, logit_rows, property_row, unless
from gemmule.doctor.local import GemmuleText, weights_of
from gemmule.doctor.probe import MARGIN, Probe, distance
from gemmule.doctor.reference import Numerics, Variant
from gemmule.doctor.report import CANNOT_TELL, FAIL, NOT_TESTED, PASS, Check, number
from gemmule.doctor.text_checks import BOS, PROSE, ids_row, published_row
from gemmule.errors import ConfigError
from gemmule.infer.language_model import LanguageModel
from gemmule.teachers.completions import CompletionServer, Refused

_EXACT_PARAMETERS = 30_000_000
_FLOPS = 1.5e11  # budget of one reference pass; every known bug costs one
_DECODED = 12
_PREFIXES = (3, 9, 17, 29)  # tokens, where echo is not supported
_TOP = 5


class _Measured:
    """Log-probabilities from an endpoint, and how to read the same ones from logits.

    Attributes:
        values: the log-probabilities, [n, 1].
        ids: tokens of the prompt, without <bos>.
        select: takes logits of [<bos>] * k + ids, and k, and returns log-probabilities [n, 1].
    """

    def __init__(self, values: Tensor, ids: list[int], select: Callable[[Tensor, int], Tensor]):
        self.values, self.ids, self.select = values, ids, select


def examine(client: CompletionServer, lm: LanguageModel, dtype: torch.dtype) -> list[Check]:
    """Runs every check that an endpoint allows.

    Args:
        client: the server.
        lm: the same checkpoint in this process, for the reference.
        dtype: dtype that the server is assumed to compute in.

    Raises:
        ConfigError: when the server returns no log-probabilities.
    """
    config = lm.config
    with ProgressBar("examining", 6, "steps") as bar:
        bar.update(0, "log-probabilities")
        ids = _prompt_ids(lm)
        text = lm.tokenizer.decode(ids)
        measured = _echoed(client, lm, text) or _after_prefixes(client, lm, ids)
        bar.update(1, "reference")
        probes = {k: _probe(lm, measured, k, dtype) for k in (1, 0, 2)}
        count = _bos_count(probes)
        probe = probes[count]
        bar.update(2, "known bugs")
        rows = logit_rows([probe])
        bar.update(3, "decoding")
        wrong = [rows[-1].check] if rows[-1].result == FAIL else []
        decode = unless(_decode_row(client, lm, dtype, count), wrong)
        rows_after = [_batch_row(client, lm, text, probe), decode]
        bar.update(5, "text")
        bos = _bos_row(probes, count)
    untestable = [
        Check(check, NOT_TESTED, "", f"an endpoint offers no way to test it: {what}")
        for check, what in {
            "tied head": "the head is the embedding",
            "left padding": "padding on the left changes nothing",
            "right padding": "padding on the right changes nothing",
            "markers in user text": "a user cannot forge a turn",
        }.items()
    ]
    finite = Check(
        "finite logits",
        PASS,
        f"{measured.values.numel()} finite",
        "no log-probability is NaN",
    )
    if not bool(measured.values.isfinite().all()):
        finite = Check("finite logits", FAIL, "", "it answers with NaN or Inf")
    return [
        *rows[:-1], untestable[0], *untestable[1:3], *rows_after, finite,
        published_row(config), bos, ids_row(GemmuleText(lm)), untestable[3], rows[-1],
    ]  # fmt: skip


def _prompt_ids(lm: LanguageModel) -> list[int]:
    """Ids of a text that the reference can afford, longer than the window if possible."""
    config = lm.config
    afford = int(_FLOPS / (2 * config.parameters))
    wanted = min(config.sliding_window + 40, 512)
    room = config.max_position_embeddings - _DECODED - 4
    length = max(min(wanted, afford, room), min(24, room))
    prose = lm.tokenizer.encode(PROSE)
    # Decoding and encoding again may give other ids; the ids of the text are the ones to use.
    text = lm.tokenizer.decode((prose * (length // len(prose) + 1))[:length])
    return lm.tokenizer.encode(text)


def _choices(
    client: CompletionServer, prompt: str | list[str], **settings: Any
) -> list[dict[str, Any]]:
    """The choices of one completion; empty if the server refuses these settings."""
    try:
        return client.complete(prompt, **settings)
    except Refused:
        return []


def _echoed(client: CompletionServer, lm: LanguageModel, text: str) -> _Measured | None:
    """The log-probability of every token of a text, if the server supports echo."""
    for extra in (0, 1):
        choices = _choices(client, text, echo=True, logprobs=1, max_tokens=extra)
        if choices and choices[0].get("logprobs"):
            break
    else:
        return None
    given = choices[0]["logprobs"].get("token_logprobs") or []
    ids = lm.tokenizer.encode(text)
    # <bos> comes first, and with max_tokens=1 a generated token comes last.
    pieces = choices[0]["logprobs"].get("tokens") or []
    while len(pieces) == len(given) and len(given) > extra and _is_bos(pieces[0]):
        pieces, given = pieces[1:], given[1:]
    given = given[: len(given) - extra] if len(given) == len(ids) + extra else given
    if len(given) != len(ids):
        return None
    values = torch.tensor([math.nan if x is None else float(x) for x in given[1:]])

    def select(logits_TV: Tensor, bos: int) -> Tensor:
        log_probs = logits_TV[bos : bos + len(ids) - 1].log_softmax(-1)
        return log_probs.gather(1, torch.tensor(ids[1:])[:, None])

    return _Measured(values[:, None].double(), ids, select)


def _is_bos(piece: str) -> bool:
    return piece in ("<bos>", f"token_id:{BOS}")


def _after_prefixes(client: CompletionServer, lm: LanguageModel, ids: list[int]) -> _Measured:
    """The log-probabilities of the most likely tokens after several prefixes."""
    values, places = [], []
    for length in (*_PREFIXES, len(ids)):
        prefix = ids[:length]
        text = lm.tokenizer.decode(prefix)
        if length > len(ids) or lm.tokenizer.encode(text) != prefix:
            continue
        for piece, value in _top(client, text).items():
            token = _id_of(lm, piece)
            if token is not None:
                values.append(value)
                places.append((length - 1, token))
    if not values:
        raise ConfigError(
            f"{client.url}/completions returns no log-probabilities of tokens in the local "
            "model's vocabulary: is it the same model, and does the server support logprobs?"
        )

    def select(logits_TV: Tensor, bos: int) -> Tensor:
        log_probs = logits_TV.log_softmax(-1)
        return torch.stack([log_probs[bos + at, token] for at, token in places])[:, None]

    return _Measured(torch.tensor(values).double()[:, None], ids, select)


def _top(client: CompletionServer, text: str) -> dict[str, float]:
    choices = _choices(client, text, logprobs=_TOP, max_tokens=1)
    logprobs = (choices or [{}])[0].get("logprobs") or {}
    top = logprobs.get("top_logprobs") or [{}]
    return {str(piece): float(value) for piece, value in (top[0] or {}).items()}


def _id_of(lm: LanguageModel, piece: str) -> int | None:
    """The id of a token from its text; None if that is not a single token."""
    if piece.startswith("token_id:"):
        return int(piece.removeprefix("token_id:"))
    ids = lm.tokenizer.encode(piece.replace("\u2581", " "))
    return ids[0] if len(ids) == 1 else None


def _probe(lm: LanguageModel, measured: _Measured, bos: int, dtype: torch.dtype) -> Probe:
    weights = weights_of(lm)
    ids = [BOS] * bos + measured.ids
    known = measured.values.isfinite()[:, 0]

    def expect(variants: Sequence[Variant], numerics: Numerics) -> list[Tensor]:
        results = reference.logits(weights, lm.config, ids, variants, numerics)
        return [measured.select(logits, bos)[known] for logits in results]

    exact = lm.config.parameters <= _EXACT_PARAMETERS
    numerics = Numerics(torch.float64 if exact else torch.float32, dtype)
    return Probe(
        "the served weights",
        measured.values[known],
        expect,
        numerics,
        known_bugs(lm.config),
        pairs=exact,
    )


def _bos_count(probes: dict[int, Probe]) -> int:
    """Number of <bos> that explains the results: one, unless only another number does."""
    if probes[1].error <= probes[1].tolerance:
        return 1
    return next((k for k in (0, 2) if probes[k].error <= probes[k].tolerance), 1)


def _bos_row(probes: dict[int, Probe], count: int) -> Check:
    check = "one <bos>"
    figure = ", ".join(number(probes[k].error) for k in (0, 1, 2))
    tolerance = probes[count].tolerance
    if count != 1:
        how = {0: "without <bos>", 2: "with two <bos>"}[count]
        return Check(
            check, FAIL, figure,
            f"its results are those of the text {how}. Let the server add exactly one "
            "(distance with none, one, two).",
        )  # fmt: skip
    gap = min(distance(probes[k].healthy, probes[1].healthy) for k in (0, 2))
    unexplained = probes[1].error > tolerance and probes[1].causes is None
    if gap <= MARGIN * tolerance or unexplained:
        return Check(check, CANNOT_TELL, figure, "another number of <bos> would not show")
    return Check(check, PASS, figure, "a text gets exactly one (distance with 0, 1, 2)")


def _batch_row(client: CompletionServer, lm: LanguageModel, text: str, probe: Probe) -> Check:
    good = "a prompt has the same log-probabilities in a batch as alone"
    other = lm.tokenizer.decode(lm.tokenizer.encode(text)[::-1])[: len(text) // 2]
    settings = {"logprobs": 1, "max_tokens": 4}
    alone = _choices(client, text, **settings)
    reverse = _choices(client, other, **settings)
    batch = _choices(client, [text, other], **settings)
    if not alone or not reverse or not batch or len(batch) != 2:
        return property_row("batch invariance", [], good, "")
    rows = [_token_logprobs(c) for c in (alone[0], reverse[0], *batch)]
    if len({len(row) for row in rows}) != 1 or not rows[0]:
        return property_row("batch invariance", [], good, "")
    first, second, *both = (torch.tensor(row)[:, None] for row in rows)
    error = max(distance(both[0], first), distance(both[1], second))
    finding = Finding("the served weights", error, probe.own_tolerance, distance(first, second))
    bad = "a prompt's log-probabilities depend on the other prompts of the batch"
    return property_row("batch invariance", [finding], good, bad)


def _token_logprobs(choice: dict[str, Any]) -> list[float]:
    return [float(x) for x in (choice.get("logprobs") or {}).get("token_logprobs") or []]


def _decode_row(client: CompletionServer, lm: LanguageModel, dtype: torch.dtype, bos: int) -> Check:
    """Log-probabilities while generating, against one pass over prompt and answer."""
    check, good = "prefill = decode", "generated tokens have the log-probabilities of one pass"
    prompt = _prompt_ids(lm)
    text = lm.tokenizer.decode(prompt)
    choices = _choices(client, text, logprobs=1, max_tokens=_DECODED)
    given = (choices or [{}])[0].get("logprobs") or {}
    pieces = [_id_of(lm, str(p)) for p in given.get("tokens") or []]
    if None in pieces or len(pieces) < 2:
        return property_row(check, [], good, "")
    ids = [*prompt, *(p for p in pieces if p is not None)]
    values = torch.tensor([float(x) for x in given["token_logprobs"]]).double()[:, None]
    start = len(prompt) - 1

    def select(logits_TV: Tensor, bos: int) -> Tensor:
        log_probs = logits_TV[bos + start : -1].log_softmax(-1)
        return log_probs.gather(1, torch.tensor(ids[start + 1 :])[:, None])

    probe = _probe(lm, _Measured(values, ids, select), bos, dtype)
    cut = reference.logits(weights_of(lm), lm.config, ids[start:])[0]
    effect = distance(select(torch.cat((cut.new_zeros(bos + start, cut.shape[1]), cut)), bos),
                      probe.healthy)  # fmt: skip
    # A known bug that is in both passes is reported by its own row.
    error = probe.error if probe.causes is None else probe.unexplained
    finding = Finding("the served weights", error, probe.own_tolerance, effect)
    return property_row(check, [finding], good, "decoding gives other log-probabilities than one "
                        "pass over the text")  # fmt: skip
