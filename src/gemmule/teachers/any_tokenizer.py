"""The bytes that each token stands for, for a tokenizer of any library."""

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

from gemmule.errors import TokenizerError
from gemmule.model.bpe_trim import byte_letters
from gemmule.model.tokenizer import Tokenizer
from gemmule.teachers.same_tokenizer import TEXTS

_SPACE = "\u2581"


class AnyTokenizer(ABC):
    """A tokenizer, as alignment needs it.

    Attributes:
        bos: id of the token that opens a text; None: there is none.
        eos: id of the token that ends a text; None: there is none.
    """

    bos: int | None
    eos: int | None

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Ids of a text, without <bos> and <eos>."""

    @abstractmethod
    def token_bytes(self, ids: Sequence[int]) -> list[bytes]:
        """The bytes of each token; control tokens have none."""


class OwnTokenizer(AnyTokenizer):
    """gemmule's own tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.bos, self.eos = tokenizer.bos_id, tokenizer.eos_id

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without <bos> and <eos>."""
        return self._tokenizer.encode(text)

    def token_bytes(self, ids: Sequence[int]) -> list[bytes]:
        """The bytes of each token; control tokens have none."""
        return [self._tokenizer.decode_bytes([i]) for i in ids]


class TransformersTokenizer(AnyTokenizer):
    """A tokenizer of transformers: a byte-level BPE, or one with SentencePiece's spelling.

    Which of the two it is is determined by trying both.

    Args:
        name: the model it belongs to, for error messages.
        tokenizer: the tokenizer, as AutoTokenizer loads it.

    Raises:
        TokenizerError: when the bytes of its tokens do not add up to the texts.
    """

    def __init__(self, name: str, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.bos, self.eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        self._special = set(tokenizer.all_special_ids)
        for spelling in (_sentencepiece, _byte_level):
            self._bytes_of: Callable[[str], bytes] = spelling
            if all(self._adds_up(text) for text in TEXTS):
                return
        raise TokenizerError(
            f"the tokenizer of {name} changes text before it splits it, or spells its tokens in an "
            "unknown way, so its tokens cannot be located in the text: choose another teacher"
        )

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without <bos> and <eos>."""
        return [int(i) for i in self._tokenizer(text, add_special_tokens=False).input_ids]

    def token_bytes(self, ids: Sequence[int]) -> list[bytes]:
        """The bytes of each token; a space that the tokenizer puts before a text is included."""
        names = self._tokenizer.convert_ids_to_tokens(list(ids))
        return [
            b"" if i in self._special or name is None else self._bytes_of(name)
            for i, name in zip(ids, names, strict=True)
        ]

    def _adds_up(self, text: str) -> bool:
        return b"".join(self.token_bytes(self.encode(text))).removeprefix(b" ") == (
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
    return {letter: byte for byte, letter in byte_letters().items()}
