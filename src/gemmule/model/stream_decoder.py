"""Decodes tokens that arrive one by one."""

import codecs

from gemmule.model.tokenizer import Tokenizer


class StreamDecoder:
    """Decodes ids that arrive one by one, never returning part of a UTF-8 character."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """Decodes the next id; returns the text that is now complete, which may be empty."""
        return self._decoder.decode(self._tokenizer.decode_bytes((token_id,)))

    def flush(self) -> str:
        """Ends the text: an unfinished character becomes U+FFFD. Then starts a new text."""
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return text
