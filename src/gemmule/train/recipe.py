"""The parts of a run: model, source of batches, objective, measurements, parents.

A kind of run is a function from settings and data to a `Recipe` (recipes/). The loop, resuming, the
manifest and the result are the same for all kinds.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from torch import Tensor

from gemmule.checkpoints.checkpoint import weights_fingerprint
from gemmule.checkpoints.hf.writer import save_model
from gemmule.data.dataset import Dataset
from gemmule.data.mixture.mixed_dataset import MixedDataset
from gemmule.data.mixture.mixed_text import MixedText
from gemmule.data.source import Source
from gemmule.model.gemma import Gemma
from gemmule.model.tokenizer import Tokenizer
from gemmule.runs.layout import RunLayout
from gemmule.runtime.config import RuntimeConfig
from gemmule.runtime.world import SOLO, World
from gemmule.train.config import RunConfig
from gemmule.train.evaluate import heldout_result, validation_probe
from gemmule.train.mixtures import MIXTURE, describe, with_tokens_read
from gemmule.train.objective import Objective
from gemmule.train.probe import Probe


class StepHook(Protocol):
    """What a kind of run does after each optimizer step, and what it trains besides the model."""

    def after_step(self) -> Mapping[str, float]:
        """Called once the weights are updated; returns metrics of the step, to be logged."""
        ...

    def tensors(self) -> Mapping[str, Tensor]:
        """Tensors that change with the steps, by name; a training state saves and restores them."""
        ...


@dataclass(frozen=True)
class Cost:
    """What a run has spent on training outside its steps.

    Attributes:
        flops: floating-point operations.
        seconds: time.
    """

    flops: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True)
class Recipe:
    """Everything that a kind of run decides.

    Attributes:
        model: model to train, on the CPU; trained in place.
        source: batches of config.data.micro_batch sequences.
        objective: what a step minimizes.
        probes: measurements during training, evaluation among them.
        result: final metrics of the trained model, for result.json.
        parents: models it starts or learns from, the most important first, each with at least
            "path" and "fingerprint"; a run is resumed only with the same ones.
        inputs: further entries of manifest.json, by name; one that has an "identity" must be the
            same when the run is resumed.
        tokens_per_step: tokens of a step, or a good guess where steps differ: to decide whether
            compiling pays, and for the progress bar until the first step is done.
        auto_dtype: what runtime.dtype = "auto" stands for; "auto": the fastest on this machine.
        begin: called before the first step and whenever the run is resumed, with the run's folder
            and the resolved runtime. The model is on its device, with the weights that the run
            starts from. What takes long is kept in the folder and read when the run is resumed,
            its cost as well, which is returned.
        save: writes the trained model to a folder, in one atomic replacement.
        hook: what happens after each step, such as the update of an anchor; None: nothing.
    """

    model: Gemma
    source: Source
    objective: Objective
    probes: Sequence[Probe]
    result: Callable[[], Mapping[str, Any]]
    parents: Sequence[Mapping[str, Any]] = ()
    inputs: Mapping[str, Any] = field(default_factory=dict)
    tokens_per_step: int = 0
    auto_dtype: Literal["auto", "float32"] = "auto"
    begin: Callable[[RunLayout, RuntimeConfig], Cost] | None = None
    save: Callable[[Gemma, Tokenizer, Path], None] = save_model
    hook: StepHook | None = None


def language_model_recipe(
    config: RunConfig,
    dataset: Dataset,
    model: Gemma,
    source: Source,
    objective: Objective,
    *,
    teachers: Sequence[Mapping[str, Any]] = (),
    inputs: Mapping[str, Any] | None = None,
    world: World = SOLO,
) -> Recipe:
    """The recipe of a run that is evaluated by its loss on validation and held-out text.

    Args:
        config: settings of the run.
        dataset: data that it is trained and evaluated on.
        model: model to train.
        source: batches of config.data.micro_batch sequences.
        objective: what a step minimizes.
        teachers: models that it learns from, as in `Recipe.parents`.
        inputs: as in `Recipe.inputs`.
        world: ranks of the run.
    """
    start = [] if config.model.init is None else [start_of(config.model.init, model)]
    result = heldout_result(config, model, dataset, objective, world)
    inputs = inputs or {}
    if isinstance(source, MixedText) and isinstance(dataset, MixedDataset):
        result = with_tokens_read(result, source)
        inputs = {**inputs, MIXTURE: describe(config, dataset, source.schedule)}
    return Recipe(
        model,
        source,
        objective,
        probes=[validation_probe(config, model, dataset, objective, world)],
        result=result,
        parents=[*teachers, *start],
        inputs=inputs,
        tokens_per_step=config.data.tokens_per_step,
    )


def start_of(path: str, model: Gemma) -> dict[str, Any]:
    """What a manifest says about the model that a run starts from."""
    return {
        "path": path,
        "fingerprint": weights_fingerprint(model),
        "parameters": model.config.parameters,
    }
