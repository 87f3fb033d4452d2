"""A game of words whose reward is known: a line with two given words that ends in a given way.

    Use module and option, end in -ing.
    module signal option mapping

The reward is a program, so what a reward model misses of it can be measured. Demonstrations are
mediocre on purpose: a model that imitates them leaves room to improve in every part of the reward.
"""

import random
from collections.abc import Mapping
from typing import Any

from gemmule.posttrain.tasks.problem import Problem

# Frequent words of Python's documentation, most of them one token for a model trained on it.
WORDS: Mapping[str, tuple[str, ...]] = {
    "er": ("number", "header", "order", "parameter", "character", "buffer", "filter", "master",
           "handler", "user", "server", "member"),
    "ing": ("string", "encoding", "mapping", "setting", "running", "threading", "logging",
            "parsing", "reading", "writing", "binding", "matching"),
    "ion": ("option", "function", "exception", "version", "action", "position", "section",
            "extension", "connection", "operation", "expression", "condition"),
    "le": ("file", "module", "tuple", "variable", "example", "title", "table", "style", "locale",
           "iterable", "turtle", "pickle"),
    "al": ("local", "global", "special", "signal", "decimal", "literal", "original", "internal",
           "normal", "total", "initial", "optional"),
}  # fmt: skip
ALL = tuple(word for words in WORDS.values() for word in words)

SHORTEST, LONGEST = 4, 6  # words of a good line
PENALTY = 0.3  # for each word beyond these, and for each repeated one
BEST = 3.0


def gold(answer: str, record: Mapping[str, Any]) -> float:
    """The reward of a line, at most 3.

    One point for each of the two given words, one for a last word that ends as it should, less 0.3
    for each word that is missing to 4 or beyond 6, and for each repetition.

    Args:
        answer: the line.
        record: record["words"] and record["ending"].
    """
    words = answer.split()
    points = sum(word in words for word in record["words"])
    points += bool(words) and words[-1].endswith(record["ending"])
    beyond = max(0, SHORTEST - len(words), len(words) - LONGEST)
    return points - PENALTY * (beyond + len(words) - len(set(words)))


def word_line(rng: random.Random) -> Problem:
    """Draws a prompt with a demonstration.

    The demonstration has 3 to 9 different words; each given word with probability 1/2, and an
    ending that is meant with probability 1/3.
    """
    wanted, ending = rng.sample(ALL, 2), rng.choice(list(WORDS))
    last = rng.choice(WORDS[ending] if rng.random() < 1 / 3 else ALL)
    words = [word for word in wanted if rng.random() < 1 / 2 and word != last]
    others = [word for word in ALL if word not in (*wanted, last)]
    words += rng.sample(others, max(0, rng.randint(2, 8) - len(words)))
    rng.shuffle(words)
    return Problem(
        f"Use {wanted[0]} and {wanted[1]}, end in -{ending}.",
        " ".join([*words, last]),
        {"words": wanted, "ending": ending},
        f"{' '.join(sorted(wanted))} {ending}",
    )
