"""Pages of keys and values: who uses which, and which are cached for a common prefix.

Free of torch: a page is a number here. A page that is full of committed tokens may be shared by
several sequences and is never written again. When no sequence uses it any more it stays cached for
the next one that begins with the same tokens, until its memory is needed.
"""

import array
import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from gemmule.infer.runners.protocol import PAGE

PageKey = tuple[bool, bytes]  # whether it is local, and a hash of all tokens up to the page's end


@dataclass(frozen=True)
class PoolStats:
    """What the pages of a pool are used for.

    Attributes:
        size: pages in total.
        allocated: pages that a sequence uses.
        cached: pages that no sequence uses, kept for their contents.
        free: pages without contents.
        hashed: pages that can be found by their contents, used or not.
    """

    size: int
    allocated: int
    cached: int
    free: int
    hashed: int


class PagePool:
    """Equal pages with reference counts.

    Attributes:
        size: pages in total.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._fresh = 0  # no page from here on was ever used: its memory is not taken yet
        self._free: list[int] = []
        self._refcounts: dict[int, int] = {}
        self._cached: OrderedDict[int, None] = OrderedDict()  # least recently used first
        self._page_of: dict[PageKey, int] = {}
        self._key_of: dict[int, PageKey] = {}

    @property
    def available(self) -> int:
        """Number of pages that can be allocated."""
        return self.size - len(self._refcounts)

    @property
    def allocated(self) -> int:
        """Number of pages that a sequence uses."""
        return len(self._refcounts)

    @property
    def cached(self) -> int:
        """Number of pages that no sequence uses, kept for their contents."""
        return len(self._cached)

    def stats(self) -> PoolStats:
        """Counts pages by their use; allocated, cached and free ones make up the size."""
        return PoolStats(
            size=self.size,
            allocated=len(self._refcounts),
            cached=len(self._cached),
            free=len(self._free) + self.size - self._fresh,
            hashed=len(self._key_of),
        )

    def allocate(self) -> int:
        """Returns a page to write to; one must be available."""
        if self._free:
            page = self._free.pop()
        elif self._fresh < self.size:
            page, self._fresh = self._fresh, self._fresh + 1
        else:
            page, _ = self._cached.popitem(last=False)
            del self._page_of[self._key_of.pop(page)]
        self._refcounts[page] = 1
        return page

    def find(self, key: PageKey) -> int | None:
        """Returns the page with these contents; `incref` makes it safe to use."""
        return self._page_of.get(key)

    def incref(self, page: int) -> None:
        """Counts one more sequence that uses a page that was found."""
        self._cached.pop(page, None)
        self._refcounts[page] = self._refcounts.get(page, 0) + 1

    def commit(self, page: int, key: PageKey) -> None:
        """Makes a page that is full, and will not be written again, shareable.

        If another page has the same contents already, that one stays the one to be found.
        """
        if key not in self._page_of:
            self._page_of[key] = page
            self._key_of[page] = key

    def free(self, page: int) -> None:
        """Counts one sequence less; an unused page is cached if it can be found, else free."""
        self._refcounts[page] -= 1
        if self._refcounts[page]:
            return
        del self._refcounts[page]
        if page in self._key_of:
            self._cached[page] = None
        else:
            self._free.append(page)


class PageTable:
    """Pages of one sequence.

    Attributes:
        computed: number of positions whose keys and values are there.
        global_pages: page of each block of PAGE positions, in global layers.
        local_pages: the same in local layers; -1 once a page has left the window.
    """

    def __init__(self, pool: PagePool, window: int) -> None:
        self._pool, self._window = pool, window
        self._hashes: list[bytes] = []
        self._committed = 0  # pages
        self._first_local = 0  # the first local page that is still allocated
        self.computed = 0
        self.global_pages: list[int] = []
        self.local_pages: list[int] = []

    def page_hashes(self, tokens: Sequence[int], pages: int) -> list[bytes]:
        """Returns hashes of the first `pages` pages, each over all tokens up to the page's end."""
        while len(self._hashes) < pages:
            start = len(self._hashes) * PAGE
            previous = self._hashes[-1] if start else b""
            content = previous + array.array("q", tokens[start : start + PAGE]).tobytes()
            self._hashes.append(hashlib.blake2b(content, digest_size=16).digest())
        return self._hashes[:pages]

    def first_local(self, position: int) -> int:
        """Returns the first local page that a token at `position` or later can see."""
        return max(0, position - self._window + 1) // PAGE

    def needed(self, end: int) -> int:
        """Returns how many pages must be allocated before positions below `end` can be written."""
        pages = -(-end // PAGE)
        return 2 * pages - len(self.global_pages) - len(self.local_pages)

    def max_end(self, pages: int) -> int:
        """Returns how many positions can be written if `pages` more pages are allocated."""
        # Both lists have the same length.
        return (len(self.global_pages) + pages // 2) * PAGE

    def grow(self, end: int) -> None:
        """Allocates the pages for positions below `end`; they must be available."""
        while len(self.local_pages) * PAGE < end:
            self.global_pages.append(self._pool.allocate())
            self.local_pages.append(self._pool.allocate())

    def advance(self, tokens: Sequence[int], computed: int) -> None:
        """Commits positions below `computed`: shares full pages, frees pages out of the window."""
        self.computed = computed
        full = computed // PAGE
        hashes = self.page_hashes(tokens, full)
        for i in range(self._committed, full):
            self._pool.commit(self.global_pages[i], (False, hashes[i]))
            if self.local_pages[i] >= 0:
                self._pool.commit(self.local_pages[i], (True, hashes[i]))
        self._committed = full
        self._free_local(self.first_local(computed))

    def match_prefix(self, tokens: Sequence[int], limit: int) -> int:
        """Starts an empty table with the cached pages of the longest common prefix.

        Args:
            tokens: the sequence.
            limit: first position that must be computed in any case.

        Returns:
            Number of positions that need not be computed.
        """
        matches: list[tuple[int, int | None]] = []
        best = run = 0  # run: consecutive local pages up to here
        for i, page_hash in enumerate(self.page_hashes(tokens, limit // PAGE)):
            page, local = self._pool.find((False, page_hash)), self._pool.find((True, page_hash))
            if page is None:
                break
            matches.append((page, local))
            run = 0 if local is None else run + 1
            if i + 1 - run <= self.first_local((i + 1) * PAGE):
                best = i + 1
        first = self._first_local = self.first_local(best * PAGE)
        for i, (page, local) in enumerate(matches[:best]):
            self._pool.incref(page)
            self.global_pages.append(page)
            if local is not None and i >= first:
                self._pool.incref(local)
                self.local_pages.append(local)
            else:
                self.local_pages.append(-1)
        self.computed, self._committed = best * PAGE, best
        return self.computed

    def clear(self) -> None:
        """Frees all pages, the last first: a beginning is useful to more sequences."""
        self._free_local(len(self.local_pages), last_first=True)
        while self.global_pages:
            self._pool.free(self.global_pages.pop())
        self.local_pages = []
        self.computed = self._committed = self._first_local = 0

    def _free_local(self, end: int, *, last_first: bool = False) -> None:
        """Frees the local pages before page `end`."""
        allocated = range(self._first_local, min(end, len(self.local_pages)))
        for i in reversed(allocated) if last_first else allocated:
            page, self.local_pages[i] = self.local_pages[i], -1
            if page >= 0:
                self._pool.free(page)
        self._first_local = max(self._first_local, allocated.stop)


def max_pages(positions: int, window: int) -> int:
    """Returns how many pages a sequence of `positions` needs if it runs token by token."""
    pages = -(-positions // PAGE)
    return pages + min(pages, (window + PAGE - 2) // PAGE + 1)
