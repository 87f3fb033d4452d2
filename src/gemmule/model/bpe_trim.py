"""Trims BPE tokenizers of other families as a tokenizer.json holds them: GPT-2, Llama, Qwen.

gemmule trains no model on such a tokenizer, whose pre-tokenizer splits text by a regular expression
and whose pieces may end within a character. It trims them for models that others run. The argument
of vocabulary_trim.py holds within each part that the pre-tokenizer makes: merges have a rank, a
piece is always merged from the same two, and all that are passed through are kept. The letters of
bytes (or byte tokens) are kept, so every text still round-trips.

Shapes: V tokens of the full vocabulary, K kept ones.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from gemmule.errors import TokenizerError
from gemmule.model.gemma_layout import BYTE_PIECES
from gemmule.model.piece_choice import PieceGraph, choose
from gemmule.model.spm_train import SPACE
from gemmule.model.tokenizer_json import added_entries

Pair = tuple[str, str]
_ASCII = frozenset(map(chr, range(0x20, 0x7F))) | {SPACE}
_FIRST_OTHER = 0x100  # GPT-2 spells the bytes that are no printable Latin-1 from here on


@dataclass(frozen=True)
class TrimmedBpe:
    """A trimmed tokenizer.

    Attributes:
        content: what its tokenizer.json holds.
        kept_K: the former id of each token, ascending, int64.
        coverage: fraction of the text's tokens that are kept pieces.
    """

    content: dict[str, Any]
    kept_K: npt.NDArray[np.int64]
    coverage: float


class BpeFile:
    """A BPE tokenizer of any family.

    Args:
        content: what its tokenizer.json holds.
        source: its origin, for messages.

    Attributes:
        size: number of ids, added tokens included; some may belong to no token.

    Raises:
        TokenizerError: when it is not a BPE, or cannot spell every text.
    """

    def __init__(self, content: Mapping[str, Any], source: str) -> None:
        self.content, self._source = content, source
        model = content.get("model")
        kind = model.get("type", "BPE") if isinstance(model, dict) else None
        if not isinstance(model, dict) or kind != "BPE":
            raise TokenizerError(
                f"{source} is not a BPE tokenizer (its model is {kind!r:.40}): only BPE can be "
                "trimmed, since there a piece depends on two others alone"
            )
        for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
            if model.get(name):
                raise TokenizerError(
                    f"{source} cannot be trimmed: its BPE has {name} {model[name]!r:.40}"
                )
        self._vocab, self.ranks = _vocabulary(model, source), _ranks(model, source)
        self._added = _added(content, source)
        self.ids = {**self._vocab, **self._added}
        self.size = 1 + max(self.ids.values())
        try:
            named = {*_named_ids(content.get("post_processor"))}
        except (LookupError, TypeError, AttributeError):
            raise TokenizerError(
                f"{source}: its post_processor does not say which ids it adds"
            ) from None
        unknown = sorted(named - {*self.ids.values()})
        if unknown:
            raise TokenizerError(f"{source}: its post_processor adds id {unknown[0]}, of no token")
        self.always = sorted({*self._added.values(), *named, *self._spelling(model)})

    @property
    def byte_level(self) -> bool:
        """Whether text is spelled in letters that stand for bytes before it is merged."""
        return '"ByteLevel"' in json.dumps(self.content.get("pre_tokenizer"))

    @property
    def byte_ids(self) -> list[int]:
        """Ids of the bytes of characters beyond ASCII."""
        pieces = list(byte_letters().values()) if self.byte_level else list(BYTE_PIECES)
        return [self._vocab[piece] for piece in pieces[0x80:] if piece in self._vocab]

    def _spelling(self, model: Mapping[str, Any]) -> Iterator[int]:
        """Ids of the pieces that spell every text, and of the characters of ASCII."""
        pieces = list(byte_letters().values()) if self.byte_level else list(BYTE_PIECES)
        missing = [piece for piece in pieces if piece not in self._vocab]
        if missing or not (self.byte_level or model.get("byte_fallback") is True):
            raise TokenizerError(
                f"{self._source} cannot spell every text in bytes"
                + (f" (it lacks {missing[0]!r})" if missing else "")
                + ", so a trimmed one would lose text"
            )
        yield from (self._vocab[piece] for piece in pieces)
        yield from (i for piece, i in self._vocab.items() if piece in _ASCII)
        unknown = model.get("unk_token")
        if unknown in self._vocab:
            yield self._vocab[unknown]

    def trim(
        self,
        counts_V: npt.NDArray[np.int64],
        *,
        size: int | None = None,
        coverage: float = 1.0,
    ) -> TrimmedBpe:
        """Keeps the most frequent pieces of a text; arguments and errors as of `choose`."""
        graph = _RankedMerges(self)
        kept_K, share = choose(graph, counts_V, size=size, coverage=coverage)
        new_id = {old: new for new, old in enumerate(kept_K.tolist())}
        return TrimmedBpe(self._with_ids(new_id), kept_K, share)

    def _with_ids(self, new_id: Mapping[int, int]) -> dict[str, Any]:
        model: Any = self.content["model"]
        vocab = {piece: new_id[i] for piece, i in self._vocab.items() if i in new_id}
        merges = [
            [left, right]
            for left, right in self.ranks
            if left in vocab and right in vocab and left + right in vocab
        ]
        return {
            **self.content,
            "model": {**model, "vocab": vocab, "merges": merges},
            "added_tokens": [
                {**entry, "id": new_id[entry["id"]]}
                for entry in added_entries(self.content, self._source)
            ],
            "post_processor": _renumbered(self.content.get("post_processor"), new_id),
        }


class _RankedMerges(PieceGraph):
    def __init__(self, file: BpeFile) -> None:
        self.always, self.bytes = file.always, file.byte_ids
        self._ids, self._ranks = file.ids, file.ranks
        self._texts = {i: piece for piece, i in file.ids.items()}

    def parts(self, i: int) -> list[int]:
        text = self._texts.get(i)
        pair = None if text is None else _last_merge(text, self._ranks)
        return [self._ids[part] for part in pair or () if part in self._ids]

    def first(self) -> list[int]:
        built = dict.fromkeys(left + right for left, right in self._ranks)
        return [self._ids[piece] for piece in built if piece in self._ids]


def _last_merge(text: str, ranks: Mapping[Pair, int]) -> Pair | None:
    """The pair whose merge completes a piece; None: it is a letter, or no merges lead to it."""
    symbols, last = list(text), None
    while len(symbols) > 1:
        ranked = [ranks.get(pair, math.inf) for pair in pairwise(symbols)]
        best = min(ranked)
        if best == math.inf:
            return None
        at = ranked.index(best)
        last = symbols[at], symbols[at + 1]
        symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
    return last


def byte_letters() -> dict[int, str]:
    """GPT-2's letter of each byte, from 0: printable Latin-1 as itself, the others from U+0100."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(_FIRST_OTHER, _FIRST_OTHER + 256))
    return {byte: chr(byte if byte in printable else next(others)) for byte in range(256)}


