"""How likely continuations are, many at once, on a model in floating point.

Texts that begin alike form a tree: what several contexts share is computed once, then the rest of
each context, then its continuations. Each of the three goes through the layers as one flat batch
of real tokens.

A score depends on its own context and continuation alone, to the last bit: not on what else is
scored, nor in which order, nor on what is shared. Rows are filled up to what a thread takes at once
(`spare_rows`), and attention adds up keys in blocks of `BLOCK`, counted from where the text, or the
continuation, begins.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from gemmule.errors import ConfigError
from gemmule.infer.invariant import BLOCK, QUERY_ROWS, Keys, attend_to_parts, spare_rows
from gemmule.infer.request import Score, checked_ids, length_of
from gemmule.model.gemma import Attention, Block, Gemma, rope_tables, rotate

_LOGITS_AT_ONCE = 2**25  # 128 MiB of fp32: bounds memory at any vocabulary
_SCORES_AT_ONCE = 2**25  # of attention, the same

Layer = tuple[Tensor, Tensor]  # keys and values [tokens, K, H], tokens flat


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


@dataclass(frozen=True)
class _Node:
    """Tokens that follow one another, and what they follow."""

    tokens: Sequence[int]
    start: int  # position of the first
    parent: int = 0  # index in the level above


class _Level:
    """Nodes that are computed together: flat tokens, and each node's place in them."""

    def __init__(self, nodes: Sequence[_Node], above: "_Level | None") -> None:
        self.nodes, self.above = nodes, above
        self.layers: list[Layer] = []
        lengths = [len(node.tokens) for node in nodes]
        self.lengths = torch.tensor(lengths)
        self.longest = max(lengths)
        self.starts = torch.tensor([node.start for node in nodes])
        first = torch.cat((torch.zeros(1, dtype=torch.long), self.lengths.cumsum(0)))
        self.first, self.count = first[:-1], int(first[-1])
        place = torch.arange(self.longest)
        self.filled = place < self.lengths[:, None]  # [nodes, longest]
        # Where a padded place's token is in the flat ones; padding repeats the node's first.
        self.index = self.first[:, None] + place * self.filled
        self.positions = self.starts[:, None] + place
        self.parents = torch.tensor([node.parent for node in nodes])

    def flat(self, padded: Tensor) -> Tensor:
        """[nodes, longest, ...] to [tokens, ...]."""
        return padded[self.filled]


