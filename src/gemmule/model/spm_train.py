"""Gemma's vocabulary layout, and training of SentencePiece models of any size that keep it.

Facts: GEMMA2 tokenizer.model as published: BPE with byte fallback, split digits, identity
normalization, and ids 0-472 fixed: 4 basic ids, 104 control symbols, runs of newlines and of
spaces, HTML tags, the 256 bytes. Learned pieces follow.
"""

import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator

import sentencepiece

from gemmule.errors import TokenizerError

SPACE = "\u2581"  # SentencePiece writes a space as this character
BASIC_PIECES = ("<pad>", "<eos>", "<bos>", "<unk>")
START_OF_TURN_ID, END_OF_TURN_ID = 106, 107
FIRST_TEXT_ID = 108  # ids below never stand for text
FIRST_BYTE_ID = 217
FIRST_LEARNED_ID = 473
MIN_VOCAB_SIZE = 512

_TABLE = ("table", "caption", "thead", "tbody", "tfoot", "tr", "th", "td")
_HEADINGS = ("h1", "h2", "h3", "h4", "h5", "h6", "blockquote")
_INLINE = ("strong", "em", "b", "i", "u", "s", "sub", "sup", "code")
_TAGS = [
    f"<{slash}{name}>"
    for group in (_TABLE, _HEADINGS, _INLINE)
    for slash in ("", "/")
    for name in group
]
SYMBOLS = (
    ["<mask>", "<2mass>", "[@BOS@]"]
    + [f"<unused{i}>" for i in range(99)]
    + ["<start_of_turn>", "<end_of_turn>"]
    + ["\n" * n for n in range(1, 32)]
    + [SPACE * n for n in range(2, 32)]
    + _TAGS
)

# The trainer keeps its whole input in memory; this much is enough for a small vocabulary.
_SAMPLE_BYTES = 12_000_000
_CHUNK_CHARS = 4000
_MAX_SENTENCE_BYTES = 4 * _CHUNK_CHARS + 16  # longer input would be dropped silently
# Characters with a special meaning for the trainer; here they only end a piece.
_RESERVED = re.compile(f"[\0\u2585{SPACE}]")
_COVERAGE = 0.9999


def train_model(texts: Iterable[str], vocab_size: int) -> bytes:
    """Trains a SentencePiece model on an even sample of `texts` (at most 12 MB of it).

    The same texts in the same order give the same bytes.

    Args:
        texts: documents; read once, never held together in memory.
        vocab_size: number of pieces, the 473 fixed ones included.

    Returns:
        A serialized ModelProto.

    Raises:
        TokenizerError: when the size is out of range or the text cannot fill it.
    """
    if vocab_size < MIN_VOCAB_SIZE:
        raise TokenizerError(
            f"vocab_size {vocab_size} is too small: {FIRST_LEARNED_ID} ids are fixed as in "
            f"Gemma's vocabulary; use at least {MIN_VOCAB_SIZE}"
        )
    chunks = _even_sample(texts)
    if not chunks:
        raise TokenizerError("no text to train a tokenizer on: pass at least a few kilobytes")
    common, out = _without_rare(chunks, vocab_size), io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(common),
            model_writer=out,
            model_type="bpe",
            vocab_size=vocab_size,
            character_coverage=1.0,
            # Without its own piece a space would be decoded as U+2581.
            required_chars="" if any(" " in chunk for chunk in common) else SPACE,
            byte_fallback=True,
            split_digits=True,
            split_by_unicode_script=True,
            split_by_number=True,
            split_by_whitespace=True,
            allow_whitespace_only_pieces=True,
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            normalization_rule_name="identity",
            pad_id=0,
            eos_id=1,
            bos_id=2,
            unk_id=3,
            pad_piece="<pad>",
            eos_piece="<eos>",
            bos_piece="<bos>",
            unk_piece="<unk>",
            user_defined_symbols=SYMBOLS,
            max_sentence_length=_MAX_SENTENCE_BYTES,
            num_threads=1,
            minloglevel=2,
        )
    except (RuntimeError, ValueError) as e:
        raise TokenizerError(_explain(str(e), vocab_size)) from None
    return out.getvalue()


def _explain(message: str, vocab_size: int) -> str:
    limit = re.search(r"(?:<= ?|less than or equal to |smaller than )(\d+)", message)
    if "ocabulary size" in message and limit:
        return (
            f"this text has only enough variety for {limit.group(1)} pieces, not {vocab_size}: "
            "use a smaller vocab_size or more text"
        )
    return f"SentencePiece could not train {vocab_size} pieces on this text: {message}"


def _even_sample(texts: Iterable[str]) -> list[str]:
    """Chunks spread evenly over all the text, at most `_SAMPLE_BYTES` in total.

    Whenever the sample grows too large, every second chunk is dropped and the sampling rate is
    halved, so that the sample depends only on the text.
    """
    kept: list[str] = []
    size = 0
    stride = 1
    position = 0
    for text in texts:
        for chunk in _chunks(text):
            if position % stride == 0:
                kept.append(chunk)
                size += len(chunk.encode("utf-8", errors="replace"))
                if size > _SAMPLE_BYTES and len(kept) > 1:
                    kept = kept[::2]
                    stride *= 2
                    size = sum(len(c.encode("utf-8", errors="replace")) for c in kept)
            position += 1
    return kept


def _chunks(text: str) -> Iterator[str]:
    """Cuts at a line end, or else at a space or anywhere; drops characters the trainer rejects."""
    text = _RESERVED.sub("\n", text)
    start = 0
    while start < len(text):
        stop = start + _CHUNK_CHARS
        if stop < len(text):
            cut = text.rfind("\n", start, stop)
            cut = cut if cut > start else text.rfind(" ", start, stop)
            stop = cut if cut > start else stop
        # A lone surrogate cannot be encoded in UTF-8; encode() refuses it, training skips it.
        chunk = text[start:stop].strip("\n").encode("utf-8", errors="ignore").decode("utf-8")
        if chunk:
            yield chunk
        start = stop


def _without_rare(chunks: list[str], vocab_size: int) -> list[str]:
    """Replaces characters too rare to deserve a piece by line ends, which no piece crosses.

    At least half of the learned pieces remain for merges; other characters are spelled in bytes.
    """
    counts = Counter[str]()
    for chunk in chunks:
        counts.update(chunk)
    for separator in "\n\t":  # the trainer's own boundaries: never part of a piece
        counts.pop(separator, None)
    total = sum(counts.values())
    limit = (vocab_size - FIRST_LEARNED_ID) // 2
    rare = []
    taken = 0
    # Ties are broken by code point, so that the choice does not depend on the order of the text.
    for n, (char, count) in enumerate(sorted(counts.items(), key=lambda c: (-c[1], c[0]))):
        if char != " " and (n >= limit or taken > _COVERAGE * total):
            rare.append(re.escape(char))
        taken += count
    if not rare:
        return chunks
    pattern = re.compile(f"[{''.join(rare)}]+")
    return [pattern.sub("\n", chunk) for chunk in chunks]
