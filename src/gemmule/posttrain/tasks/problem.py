"""A problem with an answer that a program can check, and sets of them drawn without overlap."""

import hashlib
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from gemmule.errors import ConfigError

SPLITS = ("train", "heldout")
_HELDOUT = 10  # one problem in ten is held out
_MAX_MISSES = 2000  # draws in a row without a new problem, after which the task has no more


@dataclass(frozen=True)
class Problem:
    """A question, a right answer, and what checks an answer.

    Attributes:
        prompt: the question, as the user's last turn.
        answer: a right answer, for a model to imitate.
        record: what the verifier reads, "verifier" (its name) included.
        key: what makes two problems the same one, such as sorted operands. Problems of one key are
            on one side of the split.
        before: earlier exchanges of the conversation, as (user's turn, model's turn).
    """

    prompt: str
    answer: str
    record: Mapping[str, Any]
    key: str
    before: tuple[tuple[str, str], ...] = ()

    @property
    def split(self) -> str:
        """Where the hash of its key puts it: "train" or "heldout"."""
        digest = hashlib.sha256(self.key.encode()).digest()
        return SPLITS[int.from_bytes(digest[:8], "big") % _HELDOUT == 0]

    def conversation(self) -> dict[str, Any]:
        """The line of a JSONL file, for `gemmule sft` and `gemmule align`."""
        turns = [*self.before, (self.prompt, self.answer)]
        roles = ("user", "assistant")
        messages = [
            {"role": role, "content": content}
            for exchange in turns
            for role, content in zip(roles, exchange, strict=True)
        ]
        return {"messages": messages, **self.record}


Draw = Callable[[random.Random], Problem]


def problems(draw: Draw, name: str, split: str, count: int, seed: int = 0) -> list[Problem]:
    """Different problems of one split, the same ones for the same arguments.

    The first problems of a larger count are those of a smaller one.

    Args:
        draw: draws a problem.
        name: name of the task, part of the seed.
        split: "train" or "heldout".
        count: number of problems.
        seed: seed of the draws.

    Raises:
        ConfigError: for an unknown split, a count below 1, or more problems than the task has.
    """
    if split not in SPLITS:
        raise ConfigError(f"split {split!r}: a task has {' and '.join(SPLITS)}")
    if count < 1:
        raise ConfigError(f"{count} problems: at least 1 is needed")
    chosen: list[Problem] = []
    for problem in _different(draw, f"{name} {split} {seed}", split):
        chosen.append(problem)
        if len(chosen) == count:
            return chosen
    raise ConfigError(
        f"task {name!r} has no more than about {len(chosen)} problems in its {split} split, and "
        f"{count} were asked for"
    )


def _different(draw: Draw, seed: str, split: str) -> Iterator[Problem]:
    """Draws problems of a split until new ones are hard to find."""
    rng = random.Random(seed)
    seen: set[str] = set()
    misses = 0
    while misses < _MAX_MISSES:
        problem = draw(rng)
        if problem.key in seen or problem.split != split:
            misses += 1
            continue
        seen.add(problem.key)
        misses = 0
        yield problem
