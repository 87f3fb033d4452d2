"""Keys and values of the tokens seen so far, in pages. Shapes as in gemma.py; P pages of a row.

A page holds `page_size` positions of all local layers or of all global ones. The engine decides
which pages a sequence uses; `KVCache.new` gives a few rows pages of their own.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from gemmule.model import attention
from gemmule.model.attention import AttentionLayer
from gemmule.model.config import GemmaConfig

PAGE_SIZE = 32


class PagedKV:
    """Memory for keys and values in pages of one size.

    Attributes:
        config: shape of the model.
        page_size: positions of a page.
        page_bytes: size of a page.
        pages: the memory, [pages, layers of one kind, 2, page_size, K, H]; in the third dimension
            keys come before values.
    """

    def __init__(
        self,
        config: GemmaConfig,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        page_size: int = PAGE_SIZE,
    ) -> None:
        """Starts without pages."""
        self.config, self.page_size = config, page_size
        self.is_local = [config.is_local(i) for i in range(config.num_hidden_layers)]
        # Place of a layer among the layers of its kind.
        self._slots = [self.is_local[:i].count(kind) for i, kind in enumerate(self.is_local)]
        heads = (config.num_key_value_heads, config.head_dim)
        shape = (0, max(self._slots) + 1, 2, page_size, *heads)
        self.pages = torch.empty(shape, dtype=dtype, device=device)
        self.page_bytes = self.pages.new_empty(shape[1:], device="meta").nbytes

    def allocate(self, pages: int) -> None:
        """Makes pages; their contents are undefined."""
        self.pages = self.pages.new_empty(pages, *self.pages.shape[1:])

    def layer(self, layer: int) -> Tensor:
        """Returns a view of one layer's part of all pages, [pages, 2, page_size, K, H]."""
        return self.pages[:, self._slots[layer]]

    def copy_page(self, source: int, target: int) -> None:
        """Copies the contents of one page to another."""
        self.pages[target] = self.pages[source]


class KVCache:
    """Keys and values of rows that advance together; the attention backend of cached decoding.

    Left-padded prompts carry doc id 0 on the padding.

    Attributes:
        length: number of tokens of each row so far.
    """

    def __init__(
        self,
        kv: PagedKV,
        global_pages: Sequence[Sequence[int]],
        local_pages: Sequence[Sequence[int]],
        length: int = 0,
    ) -> None:
        """Makes a cache of pages that are there.

        Args:
            kv: the memory.
            global_pages: for each row the pages of its positions in global layers.
            local_pages: the same in local layers; pages that have left the window are not read.
            length: number of tokens whose keys and values are in the pages.
        """
        self.length = length
        self._kv = kv
        device = kv.pages.device
        self._pages = {
            False: torch.tensor(global_pages, device=device),
            True: torch.tensor(local_pages, device=device),
        }
        self._doc_ids_BS: Tensor | None = None

    @classmethod
    def new(
        cls,
        config: GemmaConfig,
        batch_size: int,
        max_length: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> "KVCache":
        """Makes an empty cache with pages of its own.

        Args:
            config: shape of the model.
            batch_size: number of rows.
            max_length: number of tokens that a row can have.
            dtype: dtype of keys and values.
            device: device of keys and values.
        """
        kv = PagedKV(config, dtype, device)
        per_row = -(-max_length // kv.page_size)
        kv.allocate(2 * batch_size * per_row)
        numbers = torch.arange(2 * batch_size * per_row).view(2, batch_size, per_row).tolist()
        return cls(kv, *numbers)

    @property
    def capacity(self) -> int:
        """Number of tokens that a row can have."""
        return self._pages[False].shape[1] * self._kv.page_size

    def begin(self, count: int, doc_ids_BT: Tensor | None) -> Tensor | None:
        """Prepares for `count` more tokens of each row.

        Returns:
            Their doc ids, or None if none were ever given.

        Raises:
            ValueError: if there are no pages for them.
        """
        start, end = self.length, self.length + count
        if end > self.capacity:
            raise ValueError(f"{end} tokens do not fit in a cache of {self.capacity}")
        page_size, device = self._kv.page_size, self._kv.pages.device
        self._q_index = torch.arange(start, end, device=device)
        self._written = {}
        self._read = {}
        for local, pages_BP in self._pages.items():
            first = self._first_page(start) if local else 0
            pages_BT = pages_BP[:, self._q_index // page_size]
            self._written[local] = (pages_BT, self._q_index % page_size)
            index_S = torch.arange(first * page_size, end, device=device)
            self._read[local] = (pages_BP[:, first : -(-end // page_size)], index_S)
        if doc_ids_BT is not None and self._doc_ids_BS is None:
            rows = len(self._pages[False])
            self._doc_ids_BS = torch.ones(rows, self.capacity, dtype=torch.long, device=device)
        if self._doc_ids_BS is None:
            return None
        if doc_ids_BT is not None:
            self._doc_ids_BS[:, start:end] = doc_ids_BT
        return self._doc_ids_BS[:, start:end]

    def __call__(
        self,
        layer: AttentionLayer,
        q_BTNH: Tensor,
        k_BTKH: Tensor,
        v_BTKH: Tensor,
        doc_ids_BT: Tensor | None,
    ) -> Tensor:
        """Writes keys and values of the new tokens, and attends to all of their row."""
        k_BSKH, v_BSKH, k_index_S = self._extend(layer.layer, k_BTKH, v_BTKH)
        k_doc_ids_BS = None
        if self._doc_ids_BS is not None:
            k_doc_ids_BS = self._doc_ids_BS[:, k_index_S]
        return attention.attend(
            q_BTNH, k_BSKH, v_BSKH, self._q_index, k_index_S, doc_ids_BT, k_doc_ids_BS,
            layer.window, layer.scale, layer.cap,
        )  # fmt: skip

    def _extend(self, layer: int, k_BTKH: Tensor, v_BTKH: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Writes keys and values; returns all that the tokens may see, and their positions."""
        local, pages = self._kv.is_local[layer], self._kv.layer(layer)
        pages_BT, place_T = self._written[local]
        pages[pages_BT, 0, place_T] = k_BTKH
        pages[pages_BT, 1, place_T] = v_BTKH
        pages_BP, index_S = self._read[local]
        k_BSKH, v_BSKH = (
            pages[pages_BP, part].flatten(1, 2)[:, : len(index_S)] for part in range(2)
        )  # fmt: skip
        return k_BSKH, v_BSKH, index_S

    def _first_page(self, start: int) -> int:
        """The first page of a local layer that a token at `start` or later can see."""
        return max(0, start - self._kv.config.sliding_window + 1) // self._kv.page_size
