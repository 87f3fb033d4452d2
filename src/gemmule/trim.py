"""`gemmule trim`: a model whose vocabulary is what a text needs.

The embedding is most of a small model, and of a vocabulary of 256,000 a text uses a tenth. The
trimmed model computes the same hidden states and the same logits of the kept tokens; what it loses
is the probability of the tokens that were dropped, which is measured on the text.

Shapes: V tokens of the full vocabulary, N tokens of a text, R rows of T tokens,
C tokens of a chunk.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
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
from gemmule.data.read_log import ReadLog
from gemmule.data.sources import Source, find_source
from gemmule.errors import ConfigError, TokenizerError
from gemmule.losses.chunked_head import row_chunks
from gemmule.model.tokenizer import Tokenizer
from gemmule.model.vocabulary_trim import Trimmed, trim_tokenizer
from gemmule.runs.lock import locked_output
from gemmule.runs.run_dir import free_folder

REPORT = "trim.json"
_ROW = 256  # tokens of a row of the sample
_SAMPLE, _MINIMUM = 16_384, 1_024  # tokens to measure the lost probability on
_WORK = 1e13  # weights x tokens
_LOGITS = 2**24  # logits that exist at once

Stage = Callable[[str], None]


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
        trimmed, segmentation, counted = _trimmed(
            source.tokenizer, text, field=field, size=size, coverage=coverage,
            progress=progress, stage=stage,
        )  # fmt: skip
        result = trimmed_checkpoint(source, trimmed)
        report: dict[str, Any] = {
            **provenance(source, model, tokenizer=source.tokenizer.fingerprint),
            "out": str(out),
            "text": counted.text,
            "vocabulary": {"before": source.config.vocab_size, "after": len(trimmed.kept_K)},
            "parameters": {
                "before": source.config.parameters,
                "after": result.config.parameters,
            },
            "coverage": trimmed.coverage,
            "segmentation": segmentation,
            "dropped_probability": _dropped(source, trimmed, counted.sample(source), stage),
        }
        with files.atomic_dir(out) as partial:
            stage("writing")
            write(writer.layouts(result), partial)
            writer.write_companions(result, partial, None)
            report["seconds"] = round(time.monotonic() - began, 1)
            files.write_json(partial / REPORT, report)
    return report


def trim_tokenizer_for(
    tokenizer: Tokenizer,
    text: Path | None,
    *,
    field: str | None = None,
    size: int | None = None,
    coverage: float = 1.0,
    progress: Progress = lambda *_: None,
    stage: Stage = lambda _: None,
) -> tuple[Trimmed, dict[str, int]]:
    """Trims a tokenizer alone; arguments and errors as of `trim`.

    Returns:
        The trimmed vocabulary, and how the text is segmented before and after: documents,
        equal_documents, tokens_before, tokens_after.
    """
    trimmed, segmentation, _ = _trimmed(
        tokenizer, text, field=field, size=size, coverage=coverage, progress=progress, stage=stage
    )
    return trimmed, segmentation


def _trimmed(
    tokenizer: Tokenizer,
    text: Path | None,
    *,
    field: str | None,
    size: int | None,
    coverage: float,
    progress: Progress,
    stage: Stage,
) -> tuple[Trimmed, dict[str, int], "_Counts"]:
    corpus = find_source(text, field)
    stage(f"counting the tokens of {corpus.name}")
    counted = _Counts(tokenizer, corpus.name)
    counted.read(corpus, progress)
    trimmed = trim_tokenizer(tokenizer, counted.counts_V, size=size, coverage=coverage)
    stage("comparing the segmentation")
    return trimmed, _compare(corpus, tokenizer, trimmed, progress), counted


class _Counts:
    """How often a text has each token, and rows of it that are spread evenly, by chance."""

    def __init__(self, tokenizer: Tokenizer, text: str) -> None:
        self._tokenizer, self.text = tokenizer, text
        self.counts_V = np.zeros(tokenizer.vocab_size, np.int64)
        self._rows: list[list[int]] = []
        self._seen = 0
        self._random = np.random.default_rng(0)

    def read(self, corpus: Source, progress: Progress) -> None:
        """Counts the tokens of every document."""
        for document in _documents(corpus, progress):
            ids = self._tokenizer.encode(document)
            self.counts_V += np.bincount(np.array(ids, np.int64), minlength=len(self.counts_V))
            for at in range(0, len(ids) - _ROW + 2, _ROW - 1):
                self._keep([self._tokenizer.bos_id, *ids[at : at + _ROW - 1]])

    def _keep(self, row: list[int]) -> None:
        """Reservoir sampling: each row seen so far is kept with equal probability."""
        self._seen += 1
        if len(self._rows) < _SAMPLE // _ROW:
            self._rows.append(row)
        elif (at := int(self._random.integers(self._seen))) < len(self._rows):
            self._rows[at] = row

    def sample(self, source: Checkpoint) -> Tensor:
        """As many of the rows as take minutes to read at most, [R, T]; none for a short text."""
        tokens = min(_SAMPLE, max(_MINIMUM, int(_WORK / source.config.parameters)))
        length = min(_ROW, source.config.max_position_embeddings)
        rows = [row[:length] for row in self._rows[: tokens // _ROW]]
        return torch.tensor(rows, dtype=torch.int64)


def _documents(corpus: Source, progress: Progress) -> Iterator[str]:
    count = 0
    for count, document in enumerate(corpus.documents(ReadLog()), 1):
        yield document.text
        progress(count, 0, "documents")


def _compare(
    corpus: Source, tokenizer: Tokenizer, trimmed: Trimmed, progress: Progress
) -> dict[str, int]:
    """Encodes the text with both vocabularies.

    Raises:
        TokenizerError: when all of its pieces were kept and it is segmented in another way, which
            the merges of a BPE rule out.
    """
    documents = equal = before = after = 0
    for document in _documents(corpus, progress):
        ids = tokenizer.encode(document)
        new = trimmed.tokenizer.encode(document)
        same = len(ids) == len(new) and bool(np.array_equal(trimmed.kept_K[new], ids))
        if not same and trimmed.coverage == 1.0:
            raise TokenizerError(
                f"document {documents + 1} of {corpus.location} is segmented in another way by the "
                "trimmed tokenizer: the merges of this tokenizer do not have one order, so it "
                "cannot be trimmed"
            )
        documents, equal = documents + 1, equal + same
        before, after = before + len(ids), after + len(new)
    return {
        "documents": documents,
        "equal_documents": equal,
        "tokens_before": before,
        "tokens_after": after,
    }


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


def compared(segmentation: dict[str, int]) -> str:
    """How a text is segmented by the trimmed tokenizer, in words."""
    if segmentation["equal_documents"] == segmentation["documents"]:
        return "equal on the whole text"
    growth = segmentation["tokens_after"] / max(1, segmentation["tokens_before"]) - 1
    return f"{growth:+.2%} tokens"


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
