"""What a token boundary reveals, by summing over all texts of a small language.

The language has three bytes, a known distribution over texts of up to seven, and two tokenizers
that split it differently. The tokens' probabilities follow from those of the texts exactly, so both
"models" know the same: a correct comparison finds no difference between them.
"""

import functools
import itertools
import math
import random
import re
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from gemmule.losses.head import Head
from gemmule.losses.span_likelihood import (
    NO_SPAN,
    joined_with_spaces,
    span_log_likelihoods,
    span_matching,
)
from gemmule.teachers.alignment import Aligned, align
from gemmule.teachers.any_tokenizer import AnyTokenizer

LONGEST = 7
BOS, EOS = 0, 1


class Toy(AnyTokenizer):
    """Splits before spaces, then takes the longest piece from the left."""

    def __init__(self, *pieces: str) -> None:
        self.bos, self.eos = BOS, EOS
        self.texts = ["", "", "a", "b", " ", *pieces]

    def encode(self, text: str) -> list[int]:
        return [i for part in re.findall(r" *[ab]+| +", text) for i in self._split(part)]

    def _split(self, part: str) -> list[int]:
        ids = []
        while part:
            fitting = [text for text in self.texts if text and part.startswith(text)]
            ids.append(self.texts.index(max(fitting, key=len)))
            part = part[len(self.texts[ids[-1]]) :]
        return ids

    def token_bytes(self, ids: Sequence[int]) -> list[bytes]:
        return [self.texts[i].encode() for i in ids]


@functools.cache
def language() -> dict[str, float]:
    """A distribution over all texts; how likely a byte is depends on the two before it."""
    pick = random.Random(0)
    weights = {
        pair: [pick.random() + 0.05 for _ in "ab $"] for pair in itertools.product("^ab ", repeat=2)
    }
    texts = {}
    for length in range(LONGEST + 1):
        for letters in itertools.product("ab ", repeat=length):
            p, context = 1.0, ("^", "^")
            for letter in [*letters, "$"]:
                options = weights[context]
                p *= options["ab $".index(letter)] / sum(options)
                context = (context[1], letter)
            texts["".join(letters)] = p
    total = math.fsum(texts.values())
    return {text: p / total for text, p in texts.items()}


def begins(condition: Callable[[str], bool]) -> float:
    return math.fsum(p for text, p in language().items() if condition(text))


class Exact:
    """The language model that a tokenizer turns the language into."""

    def __init__(self, tokenizer: Toy) -> None:
        self.tokenizer = tokenizer
        self._sums: dict[tuple[int, ...], float] = {}
        for text, p in language().items():
            ids = (*tokenizer.encode(text), EOS)
            for stop in range(len(ids) + 1):
                self._sums[ids[:stop]] = self._sums.get(ids[:stop], 0.0) + p

    def log_p(self, ids: Sequence[int]) -> list[float]:
        """Log-probability of each token given those before it."""
        sums = [self._sums[tuple(ids[:stop])] for stop in range(len(ids) + 1)]
        return [math.log(b / a) for a, b in itertools.pairwise(sums)]

    def log_space(self, ids: Sequence[int]) -> float:
        """Log-probability that the next token begins with a space."""
        before = tuple(ids)
        inside = math.fsum(
            self._sums.get((*before, i), 0.0)
            for i, text in enumerate(self.tokenizer.texts)
            if text.startswith(" ")
        )
        return math.log(inside / self._sums[before])


exact = functools.cache(Exact)
ONE, OTHER = Toy("ab", " a", "bb", "aba"), Toy("ba", " ab", "aa", "  ")
TEXTS = ["aba ba", "ab aab", "b bb a", "a  ba a", "abab", "aa ab b", " ab ba", "ab  ab"]


