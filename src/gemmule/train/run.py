"""A whole training run: from a config to a run directory with a model and its figures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from gemmule import files
from gemmule.checkpoints.checkpoint import weights_fingerprint
from gemmule.checkpoints.hf.writer import save_model
from gemmule.data.dataset import Dataset
from gemmule.data.packed_text import PackedText
from gemmule.errors import CheckpointError, ConfigError, DataError
from gemmule.model.config import GemmaConfig, preset
from gemmule.model.gemma import Gemma
from gemmule.runs.carbon import EnergyMeter
from gemmule.runs.run_dir import RunDir
from gemmule.runtime import device, memory, torch_compile
from gemmule.teachers.gemma import GemmaTeacher, load_partner
from gemmule.teachers.logit_store import Store
from gemmule.teachers.open import open_foreign_teacher, open_teacher
from gemmule.teachers.pieces import OwnPieces
from gemmule.teachers.teacher import LocalTeacher
from gemmule.train import memory_check
from gemmule.train.config import DistillConfig, TrainConfig
from gemmule.train.evaluate import evaluate
from gemmule.train.loop import train
from gemmule.train.objectives import (
    CrossTokenizerDistillation,
    Distillation,
    NextToken,
    Objective,
    StoredDistillation,
)
from gemmule.train.probe import MakeProbe, Probe

RESULT = "result.json"
MANIFEST = "manifest.json"


def run_training(
    config: TrainConfig,
    out: Path,
    *,
    resume: bool = False,
    label: str | None = None,
    make_probes: Sequence[MakeProbe] = (),
) -> dict[str, Any]:
    """Trains, or distils when `config` is a DistillConfig, into the run directory `out`.

    Args:
        config: settings; of a resumed run the saved ones count.
        out: a new folder, or with `resume` one that a run was stopped in.
        resume: go on from the newest checkpoint; a finished run is left as it is.
        label: for the progress bar.
        make_probes: what may be measured on the way, where the settings ask for it.

    Returns:
        The content of result.json.

    Raises:
        UserError: when a setting, the data, the teacher or the folder cannot be used.
        TrainingError: when training diverges.
        Interrupted: when stopped; run again with `resume`.
    """
    if resume:
        run = RunDir.open(out)
        if (out / RESULT).is_file():
            return dict(files.read_json(out / RESULT))
        config = type(config).load(out / "config.toml")
    memory.keep_freed_memory()
    dataset = Dataset.open(config.data)
    model = _build(config, dataset)
    teacher = _open_teacher(config, model, dataset)
    windows = _windows(config, teacher)
    train_split = dataset.split("train")
    source = PackedText(train_split, config.micro_batch, config.seq_len, config.seed, windows)
    objective = _objective(config, teacher, dataset, compiled=False)
    probes = _probes(config, model, dataset, make_probes)
    flops_per_token = objective.flops_per_token(model, config.seq_len)
    train_flops = flops_per_token * config.steps * config.tokens_per_step
    EnergyMeter(config.country)  # a wrong country is to be found before anything is written
    manifest = _manifest(config, model, teacher, dataset)
    config = device.resolve(config, train_flops)
    if not resume:
        run = RunDir.create(out, config)
    if (out / MANIFEST).is_file():
        _same_inputs(files.read_json(out / MANIFEST), manifest, out)
    else:
        run.write_manifest(manifest)
    model.to(config.device)
    if isinstance(teacher, LocalTeacher):
        teacher.module.to(config.device)
    if config.compile:
        torch_compile.compile_blocks(model.layers)
        if isinstance(teacher, GemmaTeacher):
            torch_compile.compile_blocks(teacher.model.layers)
    objective = _objective(config, teacher, dataset, compiled=bool(config.compile))

    def validate() -> dict[str, float]:
        figures = _figures(model, dataset, "validation", config, config.evaluation_tokens)
        return {k: figures[k] for k in ("nats_per_token", "perplexity", "bits_per_byte")}

    state = train(run, config, model, objective, source, validate, label or out.name, probes)
    model.eval()
    heldout = _figures(model, dataset, "heldout", config, config.heldout_tokens)
    save_model(model, dataset.tokenizer, out / "model")
    carbon = state.carbon or {}
    result = {
        "split": "heldout",
        "nats_per_token": heldout["nats_per_token"],
        "perplexity": heldout["perplexity"],
        "bits_per_byte": heldout["bits_per_byte"],
        "heldout_tokens": heldout["tokens"],
        "parameters": model.config.parameters,
        "train_tokens": state.tokens,
        "train_flops": train_flops,
        "seconds": round(state.seconds, 3),
        "energy_wh": carbon.get("energy_wh"),
        "gco2e": carbon.get("gco2e"),
        "seed": config.seed,
    }
    files.write_json(out / RESULT, result)
    return result


def _probes(
    config: TrainConfig, model: Gemma, dataset: Dataset, makers: Sequence[MakeProbe]
) -> list[Probe]:
    probes = [probe for make in makers if (probe := make(config, model, dataset)) is not None]
    if config.memorization is not None and "memorization" not in {probe.name for probe in probes}:
        raise ConfigError(
            "memorization is set, and nothing was given to measure it with: gemmule train and "
            "gemmule distill do; from Python, pass make_probes=[memorization_probe], of "
            "gemmule.evals.memorization.callback"
        )
    return probes


def _figures(
    model: Gemma, dataset: Dataset, split: str, config: TrainConfig, max_tokens: int | None
) -> dict[str, float]:
    return evaluate(
        model,
        dataset.split(split),
        dataset.tokenizer,
        seq_len=config.seq_len,
        batch_size=config.micro_batch,
        max_tokens=max_tokens,
        compiled=bool(config.compile),
    )


def _build(config: TrainConfig, dataset: Dataset) -> Gemma:
    """The model to train, as it is before the first step."""
    if config.init is not None:
        model = load_partner(config.init, "the model to start from", dataset)
        _check_context(config, model.config)
        return model
    tokenizer = dataset.tokenizer
    shape = preset(config.preset, **{"vocab_size": tokenizer.vocab_size, **config.model})
    if shape.vocab_size < tokenizer.vocab_size:
        raise ConfigError(
            f"model.vocab_size = {shape.vocab_size} is smaller than the tokenizer's "
            f"{tokenizer.vocab_size} pieces: leave it out, or make it at least that"
        )
    _check_context(config, shape)
    memory_check.check_memory(config, shape)
    torch.manual_seed(config.seed)
    return Gemma(shape)


def _check_context(config: TrainConfig, shape: GemmaConfig) -> None:
    if config.seq_len > shape.max_position_embeddings:
        raise ConfigError(
            f"seq_len = {config.seq_len} is longer than the model's context of "
            f"{shape.max_position_embeddings} tokens: shorten it, or set "
            "model.max_position_embeddings"
        )


def _open_teacher(
    config: TrainConfig, student: Gemma, dataset: Dataset
) -> LocalTeacher | Store | None:
    """The teacher of a distillation, or what was recorded of one."""
    if not isinstance(config, DistillConfig):
        return None
    if config.targets is not None:
        return _open_store(config, config.targets, student, dataset)
    assert config.teacher is not None
    if config.cross_tokenizer:
        return open_foreign_teacher(config.teacher, config.seq_len)
    teacher = open_teacher(config.teacher, dataset, config.seq_len)
    _check_vocabulary(f"the teacher, {config.teacher},", teacher.vocab_size, student)
    return teacher


def _open_store(config: TrainConfig, path: Path, student: Gemma, dataset: Dataset) -> Store:
    store = Store.open(path)
    corpus, tokenizer = store.manifest["corpus"], store.manifest["tokenizer"]
    if corpus["fingerprint"] != dataset.fingerprint:
        raise DataError(
            f"{path} was recorded on other data ({corpus['name']}, fingerprint "
            f"{corpus['fingerprint'][:12]}) than {config.data} ({dataset.name}, "
            f"{dataset.fingerprint[:12]}): train on the data it was recorded on, or record these"
        )
    if tokenizer != dataset.tokenizer.fingerprint:
        raise DataError(
            f"{path} was recorded with another tokenizer (fingerprint {tokenizer[:12]}) than that "
            f"of {config.data} ({dataset.tokenizer.fingerprint[:12]}): record these data"
        )
    if store.seq_len != config.seq_len:
        raise ConfigError(
            f"seq_len = {config.seq_len}: {path} was recorded in windows of {store.seq_len} "
            f"tokens, and the teacher's words belong to them: set seq_len = {store.seq_len}, or "
            f"record anew with --seq-len {config.seq_len}"
        )
    _check_vocabulary(f"the teacher of {path}", store.vocab_size, student)
    store.check_whole()
    return store


def _windows(config: TrainConfig, teacher: LocalTeacher | Store | None) -> int | None:
    """How many of the corpus's windows are read; None is all."""
    limits = [-(-config.corpus_tokens // config.seq_len)] if config.corpus_tokens else []
    limits += [teacher.windows] if isinstance(teacher, Store) else []
    return min(limits, default=None)


def _check_vocabulary(whose: str, size: int, student: Gemma) -> None:
    if size != student.config.vocab_size:
        raise ConfigError(
            f"{whose} has {size} rows in its vocabulary and the student "
            f"{student.config.vocab_size}: set model.vocab_size = {size}"
        )


def _objective(
    config: TrainConfig, teacher: LocalTeacher | Store | None, dataset: Dataset, compiled: bool
) -> Objective:
    if not isinstance(config, DistillConfig) or teacher is None:
        return NextToken(compiled)
    settings = (config.temperature, config.alpha, compiled, config.divergence)
    if isinstance(teacher, Store):
        return StoredDistillation(teacher, *settings)
    if teacher.pieces is not None:
        ours = OwnPieces(dataset.tokenizer)
        return CrossTokenizerDistillation(
            teacher, ours, config.span_temperature, config.alpha, compiled
        )
    return Distillation(teacher, *settings, route_above=config.route_above)


def _manifest(
    config: TrainConfig, model: Gemma, teacher: LocalTeacher | Store | None, dataset: Dataset
) -> dict[str, Any]:
    source = None
    if isinstance(teacher, Store):
        source = teacher.manifest["teacher"]
    elif teacher is not None:
        source = teacher.describe()
    elif config.init is not None:
        source = _parent(config.init, model)
    objective: dict[str, Any] = {"name": "next-token prediction"}
    if isinstance(config, DistillConfig) and config.cross_tokenizer:
        objective = {
            "name": "distillation",
            "loss": "span_likelihoods",
            "span_temperature": config.span_temperature,
            "alpha": config.alpha,
        }
    elif isinstance(config, DistillConfig):
        objective = {
            "name": "distillation",
            "loss": config.loss,
            **config.divergence.parameter(),
            "temperature": config.temperature,
            "alpha": config.alpha,
            **({} if config.route_above is None else {"route_above": config.route_above}),
        }
    about = dataset.manifest
    splits = about["splits"]
    return {
        "kind": "distill" if teacher is not None else "train",
        "seed": config.seed,
        "data": {
            **{k: about[k] for k in ("name", "licence", "language") if k in about},
            "fingerprint": dataset.fingerprint,
            "documents": sum(s["documents"] for s in splits.values()),
            **{f"{name}_tokens": s["tokens"] for name, s in splits.items()},
        },
        "tokenizer": dataset.tokenizer.fingerprint,
        "parent": source,
        **({"targets": teacher.summary()} if isinstance(teacher, Store) else {}),
        "model": model.config.model_dump(mode="json"),
        "parameters": model.config.parameters,
        "non_embedding_parameters": model.config.non_embedding_parameters,
        "objective": objective,
    }


def _same_inputs(before: dict[str, Any], now: dict[str, Any], out: Path) -> None:
    """A run goes on with the very text and parent it began with, or not at all."""
    was, found = before["data"]["fingerprint"], now["data"]["fingerprint"]
    if was != found:
        raise DataError(
            f"{out} was started with other data (fingerprint {was[:12]}, now {found[:12]}): "
            "bring that data back, or start a new run"
        )
    if before["parent"] and before["parent"]["fingerprint"] != now["parent"]["fingerprint"]:
        raise CheckpointError(
            f"{before['parent']['path']} has other weights than when {out} was started: bring "
            "those back, or start a new run"
        )
    was, found = (m.get("targets", {}).get("identity") for m in (before, now))
    if was != found:
        raise DataError(
            f"{out} was started with another logit store (identity {str(was)[:12]}, now "
            f"{str(found)[:12]}): bring that one back, or start a new run"
        )


def _parent(path: str, model: Gemma) -> dict[str, Any]:
    return {
        "path": path,
        "fingerprint": weights_fingerprint(model),
        "parameters": model.config.parameters,
    }


def describe(result: dict[str, Any]) -> str:
    """One line on a finished run."""
    return (
        f"{result['nats_per_token']:.4f} nats/token, perplexity {result['perplexity']:.2f}, "
        f"{result['bits_per_byte']:.4f} bits/byte on {result['heldout_tokens']:,} held-out tokens"
    )
