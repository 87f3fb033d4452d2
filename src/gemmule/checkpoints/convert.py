"""Converts checkpoints between formats: streamed, resumable and verified."""

import json
import shutil
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from gemmule import files
from gemmule.checkpoints.checkpoint import Checkpoint
from gemmule.checkpoints.describe import provenance
from gemmule.checkpoints.hf import writer as hf_writer
from gemmule.checkpoints.load import open_checkpoint
from gemmule.checkpoints.stored_tensor import dtype_name, parse_dtype
from gemmule.checkpoints.tensor_layout import FileLayout, write
from gemmule.checkpoints.verify import check_export
from gemmule.config import nearest
from gemmule.console import Progress
from gemmule.errors import ConfigError, MissingTokenizerError, OutputError
from gemmule.model.tokenizer import Tokenizer
from gemmule.runs.lock import is_lock, locked_output

REPORT = "export.json"
_BEGUN, _WRITTEN = "begun.json", "written.json"  # notes of an unfinished conversion
_GGUF_NAMES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
GGUF_KINDS = (*_GGUF_NAMES.values(), "Q8_0", "Q4_0")
FORMATS = {"hf": tuple(_GGUF_NAMES), "gguf": GGUF_KINDS, "gemma_pytorch": tuple(_GGUF_NAMES)}


def convert(
    path: str | Path,
    out: Path,
    to: str,
    dtype: str | None = None,
    *,
    base: str | None = None,
    verify: bool = True,
    text: Path | None = None,
    progress: Progress = lambda *_: None,
) -> dict[str, Any]:
    """Writes the checkpoint at `path` into the folder `out` in another format.

    Tensors are streamed, so memory does not grow with the model. If a call is interrupted, the same
    call continues where it stopped. `out` appears once everything is written and verified.

    Args:
        path: as for open_checkpoint.
        out: a folder that does not exist or is empty.
        to: "hf", "gguf" or "gemma_pytorch".
        dtype: dtype of the matrices, one of FORMATS[to]; None: that of the source (GGUF: F16 for
            float16 and so on).
        base: the model to merge an adapter into; None: the one that the adapter names.
        verify: compare with the source and, if it is installed, with the reader of the format.
        text: text for the comparison; None: a module of Python's standard library.
        progress: called with the activity, and the number of bytes done and in total.

    Returns:
        The content of the export's export.json.

    Raises:
        ConfigError: for an unknown format or dtype, or a base of something that is no adapter.
        CheckpointError: when the source cannot be read.
        OutputError: when `out` is in use or cannot be written.
        VerificationError: when the result is wrong; nothing is left behind.
    """
    if to not in FORMATS:
        raise ConfigError(f"unknown format {to!r}; {nearest(to, list(FORMATS))}")
    sample, out = _sample(text), files.expand(out).resolve()
    if out.exists() and not (
        out.is_dir() and all(p == _partial(out) or is_lock(p) for p in out.iterdir())
    ):
        raise OutputError(f"{out} is already in use: choose another folder")
    with locked_output(out), open_checkpoint(path, base) as source:
        kind = _kind(source, to, dtype)
        notes = _tokenizer_notes(source, to)  # fails before gigabytes are written
        source.check_head()
        layouts, more_notes = _layouts(source, to, kind)  # a model it refuses leaves nothing behind
        partial = _begin(source, out, to, kind)
        total = sum(layout.size for layout in layouts)
        done = 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            progress(done, total, "writing")

        write(layouts, partial, advance, partial / _WRITTEN)
        _write_companions(source, partial, to, kind)
        report: dict[str, Any] = {
            **provenance(source, path, files=_described(source.files)),
            **({"adapter": dict(source.adapter)} if source.adapter else {}),
            "format": to,
            "dtype": kind,
            "notes": [*source.notes, *notes, *more_notes],
            "files": _described(_written(partial)),
        }
        try:
            report["verified"] = _verified(source, partial, sample, progress) if verify else None
        except BaseException as e:
            if not isinstance(e, KeyboardInterrupt):
                shutil.rmtree(partial)
            raise
        _finish(partial, out, report)
    return report


def _tokenizer_notes(source: Checkpoint, to: str) -> list[str]:
    """A remark on a missing tokenizer, which GGUF cannot do without."""
    if isinstance(source.tokenizer_if_any, Tokenizer):
        return []
    if to == "gguf":
        raise MissingTokenizerError(
            f"{source.path} has no tokenizer, and a GGUF file must hold one: put the model's "
            "tokenizer.json or tokenizer.model into its folder"
        )
    return ["there is no tokenizer: the export has none either, and takes token ids only"]