def likelihoods(aligned: Aligned, ids: Sequence[int], ours: bool, model: Exact) -> Tensor:
    """Log-likelihood of each span, as the objective computes it."""
    spans = aligned.student_spans if ours else aligned.teacher_spans
    cuts = aligned.student_cuts if ours else aligned.teacher_cuts
    tokens = [*ids[1:]]  # <bos> is given
    log_p_N = torch.tensor(model.log_p(tokens), dtype=torch.float64)
    sums_S = span_log_likelihoods(log_p_N, torch.tensor(spans[1:]), aligned.spans)
    places = [j for j, cut in enumerate(cuts) if cut]
    log_space_C = torch.tensor(
        [model.log_space(ids[1 : j + 1]) for j in places], dtype=torch.float64
    )
    following = [*spans[1:], NO_SPAN]
    return joined_with_spaces(
        sums_S,
        log_space_C,
        torch.tensor([spans[j] for j in places], dtype=torch.long),
        torch.tensor([following[j] for j in places], dtype=torch.long),
    )


def both(text: str, *, at_spaces: bool) -> tuple[Aligned, Tensor, Tensor]:
    ids = [BOS, *ONE.encode(text), EOS]
    aligned = align(ids, ONE, OTHER, at_spaces=at_spaces)
    student_S = likelihoods(aligned, ids, True, exact(ONE))
    teacher_S = likelihoods(aligned, aligned.teacher_ids, False, exact(OTHER))
    return aligned, student_S, teacher_S


def test_the_language_is_what_it_should_be() -> None:
    assert math.fsum(language().values()) == pytest.approx(1)
    for tokenizer in (ONE, OTHER):
        for text in language():
            assert b"".join(tokenizer.token_bytes(tokenizer.encode(text))) == text.encode()
    assert ONE.encode("abab") != OTHER.encode("abab")


@pytest.mark.parametrize("text", TEXTS)
def test_corrected_both_tokenizers_agree_on_every_span(text: str) -> None:
    aligned, student_S, teacher_S = both(text, at_spaces=True)
    assert aligned.spans >= 1
    torch.testing.assert_close(student_S, teacher_S, rtol=0, atol=1e-9)
    assert span_matching(student_S, teacher_S, 1.0).item() == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("text", TEXTS)
def test_corrected_a_span_has_the_probability_of_its_bytes(text: str) -> None:
    aligned, student_S, _ = both(text, at_spaces=True)
    cuts = [m.end() for m in re.finditer(r"[ab](?= )", text)]
    bounds = list(itertools.pairwise([0, *cuts, len(text) + 1]))
    assert len(bounds) == aligned.spans

    def reached(stop: int) -> float:
        if stop > len(text):
            return language()[text]
        return 1.0 if stop == 0 else begins(lambda other: other.startswith(text[:stop] + " "))

    expected = [math.log(reached(stop) / reached(start)) for start, stop in bounds]
    torch.testing.assert_close(
        student_S, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-9
    )


def test_uncorrected_they_differ_though_they_know_the_same() -> None:
    differences = []
    for text in TEXTS:
        _, student_S, teacher_S = both(text, at_spaces=False)
        differences.append(float((student_S - teacher_S).abs().max()))
    assert max(differences) > 0.1


def test_log_mass_and_its_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(n, 6, generator=generator).double() for n in (11, 20))
    inside = torch.rand(17, generator=generator) < 0.3
    results = []
    for chunk in (None, 4):
        x_, weight_ = (t.float().requires_grad_() for t in (x, weight))
        mass = Head(weight_, 5.0, 17, chunk).log_mass(x_, inside)
        mass.square().sum().backward()
        results.append((mass.detach().double(), x_.grad.double(), weight_.grad.double()))
    x_, weight_ = x.requires_grad_(), weight.requires_grad_()
    p = (5.0 * torch.tanh(x_ @ weight_[:17].T / 5.0)).softmax(-1)
    mass = p[:, inside].sum(-1).log()
    mass.square().sum().backward()
    for result in results:
        for got, expected in zip(result, (mass.detach(), x_.grad, weight_.grad), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
