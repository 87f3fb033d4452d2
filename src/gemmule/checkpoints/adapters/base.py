"""Finds and opens the model that an adapter changes."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from gemmule import shell
from gemmule.checkpoints.adapters.config import AdapterConfig
from gemmule.checkpoints.checkpoint import Checkpoint
from gemmule.checkpoints.locate import Located, locate
from gemmule.checkpoints.weight_files import find_weights
from gemmule.errors import CheckpointError

OpenLocated = Callable[[Located], Checkpoint]
_PARENTS = 3  # folders above the adapter's in which its base may be


def open_base(
    folder: Path,
    config: AdapterConfig,
    given: str | None,
    described: str,
    open_located: OpenLocated,
) -> tuple[Checkpoint, tuple[str, ...]]:
    """Opens the base of an adapter.

    Args:
        folder: the adapter's folder.
        config: its config.
        given: the base that the user named; None: the model in the adapter's folder, or else the
            one that the config names: near the adapter, as a path, or on the hub.
        described: the adapter in words, for messages.
        open_located: opens a checkpoint.

    Returns:
        The base, and remarks on how it was chosen.

    Raises:
        CheckpointError: when it cannot be found or read, or is an adapter itself.
    """
    located, notes = _found(folder, config, given, described)
    if located.format == "adapter":
        first = shell.command("convert", located.path, "MERGED", "--to", "hf")
        raise CheckpointError(
            f"{folder} is {described}, and its base, {located.path}, is an adapter itself: merge "
            f"that first ({first}) and give MERGED as base"
        )
    try:
        return open_located(located), notes
    except CheckpointError as e:
        another = "" if given else f". To name another: {_how(folder)}"
        raise CheckpointError(f"the base of the adapter {folder}: {e}{another}") from None


def _found(
    folder: Path, config: AdapterConfig, given: str | None, described: str
) -> tuple[Located, tuple[str, ...]]:
    name = config.base
    if given is not None:
        located = locate(given)
        if name and _last(name) != _last(given):
            return located, (f"merged into {given}; the adapter was trained on {name}",)
        return located, ()
    for format in ("hf", "torch"):
        if find_weights(folder, torch=format == "torch"):
            return Located(format, folder), ("its base is the model in the same folder",)
    if name is None:
        raise CheckpointError(
            f"{folder} is {described}, which does not say what its base is. To name it: "
            f"{_how(folder)}"
        )
    if not (Path(name).is_absolute() and Path(name).exists()):
        for place in _near(folder, name):
            with suppress(CheckpointError):
                located = locate(place)
                if located.format != "adapter":
                    return located, (f"its base, {name}, is taken from {place}",)
    try:
        return locate(name, config.revision), ()
    except CheckpointError as e:
        raise CheckpointError(
            f"{folder} is {described}, and {name} is not here: {e}. If it is somewhere else: "
            f"{_how(folder)}"
        ) from None


def _near(folder: Path, name: str) -> Iterator[Path]:
    """Folders in the adapter's and above it that may be the model of this name."""
    folder, named = folder.resolve(), Path(name)
    for parent in (folder, *folder.parents[:_PARENTS]):
        places = [parent / named] if not named.is_absolute() else []
        places += [parent / named.name] if parent != folder else []
        places += [parent] if parent.name == named.name else []
        for place in places:
            try:
                if place.is_dir() and place.resolve() != folder:
                    yield place
            except (OSError, ValueError):  # a name that no file can have
                continue


def _how(folder: Path) -> str:
    return shell.command("convert", folder, "OUT", "--to", "hf", "--base", "MODEL")


def _last(name: str) -> str:
    return Path(name.rstrip("/")).name
