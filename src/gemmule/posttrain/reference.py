"""Log-probabilities of answers under the weights that a run starts from.

They are computed with the model itself before its first step, each answer once, and kept in the
run's folder. So no second model is held, and because the arithmetic does not depend on the batch
(segments.py), policy and reference agree bit for bit as long as the weights are equal.
"""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from gemmule import files
from gemmule.console import ProgressBar
from gemmule.errors import CheckpointError
from gemmule.model.gemma import Gemma
from gemmule.posttrain.answer_source import in_batches, packed
from gemmule.posttrain.rendering import Rendered
from gemmule.posttrain.segments import Segments, label_log_likelihoods
from gemmule.runs.layout import RunLayout
from gemmule.runtime.config import RuntimeConfig

FILE = "reference.safetensors"
_SECONDS = "seconds"  # in its metadata: time that each group has taken, as JSON


def summed(parts: Sequence[Tensor]) -> Tensor:
    """Sum [S] of each conversation's log-probabilities, float64."""
    return torch.stack([part.double().sum() for part in parts])


class Reference:
    """Reference log-probabilities of groups of conversations, each group under a name.

    Args:
        groups: the conversations by group; None where a conversation is not needed.

    Attributes:
        groups: as given.
        seconds: time that each group has taken, once `begin` was called.
    """

    def __init__(self, groups: Mapping[str, Sequence[Rendered | None]]) -> None:
        self.groups = groups
        self.seconds: dict[str, float] = {}
        self._values: dict[str, Tensor] = {}

    def tokens(self, group: str) -> int:
        """Number of tokens of a group that go through the model."""
        return sum(len(c) for c in self.groups[group] if c is not None)

    def of(self, group: str, indices: Tensor | Sequence[int]) -> Tensor:
        """Values [S] of some conversations of a group, float64; NaN where none was needed."""
        return self._values[group][indices]

    def begin(self, model: Gemma, layout: RunLayout, runtime: RuntimeConfig, tokens: int) -> None:
        """Computes the values with the model as it is, or reads those that the run has kept.

        Args:
            model: the model, on its device.
            layout: folder of the run.
            runtime: device, dtype and compilation, resolved.
            tokens: tokens of a forward pass, about.

        Raises:
            CheckpointError: when what the run has kept cannot be read.
            OutputError: when the disk refuses.
        """
        path = layout.path / FILE
        if not path.is_file():
            values, seconds = {}, {}
            for name, group in self.groups.items():
                began = time.perf_counter()
                values[name] = _values(model, group, runtime, tokens, f"reference, {name}")
                seconds[name] = time.perf_counter() - began
            with files.atomic_path(path) as tmp:
                save_file(values, tmp, {_SECONDS: json.dumps(seconds)})
        # Read back even when just written, so that a resumed run has the very same values.
        self._values = {name: v.to(runtime.device) for name, v in self._read(path).items()}

    def _read(self, path: Path) -> dict[str, Tensor]:
        try:
            with safe_open(path, "pt") as file:
                values = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                self.seconds = json.loads((file.metadata() or {})[_SECONDS])
        except (OSError, SafetensorError) as e:
            raise CheckpointError(_remake(path, e)) from None
        except (KeyError, ValueError):
            raise CheckpointError(_remake(path, "it does not say how long it took")) from None
        sizes = {name: len(group) for name, group in self.groups.items()}
        if {name: len(value) for name, value in values.items()} != sizes:
            raise CheckpointError(_remake(path, "it belongs to other data"))
        return values


def _remake(path: Path, why: object) -> str:
    return (
        f"cannot use {path} ({why}): delete it, and the reference's log-probabilities are computed "
        "again"
    )


def _values(
    model: Gemma,
    group: Sequence[Rendered | None],
    runtime: RuntimeConfig,
    tokens: int,
    label: str,
) -> Tensor:
    """Values [S] of a group's conversations."""
    needed = [(i, c) for i, c in enumerate(group) if c is not None]
    lengths = [len(c) for _, c in needed]
    values = torch.full((len(group),), torch.nan, dtype=torch.float64)
    done, half = 0, runtime.dtype == "bfloat16"
    with ProgressBar(label, sum(lengths), "tok") as bar:
        for part in in_batches(lengths, tokens):
            segments = Segments.of(packed([c for _, c in needed[part]]).to(runtime.device))
            # With gradients, as in training: without, torch may multiply matrices in another way.
            with torch.autocast(runtime.device, torch.bfloat16, enabled=half):
                log_p = label_log_likelihoods(model, segments, compiled=bool(runtime.compile))
            values[[i for i, _ in needed[part]]] = summed(log_p).detach().cpu()
            done += sum(lengths[part])
            bar.update(done)
    return values
