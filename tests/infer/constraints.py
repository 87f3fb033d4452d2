"""A constraint that is a plain function of the tokens so far, and requests with every setting."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from gemmule.infer.core.constraint import Mask, mask_of
from gemmule.infer.core.request import Request


@dataclass
class PlainConstraint:
    """Allows the ids that a formula over the tokens so far gives, and notes what it is not asked.

    Attributes:
        vocab_size: number of ids.
        kind: 0 to 3 allow from few ids to nearly all; 4 sometimes none.
        length: number of tokens after which it is finished; None: never.
        stops: ids that it allows after every second token.
        tokens: accepted tokens.
    """

    vocab_size: int
    kind: int
    length: int | None = None
    stops: Sequence[int] = ()
    tokens: list[int] = field(default_factory=list)

    @property
    def finished(self) -> bool:
        return self.length is not None and len(self.tokens) >= self.length

    def allowed(self, tokens: Sequence[int]) -> set[int]:
        ids = np.arange(self.vocab_size)
        mixed = (ids * 40503 + sum(tokens) * 1009 + len(tokens) * 31) % 65521
        if self.kind == 4 and len(tokens) > 1 and sum(tokens) % 5 == 0:
            return set()
        chosen = mixed % (7, 3, 4, 50, 2)[self.kind]
        kept = chosen == 0 if self.kind < 2 else chosen != 0
        ends = self.stops if len(tokens) % 2 else ()
        return {*ids[kept].tolist(), *ends} - (set() if ends else set(self.stops))

    def fork(self) -> "PlainConstraint":
        return replace(self, tokens=[*self.tokens])

    def fill_mask(self, draft_tokens: Sequence[int], mask_W: Mask) -> None:
        assert not self.finished
        assert not mask_W.any()
        tokens = [*self.tokens]
        for token in draft_tokens:
            assert token in self.allowed(tokens)
            assert token not in self.stops
            tokens.append(token)
            assert self.length is None or len(tokens) <= self.length
        if self.length is None or len(tokens) < self.length:
            mask_W[:] = mask_of([*self.allowed(tokens)], self.vocab_size)

    def accept(self, token: int) -> None:
        assert not self.finished
        assert token in self.allowed(self.tokens)
        assert token not in self.stops
        self.tokens.append(token)


def with_every_setting(
    rng: random.Random, request: Request, vocab_size: int, stops: Sequence[int]
) -> Request:
    """Returns a request with some of the settings that change logits, masks and ends."""
    most = request.params.max_new_tokens
    some_ids = rng.sample(range(vocab_size), min(5, vocab_size))
    params = replace(
        request.params,
        presence_penalty=rng.choice([0.0, 0.0, 1.5, -0.5]),
        frequency_penalty=rng.choice([0.0, 0.0, 0.7]),
        logit_bias=rng.choice([{}, {}, {i: rng.uniform(-9, 4) for i in some_ids}]),
        min_tokens=rng.choice([0, 0, rng.randint(0, most)]),
        ignore_eos=rng.random() < 0.1,
        n=rng.choice([1, 1, 1, 2, 3]),
        prompt_logprobs=rng.choice([None, None, None, 0, 3]),
    )
    constraint = None
    if rng.random() < 0.4:
        length = rng.choice([None, rng.randint(1, 12)])
        constraint = PlainConstraint(vocab_size, rng.randrange(5), length, stops)
    return replace(request, params=params, constraint=constraint)


def alone(request: Request) -> list[Request]:
    """Returns a request for each sample of a request."""
    params = replace(request.params, n=1)
    return [
        replace(request, params=params, row=request.row + sample)
        for sample in range(request.params.n)
    ]


def next_ids(
    constraint: PlainConstraint | None,
    generated: Sequence[int],
    ids: set[int],
    text: set[int],
    stops: set[int],
    early: bool,
) -> set[int] | None:
    """Returns the ids that may come next, by the definition; None: all."""
    if constraint is None:
        return ids - stops if early else None
    allowed = constraint.allowed(generated) & (text | stops)
    return (allowed - stops or allowed) if early else allowed
