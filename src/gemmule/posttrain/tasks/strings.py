"""Small operations on made-up words."""

import random
from collections.abc import Callable

from gemmule.posttrain.tasks.problem import Problem

_CONSONANTS, _VOWELS = "bdfgklmnprstvz", "aeiou"

# Question, with {0} for the words, and the function of the words that answers it.
_QUESTIONS: dict[str, tuple[str, int, Callable[[list[str]], str]]] = {
    "last": ("Which word is last in: {0}?", 3, lambda words: words[-1]),
    "first": ("Which word is first in: {0}?", 3, lambda words: words[0]),
    "backwards": ("Say in reverse order: {0}", 3, lambda words: " ".join(words[::-1])),
    "count": ("How many words are in: {0}?", 0, lambda words: str(len(words))),
    "twice": ("Say twice: {0}", 1, lambda words: f"{words[0]} {words[0]}"),
    "capitals": ("Write in capitals: {0}", 1, lambda words: words[0].upper()),
    "snake": ("Write as one snake_case name: {0}", 2, "_".join),
}


def strings(rng: random.Random) -> Problem:
    """Draws a question on one to five made-up words; one answer is right."""
    name = rng.choice(list(_QUESTIONS))
    question, count, answer_of = _QUESTIONS[name]
    words = [_word(rng) for _ in range(count or rng.randint(1, 5))]
    answer = answer_of(words)
    return Problem(
        question.format(" ".join(words)),
        answer,
        {"verifier": "exact", "answer": answer},
        f"{name} {' '.join(words)}",
    )


def _word(rng: random.Random) -> str:
    syllables = rng.randint(1, 2)
    return "".join(rng.choice(_CONSONANTS) + rng.choice(_VOWELS) for _ in range(syllables))
