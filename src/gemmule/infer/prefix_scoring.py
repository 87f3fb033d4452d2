"""How likely continuations are, many at once.

Texts that begin alike form a tree: what several contexts share is computed once, then the rest of
each context, then its continuations. Whoever computes keeps keys and values in pages; a branch
reads the whole pages of what it follows and takes a copy of the one that it goes on in.

A score depends on its own context and continuation alone, to the last bit: not on what else is
scored, nor in which order, nor on what is shared. That is the runners' promise; here they only
share more than the engine does, which knows pages and not where contexts end.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from gemmule.errors import ConfigError
from gemmule.infer.core.request import Score, check_text, checked_ids, length_of
from gemmule.infer.runners.choose import make_batch_runner
from gemmule.infer.runners.protocol import PAGE, Output, Span
from gemmule.model.gemma import Gemma


@dataclass(frozen=True)
class Branches:
    """A context and what may follow it.

    Attributes:
        context: ids, at least one.
        continuations: at least one, of ids, each at least one.

    Raises:
        ConfigError: when one of these is empty.
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
    """Tokens that follow one another, with the pages that they and all before them are in.

    Attributes:
        tokens: ids.
        start: position of the first.
        above: what they follow.
        wanted: for each prediction, the place among the tokens and the id to be scored.
        found: log-probabilities, and whether the token was the likeliest.
        pages: of global layers and of local ones, from the text's beginning on.
    """

    tokens: Sequence[int]
    start: int = 0
    above: "_Node | None" = None
    wanted: list[tuple[int, int]] = field(default_factory=list)
    found: list[tuple[float, bool]] = field(default_factory=list)
    pages: tuple[list[int], list[int]] = ([], [])

    @property
    def end(self) -> int:
        """The position after the last token."""
        return self.start + len(self.tokens)


class TreeScorer:
    """Scores on a `Gemma`."""

    def __init__(self, model: Gemma, most_tokens: int = 8192) -> None:
        """Makes a scorer.

        Args:
            model: of any dtype, quantized or not.
            most_tokens: about how many are computed, and kept, together; bounds memory.
        """
        self._runner, self._most = make_batch_runner(model), most_tokens
        self._config = model.config
        self._pages = 0

    def score(self, texts: Sequence[Branches]) -> list[list[Score]]:
        """All that `stream` finds, in the order given."""
        found: list[list[Score]] = [[] for _ in texts]
        for members, scores in self.stream(texts):
            for i, own in zip(members, scores, strict=True):
                found[i] = own
        return found

    def stream(self, texts: Sequence[Branches]) -> Iterator[tuple[list[int], list[list[Score]]]]:
        """The log-probabilities of each text's continuations, a batch at a time.

        Args:
            texts: contexts with their continuations.

        Yields:
            Places in `texts`, and for each the scores of its continuations.

        Raises:
            ConfigError: for ids that the model does not have, or a text longer than the context.
        """
        for text in texts:
            self._check(text)
        for batch in _batches(texts, self._most):
            yield batch.members, self._score([texts[i] for i in batch.members], batch)

    def _check(self, text: Branches) -> None:
        rows, most = self._config.vocab_size, self._config.max_position_embeddings
        checked_ids(text.context, rows, "the context")
        for ids in text.continuations:
            checked_ids(ids, rows, "the continuation")
            check_text(most, len(text.context) + len(ids) - 1)

    def _score(self, texts: Sequence[Branches], batch: "_Batch") -> list[list[Score]]:
        prefixes = [_Node(tokens) for tokens in batch.prefixes]
        contexts, branches = [], []
        for text, parent in zip(texts, batch.parents or [-1] * len(texts), strict=True):
            above = prefixes[parent] if prefixes else None
            start = 0 if above is None else above.end
            context = _Node(text.context[start:], start, above)
            # A context's last token predicts the first of each continuation; the others are read
            # for what follows them, and the last is only predicted.
            last = len(context.tokens) - 1
            context.wanted = [(last, ids[0]) for ids in text.continuations]
            contexts.append(context)
            branches.append(
                [
                    _Node(ids[:-1], context.end, context, list(enumerate(ids[1:])))
                    for ids in text.continuations
                ]
            )
        longer = [node for nodes in branches for node in nodes if node.tokens]
        levels = [level for level in (prefixes, contexts, longer) if level]
        self._lay_out(levels)
        for level in levels:
            self._run(level)
        return [
            [_joined(context.found[i], node.found) for i, node in enumerate(nodes)]
            for context, nodes in zip(contexts, branches, strict=True)
        ]

    def _lay_out(self, levels: Sequence[Sequence[_Node]]) -> None:
        """Gives every node its pages, those of what it follows among them."""
        numbers = itertools.count()
        self._copies: dict[int, list[tuple[int, int]]] = {}
        for level in levels:
            copies = self._copies.setdefault(id(level), [])
            for node in level:
                whole, rest = divmod(node.start, PAGE)
                before = node.above.pages if node.above is not None else ([], [])
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
        """Computes nodes, as many tokens at once as the runner takes."""
        for source, target in self._copies[id(level)]:
            self._runner.copy_page(source, target)
        spans: list[tuple[_Node, Span]] = []
        room = self._runner.max_step_tokens
        for node in level:
            at = 0
            while at < len(node.tokens):
                count = min(room, len(node.tokens) - at)
                spans.append((node, _span(node, at, count)))
                at, room = at + count, room - count
                if not room:
                    self._step(spans)
                    spans, room = [], self._runner.max_step_tokens
        if spans:
            self._step(spans)

    def _step(self, spans: Sequence[tuple[_Node, Span]]) -> None:
        for (node, _), found in zip(spans, self._runner.scores([s for _, s in spans]), strict=True):
            node.found += found