def _kind(source: Checkpoint, to: str, dtype: str | None) -> str:
    """The encoding of the matrices, as the target format spells it."""
    allowed = FORMATS[to]
    if dtype is None:
        dtype = dtype_name(source.dtype).replace("float64", "float32")
        return _GGUF_NAMES[dtype] if to == "gguf" else dtype
    kind = next((name for name in allowed if name.lower() == dtype.lower()), None)
    if kind is None:
        raise ConfigError(f"{to} cannot be written as {dtype!r}; {nearest(dtype, list(allowed))}")
    return kind


def _partial(out: Path) -> Path:
    """Where an export is written until it is complete."""
    return files.staging(out, "partial")


def _begin(source: Checkpoint, out: Path, to: str, kind: str) -> Path:
    """The folder to write to: that of an interrupted call of the same conversion, or a new one."""
    partial = _partial(out)
    begun = {
        "gemmule": metadata.version("gemmule"),
        "source": [[str(p), p.stat().st_size, p.stat().st_mtime_ns] for p in source.files],
        "to": to,
        "dtype": kind,
    }
    with files.writing_to(out):
        try:
            same = files.read_json(partial / _BEGUN) == begun
        except (OSError, ValueError):
            same = False
        if not same:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            files.write_json(partial / _BEGUN, begun)
        files.remove_leftovers(partial)
    return partial


def _layouts(source: Checkpoint, to: str, kind: str) -> tuple[list[FileLayout], Sequence[str]]:
    if to == "gguf":
        from gemmule.checkpoints.gguf import writer as gguf_writer

        return gguf_writer.layouts(source, kind)
    if to == "gemma_pytorch":
        from gemmule.checkpoints.gemma_pytorch import writer as ckpt_writer

        return ckpt_writer.layouts(source, parse_dtype(kind)), ()
    return hf_writer.layouts(source, parse_dtype(kind)), ()


def _write_companions(source: Checkpoint, folder: Path, to: str, kind: str) -> None:
    if to != "gguf":  # a GGUF file is complete
        hf_writer.write_companions(source, folder, parse_dtype(kind))


def _verified(source: Checkpoint, partial: Path, text: str, progress: Progress) -> dict[str, Any]:
    with open_checkpoint(partial) as export:
        return check_export(source, export, text, lambda what: progress(0, 0, what))


def _finish(partial: Path, out: Path, report: dict[str, Any]) -> None:
    with files.writing_to(out):
        files.write_json(partial / REPORT, report)
        (partial / _BEGUN).unlink()
        (partial / _WRITTEN).unlink()
        files.put_in_place(partial, out)


def _sample(text: Path | None) -> str:
    """The text for the comparison, a few hundred tokens or more."""
    if text is None:
        return Path(json.__file__).with_name("decoder.py").read_text(encoding="utf-8")
    try:
        sample = files.read_text(text)
    except (OSError, ValueError) as e:
        raise ConfigError(f"cannot read {text} as text ({e}): give a file of UTF-8 text") from None
    if not sample.strip():
        raise ConfigError(f"{text} is empty: give a file with a page of text or more")
    return sample


def _written(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.name not in {_BEGUN, _WRITTEN, REPORT})


def _described(paths: Iterable[Path]) -> list[dict[str, Any]]:
    return [
        {"name": p.name, "bytes": p.stat().st_size, "sha256": files.sha256_file(p)} for p in paths
    ]


def summary(report: dict[str, Any]) -> list[list[str]]:
    """The result of `convert` as rows of a table: label and value."""
    size = sum(file["bytes"] for file in report["files"])
    rows = [
        ["format", f"{report['format']}, {report['dtype']}"],
        ["size", f"{size / 1e6:,.1f} MB in {len(report['files'])} file(s)"],
        *(["note", note] for note in report["notes"]),
    ]
    checked = report["verified"]
    if checked is None:
        return [*rows, ["compared", "no (--no-verify)"]]
    weights = checked["weights"]
    equal = "equal to the source's, bit for bit"
    rows.append(
        ["weights", equal if weights["equal"] else f"error {weights['relative_error']:.2e} (RMS)"]
    )
    if "against_source" in checked:
        rows.append(["against the source", _metrics(checked["against_source"])])
    reader = checked["reader"]
    if "skipped" in reader:
        return [*rows, ["other reader", f"not used: {reader['skipped']}"]]
    return [*rows, [reader["program"], _metrics(reader)]]


def _metrics(compared: dict[str, Any]) -> str:
    return (
        f"top-1 agreement {compared['top1_agreement']:.1%}, KL {compared['kl_nats']:.1e} nats, "
        f"logits within {compared['max_logit_difference']:.1e}"
    )
