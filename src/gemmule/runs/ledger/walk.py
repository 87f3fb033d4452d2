"""What a model cost from its first byte: its own account, and its share of those it came from.

The walk follows the sources of lines, by fingerprint or by the identifier of their ledger. Data, a
tokenizer and the weights that a run started from count whole. A teacher and a recording of one
serve several students: a student has the share of tokens that it learned, of all that were recorded
or that students known learned, whichever is more. The upper bound has them whole.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from gemmule.runs.ledger.known import Account, accounts_of, subject_of
from gemmule.runs.ledger.line import Interval, Line, Source, summed, times

BY_USE = ("teacher", "targets")
"""Roles of sources that are divided among those that learned from them."""


@dataclasses.dataclass(frozen=True)
class Figures:
    """What some activities cost together.

    Attributes:
        energy_wh: energy; None when nothing is known.
        gco2e: operational emissions by the grid; None when nothing is known.
        market_gco2e: the same by contracts; None unless every line has one.
        embodied_gco2e: embodied carbon.
        water_liters: water; None unless every line has it.
        seconds: time.
        flop: floating-point operations, as far as they were counted.
        lines: number of lines.
        unknown: number of lines without energy, which are not in the sums.
        failed: number of lines that did not finish.
    """

    energy_wh: Interval | None
    gco2e: Interval | None
    market_gco2e: float | None
    embodied_gco2e: float
    water_liters: float | None
    seconds: float
    flop: float
    lines: int
    unknown: int
    failed: int

    @property
    def total_gco2e(self) -> float | None:
        """Operational and embodied emissions, location-based; None when not known."""
        return None if self.gco2e is None else self.gco2e.best + self.embodied_gco2e

    def scaled(self, share: float) -> "Figures":
        """A share of these figures."""

        def part(value: float | None) -> float | None:
            return None if value is None else value * share

        return dataclasses.replace(
            self,
            energy_wh=times(self.energy_wh, share),
            gco2e=times(self.gco2e, share),
            market_gco2e=part(self.market_gco2e),
            embodied_gco2e=self.embodied_gco2e * share,
            water_liters=part(self.water_liters),
            seconds=self.seconds * share,
            flop=self.flop * share,
        )


@dataclasses.dataclass(frozen=True)
class Stage:
    """One account on the way to a model.

    Attributes:
        account: the account.
        lines: its lines that belong to making the model; of a teacher also those of measuring it.
        roles: what it was to those that used it; empty for the model itself.
        share: the part that belongs to the model.
        whole: its cost.
        attributed: its cost times the share.
        without_teacher: the part that belongs to the model if teachers were there anyway.
    """

    account: Account
    lines: Sequence[Line]
    roles: tuple[str, ...]
    share: float
    whole: Figures
    attributed: Figures
    without_teacher: float


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a model cost.

    Attributes:
        subject: the account of the model.
        stages: what it came from, then itself.
        unknown: sources whose ledgers are not known.
        making: the cost of making it, by shares.
        upper_bound: the same with every teacher and recording whole.
        without_teacher: the same if teachers and recordings were there anyway.
        evaluating: cost of measuring it.
        using: cost of using it.
        generating: the part of it in which generated tokens were counted.
        generated: tokens that were generated in using it.
        trained: tokens that it was trained on itself.
        parameters: its parameters; None when not known.
        others: accounts in reach that it does not come from: other models, failed attempts.
        other_cost: their cost.
        broken: what is wrong with ledgers of other folders that were left out.
    """

    subject: Account
    stages: Sequence[Stage]
    unknown: Sequence[Source]
    making: Figures
    upper_bound: Figures
    without_teacher: Figures
    evaluating: Figures
    using: Figures
    generating: Figures
    generated: int
    trained: int
    parameters: float | None
    others: Sequence[Account]
    other_cost: Figures
    broken: Sequence[str] = ()


def figures(lines: Iterable[Line]) -> Figures:
    """The cost of some lines together."""
    return together([_figures_of(line) for line in lines])


def _figures_of(line: Line) -> Figures:
    return Figures(
        energy_wh=line.energy_wh,
        gco2e=line.gco2e,
        market_gco2e=line.market_gco2e,
        embodied_gco2e=line.embodied.gco2e,
        water_liters=None if line.water is None else line.water.liters,
        seconds=line.seconds,
        flop=line.flop or 0.0,
        lines=1,
        unknown=int(line.energy_wh is None),
        failed=int(line.outcome != "finished"),
    )


def together(parts: Sequence[Figures]) -> Figures:
    """Figures added up; what is not known of one is left out, and counted in `unknown`."""
    known = [part for part in parts if part.energy_wh is not None]

    def total(values: list[float | None]) -> float | None:
        numbers = [value for value in values if value is not None]
        return sum(numbers) if numbers and len(numbers) == len(values) else None

    return Figures(
        energy_wh=summed([part.energy_wh for part in known]),
        gco2e=summed([part.gco2e for part in known]),
        market_gco2e=total([part.market_gco2e for part in known]),
        embodied_gco2e=sum(part.embodied_gco2e for part in parts),
        water_liters=total([part.water_liters for part in known]),
        seconds=sum(part.seconds for part in parts),
        flop=sum(part.flop for part in parts),
        lines=sum(part.lines for part in parts),
        unknown=sum(part.unknown for part in parts),
        failed=sum(part.failed for part in parts),
    )