class TreeScorer:
    """Scores on a `Gemma`."""

    def __init__(self, model: Gemma, most_tokens: int = 4096) -> None:
        """Makes a scorer.

        Args:
            model: of any floating dtype, on any device.
            most_tokens: about how many go through the layers at once; bounds memory.
        """
        self._model, self._config, self._most = model, model.config, most_tokens

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
            if len(text.context) + len(ids) - 1 > most:
                raise ConfigError(
                    f"the text has {len(text.context) + len(ids) - 1} tokens; this model's context "
                    f"is {most}: score it in parts"
                )

    @torch.inference_mode()
    def _score(self, texts: list[Branches], batch: "_Batch") -> list[list[Score]]:
        above = None
        if batch.prefixes:
            above = _Level([_Node(p, 0) for p in batch.prefixes], None)
            self._run(above)
        nodes = []
        for text, parent in zip(texts, batch.parents or [0] * len(texts), strict=True):
            skip = len(batch.prefixes[parent]) if batch.prefixes else 0
            nodes.append(_Node(text.context[skip:], skip, parent))
        contexts = _Level(nodes, above)
        x_TD = self._run(contexts)
        # A context's last token predicts the first of each continuation; the others are read for
        # what follows them, and the last is only predicted.
        owners, continuations = zip(
            *[(i, ids) for i, text in enumerate(texts) for ids in text.continuations], strict=True
        )
        heads = contexts.first + contexts.lengths - 1
        hidden = [x_TD[heads[list(owners)]]]
        longer = [j for j, ids in enumerate(continuations) if len(ids) > 1]
        longer.sort(key=lambda j: len(continuations[j]))
        if longer:
            branches = _Level(
                [
                    _Node(continuations[j][:-1], len(texts[owners[j]].context), owners[j])
                    for j in longer
                ],
                contexts,
            )
            hidden.append(self._run(branches))
        targets = [ids[0] for ids in continuations]
        targets += [token for j in longer for token in continuations[j][1:]]
        log_probs, greedy = self._predict(torch.cat(hidden), torch.tensor(targets))
        places = {j: [j] for j in range(len(continuations))}
        rest = itertools.count(len(continuations))
        for j in longer:
            places[j] += itertools.islice(rest, len(continuations[j]) - 1)
        scores: list[list[Score]] = [[] for _ in texts]
        for j, owner in enumerate(owners):
            own = (tuple(log_probs[i] for i in places[j]), tuple(greedy[i] for i in places[j]))
            scores[owner].append(Score(*own))
        return scores

    def _run(self, level: _Level) -> Tensor:
        """A level through all layers; hidden states [tokens, D]. Its keys and values are kept."""
        model, device = self._model, self._model.norm.weight.device
        flat = [token for node in level.nodes for token in node.tokens]
        spare = spare_rows(len(flat))
        tokens_BT = torch.tensor([flat + [0] * spare], device=device)
        positions = torch.cat((level.flat(level.positions), torch.zeros(spare, dtype=torch.long)))
        rope = rope_tables(
            positions[None].to(device), self._config.head_dim, self._config.rope_theta
        )
        x_BTD = model.embed(tokens_BT)
        for number, layer in enumerate(model.layers):
            assert isinstance(layer, Block)
            x_BTD = self._layer(layer, number, x_BTD, rope, level)
        return model.norm(x_BTD)[0, : level.count]

    def _layer(
        self, layer: Block, number: int, x_BTD: Tensor, rope: tuple[Tensor, Tensor], level: _Level
    ) -> Tensor:
        attention = layer.self_attn
        B, T, _ = x_BTD.shape
        shape = (B, T, -1, attention.head_dim)
        n_BTD = layer.input_layernorm(x_BTD)
        q_TNH = rotate(attention.q_proj(n_BTD).view(shape), rope)[0]
        k_TKH = rotate(attention.k_proj(n_BTD).view(shape), rope)[0]
        v_TKH = attention.v_proj(n_BTD).view(shape)[0]
        level.layers.append((k_TKH, v_TKH))
        out_TNH = torch.zeros_like(q_TNH)
        for nodes in _shares(level, self._config.num_attention_heads):
            _attend(attention, number, level, nodes, q_TNH, out_TNH)
        attended = attention.o_proj(out_TNH.view(B, T, -1))
        h_BTD = x_BTD + layer.post_attention_layernorm(attended)
        fed = layer.mlp(layer.pre_feedforward_layernorm(h_BTD))
        return h_BTD + layer.post_feedforward_layernorm(fed)

    def _predict(self, x_OD: Tensor, targets_O: Tensor) -> tuple[list[float], list[bool]]:
        """Log-probability of each target in nats, and whether it is the likeliest token."""
        log_probs: list[float] = []
        greedy: list[bool] = []
        whole = 1 + spare_rows(1)
        chunk = max(whole, _LOGITS_AT_ONCE // self._config.vocab_size // whole * whole)
        for at in range(0, len(x_OD), chunk):
            x = x_OD[at : at + chunk]
            count = len(x)
            spare = torch.zeros(spare_rows(count), x.shape[1]).to(x)
            logits_OV = self._model.logits(torch.cat((x, spare)))[:count].float()
            targets = targets_O[at : at + chunk].to(x.device)
            own = logits_OV.gather(1, targets[:, None])[:, 0]
            log_probs += (own.double() - logits_OV.logsumexp(-1).double()).tolist()
            greedy += (logits_OV.argmax(-1) == targets).tolist()
        return log_probs, greedy


def _attend(
    attention: Attention,
    number: int,
    level: _Level,
    nodes: slice,
    q_TNH: Tensor,
    out_TNH: Tensor,
) -> None:
    """Attention of some nodes' tokens to their own nodes and to all that these follow."""
    device = q_TNH.device
    length = int(level.lengths[nodes].max())
    index = level.index[nodes, :length].to(device)
    out_BTNH = attend_to_parts(
        attention,
        q_TNH[index],
        level.positions[nodes, :length].to(device),
        list(_line(level, nodes, number)),
    )
    filled = level.filled[nodes, :length].to(device)
    out_TNH[index[filled]] = out_BTNH[filled].to(out_TNH.dtype)


def _line(level: _Level, nodes: slice, number: int) -> Iterator[Keys]:
    """Keys, values, positions and which are there, from the root down to the nodes themselves.

    Of each there are whole blocks, so that sums come out alike whatever a node is computed with;
    and one row alone where all nodes follow the same.
    """
    line = [(level, torch.arange(len(level.nodes))[nodes])]
    while (above := line[-1][0].above) is not None:
        line.append((above, line[-1][0].parents[line[-1][1]]))
    for ancestor, followed in reversed(line):
        one = ancestor is not level and bool((followed == followed[0]).all())
        which = followed[:1] if one else followed
        k_TKH, v_TKH = ancestor.layers[number]
        length = int(ancestor.lengths[which].max())
        size = length + -length % BLOCK
        index = _padded(ancestor.index[which, :length], size).to(k_TKH.device)
        there = _padded(ancestor.filled[which, :length], size).to(k_TKH.device)
        positions = _padded(ancestor.positions[which, :length], size).to(k_TKH.device)
        yield Keys(k_TKH[index], v_TKH[index], positions, there)


def _padded(x_BT: Tensor, size: int) -> Tensor:
    return functional.pad(x_BT, (0, size - x_BT.shape[1]))


def _shares(level: _Level, heads: int) -> Iterator[slice]:
    """Neighbouring nodes of about one length, as many as memory allows."""
    above = 0
    ancestor = level.above
    while ancestor is not None:
        above += ancestor.longest
        ancestor = ancestor.above
    lengths = level.lengths.tolist()
    start = longest = 0
    for i, length in enumerate(lengths):
        first = max(QUERY_ROWS, lengths[start])
        longest = max(longest, length)
        scores = (i + 1 - start) * heads * max(QUERY_ROWS, longest) * (above + longest + 2 * BLOCK)
        if i > start and (length > first * 1.5 or scores > _SCORES_AT_ONCE):
            yield slice(start, i)
            start, longest = i, length
    yield slice(start, len(lengths))


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
    most = (min(len(a), len(b)) - 1) // BLOCK * BLOCK
    return next(
        (at for at in range(0, most, BLOCK) if a[at : at + BLOCK] != b[at : at + BLOCK]), most
    )
