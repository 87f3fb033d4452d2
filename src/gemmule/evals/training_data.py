"""The text a run was trained on, and how often each part of it was read."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gemmule import files
from gemmule.data.dataset import Dataset, Split
from gemmule.data.packed_text import sequence_count, times_read
from gemmule.errors import DataError, GemmuleError, UserError
from gemmule.teachers.logit_store import Store
from gemmule.train.config import DistillConfig, RunConfig, load_run_config


class NoTrainingData(DataError):
    """What a model was trained on is not at hand, or not known."""


@dataclasses.dataclass(frozen=True)
class Reading:
    """How often training read the windows that a split's tokens are cut into.

    Attributes:
        times: of each window, shape [windows]; tokens after the last were never read.
        seq_len: tokens of a window.
    """

    times: npt.NDArray[np.int64]
    seq_len: int

    @classmethod
    def of(cls, config: RunConfig, split: Split, steps: int) -> "Reading":
        """What a run has read after so many steps.

        Raises:
            UserError: when a record of a teacher decides it and is not there.
        """
        windows = sequence_count(split, config.data.seq_len)
        if config.data.corpus_tokens is not None:
            windows = min(windows, -(-config.data.corpus_tokens // config.data.seq_len))
        objective = config.objective
        if isinstance(objective, DistillConfig) and objective.targets is not None:
            windows = min(windows, Store.open(objective.targets).windows)
        times = times_read(windows, steps * config.data.batch_size, config.seed)
        return cls(times, config.data.seq_len)

    def of_spans(self, starts: npt.NDArray[np.int64], length: int) -> npt.NDArray[np.int64]:
        """How often the spans of `length` tokens from `starts` on were read, their least read part.

        A window predicts also the first token of the next one: a span's last token needs no more
        than the window of the token before it.
        """
        padded = np.append(self.times, 0)
        first = starts // self.seq_len
        last = (starts + length - 2) // self.seq_len
        least = padded[np.minimum(first, len(self.times))]
        for step in range(1, int((last - first).max(initial=0)) + 1):
            window = np.minimum(np.minimum(first + step, last), len(self.times))
            np.minimum(least, padded[window], out=least)
        return least


@dataclasses.dataclass(frozen=True)
class TrainingData:
    """A model's training text.

    Attributes:
        dataset: the data folder.
        reading: what the run read of it; None: not known.
        notes: what a reader of the result should know, in words.
    """

    dataset: Dataset
    reading: Reading | None
    notes: tuple[str, ...]


def open_training_data(model: str | Path, data: Path | None = None) -> TrainingData:
    """Opens what a model was trained on.

    Args:
        model: a run directory; with `data` any model.
        data: the data folder; None: the one that the run names or, where both were moved, data/
            beside the run.

    Raises:
        NoTrainingData: when there is no run or no such folder.
        DataError: when the folder holds other data than the run was trained on, or is damaged.
    """
    run = Path(model)
    manifest = _manifest(run)
    if manifest is None:
        if data is None:
            raise NoTrainingData(
                f"{model} is no run of gemmule's, so what it was trained on is not known: name the "
                "folder with --data"
            )
        note = "what the model was trained on is not recorded: the data folder was named by hand"
        return TrainingData(Dataset.open(data), None, (note,))
    expected = manifest["data"]["fingerprint"]
    config = _config(run, manifest)
    dataset = _find(run, config, data, expected, str(manifest["data"].get("name")))
    if config is None:
        note = "how often the run read each part of its data is not known: settings of another kind"
        return TrainingData(dataset, None, (note,))
    notes = []
    if config.model.init is not None:
        notes.append(
            f"the run started from {Path(config.model.init).name}: what that one read is left out"
        )
    try:
        reading = Reading.of(config, dataset.split("train"), config.steps)
    except GemmuleError as e:
        notes.append(f"how often the run read each part of its data is not known: {e}")
        return TrainingData(dataset, None, tuple(notes))
    return TrainingData(dataset, reading, tuple(notes))


def _manifest(run: Path) -> dict[str, Any] | None:
    path = run / "manifest.json"
    try:
        found = files.read_json(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as e:
        raise DataError(f"{path} cannot be read ({e}): the run is damaged") from None
    if not isinstance(found, dict) or not isinstance(found.get("data"), dict):
        return None
    return found if isinstance(found["data"].get("fingerprint"), str) else None


def _config(run: Path, manifest: dict[str, Any]) -> RunConfig | None:
    if manifest.get("kind") not in ("train", "distill"):  # kinds that read all of their data
        return None
    try:
        return load_run_config(run / "config.toml")
    except UserError:
        return None


def _find(
    run: Path, config: RunConfig | None, data: Path | None, expected: str, name: str
) -> Dataset:
    if data is not None:
        found = Dataset.open(data)
        if found.fingerprint != expected:
            raise DataError(
                f"{data} is not what {run} was trained on: it holds {found.name}, fingerprint "
                f"{found.fingerprint[:12]}, and not {name}, {expected[:12]}"
            )
        return found
    named = [] if config is None else [config.data.path]
    other = None
    for place in (*named, run.parent / "data"):
        if (place / "manifest.json").is_file():
            found = Dataset.open(place)
            if found.fingerprint == expected:
                return found
            other = other or place
    where = str(named[0]) if named else f"{run.parent / 'data'}"
    problem = f"{other} holds other data by now" if other else f"nothing at {where}"
    raise NoTrainingData(
        f"{run} was trained on {name}, fingerprint {expected[:12]}, which is not at hand "
        f"({problem}): name its folder with --data"
    )
