"""What can be learned from little text: from scratch and distilled, each at its best epoch.

A text of a few hundred kilobytes is read more than once. A model from scratch then begins to
memorize: its loss on other text falls for some epochs and rises after that. A teacher's stored
distributions say more about each token than the text itself, so that a student of them gains from
more epochs. Both get the best of what they can do with the same text: runs of several lengths, each
with a learning-rate schedule of its own, evaluated after every epoch; the state with the lowest
validation loss is kept. Figures of the comparison are of held-out text, which chose nothing.

targets/          the teacher's distributions for the text, recorded once
scratch-N/        runs of N epochs
distilled-N/
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from gemmule.config import Config
from gemmule.data.dataset import Dataset
from gemmule.data.packed_text import sequence_count
from gemmule.runs.layout import RunLayout
from gemmule.runs.ledger import activity as ledger
from gemmule.teachers.record import record
from gemmule.teachers.record_config import RecordConfig
from gemmule.train.config import RunConfig
from gemmule.train.run import run_training

TARGETS = "targets"
Shown = Callable[[str, Mapping[str, Any]], None]


class ScarceText(Config):
    """How much text, and how often it is read.

    Attributes:
        tokens: tokens of the text, from the start of the corpus, in whole sequences.
        scratch_epochs: lengths of the runs from scratch.
        distilled_epochs: lengths of the distilled runs.
    """

    tokens: int = Field(gt=0)
    scratch_epochs: tuple[int, ...] = Field(default=(4, 8), min_length=1)
    distilled_epochs: tuple[int, ...] = Field(default=(8,), min_length=1)


def compare_on_scarce_text(
    settings: ScarceText,
    base: RunConfig,
    teacher: str,
    dataset: Dataset,
    out: Path,
    show: Shown = lambda name, result: None,
) -> dict[str, Any]:
    """Records the teacher, trains both ways, and compares; continues what an earlier call began.

    Args:
        settings: the text and the lengths of runs.
        base: settings of every run, except for those that this comparison sets itself.
        teacher: run, HF-layout folder or hub id.
        dataset: the corpus of `base`.
        out: folder for the recording and the runs.
        show: called with the name and the result of each run as it is finished.

    Returns:
        "text" (its "tokens" and "bytes"), "scratch" and "distilled" (the result of the run with the
        lowest validation loss, with its "epochs" until then and the "schedule_epochs" of the run),
        "tried" (both, for every run), and "recording" (its cost).

    Raises:
        UserError: when the teacher, the text or a setting cannot be used.
        Interrupted: when stopped; the same call continues.
    """
    data = base.data
    split = dataset.split("train")
    sequences = min(sequence_count(split, data.seq_len), -(-settings.tokens // data.seq_len))
    tokens = sequences * data.seq_len
    runtime = base.runtime
    recorded = RecordConfig(
        teacher=teacher, data=data.path, seq_len=data.seq_len, tokens=tokens, seed=base.seed,
        device=runtime.device, dtype=runtime.dtype, threads=runtime.threads, compile=False,
        country=runtime.country,
    )  # fmt: skip
    with ledger.activity("record", out / TARGETS):
        recording = record(recorded, out / TARGETS)
    part = data.model_copy(update={"corpus_tokens": tokens})
    base = base.model_copy(update={"data": part})
    epoch = max(1, round(sequences / data.batch_size))
    lengths = {"scratch": settings.scratch_epochs, "distilled": settings.distilled_epochs}
    tried = {}
    for way, epochs in lengths.items():
        targets = out / TARGETS if way == "distilled" else None
        tried[way] = [_train(base, n, epoch, targets, out / f"{way}-{n}", show) for n in epochs]
    ids = split.read(0, tokens)
    return {
        "text": {"tokens": tokens, "bytes": int(dataset.tokenizer.token_bytes()[ids].sum())},
        **{way: _best(results) for way, results in tried.items()},
        "tried": {way: [_brief(r) for r in results] for way, results in tried.items()},
        "recording": {
            "flops": recording["teacher_flops"],
            **{key: recording[key] for key in ("seconds", "energy_wh", "gco2e")},
        },
    }


def _train(
    base: RunConfig, epochs: int, epoch: int, targets: Path | None, out: Path, show: Shown
) -> dict[str, Any]:
    """A run of whole epochs of `epoch` steps that keeps its best state."""
    objective: dict[str, Any] = {"kind": "pretrain"}
    if targets is not None:
        objective = {"kind": "distill", "targets": str(targets)}
    steps = epochs * epoch
    values = base.model_dump(mode="json")
    values["evaluation"] |= {"every": epoch, "keep": "best"}
    values["checkpoint"] |= {"every": max(100, steps), "keep": 1}
    config = RunConfig.parse({**values, "steps": steps, "objective": objective}, out.name)
    resumable = RunLayout(out).started
    if out.exists() and not resumable:
        shutil.rmtree(out)  # killed before it had begun
    result = run_training(config, out, resume=resumable, label=out.name)
    result = {**result, "epochs": result["best"]["step"] // epoch, "schedule_epochs": epochs}
    show(out.name, result)
    return result


def _best(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return dict(min(results, key=lambda result: result["best"]["loss"]))


def _brief(result: Mapping[str, Any]) -> dict[str, Any]:
    keys = ("schedule_epochs", "epochs", "nats_per_token", "train_tokens", "train_flops")
    return {**{key: result[key] for key in keys}, "validation_loss": result["best"]["loss"]}
