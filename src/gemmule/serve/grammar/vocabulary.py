"""A tokenizer's ids as bytes, as llguidance needs them to make masks."""

import numpy as np

from gemmule.errors import MissingExtraError
from gemmule.model.tokenizer import Tokenizer


class GrammarVocabulary:
    """The ids of a model, for all its grammars.

    Making one takes a second for 256,000 ids, in which no other Python code runs: make it while
    the model is loaded.

    Attributes:
        vocab_size: number of ids.
        stop_ids: ids that may come where a text may end.
        tokens: the bytes of each id; empty for control ids.
        special: ids that no text can contain.
        trie: the ids in llguidance's form.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Reads the bytes of all ids.

        Raises:
            MissingExtraError: if llguidance is not installed.
        """
        try:
            from llguidance import LLTokenizer
        except ImportError:
            raise MissingExtraError("llguidance", "serve", "structured output") from None
        self.vocab_size = tokenizer.vocab_size
        self.stop_ids = tuple(tokenizer.stop_ids)
        self.tokens = [tokenizer.decode_bytes([i]) for i in range(tokenizer.vocab_size)]
        self.special = np.flatnonzero(tokenizer.token_bytes() == 0).tolist()
        self.trie: LLTokenizer = LLTokenizer(
            _Wrapper(self, tokenizer),  # type: ignore[arg-type]  # any object with these attributes
            eos_token=[*self.stop_ids],
        )


class _Wrapper:
    """A tokenizer as llguidance takes it."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, vocabulary: GrammarVocabulary, tokenizer: Tokenizer) -> None:
        self.eos_token_id = vocabulary.stop_ids[0]
        self.tokens, self.special_token_ids = vocabulary.tokens, vocabulary.special
        self._tokenizer = tokenizer

    def __call__(self, text: str | bytes) -> list[int]:
        data = text if isinstance(text, str) else text.decode(errors="replace")
        return self._tokenizer.encode(data)
