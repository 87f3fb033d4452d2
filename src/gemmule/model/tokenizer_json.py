"""Reads tokenizer.json: the format of the tokenizers library, as transformers 4 and 5 write it.

What is read becomes a SentencePiece model that gives the same ids (merges.py says why), so that
there is one engine. Files that ask for anything else are refused by name.
"""

import gc
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydantic_core
import sentencepiece

from gemmule import files
from gemmule.errors import TokenizerError
from gemmule.model.added_tokens import AddedToken, add_tokens
from gemmule.model.gemma_layout import BYTE_PIECES, FIXED_PIECES, names_problem
from gemmule.model.merges import MergeOrder, is_published, merge_order, published_order
from gemmule.model.spm_model import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    PieceModel,
)
from gemmule.model.spm_train import FIRST_BYTE_ID, FIRST_LEARNED_ID, FIRST_TEXT_ID, SPACE
from gemmule.model.tokenizer_files import DeclaredTokens, added_token

FILE = "tokenizer.json"
_TAB_ID = FIRST_BYTE_ID + 9
_NORMALIZER = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
_BYTES = frozenset(BYTE_PIECES)
_DECODERS = (
    {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
    {"type": "ByteFallback"},
    {"type": "Fuse"},
)


def read(file: Path, declared: DeclaredTokens) -> tuple[PieceModel, tuple[AddedToken, ...]]:
    """Reads a tokenizer.json.

    Args:
        file: the file.
        declared: what the files around it say about tokens.

    Returns:
        The model, and the tokens that are not Gemma's own, which are among its pieces.

    Raises:
        TokenizerError: when it is damaged, or not a Gemma 2 tokenizer.
    """
    source = str(file)
    with _without_collections():
        data = _utf8(file)
        start, stop = data.find(b'"merges":') + len(b'"merges":'), data.rfind(b"]") + 1
        order = published_order(data[start:stop])
        content = _parse(data[:start] + b"[]" + data[stop:] if order else data, source)
        vocab, pieces = _checked(content, source)
        if order is not None and not is_published(vocab, order):
            content, order = _parse(data, source), None
        return _built(content, vocab, pieces, order, declared, source)


def from_content(
    content: Mapping[str, Any], source: str
) -> tuple[PieceModel, tuple[AddedToken, ...]]:
    """Reads what a tokenizer.json holds; results and errors as of `read`.

    Args:
        content: the content, parsed.
        source: its origin, for messages.
    """
    with _without_collections():
        vocab, pieces = _checked(content, source)
        return _built(content, vocab, pieces, None, DeclaredTokens(), source)


def _checked(content: Mapping[str, Any], source: str) -> tuple[dict[str, int], list[str]]:
    """The vocabulary, and its pieces by id as Gemma names them."""
    check_treatment(content, source)
    vocab = vocabulary(content, source)
    pieces = list(vocab)
    if pieces[_TAB_ID : _TAB_ID + 1] == ["\t"]:
        # Gemma's converter writes this byte as the character that it is.
        pieces[_TAB_ID] = BYTE_PIECES[9]
    problem = names_problem(pieces)
    if problem:
        raise TokenizerError(f"{source} is not a Gemma tokenizer: {problem}")
    return vocab, pieces


def _built(
    content: Mapping[str, Any],
    vocab: Mapping[str, int],
    pieces: list[str],
    order: MergeOrder | None,
    declared: DeclaredTokens,
    source: str,
) -> tuple[PieceModel, tuple[AddedToken, ...]]:
    if order is None:
        order = _order(_object(content, "model", source), vocab, source)
    kinds = _kinds(pieces, order)
    listed = [added_token(entry, source) for entry in added_entries(content, source)]
    _check_repetitions(listed, source)
    own = add_tokens(declared.on(vocab, listed), pieces, kinds, source)
    scores = np.zeros(len(pieces), np.float32)
    scores[: len(vocab)] = _scores(len(vocab), order, bytes(kinds[: len(vocab)]))
    return PieceModel.build(pieces, scores, bytes(kinds)), own


def added_entries(content: Mapping[str, Any], source: str) -> list[dict[str, Any]]:
    """The added tokens as a tokenizer.json lists them.

    Raises:
        TokenizerError: when they are not a list of objects.
    """
    entries = content.get("added_tokens") or []
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise TokenizerError(f"{source}: added_tokens is not a list of objects")
    return entries


def read_content(file: Path) -> dict[str, Any]:
    """What a tokenizer.json holds.

    Raises:
        TokenizerError: when it cannot be read or is not a JSON object.
    """
    with _without_collections():
        return _parse(_utf8(file), str(file))


def _utf8(file: Path) -> bytes:
    """The content of a file as UTF-8, in whichever Unicode encoding it was saved."""
    try:
        data = files.read_bytes(file)
    except OSError as e:
        raise TokenizerError(f"cannot read a tokenizer at {file}: {e.strerror}") from None
    if files.begins_as_lfs_pointer(data):
        raise TokenizerError(f"{file} is {files.LFS_POINTER}")
    encoding = json.detect_encoding(data)
    try:
        return data if encoding == "utf-8" else data.decode(encoding).encode()
    except ValueError as e:
        raise TokenizerError(f"{file} is not {encoding.upper()} text: {e!s:.200}") from None


def _parse(data: bytes, source: str) -> dict[str, Any]:
    try:
        content = pydantic_core.from_json(data, cache_strings="none")
    except ValueError as e:
        raise TokenizerError(f"{source} is not readable JSON: {e!s:.200}") from None
    if not isinstance(content, dict):
        raise TokenizerError(f"{source} holds a {type(content).__name__}; expected a JSON object")
    return content


@contextmanager
def _without_collections() -> Iterator[None]:
    """Half a million pairs would be searched for cycles again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _object(content: Mapping[str, Any], key: str, source: str) -> dict[str, Any]:
    value = content.get(key)
    if not isinstance(value, dict):
        raise TokenizerError(f"{source} has no {key}: it may be cut short, or of another format")
    return value


def check_treatment(content: Mapping[str, Any], source: str) -> None:
    """Refuses what changes ids or text in another way than Gemma's tokenizer does.

    Raises:
        TokenizerError: naming the difference.
    """
    model = _object(content, "model", source)
    problem = _model_problem(model)
    if content.get("normalizer") not in (_NORMALIZER, _sequence("normalizers", _NORMALIZER)):
        problem = f"its normalizer is {_shown(content.get('normalizer'))}"
    if not _splits_nothing(content.get("pre_tokenizer")):
        problem = f"its pre_tokenizer is {_shown(content.get('pre_tokenizer'))}"
    decoder = content.get("decoder")
    if decoder not in (_sequence("decoders", *_DECODERS), _sequence("decoders", *_DECODERS[:2])):
        problem = f"its decoder is {_shown(decoder)}"
    after = content.get("post_processor")
    if after is not None and _type(after) not in ("TemplateProcessing", "Sequence"):
        problem = f"its post_processor is {_shown(after)}"
    problem = _model_problem(model) or problem
    if problem:
        raise TokenizerError(
            f"{source} is not a Gemma tokenizer: {problem}; only BPE with byte fallback and "
            "spaces as U+2581 is supported"
        )


def _model_problem(model: Mapping[str, Any]) -> str | None:
    kind = model.get("type", "BPE")
    if kind != "BPE":
        return f"its model is {kind!r:.40}"
    if model.get("byte_fallback") is not True:
        return "its BPE has no byte fallback"
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges"):
        if model.get(name):
            return f"its model has {name} {model[name]!r:.40}"
    return None


def _sequence(name: str, *steps: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", name: list(steps)}


def _splits_nothing(step: Any) -> bool:
    """Whether a pre_tokenizer leaves text as it is, which has no spaces after normalization."""
    return step is None or (
        _type(step) == "Split"
        and step.get("pattern") == {"String": " "}
        and step.get("invert") is False
    )


def _type(step: Any) -> Any:
    return step.get("type") if isinstance(step, dict) else None


def _shown(step: Any) -> str:
    if isinstance(step, dict) and isinstance(step.get("type"), str):
        inner = next((v for v in step.values() if isinstance(v, list)), [])
        names = ", ".join(f"{_type(part)!s:.30}" for part in inner[:6])
        return f"{step['type']:.40}" + (f" of {names}" if names else "")
    return "missing" if step is None else f"{step!r:.60}"


def vocabulary(content: Mapping[str, Any], source: str) -> dict[str, int]:
    """The vocabulary of a tokenizer.json in the order of its ids, which run from 0 without gaps.

    Raises:
        TokenizerError: when they do not, or there is none.
    """
    vocab = _object(content, "model", source).get("vocab")
    if not isinstance(vocab, dict):
        raise TokenizerError(f"{source} has no vocabulary: it may be cut short")
    if set(map(type, vocab.values())) - {int}:
        piece, i = next((p, i) for p, i in vocab.items() if type(i) is not int)
        raise TokenizerError(f"{source}: {piece!r:.80} has the id {i!r:.40}; expected a number")
    if list(vocab.values()) != list(range(len(vocab))):
        vocab = dict(sorted(vocab.items(), key=lambda entry: entry[1]))
        for expected, (piece, i) in enumerate(vocab.items()):
            if i != expected:
                what = (
                    f"two tokens have id {i}" if 0 <= i < expected else f"no token has {expected}"
                )
                raise TokenizerError(
                    f"{source}: the {len(vocab)} tokens of the vocabulary need ids from 0 to "
                    f"{len(vocab) - 1}, and {what} ({piece!r:.80} has {i})"
                )
    if "" in vocab:
        raise TokenizerError(f"{source}: the vocabulary has an empty piece, id {vocab['']}")
    return vocab


def _order(model: Mapping[str, Any], vocab: Mapping[str, int], source: str) -> MergeOrder:
    merges = model.get("merges")
    if not isinstance(merges, list):
        raise TokenizerError(f"{source} has no merges: it may be cut short")
    kinds = set(map(type, merges))
    if kinds <= {str}:
        pairs = [merge.split(" ") for merge in merges]
    elif kinds <= {list}:
        pairs = merges
    else:
        raise TokenizerError(f"{source}: merges are not all of one form, 'a b' or ['a', 'b']")
    bad = next((m for m, p in zip(merges, pairs, strict=True) if len(p) != 2), None)
    if bad is not None:
        raise TokenizerError(f"{source}: the merge {bad!r:.80} is not a pair")
    lefts, rights = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    if {*map(type, lefts), *map(type, rights)} - {str}:
        raise TokenizerError(f"{source}: a merge holds something other than text")
    order = merge_order(vocab, lefts, rights, source)
    byte_ids = range(FIRST_BYTE_ID, FIRST_LEARNED_ID)
    if (
        not _BYTES.isdisjoint(lefts)
        or not _BYTES.isdisjoint(rights)
        or (len(vocab) > FIRST_LEARNED_ID and np.isin(order.order, byte_ids).any())
    ):
        raise TokenizerError(
            f"{source}: merges join byte tokens, such as {BYTE_PIECES[0]}, which is not supported"
        )
    return order


def _kinds(pieces: list[str], order: MergeOrder) -> bytearray:
    """Types of the pieces, before added tokens."""
    kinds = np.full(len(pieces), UNUSED, np.uint8)
    kinds[order.order] = NORMAL
    for i in np.flatnonzero(kinds == UNUSED).tolist():
        if len(pieces[i]) == 1:
            kinds[i] = NORMAL
    kinds[FIRST_BYTE_ID:FIRST_LEARNED_ID] = BYTE
    for i in range(FIRST_TEXT_ID):
        kinds[i] = USER_DEFINED if pieces[i] == FIXED_PIECES[i] else CONTROL
    kinds[:4] = (CONTROL, CONTROL, CONTROL, UNKNOWN)
    return bytearray(kinds)


def _scores(size: int, order: MergeOrder, kinds: bytes) -> npt.NDArray[np.float32]:
    """Scores that put merges in their order: those that SentencePiece's trainer gives, if they do.

    The first learned piece has 0, each next one 1 less.
    """
    scores = np.zeros(size, np.float32)
    types = np.frombuffer(kinds, np.uint8, size)
    learned = order.order >= FIRST_LEARNED_ID
    first = int(learned.argmax()) if learned.any() else len(order.order)
    by_id = order.order[first:]
    if (np.diff(by_id) > 0).all():
        scores[FIRST_LEARNED_ID:] = -np.arange(size - FIRST_LEARNED_ID, dtype=np.float32)
        ranked = order.order[:first]
    else:
        scores[FIRST_LEARNED_ID:] = first - len(order.order)
        ranked = order.order
    scores[ranked] = first - np.arange(len(ranked))
    scores[(types == USER_DEFINED) & (np.arange(size) < FIRST_LEARNED_ID)] = 0
    scores[types == UNUSED] = -2 * size  # merged last, and split again
    return scores


def agree(ours: PieceModel, other: PieceModel) -> bool:
    """Whether a tokenizer.model is another spelling of what a tokenizer.json holds."""
    if other.pieces != ours.pieces:
        return False
    kinds = np.frombuffer(ours.kinds, np.uint8)
    differs = kinds != np.frombuffer(other.kinds, np.uint8)
    differs[:FIRST_TEXT_ID] = False
    if (kinds[differs] != UNUSED).any() or _builds_any(other, np.flatnonzero(differs).tolist()):
        return False
    lengths = np.fromiter(map(len, ours.pieces), np.int64, len(ours.pieces))
    merged = np.flatnonzero((kinds == NORMAL) & (lengths > 1))
    in_order = merged[np.argsort(-ours.scores[merged], kind="stable")]
    return bool((np.diff(other.scores[in_order]) <= 0).all())


def _builds_any(model: PieceModel, ids: list[int]) -> bool:
    """Whether a model gives one of these pieces for its text; or else for no text (merges.py)."""
    if not ids:
        return False
    try:
        processor = sentencepiece.SentencePieceProcessor(model_proto=model.data)
    except RuntimeError:
        return True
    texts = [model.pieces[i].replace(SPACE, " ") for i in ids]
    return any(
        len(got) == 1 and got[0] == i for i, got in zip(ids, processor.encode(texts), strict=True)
    )


def _check_repetitions(tokens: list[AddedToken], source: str) -> None:
    for name in ("id", "content"):
        values = [getattr(token, name) for token in tokens]
        if len(set(values)) != len(values):
            twice = next(value for value in values if values.count(value) > 1)
            raise TokenizerError(f"{source}: two added tokens have the {name} {twice!r:.80}")
