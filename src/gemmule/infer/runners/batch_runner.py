"""A batch-invariant runner for many sequences at once, on a model in floating point.

All chunks of a step go through the layers as one flat batch of tokens. Like the native runner, it
promises that the logits after a token have the same bits whatever else is in the step and however
the sequence was cut into chunks (see batch_invariant.py). Rows are padded for that, so that a step
of few tokens costs as much as one of some hundred: for one sequence at a time the plain runner is
faster.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from gemmule.infer.runners.batch_invariant import (
    BLOCK,
    QUERY_ROWS,
    Keys,
    attend_in_blocks,
    padding_rows,
)
from gemmule.infer.runners.protocol import PAGE, ScheduledChunk, StepOutput
from gemmule.infer.runners.torch_runner import MAX_LOGITS, TorchRunner, step_output
from gemmule.model.attention import AttentionLayer
from gemmule.model.config import GemmaConfig
from gemmule.model.kv_cache import PagedKV

_MAX_SCORES = 2**24  # elements of attention at once, 64 MiB


class BatchRunner(TorchRunner):
    """Runs all chunks of a step as one batch; implements `Runner`."""

    max_step_tokens = 2048

    @torch.inference_mode()
    def step(self, chunks: Sequence[ScheduledChunk]) -> list[list[StepOutput]]:
        """Computes all chunks; see `Runner`."""
        tokens = [token for chunk in chunks for token in chunk.tokens]
        positions = [position for chunk in chunks for position in range(chunk.start, chunk.end)]
        padding = [0] * padding_rows(len(tokens))
        x_BTD = self._model.hidden_states(
            torch.tensor([tokens + padding], device=self.device),
            positions_BT=torch.tensor([positions + padding], device=self.device),
            attend=_BatchAttention(self.kv, chunks),
        )
        return self._outputs(x_BTD[0], chunks)

    def _outputs(self, x_TD: Tensor, chunks: Sequence[ScheduledChunk]) -> list[list[StepOutput]]:
        rows, first = [], 0
        for chunk in chunks:
            rows += [first + request.index for request in chunk.logits]
            first += len(chunk.tokens)
        requests = [request for chunk in chunks for request in chunk.logits]
        outputs: list[StepOutput] = []
        unit = 1 + padding_rows(1)
        at_once = max(unit, MAX_LOGITS // self.config.vocab_size // unit * unit)
        for at in range(0, len(rows), at_once):
            x_OD = x_TD[torch.tensor(rows[at : at + at_once], device=self.device)]
            count = len(x_OD)
            x_OD = functional.pad(x_OD, (0, 0, 0, padding_rows(count)))
            logits_OV = self._model.logits(x_OD)[:count].float()
            outputs += map(step_output, requests[at : at + at_once], logits_OV)
        rest = iter(outputs)
        return [[next(rest) for _ in chunk.logits] for chunk in chunks]


class _BatchAttention:
    """Attention backend of one step: writes to pages, and reads those of each chunk's sequence."""

    def __init__(self, kv: PagedKV, chunks: Sequence[ScheduledChunk]) -> None:
        self._kv = kv
        device = kv.pages.device
        self._written = {local: _written(chunks, local).to(device) for local in (False, True)}
        self._groups = {local: [*_groups(chunks, kv.config, local)] for local in (False, True)}

    def __call__(
        self,
        layer: AttentionLayer,
        q_BTNH: Tensor,
        k_BTKH: Tensor,
        v_BTKH: Tensor,
        doc_ids_BT: Tensor | None,
    ) -> Tensor:
        """Attends for all tokens; the padding's result is zero."""
        local, pages = self._kv.is_local[layer.layer], self._kv.layer(layer.layer)
        written_T = self._written[local]
        page, place = written_T // PAGE, written_T % PAGE
        pages[page, 0, place] = k_BTKH[0, : len(written_T)]
        pages[page, 1, place] = v_BTKH[0, : len(written_T)]
        out_BTNH = torch.zeros_like(q_BTNH)
        for group in self._groups[local]:
            group.attend(layer, pages, q_BTNH[0], out_BTNH[0])
        return out_BTNH