def _span(node: _Node, at: int, count: int) -> Span:
    """Some of a node's tokens, with what is wanted of them."""
    pages = -(-(node.start + at + count) // PAGE)
    return Span(
        node.tokens[at : at + count],
        node.start + at,
        node.pages[0][:pages],
        node.pages[1][:pages],
        [Output(p - at, "score", target=t) for p, t in node.wanted if at <= p < at + count],
    )


def _joined(first: tuple[float, bool], rest: Sequence[tuple[float, bool]]) -> Score:
    log_probs, greedy = zip(first, *rest, strict=True)
    return Score(log_probs, greedy)


@dataclass(frozen=True)
class _Batch:
    """Texts that are computed together.

    Attributes:
        members: their places among all texts.
        prefixes: what several of them begin with; with any, every text has one.
        parents: the prefix of each member.
    """

    members: list[int]
    prefixes: list[Sequence[int]]
    parents: list[int]


_BLOCK = 2 * PAGE  # what contexts have in common is told in whole blocks


def _batches(texts: Sequence[Branches], most: int) -> Iterator[_Batch]:
    """Cuts texts into batches: those that begin alike together, else those of one length."""
    sizes = [len(t.context) + sum(map(len, t.continuations)) for t in texts]
    alone: list[int] = []
    batch = _Batch([], [], [])
    filled = 0
    for run, shared in _runs(texts):
        if not shared:
            alone += run
            continue
        prefix = texts[run[0]].context[:shared]
        run.sort(key=lambda i: len(texts[i].context))
        for i in run:
            fresh = not batch.prefixes or batch.prefixes[-1] is not prefix
            if batch.members and filled + sizes[i] - shared + fresh * shared > most:
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
    alone.sort(key=lambda i: (len(texts[i].context), sizes[i]))
    start = filled = 0
    for end, i in enumerate(alone):
        if end > start and filled + sizes[i] > most:
            yield _Batch(alone[start:end], [], [])
            start, filled = end, 0
        filled += sizes[i]
    if start < len(alone):
        yield _Batch(alone[start:], [], [])


def _runs(texts: Sequence[Branches]) -> Iterator[tuple[list[int], int]]:
    """Texts in whole blocks of whose contexts begin alike, with how many tokens they share."""
    order = sorted(range(len(texts)), key=lambda i: tuple(texts[i].context))
    run, shared = order[:1], 0
    for before, i in itertools.pairwise(order):
        common = _common(texts[before].context, texts[i].context)
        if common and (len(run) == 1 or common * 2 >= shared):
            shared = common if len(run) == 1 else min(shared, common)
            run.append(i)
            continue
        yield run, shared if len(run) > 1 else 0
        run, shared = [i], 0
    if run:
        yield run, shared if len(run) > 1 else 0


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """Tokens in whole blocks that two contexts begin with; each keeps one of its own."""
    most = (min(len(a), len(b)) - 1) // _BLOCK * _BLOCK
    return next(
        (at for at in range(0, most, _BLOCK) if a[at : at + _BLOCK] != b[at : at + _BLOCK]), most
    )
