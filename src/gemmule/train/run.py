"""A whole training run of any kind: from settings to a folder with a model and its result."""

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gemmule.checkpoints.checkpoint import stored_fingerprint, weights_fingerprint
from gemmule.checkpoints.hf.writer import save_model
from gemmule.checkpoints.load import open_checkpoint
from gemmule.data.dataset import TOKENS_BY, Dataset
from gemmule.data.recipe.facts import facts
from gemmule.errors import CheckpointError, ConfigError, DataError
from gemmule.model.tokenizer import Tokenizer
from gemmule.runs.carbon import check_country
from gemmule.runs.layout import RESULT, RunLayout
from gemmule.runs.ledger import activity as ledger
from gemmule.runs.lock import locked
from gemmule.runs.run_dir import RunDir
from gemmule.runs.schema import Manifest, RunResult
from gemmule.runtime import device, memory, torch_compile
from gemmule.runtime.world import SOLO, World
from gemmule.train.activation_checkpointing import checkpoint_blocks
from gemmule.train.adapters.attach import Adapter, flops_saved_per_token, merge
from gemmule.train.config import RunConfig, load_run_config
from gemmule.train.initial_model import run_tokenizer
from gemmule.train.loop import TrainState, train
from gemmule.train.mixtures import MIXTURE, announce, check_mixable, open_data
from gemmule.train.probe import MakeProbe, Probe
from gemmule.train.recipe import Cost, Recipe
from gemmule.train.recipes import build_recipe
from gemmule.train.sharded_export import save_sharded
from gemmule.train.sharding import (
    check_sharding,
    data_ranks,
    divide,
    is_divided,
    is_sharded,
    rank_mesh,
)

# What a manifest's inputs are called in an error.
_INPUTS: Mapping[str, str] = {
    "targets": "another logit store",
    "mixture": "another mixture (its folders, weights, stages or steps)",
    "rewards": "another reward (its function or its model has changed)",
}


def run_training(
    config: RunConfig,
    out: Path,
    *,
    resume: bool = False,
    label: str | None = None,
    make_probes: Sequence[MakeProbe] = (),
    world: World = SOLO,
) -> dict[str, Any]:
    """Trains a model as `config` says, into the run directory `out`.

    Args:
        config: settings; a resumed run uses its saved ones instead.
        out: a new folder, or with `resume` one that a run was stopped in.
        resume: continue from the newest training state; a finished run is left as it is.
        label: name on the progress bar; None: the folder's.
        make_probes: measurements during training, made where the settings ask for them.
        world: ranks of the run, each of which calls this; the first one writes the folder.

    Returns:
        The content of result.json.

    Raises:
        UserError: when a setting, the data, a model or the folder cannot be used.
        TrainingError: when training diverges.
        Interrupted: when stopped; run again with `resume`.
    """
    layout = RunLayout(out)
    with contextlib.ExitStack() as stack:
        stack.enter_context(ledger.activity(_kind(config), out))
        if resume:
            run = RunDir.open(out)
            if world.first:
                stack.enter_context(locked(out))
            if world.agree(layout.finished):
                ledger.drop()
                return RunResult.read(layout.result).to_json()
            config = load_run_config(layout.config)
        memory.keep_freed_memory()
        check_mixable(config)
        ranks = data_ranks(config, world)
        dataset, given = open_data(config.data), config
        config = config.model_copy(update={"data": given.shared_by(world.size)})
        recipe = build_recipe(config, dataset, ranks)
        tokenizer = run_tokenizer(config, dataset)
        probes = [*recipe.probes, *_make(make_probes, config, recipe, dataset)]
        _check_best(config, probes)
        check_country(config.runtime.country)
        divided = [recipe.model, *recipe.objective.models()]
        check_sharding(config, [model.config for model in divided], world)
        config = _resolved(config, recipe, world)
        adapter = _adapter(config, recipe, tokenizer)
        manifest = _manifest(config, recipe, dataset, adapter)
        if not resume:  # whatever was wrong with the settings has left nothing behind
            run = RunDir(out)
            if world.first:
                stack.enter_context(locked(out))
                RunDir.create(out, _saved(config, given, world), besides=[config.data.path])
        if MIXTURE in recipe.inputs and world.first:
            announce(recipe.inputs[MIXTURE])
        if world.first:
            _check_or_write(run, manifest)
        world.barrier()
        _prepare(config, recipe, world)
        ledger.note(country=config.runtime.country, flop_per_token=_flops_per_token(config, recipe))
        before = Cost() if recipe.begin is None else recipe.begin(layout, config.runtime)
        state = train(run, config, recipe, label or out.resolve().name, probes, ranks)
        recipe.model.eval()
        result = _result(config, recipe, state, before)
        if is_sharded(recipe.model):
            save_sharded(recipe.model, tokenizer, layout.model, world)
        elif world.first:
            _save(recipe, adapter, tokenizer, layout.model)
        if world.first:
            ledger.note(product=_fingerprint(recipe, layout.model))
            ledger.beat()
            result.write(layout.result)
        return result.to_json()


