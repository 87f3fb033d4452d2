"""The training loop: one for pretraining, distillation and every other kind of run."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gemmule import files
from gemmule.errors import ConfigError, Interrupted, TrainingError
from gemmule.model.gemma import Gemma
from gemmule.runs.carbon import Energy, EnergyMeter, of_all_machines
from gemmule.runs.layout import CARBON
from gemmule.runs.reporter import Reporter
from gemmule.runs.run_dir import RunDir
from gemmule.runtime.signals import stop_signals
from gemmule.runtime.world import SOLO, World
from gemmule.train.config import RunConfig
from gemmule.train.optimizers import build_optimizers, clip_gradients, set_learning_rate
from gemmule.train.probe import Probe
from gemmule.train.recipe import Recipe
from gemmule.train.schedule import learning_rate_factor
from gemmule.train.sharding import is_sharded
from gemmule.train.state import SafetensorsStates, StateStore
from gemmule.train.state_content import Optimizers
from gemmule.train.step import accumulate, count, reduce


@dataclasses.dataclass
class TrainState:
    """Progress of a run; with the weights and the optimizers' states, all it needs to continue.

    Attributes:
        step: finished optimizer steps.
        tokens: tokens of all batches so far.
        seconds: time spent in steps, without evaluation.
        loader: position of the source, one for all ranks; the name is that of saved states.
        carbon: content of carbon.json.
        best: "step", "tokens" and "loss" of the state with the lowest validation loss, in a run
            that keeps it.
        stale: evaluations since then.
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    loader: dict[str, Any] = dataclasses.field(default_factory=dict)
    carbon: dict[str, Any] | None = None
    best: dict[str, Any] | None = None
    stale: int = 0


def train(
    run: RunDir,
    config: RunConfig,
    recipe: Recipe,
    label: str,
    probes: Sequence[Probe],
    world: World = SOLO,
) -> TrainState:
    """Trains the recipe's model for config.steps steps, from the run's newest state if any.

    On a CPU a resumed run ends in the same weights, byte for byte, as one that was never stopped.
    With evaluation.keep = "best" it ends in the state with the lowest validation loss instead of
    the last one, and evaluation.patience may end it early.

    Args:
        run: folder for metrics and training states.
        config: resolved settings (no "auto" left).
        recipe: model, source and objective; each rank's source yields its own part of every step.
        label: name on the progress bar.
        probes: measurements, the recipe's own among them.
        world: ranks of the run; those that compute the same batches count as one.

    Raises:
        TrainingError: when loss or gradient is NaN or infinite; the weights are left as they were.
        Interrupted: after Ctrl-C, SIGTERM or SIGHUP, once the state is saved.
    """
    model, source, objective = recipe.model, recipe.source, recipe.objective
    optimizers = build_optimizers(model, config.optimizer, getattr(torch, config.runtime.dtype))
    states = _states(run, config, model, world.every)
    state = _resume(run, states, recipe, optimizers, world)
    meter = EnergyMeter(config.runtime.country, state.carbon if world.first else None)
    total = config.steps * recipe.tokens_per_step
    report = Reporter(
        run.layout, world, label=label, total=total, step=state.step, done=state.tokens
    )
    alone, saved, stopping = world.every.size == 1, time.monotonic(), False
    metering = meter if world.local_rank == 0 else contextlib.nullcontext()
    micro_batches = config.data.micro_batches // world.size
    model.train()
    with stop_signals(patient=not alone) as stop, report, metering:
        while not _complete(state, config) and not stopping:
            began = time.perf_counter()
            factor = learning_rate_factor(state.step, config.steps, config.schedule)
            set_learning_rate(optimizers, factor)
            batches = [source.next() for _ in range(micro_batches)]
            denominator, tokens = count(world, objective, batches)
            means = accumulate(model, objective, batches, denominator, config.runtime)
            due = _overdue(saved, config)
            agreed = reduce(world, model, means, stop=stop.requested, due=due)
            norm = clip_gradients(model, config.optimizer.clip, agreed.norm).item()
            if not (math.isfinite(agreed.means["loss"]) and math.isfinite(norm)):
                raise TrainingError(_diverged(states, state.step + 1, agreed.means["loss"], norm))
            _update(optimizers)
            further = {} if recipe.hook is None else recipe.hook.after_step()
            elapsed = time.perf_counter() - began
            state.step, state.tokens = state.step + 1, state.tokens + tokens
            state.seconds, state.loader = state.seconds + elapsed, source.state()

            last = state.step == config.steps
            report.progress(
                state.tokens,
                f"loss {agreed.means['loss']:.3f}",
                # Answers and conversations differ in length: as many per step as so far.
                total=state.tokens * config.steps / state.step,
            )
            if last or state.step % config.log_every == 0 or state.step == 1:
                rates = {
                    "learning_rate": config.optimizer.learning_rate * factor,
                    "gradient_norm": norm,
                    "tokens_per_second": tokens / elapsed,
                }
                _log(report, state, {**agreed.means, **further, **rates})
            due_probes = [p for p in probes if last or state.step % p.every == 0]
            loss = _measure(model, due_probes, report, state)
            better = _judge(config, state, loss, world)
            # A process alone need not agree with others: it looks at what has come in meanwhile.
            stopping = stop.requested if alone else agreed.stop
            due = _overdue(saved, config) if alone else agreed.due
            ends = stopping or _complete(state, config)
            if ends or better or due or state.step % config.checkpoint.every == 0:
                state.carbon = of_all_machines(meter, world.every).to_json()
                _save(run, states, recipe, optimizers, state, world)
                saved = time.monotonic()
    states.wait()
    # Also after the last step: what comes next may take long, or be another run of a loop.
    if stop.requested if alone else stopping:
        raise Interrupted(_stopped(run, state.step, config.steps))
    if state.best is not None and state.best["step"] != state.step:
        states.load(state.best["step"], model, optimizers, _tensors(recipe))
    return state


