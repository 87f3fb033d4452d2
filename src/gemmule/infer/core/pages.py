"""Pages of keys and values: who holds which, and which are kept for sequences that begin alike.

Free of torch: a page is a number here. A page that is full of settled tokens can be held by several
sequences, and is never written again; what holds it no longer may stay for the next that begins
with the same tokens, until the room is needed.
"""

import array
import hashlib
from collections import OrderedDict
from collections.abc import Sequence

from gemmule.infer.runners.protocol import PAGE

Key = tuple[bool, bytes]  # local or global, and a digest of all tokens up to the page's end


class PagePool:
    """Equal pages, counted.

    Attributes:
        size: pages in all.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._fresh = 0  # from here on, no page was ever used: their memory is not taken yet
        self._free: list[int] = []
        self._holders: dict[int, int] = {}
        self._kept: OrderedDict[int, None] = OrderedDict()  # held by none, longest unused first
        self._page_of: dict[Key, int] = {}
        self._key_of: dict[int, Key] = {}

    @property
    def available(self) -> int:
        """Pages that `take` can give."""
        return self.size - len(self._holders)

    @property
    def held(self) -> int:
        """Pages that some sequence holds."""
        return len(self._holders)

    @property
    def kept(self) -> int:
        """Pages that none holds, kept for what they contain."""
        return len(self._kept)

    def take(self) -> int:
        """A page to write on; one must be available."""
        if self._free:
            page = self._free.pop()
        elif self._fresh < self.size:
            page, self._fresh = self._fresh, self._fresh + 1
        else:
            page, _ = self._kept.popitem(last=False)
            del self._page_of[self._key_of.pop(page)]
        self._holders[page] = 1
        return page

    def find(self, key: Key) -> int | None:
        """The page with this content, to be shared by `share`."""
        return self._page_of.get(key)

    def share(self, page: int) -> None:
        """One more sequence holds a page that was found."""
        self._kept.pop(page, None)
        self._holders[page] = self._holders.get(page, 0) + 1

    def settle(self, page: int, key: Key) -> None:
        """A page is full and will not be written again; others may share it.

        Where another page has the same content already, that one goes on being found.
        """
        if key not in self._page_of:
            self._page_of[key] = page
            self._key_of[page] = key

    def release(self, page: int) -> None:
        """One sequence holds it no longer."""
        self._holders[page] -= 1
        if self._holders[page]:
            return
        del self._holders[page]
        if page in self._key_of:
            self._kept[page] = None
        else:
            self._free.append(page)


class PageTable:
    """The pages of one sequence.

    Attributes:
        computed: positions whose keys and values are there.
        global_pages: by position // PAGE.
        local_pages: the same; -1 once out of every window.
    """

    def __init__(self, pool: PagePool, window: int) -> None:
        self._pool, self._window = pool, window
        self._digests: list[bytes] = []
        self._settled = 0  # pages
        self._oldest = 0  # the first local page that is still held
        self.computed = 0
        self.global_pages: list[int] = []
        self.local_pages: list[int] = []

    def digests(self, tokens: Sequence[int], pages: int) -> list[bytes]:
        """Digests of the first `pages` pages of tokens, each over all tokens up to its end."""
        while len(self._digests) < pages:
            at = len(self._digests) * PAGE
            before = self._digests[-1] if at else b""
            content = before + array.array("q", tokens[at : at + PAGE]).tobytes()
            self._digests.append(hashlib.blake2b(content, digest_size=16).digest())
        return self._digests[:pages]

    def first_local(self, position: int) -> int:
        """The first local page that a token at `position` or later can see."""
        return max(0, position - self._window + 1) // PAGE

    def needed(self, end: int) -> int:
        """Pages still to be taken before positions up to `end` can be written."""
        pages = -(-end // PAGE)
        return 2 * pages - len(self.global_pages) - len(self.local_pages)

    def room(self, pages: int) -> int:
        """Positions that can be written when `pages` more pages can be had."""
        # Both lists are of one length.
        return (len(self.global_pages) + pages // 2) * PAGE

    def grow(self, end: int) -> None:
        """Takes the pages for positions up to `end`; they must be available."""
        while len(self.local_pages) * PAGE < end:
            self.global_pages.append(self._pool.take())
            self.local_pages.append(self._pool.take())

    def advance(self, tokens: Sequence[int], computed: int) -> None:
        """Positions up to `computed` are settled: full pages can be shared, old ones go back."""
        self.computed = computed
        full = computed // PAGE
        digests = self.digests(tokens, full)
        for i in range(self._settled, full):
            self._pool.settle(self.global_pages[i], (False, digests[i]))
            if self.local_pages[i] >= 0:
                self._pool.settle(self.local_pages[i], (True, digests[i]))
        self._settled = full
        self._let_go(self.first_local(computed))

    def reuse(self, tokens: Sequence[int], limit: int) -> int:
        """Begins with what is kept of other sequences that began alike.

        Args:
            tokens: the sequence.
            limit: the first position that must be run in any case.

        Returns:
            Positions that need not be run.
        """
        found: list[tuple[int, int | None]] = []
        best = run = 0  # run: local pages in a row, up to here
        for i, digest in enumerate(self.digests(tokens, limit // PAGE)):
            page, local = self._pool.find((False, digest)), self._pool.find((True, digest))
            if page is None:
                break
            found.append((page, local))
            run = 0 if local is None else run + 1
            if i + 1 - run <= self.first_local((i + 1) * PAGE):
                best = i + 1
        first = self._oldest = self.first_local(best * PAGE)
        for i, (page, local) in enumerate(found[:best]):
            self._pool.share(page)
            self.global_pages.append(page)
            if local is not None and i >= first:
                self._pool.share(local)
                self.local_pages.append(local)
            else:
                self.local_pages.append(-1)
        self.computed, self._settled = best * PAGE, best
        return self.computed

    def clear(self) -> None:
        """Gives all pages back, the last first: a beginning is of use to more sequences."""
        self._let_go(len(self.local_pages), last_first=True)
        while self.global_pages:
            self._pool.release(self.global_pages.pop())
        self.local_pages = []
        self.computed = self._settled = self._oldest = 0

    def _let_go(self, end: int, *, last_first: bool = False) -> None:
        """Gives the local pages before `end` back."""
        held = range(self._oldest, min(end, len(self.local_pages)))
        for i in reversed(held) if last_first else held:
            page, self.local_pages[i] = self.local_pages[i], -1
            if page >= 0:
                self._pool.release(page)
        self._oldest = max(self._oldest, held.stop)


def most_pages(positions: int, window: int) -> int:
    """Pages that a sequence of so many positions holds when it has fewest tokens in a step."""
    pages = -(-positions // PAGE)
    return pages + min(pages, (window + PAGE - 2) // PAGE + 1)
