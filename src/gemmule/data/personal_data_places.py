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

# Six digits or more with at most two other characters in between, and whether there are nine; an
# IPv6 address; a house number. What one of them runs into belongs to the first, so the windows of
# digits are searched for the others, too.
_DIGITS = re.compile(
    r"\d(?:(?:\D{0,2}\d){5}((?:\D{0,2}\d){3,})?(?:\D{0,2}\d)*()"
    r"|([0-9A-Fa-f]{3}:{1,2}[0-9A-Fa-f])|[A-Za-z]? [A-Z][a-z'’-]+\.? [A-Z])"
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
        self._spans: dict[str, Windows] | None = None

    def windows(self, place: "Place") -> Windows:
        """The parts of the text that can hold data of such a place, in order, none overlapping."""
        if place not in self._windows:
            self._windows[place] = place(self)
        return self._windows[place]

    @property
    def spans(self) -> dict[str, Windows]:
        """What _DIGITS matches: "six" digits or more, "nine" or more, "ipv6", "house"."""
        if self._spans is None:
            spans: dict[str, Windows] = {"six": [], "nine": [], "ipv6": [], "house": []}
            for match in _DIGITS.finditer(self.text):
                if match[2] is not None:
                    spans["six"].append(match.span())
                    if match[1] is not None:
                        spans["nine"].append(match.span())
                else:
                    spans["house" if match[3] is None else "ipv6"].append(match.span())
            self._spans = spans
        return self._spans


Place = Callable[[Places], Windows]


# Places are told apart by what they are, not by what they hold: hashing patterns takes long.
@dataclasses.dataclass(frozen=True, eq=False)
class Digits:
    """Around digits.

    Attributes:
        spans: names of the spans in `Places.spans`.
        before: characters before them that belong to the window.
        after: characters after them.
        words: parts of words, in lower case, of which a window must hold one; empty: none.
    """

    spans: tuple[str, ...]
    before: int
    after: int
    words: tuple[str, ...] = ()

    def __call__(self, places: Places) -> Windows:
        """The windows in a text."""
        windows = [
            (start - self.before, end + self.after)
            for name in self.spans
            for start, end in places.spans[name]
        ]
        if not windows:
            return windows
        merged = _merged(windows, len(places.text))
        if not self.words:
            return merged
        find = places.folded.find
        return [w for w in merged if any(find(word, *w) >= 0 for word in self.words)]


SIX_DIGITS = Digits(("six",), 8, 8)
NINE_DIGITS = Digits(("nine",), 8, 8)
SIX_DIGITS_AND_LETTERS = Digits(("six",), 16, 40)
IPV6 = Digits(("six", "ipv6"), 8, 50)
HOUSE = Digits(("six", "house"), 8, 100)


@dataclasses.dataclass(frozen=True, eq=False)
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
        return _merged(windows, len(text)) if windows else windows


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
