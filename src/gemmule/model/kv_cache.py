"""Keys and values of the tokens seen so far.

Global layers keep every token up to `max_length`; local layers keep a ring of the last `window`,
since no later query can see further back. Shapes as in gemma.py.
"""

from typing import Protocol

import torch
from torch import Tensor

from gemmule.model.config import GemmaConfig


class Cache(Protocol):
    """What the forward pass asks of a cache, wherever the keys and values are."""

    length: int
    segment_BS: Tensor

    def begin(self, count: int, doc_ids_BT: Tensor | None) -> Tensor | None:
        """Makes ready for `count` more tokens; returns their segments, or None if never given."""

    def extend(self, layer: int, k_BTKH: Tensor, v_BTKH: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Takes in keys and values of a layer; all that may be needed, and their indices."""


class KVCache:
    """A cache for rows that advance together (left-padded prompts carry segment 0 on the pads).

    Attributes:
        length: tokens taken in so far, the same for every row.
        segment_BS: segment of each token taken in; meaningful once a prompt brought segments.
    """

    def __init__(
        self,
        config: GemmaConfig,
        batch_size: int,
        max_length: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.length = 0
        self.max_length = max_length
        self.segment_BS = torch.ones(batch_size, max_length, dtype=torch.long, device=device)
        self._has_segments = False
        self._local = [config.is_local(i) for i in range(config.num_hidden_layers)]
        self._ring = min(config.sliding_window, max_length)
        heads = (config.num_key_value_heads, config.head_dim)
        sizes = [self._ring if local else max_length for local in self._local]
        self._k = [torch.zeros(batch_size, s, *heads, dtype=dtype, device=device) for s in sizes]
        self._v = [torch.zeros(batch_size, s, *heads, dtype=dtype, device=device) for s in sizes]

    def reset(self) -> None:
        """Forgets everything; the memory is kept."""
        self.length = 0
        self._has_segments = False
        self.segment_BS.fill_(1)

    @property
    def nbytes(self) -> int:
        """Memory held by keys and values, bytes."""
        return sum(t.nbytes for t in (*self._k, *self._v))

    def begin(self, count: int, doc_ids_BT: Tensor | None) -> Tensor | None:
        """Makes ready for `count` more tokens; returns their segments, or None if never given.

        Raises:
            ValueError: when they do not fit in `max_length`.
        """
        end = self.length + count
        if end > self.max_length:
            raise ValueError(f"{end} tokens do not fit in a cache of {self.max_length}")
        if doc_ids_BT is not None:
            self._has_segments = True
            self.segment_BS[:, self.length : end] = doc_ids_BT
        return self.segment_BS[:, self.length : end] if self._has_segments else None

    def extend(self, layer: int, k_BTKH: Tensor, v_BTKH: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Takes in new keys and values of one layer.

        Returns:
            All keys [B, S, K, H] and values that these tokens may need, and their indices [S].
        """
        k_cache, v_cache = self._k[layer], self._v[layer]
        start, count = self.length, k_BTKH.shape[1]
        end = start + count
        if not self._local[layer]:
            k_cache[:, start:end] = k_BTKH
            v_cache[:, start:end] = v_BTKH
            index = torch.arange(end, device=k_cache.device)
            return k_cache[:, :end], v_cache[:, :end], index
        if count == 1:  # the token it overwrites is out of the window already
            k_cache[:, start % self._ring] = k_BTKH[:, 0]
            v_cache[:, start % self._ring] = v_BTKH[:, 0]
            index = self._ring_index(end)
            return k_cache[:, : len(index)], v_cache[:, : len(index)], index
        old = self._ring_index(start)
        new = torch.arange(start, end, device=k_cache.device)
        k_all = torch.cat((k_cache[:, : len(old)], k_BTKH), dim=1)
        v_all = torch.cat((v_cache[:, : len(old)], v_BTKH), dim=1)
        kept = new[-self._ring :]
        k_cache[:, kept % self._ring] = k_BTKH[:, -self._ring :]
        v_cache[:, kept % self._ring] = v_BTKH[:, -self._ring :]
        return k_all, v_all, torch.cat((old, new))

    def _ring_index(self, length: int) -> Tensor:
        """Index of the token in each filled slot of a ring that has taken in `length` tokens."""
        slots = torch.arange(min(length, self._ring), device=self.segment_BS.device)
        last = length - 1
        return last - (last - slots) % self._ring
