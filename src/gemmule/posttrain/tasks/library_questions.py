"""Questions about definitions in Python's own library, in one to three turns.

The definition's line stands in the question, so an answer can be read off it: the questions ask for
reading, not for remembering, and a model can be tested on modules that it has never seen. The one
exception is what a definition does, which is answered by its docstring and cannot be checked.
"""

import hashlib
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from gemmule.posttrain.tasks.definitions import Definition, library_definitions
from gemmule.posttrain.tasks.problem import Problem

_HELDOUT = 10  # one module in ten is held out
_LATER = 0.4  # probability that another question about the same definition follows
_GREETING = ("Hello", "Hello! Show me a line that defines something in Python, and ask about it.")
_GREETED = 0.04  # fraction of conversations that begin with a greeting
_ORDINALS = ("first", "second", "third")


@dataclass(frozen=True)
class Family:
    """A kind of question.

    Attributes:
        name: name of the kind.
        first: wordings as a first question, before the definition's line.
        later: wordings once the line has been shown.
        answer: answers it; None where it cannot be asked. Takes the definition and a draw.
        checked: whether there is only one right answer.
    """

    name: str
    first: tuple[str, ...]
    later: tuple[str, ...]
    answer: Callable[[Definition, random.Random], "Answered | None"]
    checked: bool = True


@dataclass(frozen=True)
class Answered:
    """An answer, and the word that its question mentions, in place of {0}."""

    text: str
    about: str = ""


@dataclass(frozen=True)
class Questions:
    """All questions of a seed.

    Attributes:
        train: conversations of the modules that are not held out.
        heldout: conversations of the others, one for each definition.
        modules: number of modules, by split.
        left_out: number of held-out definitions whose line is also in a module for training.
    """

    train: Sequence[Problem]
    heldout: Sequence[Problem]
    modules: dict[str, int]
    left_out: int


def library_questions(seed: int = 0, definitions: Iterable[Definition] | None = None) -> Questions:
    """Makes a conversation for each different definition of the library.

    Whole modules are held out, selected by the hash of their names. A definition whose line also
    stands in a module for training is not among the held-out ones.

    Args:
        seed: seed of the choice of questions.
        definitions: what to ask about; None: the whole library.

    Raises:
        DataError: when this Python was installed without its library's source.
    """
    by_split: dict[str, dict[str, Definition]] = {"train": {}, "heldout": {}}
    modules: dict[str, set[str]] = {"train": set(), "heldout": set()}
    for definition in definitions or library_definitions():
        split = split_of(definition.module)
        by_split[split].setdefault(definition.line, definition)
        modules[split].add(definition.module)
    both = by_split["heldout"].keys() & by_split["train"].keys()
    made = {
        split: [
            conversation
            for line, definition in matches.items()
            if split == "train" or line not in both
            for conversation in _conversation(definition, split, seed)
        ]
        for split, matches in by_split.items()
    }
    counts = {split: len(names) for split, names in modules.items()}
    return Questions(made["train"], made["heldout"], counts, len(both))


def split_of(module: str) -> str:
    """The split of a module: of its top-level package or file, so that relatives stay together."""
    top = module.split("/", maxsplit=1)[0].removesuffix(".py")
    digest = hashlib.sha256(top.encode()).digest()
    return "heldout" if int.from_bytes(digest[:8], "big") % _HELDOUT == 0 else "train"


def _conversation(definition: Definition, split: str, seed: int) -> Iterator[Problem]:
    """One conversation about a definition, unless nothing can be asked about it."""
    rng = random.Random(f"{seed} {definition.line}")
    families = [f for f in FAMILIES if f.checked or split == "train"]
    rng.shuffle(families)
    exchanges: list[tuple[str, str]] = []
    last: Family | None = None
    for family in families:
        if exchanges and rng.random() >= _LATER:
            break
        answered = family.answer(definition, rng)
        if answered is None:
            continue
        wording = rng.choice(family.later if exchanges else family.first)
        wording = wording.format(answered.about, kind=definition.kind)
        question = wording if exchanges else f"{wording}\n{definition.line}"
        exchanges.append((question, answered.text))
        last = family
        if len(exchanges) == 3:
            break
    if last is None:
        return
    if rng.random() < _GREETED:
        exchanges.insert(0, _GREETING)
    *before, (prompt, answer) = exchanges
    record = {
        "task": "library",
        "family": last.name,
        "module": definition.module,
        **({"verifier": "exact", "answer": answer} if last.checked else {}),
    }
    yield Problem(prompt, answer, record, definition.line, tuple(before))


def _name(definition: Definition, rng: random.Random) -> Answered:
    return Answered(f"It is called {definition.name}.")


def _kind(definition: Definition, rng: random.Random) -> Answered:
    return Answered(f"It defines a {definition.kind} called {definition.name}.")


def _count(definition: Definition, rng: random.Random) -> Answered | None:
    if definition.kind == "class":
        return None
    count = len(definition.parameters)
    return Answered(f"It has {count or 'no'} parameter{'' if count == 1 else 's'}.")


def _list(definition: Definition, rng: random.Random) -> Answered | None:
    if not 1 <= len(definition.parameters) <= 5:
        return None
    *some, last = definition.parameters
    return Answered(f"Its parameters are {', '.join(some)} and {last}." if some else
                    f"Its only parameter is {last}.")  # fmt: skip


def _nth(definition: Definition, rng: random.Random) -> Answered | None:
    if not definition.parameters:
        return None
    ordinals = [*_ORDINALS[: len(definition.parameters)], "last"]
    ordinal = rng.choice(ordinals)
    at = -1 if ordinal == "last" else _ORDINALS.index(ordinal)
    return Answered(f"Its {ordinal} parameter is {definition.parameters[at]}.", ordinal)


def _default(definition: Definition, rng: random.Random) -> Answered | None:
    short = [(name, value) for name, value in definition.defaults if len(value) <= 12]
    if not short:
        return None
    name, value = rng.choice(short)
    return Answered(f"The default of {name} is {value}.", name)


def _base(definition: Definition, rng: random.Random) -> Answered | None:
    if definition.kind != "class":
        return None
    if not definition.bases:
        return Answered("It inherits from nothing but object.")
    return Answered(f"It inherits from {' and '.join(definition.bases)}.")


def _does(definition: Definition, rng: random.Random) -> Answered | None:
    return Answered(definition.summary) if definition.summary else None


FAMILIES = (
    Family("name", ("What is this {kind} called?", "What is the name of this {kind}?"),
           ("What is it called?", "And its name?"), _name),
    Family("kind", ("What does this line define?", "What is defined here?"),
           ("What does that line define?",), _kind),
    Family("count", ("How many parameters does this {kind} have?",
                     "How many parameters has this {kind}?"),
           ("How many parameters does it have?", "And how many parameters?"), _count),
    Family("list", ("What are the parameters of this {kind}?",
                    "Which parameters does this {kind} take?"),
           ("What are its parameters?", "Which parameters does it take?"), _list),
    Family("nth", ("What is the {0} parameter of this {kind}?",),
           ("What is its {0} parameter?", "And its {0} parameter?"), _nth),
    Family("default", ("What is the default of {0} in this {kind}?",),
           ("What is the default of {0}?", "And the default of {0}?"), _default),
    Family("base", ("What does this {kind} inherit from?",
                    "Which classes are the bases of this {kind}?"),
           ("What does it inherit from?",), _base),
    Family("does", ("What does this {kind} do?", "What is this {kind} for?"),
           ("What does it do?", "And what is it for?"), _does, checked=False),
)  # fmt: skip
