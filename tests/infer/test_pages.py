"""Pages and the scheduler as plain Python."""

import random
import subprocess
import sys

import pytest

from gemmule.infer.core.pages import PagePool, PageTable, max_pages
from gemmule.infer.core.scheduler import Scheduler, TokenSequence
from gemmule.infer.runners.protocol import PAGE, LogitsRequest

WINDOW = 40


def test_neither_needs_torch() -> None:
    code = "import sys, gemmule.infer.core.scheduler; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def run(pool: PagePool, tokens: list[int], step: int = 7) -> PageTable:
    """A sequence computed to its end."""
    table = PageTable(pool, WINDOW)
    table.match_prefix(tokens, len(tokens) - 1)
    while table.computed < len(tokens):
        end = min(len(tokens), table.computed + step)
        table.grow(end)
        table.advance(tokens, end)
    return table


def test_pages_of_ended_sequences_serve_those_that_begin_alike() -> None:
    pool = PagePool(40)
    tokens = list(range(200))
    first = run(pool, tokens)
    pages = first.global_pages[:]
    first.clear()
    assert (pool.allocated, pool.cached, pool.available) == (
        0,
        12,
        40,
    )  # six full ones of each kind
    again = PageTable(pool, WINDOW)
    assert again.match_prefix(tokens, 199) == 192
    assert again.global_pages == pages[:6]
    # Queries from 192 on see keys from 153 on.
    assert again.local_pages[:4] == [-1] * 4
    assert -1 not in again.local_pages[4:]
    other = PageTable(pool, WINDOW)
    assert other.match_prefix([*tokens[:100], 7, *tokens[101:]], 199) == 96
    assert PageTable(pool, WINDOW).match_prefix([7, *tokens], 200) == 0


@pytest.mark.parametrize("limit", [0, 31, 32, 33, 64])
def test_what_must_run_is_not_reused(limit: int) -> None:
    pool = PagePool(40)
    run(pool, list(range(200))).clear()
    assert PageTable(pool, WINDOW).match_prefix(list(range(200)), limit) == limit // PAGE * PAGE


def test_a_prefix_counts_only_as_far_as_its_local_pages_are_there() -> None:
    pool = PagePool(40)
    tokens = list(range(200))
    table = run(pool, tokens)
    local_page = table.local_pages[5]  # positions 160 to 191
    table.clear()
    del pool._page_of[pool._key_of[local_page]]
    assert PageTable(pool, WINDOW).match_prefix(tokens, 199) == 160
    for other in range(3, 5):  # 96 to 159: nothing after 96 is covered any more
        digest = table.page_hashes(tokens, 6)[other]
        pool._page_of.pop((True, digest))
    assert PageTable(pool, WINDOW).match_prefix(tokens, 199) == 96


def test_pages_out_of_every_window_go_back() -> None:
    pool = PagePool(40)
    table = run(pool, list(range(300)), step=1)
    held = [page for page in table.local_pages if page >= 0]
    assert len(held) == 2  # 261 to 299
    assert pool.allocated == len(table.global_pages) + len(held)


def test_what_was_unused_longest_goes_first_and_ends_before_beginnings() -> None:
    pool = PagePool(14)
    old, new = list(range(100)), list(range(100, 164))
    run(pool, old).clear()
    run(pool, new).clear()
    assert pool.cached == 6 + 4
    taken = [pool.allocate() for _ in range(7)]  # four were free or fresh
    assert len(set(taken)) == 7
    assert PageTable(pool, WINDOW).match_prefix(new, 64) == 64
    assert PageTable(pool, WINDOW).match_prefix(old, 100) < 96


def test_random_holding_and_releasing() -> None:
    rng = random.Random(0)
    pool = PagePool(60)
    tables: list[PageTable] = []
    for _ in range(2000):
        if tables and rng.random() < 0.5:
            tables.pop(rng.randrange(len(tables))).clear()
        else:
            length = rng.randint(1, 150)
            if max_pages(length, WINDOW) + 4 <= pool.available:
                tokens = [rng.randrange(2) for _ in range(rng.choice([0, 32, 64]))] + [5] * length
                tables.append(run(pool, tokens[:length]))
        allocated = {p for t in tables for p in (*t.global_pages, *t.local_pages) if p >= 0}
        assert len(allocated) == pool.allocated
        assert allocated.isdisjoint(pool._cached)
        assert allocated.isdisjoint(pool._free)
        assert pool.available == pool.size - len(allocated)
        assert all(pool._page_of[key] == page for page, key in pool._key_of.items())
        stats = pool.stats()
        assert stats.allocated + stats.cached + stats.free == stats.size
    for table in tables:
        table.clear()
    assert (pool.allocated, pool.available) == (0, 60)