class _Group:
    """Chunks whose attention is computed together, in layers of one kind."""

    def __init__(
        self, chunks: Sequence[ScheduledChunk], firsts: Sequence[int], window: int | None
    ) -> None:
        longest = max(len(chunk.tokens) for chunk in chunks)
        blocks = [_blocks(chunk, window) for chunk in chunks]
        size = max(count for _, count in blocks) * BLOCK
        place = torch.arange(longest)
        lengths = torch.tensor([len(chunk.tokens) for chunk in chunks])
        starts = torch.tensor([chunk.start for chunk in chunks])
        self._filled = place < lengths[:, None]
        self._index = torch.tensor(firsts)[:, None] + place * self._filled
        self._positions = starts[:, None] + place
        first = torch.tensor([number * BLOCK for number, _ in blocks])
        self._key_positions = first[:, None] + torch.arange(size)
        self._valid = self._key_positions < (starts + lengths)[:, None]
        pages = torch.zeros(len(chunks), size // PAGE, dtype=torch.long)
        for row, (chunk, (number, _)) in enumerate(zip(chunks, blocks, strict=True)):
            own = chunk.global_pages if window is None else chunk.local_pages
            own = list(own[number * BLOCK // PAGE :])
            pages[row, : len(own)] = torch.tensor(own)
        # A freed page has left every window; what it holds now may be NaN.
        self._valid &= (pages >= 0).repeat_interleave(PAGE, dim=1)
        self._pages = pages.clamp(min=0)

    def attend(self, layer: AttentionLayer, pages: Tensor, q_TNH: Tensor, out_TNH: Tensor) -> None:
        """Writes the group's results to `out_TNH`."""
        device = q_TNH.device
        k_BSKH, v_BSKH = (
            pages[self._pages.to(device), part].flatten(1, 2) for part in range(2)
        )  # fmt: skip
        # A position that was never written may hold anything, NaN included.
        valid = self._valid.to(device)
        v_BSKH = v_BSKH.masked_fill(~valid[:, :, None, None], 0.0)
        k_BSKH = k_BSKH.masked_fill(~valid[:, :, None, None], 0.0)
        keys = Keys(k_BSKH, v_BSKH, self._key_positions.to(device), valid)
        index = self._index.to(device)
        positions = self._positions.to(device)
        out_BTNH = attend_in_blocks(layer, q_TNH[index], positions, [keys])
        filled = self._filled.to(device)
        out_TNH[index[filled]] = out_BTNH[filled].to(out_TNH.dtype)


def _groups(chunks: Sequence[ScheduledChunk], config: GemmaConfig, local: bool) -> Iterator[_Group]:
    """Groups chunks of similar length after similar numbers of positions, as memory allows."""
    firsts = [0]
    for chunk in chunks:
        firsts.append(firsts[-1] + len(chunk.tokens))
    window = config.sliding_window if local else None
    order = sorted(range(len(chunks)), key=lambda i: (len(chunks[i].tokens), chunks[i].start))
    group: list[int] = []
    for i in order:
        grown = [*group, i]
        tokens = max(QUERY_ROWS, len(chunks[i].tokens))
        keys = max(_blocks(chunks[j], window)[1] for j in grown) * BLOCK
        size = len(grown) * tokens * keys * config.num_attention_heads
        uneven = group and (
            len(chunks[i].tokens) > 1.5 * max(QUERY_ROWS, len(chunks[group[0]].tokens))
            or keys > 2 * BLOCK + 1.5 * _blocks(chunks[group[0]], window)[1] * BLOCK
        )
        if group and (uneven or size > _MAX_SCORES):
            yield _Group([chunks[j] for j in group], [firsts[j] for j in group], window)
            group = []
        group.append(i)
    if group:
        yield _Group([chunks[j] for j in group], [firsts[j] for j in group], window)


def _blocks(chunk: ScheduledChunk, window: int | None) -> tuple[int, int]:
    """The first block of keys that a chunk may see, and the number of blocks up to its end."""
    oldest = 0 if window is None else max(0, chunk.start - window + 1)
    return oldest // BLOCK, -(-chunk.end // BLOCK) - oldest // BLOCK


def _written(chunks: Sequence[ScheduledChunk], local: bool) -> Tensor:
    """The place of each token in the pool: page times PAGE plus the position within the page."""
    places = []
    for chunk in chunks:
        pages = chunk.local_pages if local else chunk.global_pages
        for position in range(chunk.start, chunk.end):
            places.append(pages[position // PAGE] * PAGE + position % PAGE)
    return torch.tensor(places)
