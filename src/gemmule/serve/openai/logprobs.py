"""Log-probabilities as OpenAI's two routes have them.

A number is written once for a token: where clients compare a token's log-probability with the
largest one at its place, both are the same float.
"""

from collections.abc import Iterable
from typing import Any

from gemmule.infer.core.request import TokenLogProb
from gemmule.model.stream_decoder import StreamDecoder
from gemmule.model.tokenizer import Tokenizer


def token_text(tokenizer: Tokenizer, token: int) -> str:
    r"""A token as text: control tokens spelled out, part of a character as bytes:\xe2\x82."""
    data = tokenizer.decode_bytes((token,), control=True)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def chat_logprobs(tokenizer: Tokenizer, entries: Iterable[TokenLogProb]) -> list[dict[str, Any]]:
    """`logprobs.content` of a chat's answer."""
    return [
        {
            **_entry(tokenizer, entry.id, entry.logprob),
            "top_logprobs": [
                _entry(tokenizer, token, entry.logprob if token == entry.id else value)
                for token, value in entry.top
            ],
        }
        for entry in entries
    ]


def _entry(tokenizer: Tokenizer, token: int, value: float) -> dict[str, Any]:
    data = tokenizer.decode_bytes((token,), control=True)
    return {"token": token_text(tokenizer, token), "logprob": value, "bytes": [*data]}


class CompletionLogprobs:
    """`logprobs` of completions: parallel lists, for one choice, in one part or several."""

    def __init__(self, tokenizer: Tokenizer, count: int) -> None:
        """Starts at the beginning of a text.

        Args:
            tokenizer: tokenizer of the model.
            count: number of most likely tokens to show; entries may have more.
        """
        self._tokenizer, self._count = tokenizer, count
        self._decoder = StreamDecoder(tokenizer)
        self._offset = 0

    def first_token(self, token: int) -> dict[str, list[Any]]:
        """The lists for the first token of a prompt, which nothing predicts."""
        return self._lists([(token, None, None)])

    def of(self, entries: Iterable[TokenLogProb]) -> dict[str, list[Any]]:
        """The lists for the next tokens."""
        return self._lists([(e.id, e.logprob, self._top(e)) for e in entries])

    def _lists(
        self, rows: list[tuple[int, float | None, dict[str, float] | None]]
    ) -> dict[str, list[Any]]:
        offsets = []
        for token, _, _ in rows:
            offsets.append(self._offset)
            self._offset += len(self._decoder.push(token))
        return {
            "tokens": [token_text(self._tokenizer, token) for token, _, _ in rows],
            "token_logprobs": [value for _, value, _ in rows],
            "top_logprobs": [top for _, _, top in rows],
            "text_offset": offsets,
        }

    def _top(self, entry: TokenLogProb) -> dict[str, float]:
        """By text; of different tokens with equal text the most likely one counts."""
        top: dict[str, float] = {}
        for token, value in (*entry.top[: self._count], (entry.id, entry.logprob)):
            own = entry.logprob if token == entry.id else value
            text = token_text(self._tokenizer, token)
            top[text] = max(own, top.get(text, own))
        return top


def joined(*parts: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Lists of consecutive tokens as one."""
    return {key: [item for part in parts for item in part[key]] for key in parts[0]}


def prompt_logprobs(
    tokenizer: Tokenizer, entries: Iterable[TokenLogProb], count: int
) -> list[dict[str, Any] | None]:
    """`prompt_logprobs` in vLLM's form: null, then the tokens at each place by their ids.

    Args:
        tokenizer: tokenizer of the model.
        entries: log-probabilities of the prompt's tokens but the first.
        count: number of most likely tokens to show; entries may have more.
    """
    places: list[dict[str, Any] | None] = [None]
    for entry in entries:
        values = dict(entry.top[:count]) | {entry.id: entry.logprob}
        places.append(
            {
                str(token): {"logprob": value, "decoded_token": token_text(tokenizer, token)}
                for token, value in values.items()
            }
        )
    return places