def test_most_pages_is_what_a_sequence_run_token_by_token_holds() -> None:
    for window in (1, 2, 31, 32, 33, 64, 100):
        pool, most = PagePool(100), 0
        table = PageTable(pool, window)
        tokens = list(range(500))
        for end in range(1, 501):
            table.grow(end)
            most = max(most, pool.allocated)
            assert most <= max_pages(end, window)
            table.advance(tokens, end)
        assert most == max_pages(500, window) or window % PAGE == 1


def planned(scheduler: Scheduler) -> dict[int, int]:
    """Tokens of each sequence in the next step, which then has run."""
    chunks = scheduler.plan()
    running = {sequence.sequence_id: sequence for sequence in scheduler.running}
    for chunk in chunks:
        sequence = running[chunk.sequence_id]
        if chunk.end == len(sequence.tokens):
            sequence.tokens.append(1)
            sequence.first_output_pos = len(sequence.tokens) - 1
        scheduler.advance(sequence, chunk.end)
    return {chunk.sequence_id: len(chunk.tokens) for chunk in chunks}


def sequence(sequence_id: int, length: int, max_len: int = 400) -> TokenSequence:
    return TokenSequence(
        sequence_id,
        [sequence_id + 10] * length,
        first_output_pos=length - 1,
        max_len=max_len,
        logits_request=lambda index, position: LogitsRequest(index),
    )


def test_tokens_that_are_drawn_come_before_prompts_in_parts() -> None:
    scheduler = Scheduler(100, WINDOW, 16)
    scheduler.add(sequence(0, 3))
    scheduler.add(sequence(1, 20))
    assert planned(scheduler) == {0: 3, 1: 13}
    scheduler.add(sequence(2, 30))
    assert planned(scheduler) == {0: 1, 1: 7, 2: 8}
    assert planned(scheduler) == {0: 1, 1: 1, 2: 14}


def test_the_youngest_gives_way_and_comes_back() -> None:
    scheduler = Scheduler(7, WINDOW, 64)
    old, young = sequence(0, 60, 100), sequence(1, 60, 100)
    scheduler.add(old)
    scheduler.add(young)
    assert planned(scheduler) == {0: 60}  # no room for all of the other
    for _ in range(3):
        planned(scheduler)
    scheduler.remove(old)
    assert planned(scheduler) == {1: 60}
    assert scheduler.preemptions == 0

    scheduler = Scheduler(10, WINDOW, 64)
    first, second = sequence(0, 30, 100), sequence(1, 30, 100)
    scheduler.add(first)
    scheduler.add(second)
    assert planned(scheduler) == {0: 30, 1: 30}
    while not scheduler.preemptions:
        planned(scheduler)
    assert (scheduler.running, scheduler.waiting) == ([first], [second])
    drawn = second.tokens[:]
    while first.table.computed < 99:
        planned(scheduler)
    assert second.tokens == drawn  # nothing of it was lost
    scheduler.remove(first)
    assert second.sequence_id in planned(scheduler)


def test_drafts_take_what_is_left_of_the_step() -> None:
    scheduler = Scheduler(100, WINDOW, 16)
    one = sequence(0, 3, max_len=12)
    scheduler.add(one)
    planned(scheduler)
    one.draft_tokens = [5] * 20
    (chunk,) = scheduler.plan()
    assert (chunk.start, len(chunk.tokens)) == (3, 9)
    assert [chunk.start + request.index for request in chunk.logits] == [*range(3, 12)]
    scheduler.advance(one, chunk.start + 1)
    assert (one.table.computed, one.draft_tokens) == (4, ())


def test_a_prompt_that_gave_way_in_a_step_does_not_run_in_it() -> None:
    scheduler = Scheduler(6, WINDOW, 48)
    old, young = sequence(0, 31, 100), sequence(1, 60, 100)
    scheduler.add(old)
    assert planned(scheduler) == {0: 31}
    scheduler.add(young)
    assert planned(scheduler) == {0: 1, 1: 47}  # its pages are the last ones
    assert planned(scheduler) == {0: 1}
    assert (scheduler.waiting, scheduler.pool.allocated) == ([young], 4)
