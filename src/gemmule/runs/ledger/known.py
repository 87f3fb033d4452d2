"""The ledgers in reach of a folder: its own, those in it and next to it, and given ones.

The lines of one ledger identifier together are an *account*: all sessions of a run, the failed ones
too, its evaluations and its use. Copies of a line count once.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from gemmule.errors import CheckpointError
from gemmule.runs.layout import LEDGER, QuickstartLayout
from gemmule.runs.ledger import heartbeat
from gemmule.runs.ledger.file import read_ledger
from gemmule.runs.ledger.line import Line

EVALUATING = frozenset({"evaluate", "bench"})
"""Kinds that measure a model; those that neither make nor measure use it."""


@dataclasses.dataclass
class Account:
    """The lines of one ledger.

    Attributes:
        run: its identifier.
        lines: its lines, in the order they were met.
    """

    run: str
    lines: list[Line]

    @property
    def name(self) -> str:
        """Name of its folder, at the last line."""
        return self.lines[-1].name

    @property
    def kind(self) -> str:
        """What it made; of one that was only used, how."""
        return next((line.kind for line in self.lines if line.makes), self.lines[0].kind)

    @property
    def product(self) -> str | None:
        """Fingerprint of what it made, the last one."""
        return next((line.product for line in reversed(self.lines) if line.product), None)

    @property
    def making(self) -> list[Line]:
        """The lines of making it."""
        return [line for line in self.lines if line.makes]

    @property
    def evaluating(self) -> list[Line]:
        """The lines of measuring it."""
        return [line for line in self.lines if line.kind in EVALUATING]

    @property
    def using(self) -> list[Line]:
        """The lines of using it."""
        return [line for line in self.lines if not line.makes and line.kind not in EVALUATING]

    @property
    def generating(self) -> list[Line]:
        """The lines of using it that count the tokens it generated."""
        return [line for line in self.using if line.tokens_out]

    @property
    def tokens(self) -> int:
        """Tokens that it was trained on, or recorded."""
        return sum(int(line.tokens_in or 0) for line in self.making)


def accounts_of(
    places: Iterable[Path], further: Iterable[Path] = (), broken: list[str] | None = None
) -> dict[str, Account]:
    """The accounts in the ledgers of some folders, by identifier.

    Args:
        places: the folders.
        further: folders whose ledgers may be broken: these are left out.
        broken: receives what is wrong with those that are left out.

    Raises:
        CheckpointError: when the ledger of one of `places` is broken.
    """
    accounts: dict[str, Account] = {}
    seen: set[str] = set()
    needed = [*dict.fromkeys(places)]
    for place in dict.fromkeys([*needed, *further]):
        try:
            lines = read_ledger(place)
        except CheckpointError as e:
            if place in needed:
                raise
            if broken is not None:
                broken.append(str(e))
            continue
        own = lines[0].run if lines else f"not written: {place}"
        killed = [line.model_copy(update={"run": own}) for _, line in heartbeat.ended(place)]
        for line in [*lines, *killed]:
            if line.id not in seen:
                seen.add(line.id)
                accounts.setdefault(line.run, Account(line.run, [])).lines.append(line)
    return accounts


def in_reach(place: Path, further: Sequence[Path] = ()) -> list[Path]:
    """Folders with a ledger: the given one, what is in it, its neighbors, and what is in `further`.

    Args:
        place: the folder.
        further: folders that are searched, two levels deep.
    """
    place = place.resolve()
    near = place.parent
    nearby = [*_below(near), *(p for folder in further for p in _below(folder))]
    return [*dict.fromkeys([*within(place), *(p.resolve() for p in nearby)])]


def within(place: Path) -> list[Path]:
    """Folders with a ledger in a folder, itself included."""
    return [*dict.fromkeys([place.resolve(), *(p.resolve() for p in _below(place))])]


def subject_of(place: Path) -> Path:
    """The folder that a question about `place` is about: of a quickstart, its student."""
    quickstart = QuickstartLayout(place)
    return quickstart.run("student").path if quickstart.comparison.is_file() else place


def _below(folder: Path) -> Iterator[Path]:
    """Folders with a ledger in a folder, itself included, two levels deep."""
    for pattern in (LEDGER, f"*/{LEDGER}", f"*/*/{LEDGER}"):
        for path in sorted(folder.glob(pattern)):
            yield path.parent
    for path in sorted(folder.glob(f"*.{LEDGER}")):  # of a single file
        yield path.with_name(path.name.removesuffix(f".{LEDGER}") + ".jsonl")