def _states(run: RunDir, config: RunConfig, model: Gemma, world: World) -> StateStore:
    if not is_sharded(model):
        return SafetensorsStates(run.layout.checkpoints, config.checkpoint.keep, world)
    from gemmule.train.sharded_states import ShardedStates

    return ShardedStates(run.layout.checkpoints, config.checkpoint.keep, world)


def _complete(state: TrainState, config: RunConfig) -> bool:
    """Whether all steps are taken, or patience with a loss that no longer falls is at its end."""
    patience = config.evaluation.patience
    return state.step >= config.steps or (patience is not None and state.stale >= patience)


def _judge(config: RunConfig, state: TrainState, loss: float | None, world: World) -> bool:
    """Whether the best state is kept and this is it so far; `state` then says so."""
    if config.evaluation.keep != "best" or loss is None:
        return False
    lowest = math.isfinite(loss) and (state.best is None or loss < state.best["loss"])
    if world.agree(lowest):
        state.best = {"step": state.step, "tokens": state.tokens, "loss": loss}
        state.stale = 0
        return True
    state.stale += 1
    return False


def _update(optimizers: Optimizers) -> None:
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()


def _measure(
    model: Gemma, probes: Sequence[Probe], report: Reporter, state: TrainState
) -> float | None:
    """Logs what the probes measure; returns the loss that judges the state, if it is among it."""
    loss = None
    for probe in probes:
        model.eval()
        metrics = probe.measure(state.step)
        _log(report, state, {probe.label: probe.name, **metrics})
        model.train()
        if probe.best is not None:
            loss = metrics[probe.best]
    return loss


def _overdue(saved: float, config: RunConfig) -> bool:
    return time.monotonic() - saved > config.checkpoint.minutes * 60


def _resume(
    run: RunDir, states: StateStore, recipe: Recipe, optimizers: Optimizers, world: World
) -> TrainState:
    if world.first:
        files.remove_leftovers(run.path)
    states.clean()
    steps = states.steps()
    _check_same(steps, run, world)
    if not steps:
        return TrainState()
    state = TrainState(
        step=steps[-1], **states.load(steps[-1], recipe.model, optimizers, _tensors(recipe))
    )
    recipe.source.load_state(state.loader)
    if world.first:  # a kill may have come before it was written
        _write_carbon(run, state)
    return state


def _check_same(steps: Sequence[int], run: RunDir, world: World) -> None:
    """Raises unless every rank sees the same newest state."""
    newest = steps[-1] if steps else 0
    total, squares = world.sum([newest, newest**2])
    if total**2 != world.size * squares:
        raise ConfigError(
            f"the ranks see different training states in {run.path} (rank {world.rank}: "
            f"{'none' if not steps else f'step-{newest}'}): the folder of a run must be one that "
            "all machines share"
        )


def _save(
    run: RunDir,
    states: StateStore,
    recipe: Recipe,
    optimizers: Optimizers,
    state: TrainState,
    world: World,
) -> None:
    values = dataclasses.asdict(state)
    step = values.pop("step")
    states.save(step, recipe.model, optimizers, values, _tensors(recipe))
    if world.first:
        _write_carbon(run, state)


def _tensors(recipe: Recipe) -> Mapping[str, Tensor]:
    return {} if recipe.hook is None else recipe.hook.tensors()


def _write_carbon(run: RunDir, state: TrainState) -> None:
    Energy.parse(state.carbon, CARBON).write(run.layout.carbon)


def _log(report: Reporter, state: TrainState, metrics: Mapping[str, float | str]) -> None:
    report.log(state.step, state.tokens, state.seconds, metrics)


def _stopped(run: RunDir, step: int, steps: int) -> str:
    return (
        f"stopped after step {step} of {steps}, everything is saved in {run.path}: the same "
        "command with --resume continues from there"
    )


def _diverged(states: StateStore, step: int, loss: float, norm: float) -> str:
    states.wait()
    steps = states.steps()
    kept = f"the last good state is step-{steps[-1]}" if steps else "no state was saved yet"
    return (
        f"training diverged at step {step}: loss {loss}, gradient norm {norm}; {kept}. Lower "
        "optimizer.learning_rate or optimizer.clip, or raise schedule.warmup, and start again"
    )
