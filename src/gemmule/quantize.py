"""From a model to its quantized form on the disk, with what that cost measured on held-out text.

What is measured is what was written: it is loaded again and compared with the original. Text for
that is never the text it was calibrated on; where there is none, the loss is not measured and the
result says so.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gemmule import files
from gemmule.checkpoints.checkpoint import Checkpoint
from gemmule.checkpoints.describe import measured_lines, provenance
from gemmule.checkpoints.load import open_checkpoint
from gemmule.checkpoints.packed.quantize import choose_head, quantize_checkpoint
from gemmule.checkpoints.packed.reader import MEASURED, load_quantized
from gemmule.checkpoints.packed.writer import write_into
from gemmule.checkpoints.quality import compare, read_quantized, read_streamed
from gemmule.config import nearest
from gemmule.console import Progress
from gemmule.data.dataset import MANIFEST, Dataset, Split
from gemmule.data.sources import whole_text
from gemmule.errors import ConfigError, DataError, GemmuleError
from gemmule.quant.layout import PACKED
from gemmule.runs.layout import RunLayout
from gemmule.runs.lock import locked_output
from gemmule.runs.run_dir import free_folder
from gemmule.train.config import load_run_config

HEADS = (*PACKED, "bf16")
NONE = "none"
_SEQUENCE = 256  # tokens per row
# Tokens to read: many for small models, for large ones as many as take minutes.
_CALIBRATION, _EVALUATION, _MINIMUM = 32_768, 16_384, 4_096
_WORK = 2e13  # weights x tokens

Stage = Callable[[str], None]


@dataclass(frozen=True)
class _Text:
    """Token ids, [B, T], and a name for the report."""

    tokens_BT: Tensor
    name: str


def quantize(
    model: str | Path,
    to: str,
    out: Path | None = None,
    *,
    head: str | None = None,
    calibrate: str | Path | None = None,
    eval_text: Path | None = None,
    progress: Progress = lambda *_: None,
    stage: Stage = lambda _: None,
) -> dict[str, Any]:
    """Quantizes a model into a new folder, which appears once everything is done.

    Args:
        model: as for open_checkpoint.
        to: format of the layers' matrices: "int4", "int6" or "int8".
        out: a folder that does not exist yet, or is empty; None: next to the model.
        head: format of embedding and head: "int4", "int6", "int8" or "bf16"; None: by size.
        calibrate: a text file, or a folder made by `gemmule data`, to calibrate int4 on; None:
            the training text if `model` is a run; "none": no calibration.
        eval_text: a text file to measure the loss on; None: the validation text of the run, or of
            the data folder given to calibrate on.
        progress: called as weights are quantized.
        stage: called with the name of each stage.

    Returns:
        The content of the folder's quantization.json.

    Raises:
        ConfigError: for an unknown format, or text that is too short.
        CheckpointError: when the model cannot be read.
        DataError: for a data folder that is unfinished or made with another tokenizer.
        OutputError: when `out` is in use or cannot be written.
    """
    out = _free_folder(model, to, head, out)
    began = time.monotonic()
    with locked_output(out), open_checkpoint(model) as source:
        if source.quantized:
            raise ConfigError(
                f"{model} is quantized already: quantize the model that it was made from"
            )
        head = head or choose_head(source.config, to)
        calibration = _calibration(source, model, calibrate) if "int4" in (to, head) else None
        held_out = _held_out(source, model, calibrate, eval_text)
        if calibration:
            stage(f"rounding for {calibration.tokens_BT.numel():,} tokens of {calibration.name}")
        tokens_BT = calibration.tokens_BT if calibration else None
        packed = quantize_checkpoint(source, to, head, tokens_BT, progress)
        report: dict[str, Any] = {
            **provenance(source, model, bytes=sum(f.stat().st_size for f in source.files)),
            "out": str(out),
            "format": to,
            "head": head,
            "bits_per_weight": packed.bits_per_weight,
            "bytes": packed.nbytes,
            "calibration": _described(calibration),
        }
        with files.atomic_dir(out) as partial:
            stage("writing")
            write_into(packed, partial)
            del packed  # what is measured is what was written
            report["measured"] = _measured(source, partial, held_out, stage)
            if held_out is None:
                report["not_measured"] = (
                    "no held-out text: the model is not a run whose data is available, and "
                    "--eval-text was not given"
                )
            report["seconds"] = round(time.monotonic() - began, 1)
            files.write_json(partial / MEASURED, report)
    return report


def _free_folder(model: str | Path, to: str, head: str | None, out: Path | None) -> Path:
    """The folder to write; refuses unknown formats and a folder in use."""
    for value, allowed in ((to, PACKED), (head or HEADS[0], HEADS)):
        if value not in allowed:
            raise ConfigError(f"unknown format {value!r}; {nearest(value, list(allowed))}")
    return free_folder(out or default_folder(model, to))


def default_folder(model: str | Path, to: str) -> Path:
    """The default folder: NAME-int4 next to the model, or here for a model from the hub."""
    path = files.expand(str(model).removeprefix("hf://"))
    name = f"{path.stem if path.is_file() else path.resolve().name}-{to}"
    return path.with_name(name) if path.exists() else Path(name)


def _measured(
    source: Checkpoint, folder: Path, held_out: _Text | None, stage: Stage
) -> dict[str, Any] | None:
    written = load_quantized(folder)  # also shows that it can be read
    if held_out is None:
        return None
    tokens_BT = held_out.tokens_BT
    parent = read_streamed(source, tokens_BT, stage)
    with torch.inference_mode():
        metrics = compare(parent, read_quantized(written, tokens_BT, stage), tokens_BT)
    return {"text": held_out.name, **metrics}


def _described(text: _Text | None) -> dict[str, Any] | None:
    if text is None:
        return None
    return {"text": text.name, "tokens": text.tokens_BT.numel()}


def _calibration(
    source: Checkpoint, model: str | Path, calibrate: str | Path | None
) -> _Text | None:
    count = _affordable(source, _CALIBRATION)
    if calibrate is None:
        data = _own_data(model, source)
        return None if data is None else _of_split(data.split("train"), data, count, source)
    if str(calibrate) == NONE:
        return None
    path = files.expand(calibrate)
    if (path / MANIFEST).is_file():
        data = Dataset.open(path, source.tokenizer)
        return _of_split(data.split("train"), data, count, source)
    return _of_file(path, count, source)


def _held_out(
    source: Checkpoint, model: str | Path, calibrate: str | Path | None, eval_text: Path | None
) -> _Text | None:
    count = _affordable(source, _EVALUATION)
    if eval_text is not None:
        if calibrate is not None and Path(calibrate).resolve() == eval_text.resolve():
            raise ConfigError(
                f"{eval_text} is the text to calibrate on: measure on another, which the rounding "
                "has not seen"
            )
        return _of_file(files.expand(eval_text), count, source)
    data = _own_data(model, source)
    if data is None and calibrate is not None and (Path(calibrate) / MANIFEST).is_file():
        data = Dataset.open(Path(calibrate), source.tokenizer)
    return None if data is None else _of_split(data.split("validation"), data, count, source)


def _own_data(model: str | Path, source: Checkpoint) -> Dataset | None:
    """The data that a run was trained on, if `model` is one and its data is still there."""
    try:
        config = load_run_config(RunLayout(Path(model)).config)
        return Dataset.open(config.data.path, source.tokenizer)
    except (OSError, GemmuleError):
        return None  # a folder without one, or data that is gone, or no longer the same


def _affordable(source: Checkpoint, tokens: int) -> int:
    return int(min(tokens, max(_MINIMUM, _WORK / source.config.parameters)))


def _length(source: Checkpoint) -> int:
    return min(_SEQUENCE, source.config.max_position_embeddings)


def _of_split(split: Split, data: Dataset, count: int, source: Checkpoint) -> _Text:
    """Rows spread evenly over a split."""
    T = _length(source)
    windows = split.token_count // T
    if not windows:
        raise DataError(f"{data.path}: its {split.name} text has fewer than {T} tokens")
    rows = min(windows, max(1, count // T))
    chosen = [i * windows // rows * T for i in range(rows)]
    tokens = torch.stack([torch.from_numpy(split.read(at, at + T)) for at in chosen])
    return _Text(tokens, f"{data.name}, {split.name}")


def _of_file(path: Path, count: int, source: Checkpoint) -> _Text:
    """Rows spread evenly over one text, each starting like a document."""
    text = whole_text(path)
    ids, T = source.tokenizer.encode(text), _length(source)
    windows = len(ids) // (T - 1)
    if not windows:
        raise ConfigError(f"{path} has {len(ids)} tokens; give a text of {T} or more")
    rows = min(windows, max(1, count // T))
    starts = [i * windows // rows * (T - 1) for i in range(rows)]
    kept = [[source.tokenizer.bos_id, *ids[at : at + T - 1]] for at in starts]
    return _Text(torch.tensor(kept), path.name)


def summary(report: dict[str, Any]) -> list[list[str]]:
    """The result of `quantize` as names and values."""
    source = report["source"]["bytes"]
    calibration = report["calibration"]
    rounded = "to nearest"
    if calibration:
        rounded = f"for {calibration['tokens']:,} tokens of {calibration['text']}"
    return [
        ["format", f"{report['format']}, head {report['head']}"],
        ["size", f"{report['bytes'] / 1e6:,.1f} MB, before {source / 1e6:,.1f} MB"],
        ["bits per weight", f"{report['bits_per_weight']:.3f}"],
        ["rounded", rounded],
        *measured_lines(report),
        ["took", f"{report['seconds']:.0f} s"],
    ]
