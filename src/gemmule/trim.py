"""`gemmule trim`: a model whose vocabulary is what a text needs.

The embedding is most of a small model, and of a vocabulary of 256,000 a text uses a tenth. The
trimmed model computes the same hidden states and the same logits of the kept tokens; what it loses
is the probability of the tokens that were dropped, which is measured on the text.

Shapes: V tokens of the full vocabulary, N tokens of a text, R rows of T tokens,
C tokens of a chunk.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gemmule import files
from gemmule.checkpoints.checkpoint import Checkpoint
from gemmule.checkpoints.describe import provenance
from gemmule.checkpoints.hf import writer
from gemmule.checkpoints.load import open_checkpoint
from gemmule.checkpoints.quality import Predictor, read_streamed
from gemmule.checkpoints.tensor_layout import write
from gemmule.checkpoints.trimmed import trimmed_checkpoint
from gemmule.console import Progress
from gemmule.data.text_trim import SAMPLE, Extent, Stage, TextTrim, compared, trim_to_text
from gemmule.errors import ConfigError
from gemmule.losses.chunked_head import row_chunks
from gemmule.model.vocabulary_trim import Trimmed
from gemmule.runs.lock import locked_output
from gemmule.runs.run_dir import free_folder

REPORT = "trim.json"
_MINIMUM = 1_024  # tokens to measure the lost probability on
_WORK = 1e13  # weights x tokens
_LOGITS = 2**24  # logits that exist at once


def trim(
    model: str | Path,
    text: Path | None,
    out: Path,
    *,
    field: str | None = None,
    size: int | None = None,
    coverage: float = 1.0,
    progress: Progress = lambda *_: None,
    stage: Stage = lambda _: None,
) -> dict[str, Any]:
    """Writes a model with a trimmed vocabulary into a new folder in Hugging Face's layout.

    Args:
        model: as for open_checkpoint.
        text: file, folder or glob of the text that decides what is kept; None: the embedded corpus.
        out: a folder that does not exist yet, or is empty; appears once everything is done.
        field: field or column of records that holds the text; None: "text".
        size: number of tokens to keep; None: as many as `coverage` takes.
        coverage: fraction of the text's tokens whose pieces have to be kept.
        progress: called with documents read so far, their number or 0, and the unit.
        stage: called with the name of each stage.

    Returns:
        The content of the folder's trim.json.

    Raises:
        ConfigError: when size or coverage is impossible, or the text cannot be used for it.
        CheckpointError: when the model cannot be read.
        DataError: when the text cannot be read.
        OutputError: when `out` is in use or cannot be written.
    """
    out = free_folder(out)
    began = time.monotonic()
    with locked_output(out), open_checkpoint(model) as source:
        if source.quantized:
            raise ConfigError(f"{model} is quantized: trim the model that it was made from")
        fitted = trim_to_text(
            source.tokenizer, text, Extent(size=size, coverage=coverage), field=field,
            progress=progress, stage=stage,
        )  # fmt: skip
        trimmed = fitted.trimmed
        result = trimmed_checkpoint(source, trimmed)
        report: dict[str, Any] = {
            **provenance(source, model, tokenizer=source.tokenizer.fingerprint),
            "out": str(out),
            "text": fitted.counts.text,
            "vocabulary": {"before": source.config.vocab_size, "after": len(trimmed.kept_K)},
            "parameters": {
                "before": source.config.parameters,
                "after": result.config.parameters,
            },
            "coverage": trimmed.coverage,
            "segmentation": fitted.segmentation,
            "dropped_probability": _dropped(source, trimmed, _sample(source, fitted), stage),
        }
        with files.atomic_dir(out) as partial:
            stage("writing")
            write(writer.layouts(result), partial)
            writer.write_companions(result, partial, None)
            report["seconds"] = round(time.monotonic() - began, 1)
            files.write_json(partial / REPORT, report)
    return report


def _sample(source: Checkpoint, fitted: TextTrim) -> Tensor:
    """As many rows of the text as take minutes to read at most, [R, T]; none for a short text."""
    tokens = min(SAMPLE, max(_MINIMUM, int(_WORK / source.config.parameters)))
    rows = fitted.counts.sample(tokens, source.config.max_position_embeddings)
    return torch.tensor(rows, dtype=torch.int64)


def _dropped(
    source: Checkpoint, trimmed: Trimmed, tokens_RT: Tensor, stage: Stage
) -> dict[str, float] | None:
    """The probability that the full model gives to dropped tokens; None: the text is too short."""
    if not tokens_RT.numel():
        return None
    predictor = read_streamed(source, tokens_RT, stage)
    dropped_V = torch.ones(source.config.vocab_size, dtype=torch.bool)
    dropped_V[torch.from_numpy(trimmed.kept_K)] = False
    mass_N = torch.cat(list(_mass(predictor, dropped_V)))
    return {
        "mean": float(mass_N.mean()),
        "maximum": float(mass_N.max()),
        "tokens": mass_N.numel(),
    }


@torch.inference_mode()
def _mass(predictor: Predictor, dropped_V: Tensor) -> Iterator[Tensor]:
    x_ND = predictor.x_BTD.flatten(0, 1)
    V = len(dropped_V)
    for rows in row_chunks(len(x_ND), max(1, _LOGITS // V), V):
        p_CV = predictor.logits(x_ND[rows]).double().softmax(-1)
        yield (p_CV * dropped_V).sum(-1)


def summary(report: dict[str, Any]) -> list[list[str]]:
    """The result of `trim` as names and values."""
    vocabulary, parameters = report["vocabulary"], report["parameters"]
    dropped = report["dropped_probability"]
    lost = "not measured: the text is too short"
    if dropped:
        lost = (
            f"{dropped['mean']:.2e} a token, at most {dropped['maximum']:.2e}, over "
            f"{dropped['tokens']:,} tokens"
        )
    return [
        ["vocabulary", f"{vocabulary['after']:,} tokens, before {vocabulary['before']:,}"],
        [
            "parameters",
            f"{parameters['after'] / 1e6:,.1f}M, before {parameters['before'] / 1e6:,.1f}M",
        ],
        ["coverage", f"{report['coverage']:.4%} of the text's tokens"],
        ["segmentation", compared(report["segmentation"])],
        ["dropped probability", lost],
        ["took", f"{report['seconds']:.0f} s"],
    ]  # fmt: skip