def _saved(config: RunConfig, given: RunConfig, world: World) -> RunConfig:
    """The settings that a run is resumed with, by any number of ranks."""
    threads = config.runtime.threads if world.size == 1 else given.runtime.threads
    runtime = config.runtime.model_copy(update={"threads": threads})
    return config.model_copy(update={"data": given.data, "runtime": runtime})


def _adapter(config: RunConfig, recipe: Recipe, tokenizer: Tokenizer) -> Adapter | None:
    """Puts the adapter that the settings ask for on the recipe's model."""
    if config.adapter is None:
        return None
    if config.optimizer.name != "adamw":
        raise ConfigError(
            f"optimizer.name = {config.optimizer.name!r}: an adapter is trained with AdamW; set "
            "optimizer.name = 'adamw' and optimizer.learning_rate, about ten times that of full "
            "weights"
        )
    adapter = Adapter.of_run(config.adapter, config.model.init, tokenizer)
    adapter.attach(recipe.model, config.seed, half=config.runtime.dtype == "bfloat16")
    return adapter


def _save(recipe: Recipe, adapter: Adapter | None, tokenizer: Tokenizer, folder: Path) -> None:
    """Writes the trained model: a language model's adapter alone, anything else merged."""
    if adapter is not None and recipe.save is save_model:
        adapter.save(recipe.model, tokenizer, folder)
        return
    if adapter is not None:
        merge(recipe.model)
    recipe.save(recipe.model, tokenizer, folder)


def _make(
    makers: Sequence[MakeProbe], config: RunConfig, recipe: Recipe, dataset: Dataset
) -> list[Probe]:
    made = [make(config, recipe.model, dataset) for make in makers]
    probes = [probe for probe in made if probe is not None]
    wanted = config.evaluation.memorization is not None
    if wanted and "memorization" not in {probe.name for probe in probes}:
        raise ConfigError(
            "evaluation.memorization is set, and nothing was given to measure it with: gemmule "
            "train and gemmule distill do; from Python, pass make_probes=[memorization_probe], of "
            "gemmule.evals.memorization.callback"
        )
    return probes


def _check_best(config: RunConfig, probes: Sequence[Probe]) -> None:
    if config.evaluation.keep == "best" and not any(probe.best for probe in probes):
        raise ConfigError(
            f"evaluation.keep = 'best': a run of kind {config.objective.kind!r} has no validation "
            "loss to choose by; leave it out"
        )


def _resolved(config: RunConfig, recipe: Recipe, world: World) -> RunConfig:
    """The settings without any "auto"."""
    flops = _flops_per_token(config, recipe) * config.steps * recipe.tokens_per_step
    wanted = config.runtime
    if wanted.dtype == "auto":
        wanted = wanted.model_copy(update={"dtype": recipe.auto_dtype})
    runtime = device.resolve(wanted, flops, world)
    if runtime.attention == "flex" and runtime.device == "cpu":
        raise ConfigError(
            "runtime.attention = 'flex': torch's FlexAttention computes no gradients on a CPU; "
            "leave it out, or set runtime.device = 'cuda'"
        )
    return config.model_copy(update={"runtime": runtime})


def _flops_per_token(config: RunConfig, recipe: Recipe) -> float:
    """Operations of a training step per token."""
    full = recipe.objective.flops_per_token(recipe.model, config.data.seq_len)
    return full - flops_saved_per_token(recipe.model)


def _prepare(config: RunConfig, recipe: Recipe, world: World) -> None:
    """Moves the model and whatever the objective needs to the device, and compiles them."""
    compiled, half = bool(config.runtime.compile), config.runtime.dtype == "bfloat16"
    checkpoint_blocks(recipe.model.layers, config.runtime.activation_checkpointing)
    if config.runtime.attention == "flex":
        from gemmule.model.flex_attention import FlexAttention  # imports torch's compiler

        recipe.model.attend = FlexAttention(compiled=True)
    if is_divided(config, world):
        mesh = rank_mesh(config, world)
        divide(recipe.model, mesh, compiled=compiled, half=half)
        for model in recipe.objective.models():  # compiled by `prepare`
            divide(model, mesh, compiled=False, half=half)
    else:
        recipe.model.to(config.runtime.device)
        if compiled:
            torch_compile.compile_blocks(recipe.model.layers)
    recipe.objective.prepare(config.runtime.device, compiled)


def _kind(config: RunConfig) -> str:
    """What a run does; manifests said "train" from the start."""
    kind = config.objective.kind
    return {"pretrain": "train"}.get(kind, kind)


