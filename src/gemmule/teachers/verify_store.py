"""`gemmule verify`: whether a logit store can be trusted, and what learning from it changes.

Every byte is compared with its checksum. Then the teacher predicts a random sample of sequences
again, which answers two separate questions (teachers/fidelity.py): faithfulness and truncation.
Intervals are over sequences, because the tokens of one sequence are not independent samples.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gemmule.console import ProgressBar
from gemmule.data.batch import Batch
from gemmule.data.dataset import Dataset
from gemmule.data.packed_text import batch_of
from gemmule.errors import CheckpointError, ConfigError, DataError
from gemmule.losses.chunked_head import tiles
from gemmule.losses.labels import IGNORED
from gemmule.losses.sparse_targets import SparseTargets
from gemmule.stats import normal_mean
from gemmule.teachers.fidelity import distance, truncation
from gemmule.teachers.logit_store import Store
from gemmule.teachers.open import is_address, open_teacher
from gemmule.teachers.record import SPLIT
from gemmule.teachers.target_codec import TargetCodec, to_sparse_targets
from gemmule.teachers.teacher import LocalTeacher

FAITHFUL = 0.01  # total variation from the teacher; rounding to 12 bits stays below 0.002
REDRAWS = 4  # new draws of every token, which measure the noise of samples
Z = 1.96  # for a 95% interval over dozens of sequences


def verify(
    path: Path,
    *,
    teacher: str | None = None,
    data: Path | None = None,
    student: str | None = None,
    tokens: int = 8192,
    seed: int = 0,
) -> dict[str, Any]:
    """Checks a store.

    Args:
        path: the store.
        teacher: present location of its teacher; None: the one in its manifest.
        data: present location of its data; None: the one in its manifest.
        student: model at which the gaps are measured; None: a student that equals the teacher,
            where the gradient of the full distribution is zero.
        tokens: approximate number of tokens that the teacher predicts again.
        seed: seed that chooses their sequences.

    Returns:
        The values of integrity, faithfulness and truncation by name, and `ok`.

    Raises:
        UserError: when the store is damaged or empty, or belongs to another teacher or other data.
    """
    store = Store.open(path)
    if not store.recorded:
        raise DataError(f"{path} is empty: record first")
    size = _check_bytes(store)
    dataset = Dataset.open(Path(data or store.manifest["corpus"]["path"]))
    if dataset.fingerprint != store.manifest["corpus"]["fingerprint"]:
        raise DataError(
            f"{path} was recorded on other data than {dataset.path} ({dataset.name}): give the "
            "right folder with --data"
        )
    name = teacher or store.manifest["teacher"]["path"]
    if is_address(name):
        raise ConfigError(
            f"every checksum of {path} matches, but it was recorded from a server, {name}, which "
            "does not give its full distribution: only a student can show what the record is worth"
        )
    original = open_teacher(name, dataset, store.seq_len)
    now, then = original.describe(), store.manifest["teacher"]
    if now["fingerprint"] != then["fingerprint"]:
        raise CheckpointError(
            f"{name} is not the teacher that {path} was recorded from (its weights differ): "
            "give the right one with --teacher"
        )
    if now.get("bos") != then.get("bos"):
        raise CheckpointError(
            f"{path} was recorded by an earlier version, without <bos> before sequences that begin "
            f"within a document, where {name} needs it: record it again into another folder"
        )
    learner = original if student is None else open_teacher(student, dataset, store.seq_len)
    if learner.vocab_size != original.vocab_size:
        raise ConfigError(
            f"{student} has {learner.vocab_size} rows in its vocabulary and the teacher "
            f"{original.vocab_size}"
        )
    recorded = np.concatenate([np.arange(s.first, s.stop) for s in store.shards])
    count = min(len(recorded), max(2, tokens // store.seq_len))
    chosen = np.sort(np.random.default_rng(seed).choice(recorded, count, replace=False))
    values: dict[str, list[float]] = {}
    with ProgressBar("running the teacher again", len(chosen) * store.seq_len, "tok") as bar:
        for i, index in enumerate(chosen):
            batch = batch_of(dataset.split(SPLIT), chosen[i : i + 1], store.seq_len)
            for name, value in _compare(store, original, learner, batch, int(index)).items():
                values.setdefault(name, []).append(value)
            bar.update((i + 1) * store.seq_len)
    return _report(store, values, size, student)


def _check_bytes(store: Store) -> int:
    """Compares all targets with their checksums; returns their size in bytes."""
    total = sum(s.byte_count for s in store.shards)
    done, damaged = 0, []
    with ProgressBar("reading", total / 1e6, "MB") as bar:
        for shard in store.shards:
            try:
                for index in range(shard.first, shard.stop):
                    shard.read(index)
            except DataError:
                damaged.append(str(shard.path))
            done += shard.byte_count
            bar.update(done / 1e6)
    if damaged:
        raise DataError(
            f"damaged (a checksum does not match): {', '.join(damaged)}. Delete "
            f"{'it' if len(damaged) == 1 else 'them'}, and the same gemmule record command records "
            "what is missing"
        )
    return total


def _compare(
    store: Store, teacher: LocalTeacher, learner: LocalTeacher, batch: Batch, index: int
) -> dict[str, float]:
    """Means over the tokens of one sequence."""
    spec = store.spec
    stored = store.targets([index])
    choose = spec.choice(store.manifest["seed"], index)
    (repeated,) = teacher.targets(batch, [choose], spec.temperature)
    repeated = _as_stored(store.codec, repeated)
    redraw = []
    if spec.kind == "sample":
        redraw = [spec.choice(store.manifest["seed"] + i, index) for i in range(1, REDRAWS + 1)]
    keep_T = batch.labels_BT[0] != IGNORED
    sums: dict[str, float] = {}
    rows = zip(
        _probabilities(teacher, batch, spec.temperature),
        _probabilities(learner, batch, spec.temperature),
        strict=True,
    )
    for (part, p_CV), (_, q_CV) in rows:
        keep_C = keep_T[part]
        here = stored.part(part)
        gap = truncation(here, p_CV, q_CV, [choose(p_CV.float()) for choose in redraw])
        per_token = {
            "distance": distance(here, repeated.part(part), store.vocab_size),
            "loss_gap": gap.loss_C,
            "bias2": gap.bias2_C,
            "noise2": gap.noise2_C,
            "full2": gap.full2_C,
            "entropy": torch.special.entr(p_CV).sum(-1),
            "ids": (here.weight_NK > 0).sum(-1),
        }
        for name, value_C in per_token.items():
            sums[name] = sums.get(name, 0.0) + value_C[keep_C].double().sum().item()
    count = max(1, int(keep_T.sum()))
    return {name: value / count for name, value in sums.items()}


def _as_stored(codec: TargetCodec, targets: SparseTargets) -> SparseTargets:
    """Rounds targets as the format does, so that only different predictions make a difference."""
    if codec.draws is not None:
        return targets  # counts are stored exactly
    data = np.frombuffer(codec.encode(targets), np.uint8)
    return to_sparse_targets([codec.decode(data, len(targets))], targets.temperature)


@torch.no_grad()
def _probabilities(
    model: LocalTeacher, batch: Batch, temperature: float
) -> Iterator[tuple[slice, Tensor]]:
    """The full distributions of one sequence's tokens, some at a time, float64 [C, V]."""
    x_TD = model.hidden_states(batch)[0]
    weight_VD, cap = model.head.real_VD, model.head.cap
    for part, _ in tiles(slice(0, len(x_TD)), 4 * len(weight_VD)):
        logits_CV = (x_TD[part] @ weight_VD.T).double()
        if cap is not None:
            logits_CV = cap * torch.tanh(logits_CV / cap)
        yield part, (logits_CV / temperature).softmax(-1)