def cost_at(place: Path, places: Sequence[Path]) -> Cost | None:
    """What the model in a folder cost; None when nothing is known of it.

    Args:
        place: folder of a run, a quickstart, or anything else with a ledger.
        places: the folders whose ledgers are read, see `known`.

    Raises:
        CheckpointError: when the ledger of that folder is broken.
    """
    subject, broken = subject_of(place), list[str]()
    own = accounts_of([subject])
    if not own:
        return None
    cost = cost_of(next(iter(own)), accounts_of([subject], places, broken))
    return dataclasses.replace(cost, broken=broken)


def cost_of(run: str, accounts: Mapping[str, Account]) -> Cost:
    """What the model of an account cost.

    Args:
        run: identifier of its ledger.
        accounts: the accounts in reach.
    """
    edges, unknown = _edges(accounts)
    order = _lineage(run, edges)
    shares = _shares(run, order, edges, _uses(accounts, edges))
    without = _shares(run, order, edges, None)
    stages = []
    for each in order:
        account = accounts[each]
        lines = [*account.making, *(account.evaluating if each != run else ())]
        whole = figures(lines)
        roles = dict.fromkeys(role for child in order for role, to, _ in edges[child] if to == each)
        stages.append(
            Stage(
                account, lines, tuple(roles), shares[each], whole, whole.scaled(shares[each]),
                without[each],
            )
        )  # fmt: skip
    subject = accounts[run]
    others = [account for other, account in accounts.items() if other not in shares]
    return Cost(
        subject=subject,
        stages=stages,
        unknown=[source for each in order for source in unknown[each]],
        making=together([stage.attributed for stage in stages]),
        upper_bound=together([stage.whole for stage in stages]),
        without_teacher=together([s.whole.scaled(s.without_teacher) for s in stages]),
        evaluating=figures(subject.evaluating),
        using=figures(subject.using),
        generating=figures(subject.generating),
        generated=sum(int(line.tokens_out or 0) for line in subject.generating),
        trained=subject.tokens,
        parameters=next(
            (line.parameters for line in reversed(subject.lines) if line.parameters), None
        ),
        others=others,
        other_cost=figures(line for account in others for line in account.lines),
    )


Edge = tuple[str, str, int | None]  # role, the source's account, tokens learned from it


def _edges(
    accounts: Mapping[str, Account],
) -> tuple[dict[str, list[Edge]], dict[str, list[Source]]]:
    """The sources of each account that have one, and those that have none."""
    products = {
        line.product: run
        for run, account in accounts.items()
        for line in account.lines
        if line.product is not None and line.makes
    }
    edges: dict[str, list[Edge]] = {}
    unknown: dict[str, list[Source]] = {}
    for run, account in accounts.items():
        learned: dict[tuple[str, str], int | None] = {}
        missing: dict[tuple[str, str | None], Source] = {}
        for line in account.making:
            for source in line.sources:
                to = (
                    source.run if source.run in accounts else products.get(source.fingerprint or "")
                )
                if to is None:
                    missing[source.role, source.fingerprint] = source
                elif to != run:
                    before = learned.setdefault((source.role, to), None)
                    if source.tokens is not None:
                        learned[source.role, to] = (before or 0) + int(source.tokens)
        edges[run] = [(role, to, tokens) for (role, to), tokens in learned.items()]
        unknown[run] = [*missing.values()]
    return edges, unknown


def _uses(accounts: Mapping[str, Account], edges: Mapping[str, list[Edge]]) -> dict[str, int]:
    """Tokens that each teacher or recording is divided by."""
    uses: dict[str, int] = {}
    for each in edges.values():
        for role, to, tokens in each:
            if role in BY_USE:
                uses[to] = uses.get(to, 0) + (tokens or 0)
    for run, account in accounts.items():
        if account.kind == "record" and run in uses:
            uses[run] = max(uses[run], account.tokens)
    return uses


def _lineage(run: str, edges: Mapping[str, list[Edge]]) -> list[str]:
    """The accounts that one comes from, each before those that used it, and then itself."""
    order: list[str] = []
    path: list[str] = []

    def visit(each: str) -> None:
        if each in order or each in path:
            return
        path.append(each)
        for _, to, _ in edges[each]:
            visit(to)
        path.pop()
        order.append(each)

    visit(run)
    return order


def _shares(
    run: str,
    order: Sequence[str],
    edges: Mapping[str, list[Edge]],
    uses: Mapping[str, int] | None,
) -> dict[str, float]:
    """The share of each account that belongs to the last one; of teachers none without `uses`."""
    shares = dict.fromkeys(order, 0.0)
    by_use = dict.fromkeys(order, 0.0)
    shares[run] = 1.0
    for each in reversed(order):
        shares[each] = max(shares[each], min(1.0, by_use[each]))
        for role, to, tokens in edges[each]:
            if role not in BY_USE:
                shares[to] = max(shares[to], shares[each])
            elif uses is not None:
                known = tokens is not None and uses[to] > 0
                by_use[to] += shares[each] * (tokens / uses[to] if known else 1.0)  # type: ignore[operator]
    return shares
