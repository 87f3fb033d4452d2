"""Measurements of a trained run that need no training of their own."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from gemmule.ablate.induction import LENGTH, induction
from gemmule.ablate.sweep import ROUTED
from gemmule.checkpoints.load import load_model
from gemmule.data.dataset import Dataset
from gemmule.data.packed_text import eval_batches
from gemmule.model.gemma import Gemma
from gemmule.model.spm_train import FIRST_LEARNED_ID
from gemmule.runs.layout import RunLayout
from gemmule.runs.metrics import read_metrics
from gemmule.teachers.open import open_teacher
from gemmule.train.config import load_run_config
from gemmule.train.evaluate import evaluate


def losses_by_source(run: Path) -> dict[str, Any]:
    """The last validation loss of each source of a mixture, and their mean; none of other runs."""
    lines = [line for line in read_metrics(run) if line.get("split") == "validation"]
    prefix = "nats_per_token/"
    losses = {
        key.removeprefix(prefix): value
        for line in lines[-1:]
        for key, value in line.items()
        if key.startswith(prefix)
    }
    if not losses:
        return {}
    return {"source_nats": losses, "mean_source_nats": sum(losses.values()) / len(losses)}


def with_window(model: Gemma, window: int) -> Gemma:
    """The same weights with another sliding window; only local layers (the even ones) have one."""
    with torch.device("meta"):
        changed = Gemma(model.config.model_copy(update={"sliding_window": window}))
    changed.load_state_dict(model.state_dict(), assign=True)
    return changed


def _window(run: Path, dataset: Dataset, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Held-out loss with the window in `settings`, everything else as in the run."""
    config = load_run_config(RunLayout(run).config)
    model, _ = load_model(run, torch.float32)
    changed = with_window(model, settings["sliding_window"]).eval()
    result = evaluate(
        changed,
        dataset.split("heldout"),
        dataset.tokenizer,
        seq_len=config.data.seq_len,
        batch_size=config.data.micro_batch,
        max_tokens=config.evaluation.heldout_tokens,
    )
    return {
        "split": "heldout",
        **{k: result[k] for k in ("nats_per_token", "perplexity", "bits_per_byte")},
        "heldout_tokens": result["tokens"],
        "parameters": model.config.parameters,
        "non_embedding_parameters": model.config.non_embedding_parameters,
        **settings,
    }


def _induction(run: Path, dataset: Dataset, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The probe of induction.py, with sequences no longer than those of the run."""
    config = load_run_config(RunLayout(run).config)
    model, tokenizer = load_model(run, torch.float32)
    ids = torch.arange(FIRST_LEARNED_ID, tokenizer.vocab_size)
    result = induction(
        model.eval(), ids, length=min(LENGTH, config.data.seq_len // 2), bos=tokenizer.bos_id
    )
    return {
        **dataclasses.asdict(result),
        "parameters": model.config.parameters,
        "non_embedding_parameters": model.config.non_embedding_parameters,
        **settings,
    }


ENTROPY_TOKENS = 65_536


@torch.no_grad()
def _entropy(_: Path, dataset: Dataset, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Quantiles of the teacher's entropy over training text, nats, at temperature 1."""
    seq_len = settings["seq_len"]
    teacher = open_teacher(settings["teacher"], dataset, seq_len)
    entropies = []
    for batch in eval_batches(dataset.split("train"), 8, seq_len, ENTROPY_TOKENS):
        entropy_N = teacher.head.entropies(teacher.hidden_states(batch).flatten(0, 1))
        entropies.append(entropy_N[batch.labels_BT.flatten() >= 0])
    entropy_N = torch.cat(entropies)
    quantiles = {str(q): entropy_N.quantile(q).item() for q in ROUTED}
    return {"entropy": entropy_N.mean().item(), "tokens": len(entropy_N), "quantiles": quantiles}


MEASURES: Mapping[str, Callable[[Path, Dataset, Mapping[str, Any]], dict[str, Any]]] = {
    "window": _window,
    "induction": _induction,
    "entropy": _entropy,
}