def _fingerprint(recipe: Recipe, folder: Path) -> str:
    """Fingerprint of the saved model, the one that runs which learn from it have in their manifest.

    An adapter's is that of the merged weights; a reward model, which no run starts from, has that
    of its own.
    """
    if recipe.save is not save_model:
        return weights_fingerprint(recipe.model)
    with open_checkpoint(folder) as checkpoint:
        return stored_fingerprint(checkpoint)


def _manifest(
    config: RunConfig, recipe: Recipe, dataset: Dataset, adapter: Adapter | None
) -> dict[str, Any]:
    about, shape = dataset.manifest, recipe.model.config
    splits, parents = about["splits"], recipe.parents
    return {
        "kind": _kind(config),
        "seed": config.seed,
        "data": {
            **{k: about[k] for k in ("name", "licence", "language") if k in about},
            "fingerprint": dataset.fingerprint,
            "documents": sum(s["documents"] for s in splits.values()),
            **{f"{name}_tokens": s["tokens"] for name, s in splits.items()},
            **({TOKENS_BY: splits["train"][TOKENS_BY]} if TOKENS_BY in splits["train"] else {}),
            **facts(about),
        },
        "tokenizer": dataset.tokenizer.fingerprint,
        "parent": parents[0] if parents else None,
        **({"parents": list(parents)} if len(parents) > 1 else {}),
        **recipe.inputs,
        "model": shape.model_dump(mode="json"),
        "parameters": shape.parameters,
        "non_embedding_parameters": shape.non_embedding_parameters,
        "objective": recipe.objective.describe(),
        **({} if adapter is None else {"adapter": adapter.describe(recipe.model)}),
    }


def _check_or_write(run: RunDir, manifest: Mapping[str, Any]) -> None:
    if run.layout.started:
        _check_inputs(Manifest.read(run.layout.manifest).to_json(), manifest, run.path)
    else:
        run.write_manifest(manifest)


def _check_inputs(before: Mapping[str, Any], now: Mapping[str, Any], out: Path) -> None:
    """Raises unless a resumed run has the text, the models and the inputs that it began with."""
    old, new = before["data"]["fingerprint"], now["data"]["fingerprint"]
    if old != new:
        raise DataError(
            f"{out} was started with other data (fingerprint {old[:12]}, now {new[:12]}): "
            "bring that data back, or start a new run"
        )
    for parent, again in zip(_parents(before), _parents(now), strict=False):
        if parent["fingerprint"] != again["fingerprint"]:
            raise CheckpointError(
                f"{parent['path']} has other weights than when {out} was started: bring "
                "those back, or start a new run"
            )
    for name, entry in before.items():
        if not isinstance(entry, Mapping) or "identity" not in entry:
            continue
        old, new = entry["identity"], now.get(name, {}).get("identity")
        if old != new:
            raise DataError(
                f"{out} was started with {_INPUTS.get(name, f'other {name}')} (identity "
                f"{old[:12]}, now {str(new)[:12]}): bring that back, or start a new run"
            )


def _parents(manifest: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    parent = manifest["parent"]
    return manifest.get("parents") or ([parent] if parent else [])


def _result(config: RunConfig, recipe: Recipe, state: TrainState, before: Cost) -> RunResult:
    carbon = state.carbon or {}
    best = {} if state.best is None else {"best": state.best}
    values = {
        **recipe.result(),
        "parameters": recipe.model.config.parameters,
        "train_tokens": state.tokens,
        "train_flops": before.flops + _flops_per_token(config, recipe) * state.tokens,
        "seconds": round(before.seconds + state.seconds, 3),
        "energy_wh": carbon.get("energy_wh"),
        "gco2e": carbon.get("gco2e"),
        "seed": config.seed,
        **best,
    }
    return RunResult.parse(values, RESULT)


def describe(result: Mapping[str, Any]) -> str:
    """One line on a finished run: its loss on text, or the metrics of its kind."""
    if "nats_per_token" not in result:
        metrics = {k: _shown(v) for k, v in result.items() if k not in RunResult.model_fields}
        return ", ".join(f"{name} {value}" for name, value in metrics.items() if value)
    return (
        f"{result['nats_per_token']:.4f} nats/token, perplexity {result['perplexity']:.2f}, "
        f"{result['bits_per_byte']:.4f} bits/byte on {result['heldout_tokens']:,} held-out tokens"
    )


def _shown(value: Any) -> str:
    """A number, or an estimate with its interval; empty for anything else."""
    if isinstance(value, Mapping) and {"value", "low", "high"} <= set(value):
        return f"{value['value']:.4g} [{value['low']:.4g}, {value['high']:.4g}]"
    return f"{value:.4g}" if isinstance(value, int | float) else ""
