"""`gemmule verify`: whether a logit store can be trusted, and what learning from it changes.

Every byte is compared with its checksum. Then the teacher says a random sample of windows again,
and two figures are worked out that must not be mixed up (teachers/fidelity.py): faithfulness, and
truncation. Intervals are over windows, since the tokens of one are no independent samples.
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

FAITHFUL = 0.01  # total variation from the teacher's own word; rounding to 12 bits is below 0.002
REDRAWS = 4  # new draws of every token, for the noise of samples
Z = 1.96  # of a 95% interval over windows, of which there are dozens


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
        teacher: where its teacher is now; by default where it was recorded from.
        data: where its data are now.
        student: at which model the gaps are taken; by default at a student that equals its
            teacher, where the whole distribution's gradient is zero.
        tokens: about how many the teacher says again.
        seed: decides which.

    Returns:
        integrity, faithfulness and truncation, each with its figures; `ok`.

    Raises:
        UserError: when the store is damaged or unfinished, or is not of this teacher or data.
    """
    store = Store.open(path)
    if not store.recorded:
        raise DataError(f"{path} holds nothing yet: record first")
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
            f"every checksum of {path} fits, but it was recorded from a server, {name}, whose "
            "whole distribution nobody can ask for: what it is worth shows only in a student"
        )
    said = open_teacher(name, dataset, store.seq_len)
    if said.describe()["fingerprint"] != store.manifest["teacher"]["fingerprint"]:
        raise CheckpointError(
            f"{name} is not the teacher that {path} was recorded from (its weights differ): "
            "give the right one with --teacher"
        )
    learner = said if student is None else open_teacher(student, dataset, store.seq_len)
    if learner.vocab_size != said.vocab_size:
        raise ConfigError(
            f"{student} has {learner.vocab_size} rows in its vocabulary and the teacher "
            f"{said.vocab_size}"
        )
    recorded = np.concatenate([np.arange(s.first, s.stop) for s in store.shards])
    count = min(len(recorded), max(2, tokens // store.seq_len))
    chosen = np.sort(np.random.default_rng(seed).choice(recorded, count, replace=False))
    figures: dict[str, list[float]] = {}
    with ProgressBar("asking the teacher again", len(chosen) * store.seq_len, "tok") as bar:
        for i, window in enumerate(chosen):
            batch = batch_of(dataset.split(SPLIT), chosen[i : i + 1], store.seq_len)
            for name, value in _compare(store, said, learner, batch, int(window)).items():
                figures.setdefault(name, []).append(value)
            bar.update((i + 1) * store.seq_len)
    return _report(store, figures, size, student)


def _check_bytes(store: Store) -> int:
    """Compares everything with its checksum; returns how many bytes that were."""
    total = sum(s.byte_count for s in store.shards)
    done, damaged = 0, []
    with ProgressBar("reading", total / 1e6, "MB") as bar:
        for shard in store.shards:
            try:
                for window in range(shard.first, shard.stop):
                    shard.read(window)
            except DataError:
                damaged.append(str(shard.path))
            done += shard.byte_count
            bar.update(done / 1e6)
    if damaged:
        raise DataError(
            f"damaged (a checksum does not fit): {', '.join(damaged)}. Delete "
            f"{'it' if len(damaged) == 1 else 'them'}, and the same gemmule record command makes "
            "what is missing again"
        )
    return total


def _compare(
    store: Store, teacher: LocalTeacher, learner: LocalTeacher, batch: Batch, window: int
) -> dict[str, float]:
    """Means over one window's tokens."""
    spec, vocab = store.spec, store.vocab_size
    stored = store.targets([window])
    choose = spec.choice(store.manifest["seed"], window)
    (anew,) = teacher.targets(batch, [choose], spec.temperature)
    anew = _as_stored(store.codec, anew)
    redraw = []
    if spec.kind == "sample":
        redraw = [spec.choice(store.manifest["seed"] + i, window) for i in range(1, REDRAWS + 1)]
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
        of_tokens = {
            "distance": distance(here, anew.part(part), vocab),
            "loss_gap": gap.loss_C,
            "bias2": gap.bias2_C,
            "noise2": gap.noise2_C,
            "full2": gap.full2_C,
            "entropy": torch.special.entr(p_CV).sum(-1),
            "ids": (here.weight_NK > 0).sum(-1),
        }
        for name, value_C in of_tokens.items():
            sums[name] = sums.get(name, 0.0) + value_C[keep_C].double().sum().item()
    count = max(1, int(keep_T.sum()))
    return {name: value / count for name, value in sums.items()}


def _as_stored(codec: TargetCodec, targets: SparseTargets) -> SparseTargets:
    """Rounded as the format rounds, so that only what the teacher says makes a difference."""
    if codec.draws is not None:
        return targets  # counts are stored exactly
    data = np.frombuffer(codec.encode(targets), np.uint8)
    window = codec.decode(data, len(targets))
    return to_sparse_targets([window], targets.temperature)


@torch.no_grad()
def _probabilities(
    model: LocalTeacher, batch: Batch, temperature: float
) -> Iterator[tuple[slice, Tensor]]:
    """The whole distributions of a window's tokens, some at a time, float64."""
    x_TD = model.hidden_states(batch)[0]
    weight_VD, cap = model.head.real_VD, model.head.cap
    for part, _ in tiles(slice(0, len(x_TD)), 4 * len(weight_VD)):
        logits_CV = (x_TD[part] @ weight_VD.T).double()
        if cap is not None:
            logits_CV = cap * torch.tanh(logits_CV / cap)
        yield part, (logits_CV / temperature).softmax(-1)


def _report(
    store: Store, figures: dict[str, list[float]], size: int, student: str | None
) -> dict[str, Any]:
    found = {name: _interval(values) for name, values in figures.items()}
    far, bias2 = found["distance"], found["bias2"]
    recorded = store.manifest["teacher"]
    sampled = store.spec.kind == "sample"
    same = far["mean"] <= FAITHFUL
    if sampled and not same:
        # Another machine's rounding may turn single draws; then the distribution decides.
        same = bias2["low"] <= FAITHFUL**2
    return {
        "store": str(store.path),
        "targets": store.spec.label,
        "biased": store.spec.biased,
        "ok": same,
        "integrity": {
            "shards": len(store.shards),
            "bytes": size,
            "damaged": 0,
            "missing_windows": store.windows - store.recorded,
        },
        "sample": {
            "windows": len(figures["distance"]),
            "tokens": len(figures["distance"]) * store.seq_len,
            "ids_per_token": found["ids"]["mean"],
            "teacher_entropy": found["entropy"]["mean"],
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
            "loss_gap_nats": found["loss_gap"],
            "gradient_bias_squared": bias2,
            "gradient_noise_squared": found["noise2"],
            "full_gradient_squared": found["full2"],
        },
    }


def _interval(values: list[float]) -> dict[str, float]:
    """Mean and 95% interval over windows."""
    estimate = normal_mean(values, Z)
    return {"mean": estimate.value, "low": estimate.low, "high": estimate.high}


def describe(report: dict[str, Any]) -> list[tuple[str, str]]:
    """A report as lines to print."""

    def shown(value: dict[str, float], digits: int = 5) -> str:
        half = (value["high"] - value["low"]) / 2
        return f"{value['mean']:.{digits}f} ± {half:.{digits}f}"

    whole, sample = report["integrity"], report["sample"]
    faith, cut = report["faithfulness"], report["truncation"]
    missing = whole["missing_windows"]
    return [
        ("targets", f"{report['targets']}, {sample['ids_per_token']:.1f} ids a token"),
        (
            "integrity",
            f"{whole['bytes'] / 1e6:,.1f} MB in {whole['shards']} shards, every checksum fits"
            + (f"; {missing:,} windows are not recorded yet" if missing else ""),
        ),
        ("sample", f"{sample['tokens']:,} tokens in {sample['windows']} windows, 95% intervals"),
        (
            "faithfulness",
            f"{shown(faith['total_variation'])} total variation from what the teacher says now: "
            + ("faithful" if report["ok"] else "NOT what this teacher says"),
        ),
        ("truncation", f"at {cut['at']}, against the whole distribution:"),
        ("  loss", f"{shown(cut['loss_gap_nats'])} nats"),
        ("  gradient bias²", f"{shown(cut['gradient_bias_squared'], 6)}"),
        ("  gradient noise²", f"{shown(cut['gradient_noise_squared'], 6)}"),
        ("  full gradient²", f"{shown(cut['full_gradient_squared'], 6)}"),
    ]
