"""The one training loop: pretraining, distillation and all that comes after use it."""

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from gemmule import files
from gemmule.console import ProgressBar
from gemmule.data.batch import Batch
from gemmule.data.source import Source
from gemmule.errors import Interrupted, TrainingError
from gemmule.model.gemma import Gemma
from gemmule.runs.carbon import EnergyMeter
from gemmule.runs.event_file import EventFile
from gemmule.runs.run_dir import RunDir
from gemmule.runtime.signals import stop_signals
from gemmule.train.config import TrainConfig
from gemmule.train.objectives import Objective
from gemmule.train.optimizers import build_optimizers, clip_gradients, set_learning_rate
from gemmule.train.probe import Probe
from gemmule.train.schedule import learning_rate_factor
from gemmule.train.state import SafetensorsStates, StateStore


@dataclasses.dataclass
class TrainState:
    """What a run has done so far; with the weights and optimisers, all it needs to go on.

    Attributes:
        step: finished optimiser steps.
        tokens: input tokens read.
        seconds: time spent in steps, evaluation left out.
        loader: position of the source.
        carbon: content of carbon.json.
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    loader: dict[str, Any] = dataclasses.field(default_factory=dict)
    carbon: dict[str, Any] | None = None


def train(
    run: RunDir,
    config: TrainConfig,
    model: Gemma,
    objective: Objective,
    source: Source,
    evaluate: Callable[[], Mapping[str, float]],
    label: str,
    probes: Sequence[Probe] = (),
) -> TrainState:
    """Trains `model` for config.steps steps, going on from the run's newest checkpoint if any.

    On CPU a resumed run ends in the same weights, byte for byte, as one never stopped.

    Args:
        run: where metrics and checkpoints go.
        config: resolved settings (no "auto" left).
        model: trained in place.
        objective: what a step minimises.
        source: batches of config.micro_batch sequences.
        evaluate: figures on validation text.
        label: for the progress bar.
        probes: what else to measure on the way.

    Raises:
        TrainingError: when loss or gradient is NaN or Inf; the weights are left as they were.
        Interrupted: after Ctrl-C or SIGTERM, once the state is saved.
    """
    optimizers = build_optimizers(model, config.optimizer, getattr(torch, config.dtype))
    states = SafetensorsStates(run.layout.checkpoints, config.keep_checkpoints)
    state = _resume(run, states, model, optimizers, source)
    micro_batches = config.batch_size // config.micro_batch
    meter = EnergyMeter(config.country, state.carbon)
    saved = time.monotonic()
    stopping = False
    model.train()
    with (
        stop_signals() as stop,
        EventFile(run.path / "tensorboard", state.step + 1) as board,
        meter,
        ProgressBar(label, config.steps * config.tokens_per_step, "tok", state.tokens) as bar,
    ):
        while state.step < config.steps and not stopping:
            began = time.perf_counter()
            factor = learning_rate_factor(state.step, config.steps, config.schedule)
            set_learning_rate(optimizers, factor)
            batches = [source.next() for _ in range(micro_batches)]
            sums = _accumulate(model, objective, batches, config)
            norm = clip_gradients(model, config.optimizer.clip).item()
            if not (math.isfinite(sums["loss"]) and math.isfinite(norm)):
                raise TrainingError(_diverged(states, state.step + 1, sums["loss"], norm))
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            state.step += 1
            state.tokens += config.tokens_per_step
            elapsed = time.perf_counter() - began
            state.seconds += elapsed
            state.loader = source.state()

            last = state.step == config.steps
            note = f"loss {sums['loss']:.3f}"
            bar.update(state.tokens, note)
            if last or state.step % config.log_every == 0 or state.step == 1:
                figures = {
                    **sums,
                    "learning_rate": config.optimizer.learning_rate * factor,
                    "gradient_norm": norm,
                    "tokens_per_second": config.tokens_per_step / elapsed,
                }
                _log(run, board, state, figures)
            if last or state.step % config.evaluate_every == 0:
                model.eval()
                _log(run, board, state, {"split": "validation", **evaluate()})
                model.train()
            for probe in probes:
                if last or state.step % probe.every == 0:
                    model.eval()
                    _log(run, board, state, {"probe": probe.name, **probe.measure(state.step)})
                    model.train()
            overdue = time.monotonic() - saved > config.checkpoint_minutes * 60
            stopping = stop.requested  # read once: what stops the loop has been saved
            if last or stopping or overdue or state.step % config.checkpoint_every == 0:
                state.carbon = meter.reading().to_json()
                _save(run, states, model, optimizers, state)
                saved = time.monotonic()
    if state.step < config.steps:
        raise Interrupted(
            f"stopped after step {state.step} of {config.steps}, everything is saved in "
            f"{run.path}: the same command with --resume goes on from there"
        )
    return state


def _accumulate(
    model: Gemma, objective: Objective, batches: list[Batch], config: TrainConfig
) -> dict[str, float]:
    """Adds up gradients; every target of the step weighs the same, whatever its micro-batch."""
    targets = max(1, sum(int((b.labels_BT >= 0).sum()) for b in batches))
    sums: dict[str, float] = {}
    half = config.dtype == "bfloat16"
    for batch in batches:
        with torch.autocast(config.device, torch.bfloat16, enabled=half):
            loss, others = objective(model, batch.to(config.device))
        (loss / targets).backward()
        for name, value in {"loss": loss, **others}.items():
            sums[name] = sums.get(name, 0.0) + value.item() / targets
    return sums


def _resume(
    run: RunDir,
    states: StateStore,
    model: Gemma,
    optimizers: list[torch.optim.Optimizer],
    source: Source,
) -> TrainState:
    files.remove_leftovers(run.path)
    states.clean()
    steps = states.steps()
    if not steps:
        run.cut_metrics(0)
        return TrainState()
    state = TrainState(step=steps[-1], **states.load(steps[-1], model, optimizers))
    source.load_state(state.loader)
    run.cut_metrics(state.step)
    files.write_json(run.layout.carbon, state.carbon)  # a kill may have come before it
    return state


def _save(
    run: RunDir,
    states: StateStore,
    model: Gemma,
    optimizers: list[torch.optim.Optimizer],
    state: TrainState,
) -> None:
    values = dataclasses.asdict(state)
    step = values.pop("step")
    states.save(step, model, optimizers, values)
    files.write_json(run.layout.carbon, state.carbon)


def _log(
    run: RunDir, board: EventFile, state: TrainState, figures: Mapping[str, float | str]
) -> None:
    seconds = round(state.seconds, 3)
    run.log({"step": state.step, "tokens": state.tokens, "seconds": seconds, **figures})
    group = figures.get("probe", figures.get("split", "train"))
    for name, value in figures.items():
        if isinstance(value, float):
            board.add(f"{group}/{name}", value, state.step)
    if group != "train":
        board.flush()


def _diverged(states: StateStore, step: int, loss: float, norm: float) -> str:
    steps = states.steps()
    kept = f"the last good state is step-{steps[-1]}" if steps else "no state was saved yet"
    return (
        f"training diverged at step {step}: loss {loss}, gradient norm {norm}; {kept}. Lower "
        "optimizer.learning_rate or optimizer.clip, or raise schedule.warmup, and start again"
    )
