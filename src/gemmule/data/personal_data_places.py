"""Where in a text personal data can be, so that patterns are tried there and nowhere else.

A pattern that begins with a lookbehind is tried at every character, 40 MB/s at best, and there are
forty. What a kind of data cannot do without is looked for instead: six digits close together, an
@, the word "born". Searches that begin with a literal run at more than 1,000 MB/s, and one pass
over the digits serves thirty patterns.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable

Windows = list[tuple[int, int]]

# Six digits with at most two other characters in between; an IPv6 address; a house number. What
# one of them runs into belongs to the first, so its windows are searched for the others, too.
_DIGITS = re.compile(
    r"\d(?:((?:\D{0,2}\d){5,})|([0-9A-Fa-f]{3}:{1,2}[0-9A-Fa-f])|[A-Za-z]? [A-Z][a-z'’-]+\.? [A-Z])"
)


class Places:
    """The places of one text.

    Attributes:
        text: the text.
        folded: the text in lower case, with every character at its place.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        folded = text.lower()
        if len(folded) != len(text):
            folded = "".join(c.lower() if len(c.lower()) == 1 else c for c in text)
        self.folded = folded
        self._windows: dict[Place, Windows] = {}
        self._digits: tuple[Windows, Windows, Windows] | None = None

    def windows(self, place: "Place") -> Windows:
        """The parts of the text that can hold data of such a place, in order, none overlapping."""
        if place not in self._windows:
            self._windows[place] = place(self)
        return self._windows[place]

    @property
    def digits(self) -> tuple[Windows, Windows, Windows]:
        """Windows around many digits; those and IPv6 addresses; those and house numbers."""
        if self._digits is None:
            many: Windows = []
            addresses: Windows = []
            houses: Windows = []
            for match in _DIGITS.finditer(self.text):
                start, end = match.span()
                if match[1] is not None:
                    many.append((start - 60, end + 60))
                elif match[2] is not None:
                    addresses.append((start - 2, end + 60))
                else:
                    houses.append((start - 8, end + 100))
            size = len(self.text)
            self._digits = (
                _merged(many, size),
                _merged(many + addresses, size),
                _merged(many + houses, size),
            )
        return self._digits


Place = Callable[[Places], Windows]


def many_digits(places: Places) -> Windows:
    """Around six digits with at most two other characters between them."""
    return places.digits[0]


def many_digits_or_ipv6(places: Places) -> Windows:
    """Where an IPv6 address can be."""
    return places.digits[1]


def many_digits_or_house(places: Places) -> Windows:
    """Where a number and the name of a street can be."""
    return places.digits[2]


@dataclasses.dataclass(frozen=True)
class Near:
    """Around what any of some patterns match.

    Attributes:
        patterns: expressions that begin with a literal, as short as they may be.
        before: characters before a match that belong to the window.
        after: characters after it.
        folded: whether the patterns are matched with the text in lower case.
    """

    patterns: tuple[re.Pattern[str], ...]
    before: int
    after: int
    folded: bool = False

    def __call__(self, places: Places) -> Windows:
        """The windows in a text."""
        text = places.folded if self.folded else places.text
        windows = [
            (match.start() - self.before, match.end() + self.after)
            for pattern in self.patterns
            for match in pattern.finditer(text)
        ]
        return _merged(windows, len(text))


def near(*patterns: str, before: int, after: int, folded: bool = False) -> Near:
    """A `Near` of expressions."""
    return Near(tuple(map(re.compile, patterns)), before, after, folded)


def _merged(windows: Iterable[tuple[int, int]], size: int) -> Windows:
    merged: Windows = []
    for start, end in sorted(windows):
        if merged and start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(merged[-1][1], min(end, size))
        else:
            merged.append((max(start, 0), min(end, size)))
    return merged
