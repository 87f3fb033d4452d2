"""What a tokenizer's ids stand for in bytes, whoever's it is."""

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

from gemmule.errors import TokenizerError
from gemmule.model.tokenizer import Tokenizer
from gemmule.teachers.same_tokenizer import TEXTS

_SPACE = "\u2581"


class Pieces(ABC):
    """A tokenizer, as alignment sees it.

    Attributes:
        bos: id that opens a text; None for none.
        eos: id that ends one; None for none.
    """

    bos: int | None
    eos: int | None

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Ids of a text, without markers."""

    @abstractmethod
    def pieces(self, ids: Sequence[int]) -> list[bytes]:
        """The bytes of each id; none for markers."""


class OwnPieces(Pieces):
    """Of gemmule's own tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.bos, self.eos = tokenizer.bos_id, tokenizer.eos_id

    def encode(self, text: str) -> list[int]:
        """See Pieces."""
        return self._tokenizer.encode(text)

    def pieces(self, ids: Sequence[int]) -> list[bytes]:
        """See Pieces."""
        return [self._tokenizer.decode_bytes([i]) for i in ids]


class TransformersPieces(Pieces):
    """Of a tokenizer of transformers: a byte-level BPE, or one with SentencePiece's pieces.

    Which of the two is found out by trying.

    Args:
        name: whose it is, for error messages.
        tokenizer: as AutoTokenizer loads it.

    Raises:
        TokenizerError: when its pieces do not add up to the texts that they are cut from.
    """

    def __init__(self, name: str, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.bos, self.eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        self._special = set(tokenizer.all_special_ids)
        for spelled in (_sentencepiece, _byte_level):
            self._spelled: Callable[[str], bytes] = spelled
            if all(self._adds_up(text) for text in TEXTS):
                return
        raise TokenizerError(
            f"the tokenizer of {name} changes text before it cuts it, or its pieces are of a kind "
            "that is not known here: its spans cannot be found in the text. Take another teacher"
        )

    def encode(self, text: str) -> list[int]:
        """See Pieces."""
        return [int(i) for i in self._tokenizer(text, add_special_tokens=False).input_ids]

    def pieces(self, ids: Sequence[int]) -> list[bytes]:
        """See Pieces; a space that the tokenizer puts before a text is one byte too many."""
        names = self._tokenizer.convert_ids_to_tokens(list(ids))
        return [
            b"" if i in self._special or name is None else self._spelled(name)
            for i, name in zip(ids, names, strict=True)
        ]

    def _adds_up(self, text: str) -> bool:
        return b"".join(self.pieces(self.encode(text))).removeprefix(b" ") == (
            text.encode().removeprefix(b" ")
        )


def _sentencepiece(name: str) -> bytes:
    if len(name) == 6 and name.startswith("<0x") and name.endswith(">"):
        return bytes([int(name[3:5], 16)])
    return name.replace(_SPACE, " ").encode()


def _byte_level(name: str) -> bytes:
    table = _byte_of_letter()
    if all(letter in table for letter in name):
        return bytes(table[letter] for letter in name)
    return name.encode()  # an added token is spelled as it is


@functools.cache
def _byte_of_letter() -> dict[str, int]:
    """GPT-2's spelling of bytes: printable Latin-1 as itself, the others from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(0x100 + i): b for i, b in enumerate(others)}
