"""Greedy continuations of many prompts of one length, in step.

The engine takes requests of any length as they come, and in floating point one by one. Here every
prompt is as long as the others, so nothing is padded and each matrix product has a row for every
sequence; and a sequence of which enough is known is left off.

Shapes: B sequences, P tokens of a prompt; others as in model/gemma.py.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gemmule.model.config import GemmaConfig
from gemmule.model.gemma import Gemma

_LOGITS_AT_ONCE = 2**24  # 64 MiB of fp32: bounds memory at any vocabulary
_MOST_ON_CPU = 256  # more are no faster: a layer's activations leave the cache
# Rows that ended are computed along until so large a share has: taking them out copies the others.
_ENDED = 0.25

Rows = npt.NDArray[np.int64]
Watch = Callable[[Rows, Rows], npt.NDArray[np.bool_]]


class _Cache:
    """Keys and values of sequences that all have the same length; every layer keeps all tokens.

    They lie as the products of a single query read them, so that none is copied for one.
    """

    segment_BS = torch.empty(0)  # each row is one segment

    def __init__(self, config: GemmaConfig, rows: int, length: int, like: Tensor) -> None:
        self.length = 0
        shape = (rows, config.num_key_value_heads, length, config.head_dim)
        layers = range(config.num_hidden_layers)
        self._k = [torch.empty(shape, dtype=like.dtype, device=like.device) for _ in layers]
        self._v = [torch.empty(shape, dtype=like.dtype, device=like.device) for _ in layers]

    def begin(self, count: int, doc_ids_BT: Tensor | None) -> Tensor | None:
        """See `Cache`."""
        return None

    def extend(self, layer: int, k_BTKH: Tensor, v_BTKH: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `Cache`."""
        end = self.length + k_BTKH.shape[1]
        k_BKSH, v_BKSH = self._k[layer], self._v[layer]
        k_BKSH[:, :, self.length : end] = k_BTKH.transpose(1, 2)
        v_BKSH[:, :, self.length : end] = v_BTKH.transpose(1, 2)
        index = torch.arange(end, device=k_BKSH.device)
        return k_BKSH[:, :, :end].transpose(1, 2), v_BKSH[:, :, :end].transpose(1, 2), index

    def keep(self, rows: Tensor) -> None:
        """Leaves only these rows, in this order."""
        for layer, (k_BKSH, v_BKSH) in enumerate(zip(self._k, self._v, strict=True)):
            self._k[layer], self._v[layer] = k_BKSH[rows], v_BKSH[rows]


@torch.inference_mode()
def continue_greedily(
    model: Gemma,
    prompts_BP: Tensor,
    count: int,
    *,
    words: int,
    stop_ids: tuple[int, ...],
    watch: Watch | None = None,
) -> list[list[int]]:
    """The likeliest token after each prompt, then the likeliest after that, and so on.

    The tokens are those that the engine gives at temperature 0, but for ties: where the two
    likeliest differ by less than rounding does, another order of summing may pick the other.

    Args:
        model: on any device.
        prompts_BP: ids.
        count: tokens to give at most.
        words: ids that may be given: those below.
        stop_ids: end a continuation, and are no part of it.
        watch: called with the rows that go on and their newest tokens; says which are to go on.

    Returns:
        Of each row the ids given until it stopped, was stopped or had `count`.
    """
    device = model.norm.weight.device
    found: list[list[int]] = [[] for _ in prompts_BP]
    rows = np.arange(len(prompts_BP))  # which sequence each row of the cache is
    alive = np.ones(len(rows), bool)
    cache = _Cache(model.config, len(rows), prompts_BP.shape[1] + count - 1, model.norm.weight)
    tokens_BT = prompts_BP.to(device)
    for step in range(count):
        x_BD = model.hidden_states(tokens_BT, cache=cache)[:, -1]
        next_B = _likeliest(model, x_BD, words)
        tokens = next_B.cpu().numpy()
        alive &= ~np.isin(tokens, stop_ids)
        going, newest = rows[alive], tokens[alive]
        for row, token in zip(going.tolist(), newest.tolist(), strict=True):
            found[row].append(token)
        if watch is not None:
            alive[alive] = watch(going, newest)
        if step == count - 1 or not alive.any():
            break
        if alive.mean() < 1 - _ENDED:
            kept = torch.from_numpy(np.flatnonzero(alive)).to(device)
            cache.keep(kept)
            rows, alive, next_B = rows[alive], alive[alive], next_B[kept]
        tokens_BT = next_B[:, None]
    return found


def _likeliest(model: Gemma, x_BD: Tensor, words: int) -> Tensor:
    chunk = max(1, _LOGITS_AT_ONCE // model.config.vocab_size)
    parts = [model.logits(part)[:, :words].argmax(-1) for part in x_BD.split(chunk)]
    return torch.cat(parts)


def rows_at_once(
    config: GemmaConfig, length: int, item_bytes: int, memory: float, cpu: bool
) -> int:
    """How many sequences to continue together.

    Args:
        config: the model's shape.
        length: tokens of a whole sequence.
        item_bytes: of an activation.
        memory: bytes they may take.
        cpu: whether a processor's cache bounds what is of use.
    """
    cached = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * length
    widest = 3 * config.intermediate_size + 8 * config.hidden_size
    scores = 3 * config.num_attention_heads * length
    a_row = (cached + length * (widest + scores)) * item_bytes
    rows = max(1, int(memory // a_row))
    return min(rows, _MOST_ON_CPU) if cpu else rows