def _vocabulary(model: Mapping[str, Any], source: str) -> dict[str, int]:
    vocab = model.get("vocab")
    if not isinstance(vocab, dict) or not vocab or {*map(type, vocab.values())} != {int}:
        raise TokenizerError(f"{source} has no vocabulary of pieces and ids: it may be cut short")
    if len({*vocab.values()}) < len(vocab) or min(vocab.values()) < 0:
        raise TokenizerError(f"{source}: two pieces have one id, or one is negative")
    return vocab


def _added(content: Mapping[str, Any], source: str) -> dict[str, int]:
    added = {}
    for entry in added_entries(content, source):
        if type(entry.get("id")) is not int or not isinstance(entry.get("content"), str):
            raise TokenizerError(f"{source}: an added token has no text or no id: {entry!r:.80}")
        added[entry["content"]] = entry["id"]
    return added


def _ranks(model: Mapping[str, Any], source: str) -> dict[Pair, int]:
    merges = model.get("merges")
    if not isinstance(merges, list):
        raise TokenizerError(f"{source} has no merges: it may be cut short")
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]
    for pair in pairs:
        if not isinstance(pair, list) or [*map(type, pair)] != [str, str]:
            raise TokenizerError(f"{source}: the merge {pair!r:.80} is not a pair")
    # Of a pair that is listed twice the tokenizers library keeps the last rank.
    ranks: dict[Pair, int] = {}
    for rank, (left, right) in enumerate(pairs):
        ranks.pop((left, right), None)
        ranks[left, right] = rank
    return ranks


def _named_ids(step: Any) -> Iterator[int]:
    """Ids of the tokens that a post_processor adds."""
    if not isinstance(step, dict):
        return
    for part in step.get("processors") or []:
        yield from _named_ids(part)
    for token in (step.get("special_tokens") or {}).values():  # TemplateProcessing
        yield from token["ids"]
    for name in ("sep", "cls"):  # BertProcessing, RobertaProcessing
        if isinstance(step.get(name), list):
            yield step[name][1]


def _renumbered(step: Any, new_id: Mapping[int, int]) -> Any:
    """A post_processor with the new ids of the tokens that it adds."""
    if not isinstance(step, dict):
        return step
    changed = dict(step)
    if isinstance(step.get("processors"), list):
        changed["processors"] = [_renumbered(part, new_id) for part in step["processors"]]
    if isinstance(step.get("special_tokens"), dict):
        changed["special_tokens"] = {
            name: {**token, "ids": [new_id[i] for i in token["ids"]]}
            for name, token in step["special_tokens"].items()
        }
    for name in ("sep", "cls"):
        if isinstance(step.get(name), list):
            changed[name] = [step[name][0], new_id[step[name][1]]]
    return changed
