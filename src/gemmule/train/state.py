"""Training states: everything a run needs to resume bit for bit.

A `StateStore` keeps the states of one run, each in a folder of its own, step-N, with state.json and
the tensors. `SafetensorsStates` writes them in one file, state.safetensors; ShardedStates
(sharded_states.py), for ranks that hold a model together, each rank its own. Both read what either
has written: tensors are keyed by the name of their parameter (state_content.py), so that any number
of ranks can go on, with optimizers that divide the parameters up in another way. States of the
first format, keyed by the number of optimizer and parameter, are read too.
"""

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gemmule import files
from gemmule.errors import CheckpointError
from gemmule.runtime.world import SOLO, World
from gemmule.train.sharding import divided
from gemmule.train.state_content import Optimizers, collect, owner, restore

FORMAT = 2  # of state.json; the first format had no number
SINGLE, SHARDS = "state.safetensors", "shards"  # where the tensors are
VALUES = "state.json"
NOTHING: Mapping[str, Tensor] = {}
_STEP = re.compile(r"step-(\d+)")
# Exceptions that reading a damaged state raises, besides the file system's and safetensors'.
_BROKEN = (ValueError, LookupError, TypeError, AttributeError, RuntimeError)


class StateStore(Protocol):
    """The training states of one run. In a world of several ranks every rank calls each method."""

    def steps(self) -> list[int]:
        """The steps of which a state is kept, in ascending order."""

    def save(
        self,
        step: int,
        model: nn.Module,
        optimizers: Optimizers,
        values: Mapping[str, Any],
        tensors: Mapping[str, Tensor] = NOTHING,
    ) -> None:
        """Saves a state whole or not at all, then drops the oldest ones beyond the limit.

        The state that `values` name as the best one (values["best"]["step"]) is kept besides.

        Args:
            step: number of finished steps.
            model: its parameters are saved, without frozen ones.
            optimizers: their states are saved; every parameter belongs to one of them at most.
            values: other values to resume from (counters, the source's position), as JSON.
            tensors: further tensors that change with the steps, by name.

        Raises:
            OutputError: when the disk refuses.
        """

    def wait(self) -> None:
        """Waits until the last state is on disk; one that writes in the background needs it.

        Raises:
            OutputError: when the disk has refused.
        """

    def load(
        self,
        step: int,
        model: nn.Module,
        optimizers: Optimizers,
        tensors: Mapping[str, Tensor] = NOTHING,
    ) -> dict[str, Any]:
        """Fills `model`, `optimizers` and further tensors, in place, from the state of a step.

        Returns:
            The `values` it was saved with.

        Raises:
            CheckpointError: when it is damaged or belongs to another model or optimizer.
        """

    def clean(self) -> None:
        """Drops the oldest states beyond the limit, and what a killed process left unfinished."""


class StateFolder:
    """A folder of states, one subfolder step-N each, that either kind of store has written.

    Args:
        folder: made with the first state.
        keep: how many states to keep.
        world: the ranks of the run.
    """

    def __init__(self, folder: Path, keep: int, world: World = SOLO) -> None:
        self.folder, self.keep, self.world = folder, keep, world

    def path(self, step: int) -> Path:
        """The folder of one state."""
        return self.folder / f"step-{step}"

    def steps(self) -> list[int]:
        """The steps of which a state is kept, in ascending order."""
        matches = (_STEP.fullmatch(path.name) for path in self.folder.glob("step-*"))
        return sorted(int(match[1]) for match in matches if match)

    def wait(self) -> None:
        """Nothing to wait for."""

    def load(
        self,
        step: int,
        model: nn.Module,
        optimizers: Optimizers,
        tensors: Mapping[str, Tensor] = NOTHING,
    ) -> dict[str, Any]:
        """Fills everything from the state of a step, in place; returns its values."""
        folder = self.path(step)
        try:
            values: dict[str, Any] = json.loads((folder / VALUES).read_text(encoding="utf-8"))
            if (folder / SHARDS).is_dir():
                saved = self._read_shards(folder / SHARDS, model, tensors)
            else:
                saved = divided_as(load_file(folder / SINGLE), model)
            if values.pop("step") != step:
                raise ValueError(f"it is not the state of step {step}")
            saved.update(values.pop("scalars"))
            first_format = values.pop("format", 1) == 1
        except (OSError, SafetensorError, *_BROKEN) as e:
            raise CheckpointError(
                f"cannot read the training state {folder} ({e}): delete that folder to resume from "
                "the one before, or start the run again"
            ) from None
        try:
            restore(saved, model, optimizers, tensors, numbered=first_format)
        except _BROKEN as e:
            raise CheckpointError(
                f"the training state {folder} does not fit this run's model: {e}"
            ) from None
        return values

    def clean(self) -> None:
        """Drops the oldest states beyond the limit, and what a killed process left unfinished."""
        if self.world.first:
            files.remove_leftovers(self.folder)
            self.drop_old()
        self.world.barrier()

    def drop_old(self) -> None:
        """Drops the oldest states beyond the limit, but for the best one."""
        for step in self.steps()[: -self.keep]:
            if step == self._best():
                continue
            old = self.path(step)
            with files.writing_to(old):
                shutil.rmtree(old)

    def _read_shards(
        self, folder: Path, model: nn.Module, tensors: Mapping[str, Tensor]
    ) -> dict[str, Any]:
        from gemmule.train.shard_files import read_shards

        return read_shards(folder, model, tensors, self.world)

    def _best(self) -> int | None:
        """The step that the newest state names as the best; None if it names none."""
        try:
            path = self.path(self.steps()[-1]) / VALUES
            best = json.loads(path.read_text(encoding="utf-8")).get("best")
            return None if best is None else int(best["step"])
        except (OSError, *_BROKEN):
            return None  # loading it says what is wrong


class SafetensorsStates(StateFolder):
    """States in one file each, written by the first of ranks that hold all parameters each."""

    def save(
        self,
        step: int,
        model: nn.Module,
        optimizers: Optimizers,
        values: Mapping[str, Any],
        tensors: Mapping[str, Tensor] = NOTHING,
    ) -> None:
        """Saves a state whole or not at all, then drops the oldest ones beyond the limit."""
        if self.world.first:
            saved, scalars = collect(model, optimizers, tensors)
            with files.atomic_dir(self.path(step)) as tmp:
                _save_tensors(saved, tmp / SINGLE)
                write_values(tmp, step, values, scalars)
            self.drop_old()
        self.world.barrier()


def write_values(
    folder: Path, step: int, values: Mapping[str, Any], scalars: Mapping[str, Any]
) -> None:
    """Writes state.json: values to resume from, and the numbers that optimizers keep."""
    state = {"step": step, **values, "format": FORMAT, "scalars": scalars}
    (folder / VALUES).write_text(json.dumps(state, indent=2), encoding="utf-8")


def divided_as(saved: Mapping[str, Tensor], model: nn.Module) -> dict[str, Any]:
    """Whole tensors of a state, divided over ranks as the model's parameters are."""
    parameters = dict(model.named_parameters())

    def part(key: str, tensor: Tensor) -> Tensor:
        like = parameters.get(owner(key) or "")
        return tensor if like is None or tensor.shape != like.shape else divided(tensor, like)

    return {key: part(key, tensor) for key, tensor in saved.items()}


def _save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    try:
        save_file({k: v.detach().contiguous() for k, v in tensors.items()}, path)
    except SafetensorError as e:  # it wraps the system's refusal; find which it was
        match = re.search(r"os error (\d+)", str(e))
        raise OSError(int(match[1]) if match else 5, str(e)) from e
