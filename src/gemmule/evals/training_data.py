"""The data a run was trained on, and how often each part of it was read."""

import dataclasses
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gemmule import files
from gemmule.data.dataset import MANIFEST, Dataset, Split
from gemmule.data.packed_text import sequence_count, times_read
from gemmule.errors import CheckpointError, DataError, GemmuleError, UserError
from gemmule.runs.layout import RunLayout
from gemmule.runs.schema import Manifest
from gemmule.teachers.logit_store import Store
from gemmule.train.config import DistillConfig, RunConfig, load_run_config
from gemmule.train.mixtures import open_data


class NoTrainingData(DataError):
    """The training data of a model is not known, or cannot be located."""


@dataclasses.dataclass(frozen=True)
class Reading:
    """How often training read each of the sequences that a split's tokens are cut into.

    Attributes:
        times: count for each sequence, shape [sequences]; tokens after the last were never read.
        seq_len: tokens per sequence.
    """

    times: npt.NDArray[np.int64]
    seq_len: int

    @classmethod
    def of(cls, config: RunConfig, split: Split, steps: int) -> "Reading":
        """The sequences that a run has read after a number of steps.

        Raises:
            UserError: when the run learned from a logit store that cannot be opened.
        """
        sequences = sequence_count(split, config.data.seq_len)
        if config.data.corpus_tokens is not None:
            sequences = min(sequences, -(-config.data.corpus_tokens // config.data.seq_len))
        objective = config.objective
        if isinstance(objective, DistillConfig) and objective.targets is not None:
            sequences = min(sequences, Store.open(objective.targets).sequences)
        times = times_read(sequences, steps * config.data.batch_size, config.seed)
        return cls(times, config.data.seq_len)

    def of_spans(self, starts: npt.NDArray[np.int64], length: int) -> npt.NDArray[np.int64]:
        """How often the least-read part of each span was read.

        A sequence also predicts the first token of the next one, so a span's last token needs no
        more than the sequence of the token before it.

        Args:
            starts: first token of each span, shape [spans].
            length: tokens per span.

        Returns:
            Counts, shape [spans].
        """
        padded = np.append(self.times, 0)
        first = starts // self.seq_len
        last = (starts + length - 2) // self.seq_len
        fewest = padded[np.minimum(first, len(self.times))]
        for step in range(1, int((last - first).max(initial=0)) + 1):
            sequence = np.minimum(np.minimum(first + step, last), len(self.times))
            np.minimum(fewest, padded[sequence], out=fewest)
        return fewest


@dataclasses.dataclass(frozen=True)
class TrainingData:
    """A model's training text.

    Attributes:
        dataset: the data folder.
        reading: how often the run read each part of it; None when not known.
        notes: remarks for the reader of a result.
    """

    dataset: Dataset
    reading: Reading | None
    notes: tuple[str, ...]


def open_training_data(model: str | Path, data: Path | None = None) -> TrainingData:
    """Opens the data that a model was trained on.

    Args:
        model: a run directory; with `data` any model.
        data: the data folder; None takes the one that the run names or, where both were moved, the
            folder data/ next to the run.

    Raises:
        NoTrainingData: when there is no run or no such folder.
        DataError: when the folder holds other data than the run was trained on, or is damaged.
    """
    run = RunLayout(Path(model))
    manifest = _manifest(run)
    if manifest is None:
        if data is None:
            raise NoTrainingData(
                f"{model} is not a run of gemmule's, so its training data is not known: name the "
                "folder with --data"
            )
        note = "what the model was trained on is not recorded: the data folder was named by hand"
        return TrainingData(Dataset.open(data), None, (note,))
    config = _config(run, manifest)
    if config is not None and config.data.mixture is not None and data is None:
        note = "how often a run reads each part of its data is not counted for a mixture"
        return TrainingData(_mixture(run, config, manifest), None, (note,))
    dataset = _find(run, data, manifest)
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


def _manifest(run: RunLayout) -> Manifest | None:
    """The run's manifest; None for a folder that is not a run."""
    try:
        value = files.read_json(run.manifest)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as e:
        raise DataError(f"{run.manifest} cannot be read ({e}): the run is damaged") from None
    try:
        manifest = Manifest.parse(value, str(run.manifest))
    except CheckpointError:  # the manifest of something else, such as a data folder
        return None
    return None if manifest.data.fingerprint is None else manifest


def _config(run: RunLayout, manifest: Manifest) -> RunConfig | None:
    """The run's settings, if it is of a kind that reads all of its data."""
    if manifest.kind not in ("train", "distill"):
        return None
    try:
        return load_run_config(run.config)
    except UserError:
        return None


def _named(run: RunLayout) -> list[Path]:
    """The data folder in the settings of a run of any kind, if they can be read."""
    try:
        data = files.read_toml(run.config)["data"]
        # Earlier versions had the folder itself there.
        return [files.expand(data["path"] if isinstance(data, dict) else data)]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _mixture(run: RunLayout, config: RunConfig, manifest: Manifest) -> Dataset:
    """The folders of a run over a mixture, as one dataset."""
    try:
        dataset = open_data(config.data)
    except DataError as e:
        raise NoTrainingData(f"the data of {run.path} cannot be opened: {e}") from None
    if dataset.fingerprint != manifest.data.fingerprint:
        raise NoTrainingData(
            f"the folders that {run.path} was trained on, {manifest.data.name}, hold other data by "
            "now: bring them back"
        )
    return dataset


def _find(run: RunLayout, data: Path | None, manifest: Manifest) -> Dataset:
    """The dataset of the run, in the folder given or where it should be."""
    name, expected = manifest.data.name, str(manifest.data.fingerprint)
    if data is not None:
        dataset = Dataset.open(data)
        if dataset.fingerprint != expected:
            raise DataError(
                f"{data} is not what {run.path} was trained on: it holds {dataset.name}, "
                f"fingerprint {dataset.fingerprint[:12]}, and not {name}, {expected[:12]}"
            )
        return dataset
    named = _named(run)
    other = None
    for place in (*named, run.path.parent / "data"):
        if (place / MANIFEST).is_file():
            dataset = Dataset.open(place)
            if dataset.fingerprint == expected:
                return dataset
            other = other or place
    where = str(named[0]) if named else f"{run.path.parent / 'data'}"
    problem = f"{other} holds other data by now" if other else f"nothing at {where}"
    raise NoTrainingData(
        f"{run.path} was trained on {name}, fingerprint {expected[:12]}, which cannot be located "
        f"({problem}): name its folder with --data"
    )
