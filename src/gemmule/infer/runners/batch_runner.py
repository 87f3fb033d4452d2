"""A runner for many sequences at once on a model in floating point.

All spans of a step go through the layers as one flat batch of tokens. As the native runner, it
promises that a prediction has the same bits whatever else is in the step and however its sequence
was cut into spans (see invariant.py). Rows are filled up for that, so that a step of few tokens
costs as much as one of some hundred: for one sequence at a time, the plain runner is faster.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from gemmule.infer.runners.batch_invariant import (
    BLOCK,
    QUERY_ROWS,
    Keys,
    attend_to_parts,
    spare_rows,
)
from gemmule.infer.runners.protocol import PAGE, Prediction, Span
from gemmule.infer.runners.torch_runner import TorchRunner, predict
from gemmule.model.gemma import Attention, Block, rope_tables, rotate

_LOGITS_AT_ONCE = 2**24  # 64 MiB of fp32: bounds memory at any vocabulary
_SCORES_AT_ONCE = 2**24  # of attention, the same


class BatchRunner(TorchRunner):
    """See `Runner`."""

    max_step_tokens = 2048

    @torch.inference_mode()
    def step(self, spans: Sequence[Span]) -> list[list[Prediction]]:
        """See `Runner`."""
        device = self.device
        flat = [token for span in spans for token in span.tokens]
        positions = torch.tensor(
            [p for span in spans for p in range(span.start, span.start + len(span.tokens))]
        )
        spare = spare_rows(len(flat))
        tokens_BT = torch.tensor([flat + [0] * spare], device=device)
        padded = functional.pad(positions, (0, spare)).to(device)
        rope = rope_tables(padded[None], self.config.head_dim, self.config.rope_theta)
        groups = {local: list(self._groups(spans, local)) for local in (False, True)}
        written = {local: _written(spans, local).to(device) for local in (False, True)}
        x_BTD = self._model.embed(tokens_BT)
        for number, layer in enumerate(self._model.layers):
            assert isinstance(layer, Block)
            local = self.config.is_local(number)
            x_BTD = self._layer(layer, number, x_BTD, rope, written[local], groups[local])
        return self._predictions(self._model.norm(x_BTD)[0], spans)

    def _layer(
        self,
        layer: Block,
        number: int,
        x_BTD: Tensor,
        rope: tuple[Tensor, Tensor],
        written_T: Tensor,
        groups: Sequence["_Group"],
    ) -> Tensor:
        attention = layer.self_attn
        B, T, _ = x_BTD.shape
        shape = (B, T, -1, attention.head_dim)
        n_BTD = layer.input_layernorm(x_BTD)
        q_TNH = rotate(attention.q_proj(n_BTD).view(shape), rope)[0]
        k_TKH = rotate(attention.k_proj(n_BTD).view(shape), rope)[0]
        v_TKH = attention.v_proj(n_BTD).view(shape)[0]
        pool = self.pages_of(number)
        page, place = written_T // PAGE, written_T % PAGE
        pool[page, 0, place] = k_TKH[: len(written_T)]
        pool[page, 1, place] = v_TKH[: len(written_T)]
        out_TNH = torch.zeros_like(q_TNH)
        for group in groups:
            group.attend(attention, pool, q_TNH, out_TNH)
        h_BTD = x_BTD + layer.post_attention_layernorm(attention.o_proj(out_TNH.view(B, T, -1)))
        fed = layer.mlp(layer.pre_feedforward_layernorm(h_BTD))
        return h_BTD + layer.post_feedforward_layernorm(fed)

    def _groups(self, spans: Sequence[Span], local: bool) -> Iterator["_Group"]:
        """Spans of about one length after about as many positions, as memory allows."""
        firsts = [0]
        for span in spans:
            firsts.append(firsts[-1] + len(span.tokens))
        window = self.config.sliding_window if local else None
        order = sorted(
            range(len(spans)), key=lambda i: (len(spans[i].tokens), spans[i].start)
        )  # fmt: skip
        group: list[int] = []
        for i in order:
            grown = [*group, i]
            tokens = max(QUERY_ROWS, len(spans[i].tokens))
            keys = max(_blocks(spans[j], window)[1] for j in grown) * BLOCK
            size = len(grown) * tokens * keys * self.config.num_attention_heads
            uneven = group and (
                len(spans[i].tokens) > 1.5 * max(QUERY_ROWS, len(spans[group[0]].tokens))
                or keys > 2 * BLOCK + 1.5 * _blocks(spans[group[0]], window)[1] * BLOCK
            )
            if group and (uneven or size > _SCORES_AT_ONCE):
                yield _Group([spans[j] for j in group], [firsts[j] for j in group], window)
                group = []
            group.append(i)
        if group:
            yield _Group([spans[j] for j in group], [firsts[j] for j in group], window)

    def _predictions(self, x_TD: Tensor, spans: Sequence[Span]) -> list[list[Prediction]]:
        rows, first = [], 0
        for span in spans:
            rows += [first + output.index for output in span.outputs]
            first += len(span.tokens)
        outputs = [output for span in spans for output in span.outputs]
        found: list[Prediction] = []
        whole = 1 + spare_rows(1)
        chunk = max(whole, _LOGITS_AT_ONCE // self.config.vocab_size // whole * whole)
        for at in range(0, len(rows), chunk):
            x_OD = x_TD[torch.tensor(rows[at : at + chunk], device=self.device)]
            count = len(x_OD)
            x_OD = functional.pad(x_OD, (0, 0, 0, spare_rows(count)))
            logits_OV = self._model.logits(x_OD)[:count].float()
            found += map(predict, outputs[at : at + chunk], logits_OV)
        rest = iter(found)
        return [[next(rest) for _ in span.outputs] for span in spans]


class _Group:
    """Spans whose attention is computed together, in one kind of layer."""

    def __init__(self, spans: Sequence[Span], firsts: Sequence[int], window: int | None) -> None:
        longest = max(len(span.tokens) for span in spans)
        blocks = [_blocks(span, window) for span in spans]
        size = max(count for _, count in blocks) * BLOCK
        place = torch.arange(longest)
        lengths = torch.tensor([len(span.tokens) for span in spans])
        starts = torch.tensor([span.start for span in spans])
        self._filled = place < lengths[:, None]
        self._index = torch.tensor(firsts)[:, None] + place * self._filled
        self._positions = starts[:, None] + place
        first = torch.tensor([number * BLOCK for number, _ in blocks])
        self._key_positions = first[:, None] + torch.arange(size)
        self._there = self._key_positions < (starts + lengths)[:, None]
        pages = torch.zeros(len(spans), size // PAGE, dtype=torch.long)
        for row, (span, (number, _)) in enumerate(zip(spans, blocks, strict=True)):
            of_span = span.global_pages if window is None else span.local_pages
            own = list(of_span[number * BLOCK // PAGE :])
            pages[row, : len(own)] = torch.tensor(own)
        # A page that was let go is out of every window; what stands there instead may be NaN.
        self._there &= (pages >= 0).repeat_interleave(PAGE, dim=1)
        self._pages = pages.clamp(min=0)

    def attend(self, attention: Attention, pool: Tensor, q_TNH: Tensor, out_TNH: Tensor) -> None:
        """Adds the group's part to `out_TNH`."""
        device = q_TNH.device
        k_BSKH, v_BSKH = (
            pool[self._pages.to(device), part].flatten(1, 2) for part in range(2)
        )  # fmt: skip
        # What no token has been written to may hold anything, NaN included.
        there = self._there.to(device)
        v_BSKH = v_BSKH.masked_fill(~there[:, :, None, None], 0.0)
        k_BSKH = k_BSKH.masked_fill(~there[:, :, None, None], 0.0)
        keys = Keys(k_BSKH, v_BSKH, self._key_positions.to(device), there)
        index = self._index.to(device)
        positions = self._positions.to(device)
        out_BTNH = attend_to_parts(attention, q_TNH[index], positions, [keys])
        filled = self._filled.to(device)
        out_TNH[index[filled]] = out_BTNH[filled].to(out_TNH.dtype)


def _blocks(span: Span, window: int | None) -> tuple[int, int]:
    """The first block of keys that a span may see, and how many there are up to its end."""
    end = span.start + len(span.tokens)
    oldest = 0 if window is None else max(0, span.start - window + 1)
    return oldest // BLOCK, -(-end // BLOCK) - oldest // BLOCK


def _written(spans: Sequence[Span], local: bool) -> Tensor:
    """For each token its place in the pool: page times PAGE, and the position in it."""
    places = []
    for span in spans:
        pages = span.local_pages if local else span.global_pages
        for position in range(span.start, span.start + len(span.tokens)):
            places.append(pages[position // PAGE] * PAGE + position % PAGE)
    return torch.tensor(places)