def _report(
    store: Store, values: dict[str, list[float]], size: int, student: str | None
) -> dict[str, Any]:
    estimates = {name: _interval(samples) for name, samples in values.items()}
    far, bias2 = estimates["distance"], estimates["bias2"]
    recorded = store.manifest["teacher"]
    sampled = store.spec.kind == "sample"
    faithful = far["mean"] <= FAITHFUL
    if sampled and not faithful:
        # Rounding on another machine may change single draws; then the distribution decides.
        faithful = bias2["low"] <= FAITHFUL**2
    return {
        "store": str(store.path),
        "targets": store.spec.label,
        "biased": store.spec.biased,
        "ok": faithful,
        "integrity": {
            "shards": len(store.shards),
            "bytes": size,
            "damaged": 0,
            "missing_windows": store.sequences - store.recorded,
        },
        "sample": {
            "windows": len(values["distance"]),
            "tokens": len(values["distance"]) * store.seq_len,
            "ids_per_token": estimates["ids"]["mean"],
            "teacher_entropy": estimates["entropy"]["mean"],
        },
        "faithfulness": {
            "total_variation": far,
            "recorded_precision": recorded.get(
                "linear_layers", recorded.get("precision", "float32")
            ),
            "compared_with": "float32",
        },
        "truncation": {
            "at": student or "a student that equals its teacher",
            "loss_gap_nats": estimates["loss_gap"],
            "gradient_bias_squared": bias2,
            "gradient_noise_squared": estimates["noise2"],
            "full_gradient_squared": estimates["full2"],
        },
    }


def _interval(values: list[float]) -> dict[str, float]:
    """Mean and 95% interval over sequences."""
    estimate = normal_mean(values, Z)
    return {"mean": estimate.value, "low": estimate.low, "high": estimate.high}


def describe(report: dict[str, Any]) -> list[tuple[str, str]]:
    """A report as label and value of each line to print."""

    def shown(value: dict[str, float], digits: int = 5) -> str:
        half = (value["high"] - value["low"]) / 2
        return f"{value['mean']:.{digits}f} ± {half:.{digits}f}"

    whole, sample = report["integrity"], report["sample"]
    faith, cut = report["faithfulness"], report["truncation"]
    missing = whole["missing_windows"]
    return [
        ("targets", f"{report['targets']}, {sample['ids_per_token']:.1f} ids per token"),
        (
            "integrity",
            f"{whole['bytes'] / 1e6:,.1f} MB in {whole['shards']} shards, every checksum matches"
            + (f"; {missing:,} sequences are not recorded yet" if missing else ""),
        ),
        ("sample", f"{sample['tokens']:,} tokens in {sample['windows']} sequences, 95% intervals"),
        (
            "faithfulness",
            f"{shown(faith['total_variation'])} total variation from the teacher's predictions: "
            + ("faithful" if report["ok"] else "NOT this teacher's predictions"),
        ),
        ("truncation", f"at {cut['at']}, against the full distribution:"),
        ("  loss", f"{shown(cut['loss_gap_nats'])} nats"),
        ("  gradient bias²", f"{shown(cut['gradient_bias_squared'], 6)}"),
        ("  gradient noise²", f"{shown(cut['gradient_noise_squared'], 6)}"),
        ("  full gradient²", f"{shown(cut['full_gradient_squared'], 6)}"),
    ]
