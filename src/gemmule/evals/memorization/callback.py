"""Memorization measured while a model is trained, by the setting `evaluation.memorization`."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch

from gemmule.data.canaries import Canaries
from gemmule.data.dataset import Dataset
from gemmule.errors import ConfigError
from gemmule.evals.memorization.extraction import Extractor, check_context
from gemmule.evals.memorization.probes import Probes, draw
from gemmule.evals.memorization.settings import Settings
from gemmule.evals.training_data import Reading
from gemmule.infer.language_model import LanguageModel
from gemmule.model.gemma import Gemma
from gemmule.train.config import RunConfig
from gemmule.train.probe import Probe

NAME = "memorization"


def memorization_probe(config: RunConfig, model: Gemma, dataset: Dataset) -> Probe | None:
    """Makes the probe that a run's settings ask for; None if they do not.

    The passages are drawn once from everything that the run will read, so that all points of a
    curve are of the same text; at each step those count that were read by then. The control is
    validation text: held-out text is for the metrics at the end.

    Raises:
        ConfigError: if the model's context or the text is too short for the passages.
    """
    chosen = config.evaluation.memorization
    if chosen is None:
        return None
    settings = Settings(
        probes=chosen.probes,
        prompt_tokens=chosen.prompt_tokens,
        continuation_tokens=chosen.continuation_tokens,
        seed=config.seed,
    )
    lm = LanguageModel(model, dataset.tokenizer)
    check_context(lm.config, settings)
    train = dataset.split("train")
    planted = Canaries.of(dataset)
    at_the_end = Reading.of(config, train, config.steps)
    drawn = (chosen.probes, settings.length, config.seed)
    probes = draw(train, *drawn, [at_the_end], planted.documents if planted else range(0))
    control = draw(dataset.split("validation"), *drawn)
    if not len(probes):
        raise ConfigError(
            f"evaluation.memorization: the run reads no passage of {settings.length} tokens of one "
            "document: lower evaluation.memorization.prompt_tokens and .continuation_tokens"
        )

    def measure(step: int) -> Mapping[str, float]:
        times = Reading.of(config, train, step).of_spans(probes.starts, settings.length)
        read = _tokens(probes)[times > 0]
        metrics = {"probes_read": float(len(read))}
        # Training compiled other shapes; compiling more would take minutes.
        with torch.compiler.set_stance("force_eager"):
            for prefix, passages in (("", read), ("control_", _tokens(control))):
                if len(passages):
                    exact, approximate = _rates(lm, passages, settings)
                    metrics[f"{prefix}exact"] = exact
                    metrics[f"{prefix}approximate"] = approximate
        return metrics

    return Probe(NAME, chosen.every, measure)


def _tokens(probes: Probes) -> npt.NDArray[np.int64]:
    if not len(probes):
        return np.empty((0, probes.length), np.int64)
    return probes.tokens(slice(None))


def _rates(
    lm: LanguageModel, passages_BL: npt.NDArray[np.int64], settings: Settings
) -> tuple[float, float]:
    """The fractions reproduced exactly, and with few edits."""
    # Made for each measurement, so that training has the pool's memory in between.
    edits = [outcome.edits for _, outcome in Extractor(lm, settings).outcomes(passages_BL)]
    exact = sum(edit == 0 for edit in edits)
    return exact / len(edits), sum(edit is not None for edit in edits) / len(edits)
