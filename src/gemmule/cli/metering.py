"""Which commands are metered, and into which ledger: the one place for all of them."""

import contextlib
import dataclasses
import functools
import hashlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gemmule.cli.options import Options
from gemmule.errors import Interrupted, TokenizerError

if TYPE_CHECKING:
    from gemmule.runs.ledger.budget import Budget
    from gemmule.runs.ledger.line import Source

# Kind of activity by the name of a command's function, see runs/ledger/line.py.
MAKES = {
    "quickstart": "quickstart", "tokenizer_train": "tokenizer", "tokenizer_trim": "tokenizer",
    "data": "data", "canaries": "data", "quality_fit": "data", "quality_score": "data",
    "train": "train", "distill": "distill",
    "record": "record", "sft": "sft", "reward": "reward", "align": "align",
    "synthesize": "synthesize", "merge": "merge", "warp": "warp", "ablate": "ablate",
    "tasks": "tasks", "convert": "convert", "quantize": "quantize", "trim": "trim",
}  # fmt: skip
USES = {
    "evaluate": "evaluate", "safety": "evaluate", "memorization": "evaluate", "gate": "evaluate",
    "verify": "evaluate", "teacher_check": "evaluate", "bench": "bench", "chat": "chat",
    "generate": "generate", "serve": "serve",
}  # fmt: skip
# Those that can be stopped at any time and continued.
WITH_BUDGET = {"quickstart", "train", "distill", "record", "sft", "reward", "align"}
# Options that name what a command reads, and what it is to the activity.
_ROLES = {
    "model": "model", "models": "model", "run": "model", "candidate": "model", "store": "targets",
    "tokenizer": "tokenizer", "data": "data", "teacher": "teacher", "base": "start",
    "source": "data", "prompts": "data",
}  # fmt: skip
# Those whose own files do not say what they were made from.
_UNTOLD = {"data", "tokenizer", "synthesize", "convert", "quantize", "trim"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits(Options):
    """What a run may cost, all its sessions together."""

    max_wh: Annotated[
        float | None, typer.Option(help="Watt-hours after which it is saved and stopped.")
    ] = None
    max_gco2e: Annotated[
        float | None, typer.Option(help="Grams of CO2e after which it is saved and stopped.")
    ] = None


def metered(command: Callable[..., None]) -> Callable[..., None]:
    """A command that leaves a line in a ledger; commands that are not listed stay as they are."""
    name = command.__name__
    if name in MAKES:
        return _making(command, MAKES[name], name in WITH_BUDGET)
    return _using(command, USES[name]) if name in USES else command


def _making(command: Callable[..., None], kind: str, with_budget: bool) -> Callable[..., None]:
    """Meters a command for the ledger of what it writes."""

    @functools.wraps(command)
    def run(**values: Any) -> None:
        limits: Limits = values.pop("limits_of_cost", Limits())
        place = _written(command.__name__, values)
        if place is None:  # it only lists something
            command(**values)
            return
        from gemmule.runs.ledger import activity as ledger
        from gemmule.runs.ledger.budget import EVERY, Budget

        budget = Budget(limits.max_wh, limits.max_gco2e) if limits.given() else None
        if budget is not None:
            budget.begin(place)
        read = [*_read(values, place)]
        with ledger.activity(
            kind,
            place,
            sources=[path for _, path in read],
            watch=None if budget is None else budget.watch,
            every=None if budget is None else EVERY,
        ):
            if kind in _UNTOLD:
                ledger.note(sources=[_source(role, path) for role, path in read])
            ledger.note(country=_country(values))
            with _within(budget):
                command(**values)
            if kind == "tokenizer":
                ledger.note(product=_tokenizer(place))

    if with_budget:
        signature = inspect.signature(command)
        further = inspect.Parameter(
            "limits_of_cost", inspect.Parameter.KEYWORD_ONLY, annotation=Limits
        )
        parameters = [
            p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in signature.parameters.values()
        ]
        run.__signature__ = signature.replace(  # type: ignore[attr-defined]
            parameters=[*parameters, further]
        )
    return run


def _using(command: Callable[..., None], kind: str) -> Callable[..., None]:
    """Meters a command for the ledgers of the models that it uses, in equal parts."""

    @functools.wraps(command)
    def run(**values: Any) -> None:
        places = [path for role, path in _read(values, None) if role != "data"]
        if not places:
            command(**values)
            return
        from gemmule.runs.ledger import activity as ledger
        from gemmule.runs.ledger.compose import Share

        ended: BaseException | None = None
        with ledger.activity(kind, None):
            ledger.note(
                shares={path: Share(1 / len(places)) for path in places},
                sources=[_source("model", path) for path in places],
                country=_country(values),
            )
            try:
                command(**values)
            except (typer.Exit, Interrupted) as e:  # a verdict on the model; the end of a server
                ended = e
        if ended is not None:
            raise ended

    return run


@contextlib.contextmanager
def _within(budget: "Budget | None") -> Iterator[None]:
    """Lets a command be stopped by its budget, and says that it was."""
    if budget is None:
        yield
        return
    from gemmule.runs.ledger import activity as ledger
    from gemmule.runtime.signals import interruptible

    current = ledger.current()
    if current is not None:
        budget.check_known(current)
    try:
        with interruptible():
            yield
    except (Interrupted, KeyboardInterrupt) as e:
        if budget.reached is None:
            raise
        raise Interrupted(f"{budget.reached} are used; {e}") from None


def _written(name: str, values: Mapping[str, Any]) -> Path | None:
    """The folder, or file, that a command writes; None: it writes none."""
    out: Path | None = values["out"]
    if name == "quantize" and out is None:
        from gemmule.quantize import default_folder

        return default_folder(values["model"], values["to"])
    if name == "quickstart" and values["chat"] and out is not None:
        from gemmule.runs.layout import ChatLayout

        return ChatLayout.of(out).path
    return out


def _read(values: Mapping[str, Any], out: Path | None) -> Iterator[tuple[str, Path]]:
    """Role and path of each thing with a ledger, or run, that a command reads."""
    from gemmule.runs.ledger.file import place_of

    seen = set() if out is None else {out.absolute()}
    for name, value in _flat(values):
        if name not in _ROLES or not isinstance(value, str | Path):
            continue
        place = place_of(value) or place_of(str(value).rpartition("=")[2])  # NAME=MODEL
        if place is not None and place not in seen:
            seen.add(place)
            yield _ROLES[name], place


def _flat(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Options by name, those of groups and the entries of lists one by one."""
    for name, value in values.items():
        if isinstance(value, Options):
            yield from _flat(vars(value))
        elif isinstance(value, list):
            yield from ((name, entry) for entry in value)
        else:
            yield name, value


def _country(values: Mapping[str, Any]) -> str | None:
    return next((v for name, v in _flat(values) if name == "country"), None)


def _source(role: str, path: Path) -> "Source":
    from gemmule.runs.ledger.facts import source_at

    return source_at(role, path)


def _tokenizer(folder: Path) -> str:
    """A tokenizer's fingerprint; of another family than Gemma's, the checksum of its file."""
    from gemmule.model.tokenizer import Tokenizer
    from gemmule.model.tokenizer_json import FILE

    try:
        return Tokenizer.load(folder).fingerprint
    except TokenizerError:
        return hashlib.sha256((folder / FILE).read_bytes()).hexdigest()
