"""Scores many continuations of contexts, and computes what the contexts share once.

Contexts with a common prefix form a tree: the prefix is computed once, then the rest of each
context, then its continuations. The runner keeps keys and values in pages; a node reads the whole
pages of what it follows, and copies the page that it continues within.

A score depends on its own context and continuation alone, to the last bit, because runners are
batch-invariant. More is shared here than in the engine, which shares whole pages and does not know
where contexts end.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from gemmule.errors import ConfigError
from gemmule.infer.core.request import Score, check_text, checked_ids, length_of
from gemmule.infer.runners.choose import make_batch_runner
from gemmule.infer.runners.protocol import PAGE, LogitsRequest, ScheduledChunk
from gemmule.model.gemma import Gemma


@dataclass(frozen=True)
class ContinuationGroup:
    """A context and its possible continuations.

    Attributes:
        context: ids, at least one.
        continuations: lists of ids, at least one of at least one id.

    Raises:
        ConfigError: if one of these is empty.
    """

    context: Sequence[int]
    continuations: Sequence[Sequence[int]]

    def __post_init__(self) -> None:
        length_of(self.context, "the context")
        if not self.continuations:
            raise ConfigError("a context has no continuation: there is nothing to score")
        for ids in self.continuations:
            length_of(ids, "the continuation")


@dataclass
class _Node:
    """Consecutive tokens, and the pages of these and all earlier tokens.

    Attributes:
        tokens: ids.
        start: position of the first token.
        parent: the node that they follow.
        targets: for each score, a token's place and the id after it that is to be scored.
        scores: for each target its log-probability, and whether it is the most likely token.
        pages: pages of global and of local layers, from the beginning of the sequence on.
    """

    tokens: Sequence[int]
    start: int = 0
    parent: "_Node | None" = None
    targets: list[tuple[int, int]] = field(default_factory=list)
    scores: list[tuple[float, bool]] = field(default_factory=list)
    pages: tuple[list[int], list[int]] = ([], [])

    @property
    def end(self) -> int:
        """Position after the last token."""
        return self.start + len(self.tokens)


class PrefixScorer:
    """Scores continuations with a `Gemma`."""

    def __init__(self, model: Gemma, max_tokens: int = 8192) -> None:
        """Makes a scorer.

        Args:
            model: a model of any dtype, quantized or not.
            max_tokens: approximate number of tokens computed together; bounds memory.
        """
        self._runner, self._max_tokens = make_batch_runner(model), max_tokens
        self._config = model.config
        self._pages = 0

    def score(self, groups: Sequence[ContinuationGroup]) -> list[list[Score]]:
        """Returns the scores of each group's continuations, in the order given."""
        scores: list[list[Score]] = [[] for _ in groups]
        for members, group_scores in self.stream(groups):
            for i, own in zip(members, group_scores, strict=True):
                scores[i] = own
        return scores

    def stream(
        self, groups: Sequence[ContinuationGroup]
    ) -> Iterator[tuple[list[int], list[list[Score]]]]:
        """Computes the scores of each group's continuations, a batch of groups at a time.

        Args:
            groups: contexts with their continuations.

        Yields:
            Indices into `groups`, and for each the scores of its continuations.

        Raises:
            ConfigError: for ids that the model does not have, or a text longer than the context.
        """
        for group in groups:
            self._check(group)
        for batch in _batches(groups, self._max_tokens):
            yield batch.members, self._score([groups[i] for i in batch.members], batch)

    def _check(self, group: ContinuationGroup) -> None:
        vocab_size, context = self._config.vocab_size, self._config.max_position_embeddings
        checked_ids(group.context, vocab_size, "the context")
        for ids in group.continuations:
            checked_ids(ids, vocab_size, "the continuation")
            check_text(context, len(group.context) + len(ids) - 1)

    def _score(self, groups: Sequence[ContinuationGroup], batch: "_Batch") -> list[list[Score]]:
        prefixes = [_Node(tokens) for tokens in batch.prefixes]
        contexts, continuations = [], []
        for group, number in zip(groups, batch.parents or [-1] * len(groups), strict=True):
            parent = prefixes[number] if prefixes else None
            start = 0 if parent is None else parent.end
            context = _Node(group.context[start:], start, parent)
            # The logits after the context's last token score the first token of each continuation;
            # a continuation's last token is scored and never read.
            last = len(context.tokens) - 1
            context.targets = [(last, ids[0]) for ids in group.continuations]
            contexts.append(context)
            continuations.append(
                [
                    _Node(ids[:-1], context.end, context, list(enumerate(ids[1:])))
                    for ids in group.continuations
                ]
            )
        longer = [node for nodes in continuations for node in nodes if node.tokens]
        levels = [level for level in (prefixes, contexts, longer) if level]
        self._lay_out(levels)
        for level in levels:
            self._run(level)
        return [
            [_joined(context.scores[i], node.scores) for i, node in enumerate(nodes)]
            for context, nodes in zip(contexts, continuations, strict=True)
        ]

    def _lay_out(self, levels: Sequence[Sequence[_Node]]) -> None:
        """Gives every node its pages, those of the nodes it follows included."""
        numbers = itertools.count()
        self._copies: dict[int, list[tuple[int, int]]] = {}
        for level in levels:
            copies = self._copies.setdefault(id(level), [])
            for node in level:
                whole, rest = divmod(node.start, PAGE)
                before = node.parent.pages if node.parent is not None else ([], [])
                node.pages = tuple(  # type: ignore[assignment]
                    [
                        *own[:whole],
                        *itertools.islice(numbers, -(-node.end // PAGE) - whole),
                    ]
                    for own in before
                )
                if rest:
                    pairs = zip(before, node.pages, strict=True)
                    copies += [(old[whole], new[whole]) for old, new in pairs]
        needed = next(numbers)
        if needed > self._pages:
            self._runner.allocate(needed)
            self._pages = needed

    def _run(self, level: Sequence[_Node]) -> None:
        """Computes nodes, in steps of as many tokens as the runner takes."""
        for source, target in self._copies[id(level)]:
            self._runner.copy_page(source, target)
        step: list[tuple[_Node, ScheduledChunk]] = []
        budget = self._runner.max_step_tokens
        for node in level:
            at = 0
            while at < len(node.tokens):
                count = min(budget, len(node.tokens) - at)
                step.append((node, _chunk(node, at, count)))
                at, budget = at + count, budget - count
                if not budget:
                    self._step(step)
                    step, budget = [], self._runner.max_step_tokens
        if step:
            self._step(step)

    def _step(self, step: Sequence[tuple[_Node, ScheduledChunk]]) -> None:
        scores = self._runner.scores([chunk for _, chunk in step])
        for (node, _), chunk_scores in zip(step, scores, strict=True):
            node.scores += chunk_scores


def _chunk(node: _Node, at: int, count: int) -> ScheduledChunk:
    """Some of a node's tokens, with the scores that are needed after them."""
    pages = -(-(node.start + at + count) // PAGE)
    return ScheduledChunk(
        node.tokens[at : at + count],
        node.start + at,
        node.pages[0][:pages],
        node.pages[1][:pages],
        [
            LogitsRequest(place - at, top_k=1, log_z=True, target=target)
            for place, target in node.targets
            if at <= place < at + count
        ],
    )


def _joined(first: tuple[float, bool], rest: Sequence[tuple[float, bool]]) -> Score:
    log_probs, greedy = zip(first, *rest, strict=True)
    return Score(log_probs, greedy)


@dataclass(frozen=True)
class _Batch:
    """Groups that are computed together.

    Attributes:
        members: indices of the groups.
        prefixes: prefixes that several contexts share; if there are any, each context has one.
        parents: index of each member's prefix.
    """

    members: list[int]
    prefixes: list[Sequence[int]]
    parents: list[int]


_BLOCK = 2 * PAGE  # the length of a common prefix is a multiple of it


def _batches(groups: Sequence[ContinuationGroup], max_tokens: int) -> Iterator[_Batch]:
    """Cuts groups into batches: those with a common prefix together, then those of one length."""
    sizes = [len(group.context) + sum(map(len, group.continuations)) for group in groups]
    alone: list[int] = []
    batch = _Batch([], [], [])
    filled = 0
    for run, shared in _runs(groups):
        if not shared:
            alone += run
            continue
        prefix = groups[run[0]].context[:shared]
        run.sort(key=lambda i: len(groups[i].context))
        for i in run:
            fresh = not batch.prefixes or batch.prefixes[-1] is not prefix
            if batch.members and filled + sizes[i] - shared + fresh * shared > max_tokens:
                yield batch
                batch, filled, fresh = _Batch([], [], []), 0, True
            if fresh:
                batch.prefixes.append(prefix)
                filled += shared
            batch.members.append(i)
            batch.parents.append(len(batch.prefixes) - 1)
            filled += sizes[i] - shared
    if batch.members:
        yield batch
    alone.sort(key=lambda i: (len(groups[i].context), sizes[i]))
    start = filled = 0
    for end, i in enumerate(alone):
        if end > start and filled + sizes[i] > max_tokens:
            yield _Batch(alone[start:end], [], [])
            start, filled = end, 0
        filled += sizes[i]
    if start < len(alone):
        yield _Batch(alone[start:], [], [])


def _runs(groups: Sequence[ContinuationGroup]) -> Iterator[tuple[list[int], int]]:
    """Yields groups whose contexts share whole blocks, with the number of shared tokens."""
    order = sorted(range(len(groups)), key=lambda i: tuple(groups[i].context))
    run, shared = order[:1], 0
    for before, i in itertools.pairwise(order):
        common = _common(groups[before].context, groups[i].context)
        if common and (len(run) == 1 or common * 2 >= shared):
            shared = common if len(run) == 1 else min(shared, common)
            run.append(i)
            continue
        yield run, shared if len(run) > 1 else 0
        run, shared = [i], 0
    if run:
        yield run, shared if len(run) > 1 else 0


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common prefix in whole blocks, shorter than either context."""
    limit = (min(len(a), len(b)) - 1) // _BLOCK * _BLOCK
    differing = (at for at in range(0, limit, _BLOCK) if a[at : at + _BLOCK] != b[at : at + _BLOCK])
    return next(differing, limit)
