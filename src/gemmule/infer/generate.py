"""Prefill and cached decoding, for one prompt or several at once.

Shapes: B rows, T tokens of the longest prompt, V vocabulary.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from gemmule.errors import ConfigError
from gemmule.infer.sampling import Sampler, SamplingParams
from gemmule.infer.text_stream import TextStream
from gemmule.model.gemma import Gemma
from gemmule.model.kv_cache import KVCache
from gemmule.model.tokenizer import Tokenizer

PREFILL_TOKENS = 512  # of all rows together, at a time: bounds a long prompt's memory
ROWS_AT_ONCE = 16


@dataclasses.dataclass(frozen=True)
class Completion:
    """What was generated for one prompt.

    Attributes:
        text: without stop strings and control tokens.
        ids: the generated tokens, without a final stop token.
        finish_reason: "stop" (a stop token or string), "length" (max_new_tokens) or "context"
            (the model's context is full).
    """

    text: str
    ids: tuple[int, ...]
    finish_reason: str


def check_prompt(config_context: int, length: int) -> int:
    """How many tokens may follow a prompt.

    Args:
        config_context: the model's context, tokens.
        length: the prompt's tokens.

    Raises:
        ConfigError: when there is room for none.
    """
    if length >= config_context:
        raise ConfigError(
            f"the prompt has {length} tokens; this model's context is {config_context}, prompt "
            f"and answer together: shorten the prompt to at most {config_context - 1}"
        )
    return config_context - length


def complete(
    model: Gemma, tokenizer: Tokenizer, prompts: Sequence[Sequence[int]], params: SamplingParams
) -> list[Completion]:
    """Generates for each prompt; a batch gives each row what it gets alone, up to rounding.

    Args:
        model: the weights.
        tokenizer: its partner.
        prompts: token ids, each at least one.
        params: settings; row i draws from its own generator.

    Raises:
        ConfigError: when a prompt does not fit into the context.
    """
    rows = [_Row(model, tokenizer, prompt, params, i) for i, prompt in enumerate(prompts)]
    # Rows of like length share a batch: less padding.
    by_length = sorted(rows, key=lambda row: len(row.prompt))
    for start in range(0, len(rows), ROWS_AT_ONCE):
        for _ in _run(model, by_length[start : start + ROWS_AT_ONCE], tokenizer.vocab_size):
            pass
    return [row.completion() for row in rows]


def stream(
    model: Gemma, tokenizer: Tokenizer, prompt: Sequence[int], params: SamplingParams
) -> Iterator[str]:
    """Generates for one prompt, yielding text as soon as it is settled.

    Raises:
        ConfigError: at once, when the prompt does not fit into the context.
    """
    row = _Row(model, tokenizer, prompt, params, 0)
    return (texts[0] for texts in _run(model, [row], tokenizer.vocab_size) if texts[0])


class _Row:
    """One prompt and what has been generated for it."""

    def __init__(
        self,
        model: Gemma,
        tokenizer: Tokenizer,
        prompt: Sequence[int],
        params: SamplingParams,
        index: int,
    ) -> None:
        room = check_prompt(model.config.max_position_embeddings, len(prompt))
        self.prompt = prompt
        self.limit = min(params.max_new_tokens, room)
        self.sampler = Sampler(params, index)
        self.stream = TextStream(tokenizer, tuple(params.stop), params.max_new_tokens, room)
        self.pieces: list[str] = []

    def push(self, token: int) -> str:
        text = self.stream.push(token)
        self.pieces.append(text)
        return text

    def completion(self) -> Completion:
        reason = self.stream.reason or "length"
        return Completion("".join(self.pieces), tuple(self.stream.ids), reason)


def _run(model: Gemma, rows: Sequence[_Row], vocab_size: int) -> Iterator[list[str]]:
    """Yields each step's new text of each row until all have ended."""
    prompts = [row.prompt for row in rows]
    limit = max(row.limit for row in rows)
    for ids in next_ids(model, prompts, [row.sampler for row in rows], limit, vocab_size):
        yield [row.push(token) for row, token in zip(rows, ids, strict=True)]
        if all(row.stream.reason for row in rows):
            return


@torch.inference_mode()
def next_ids(
    model: Gemma,
    prompts: Sequence[Sequence[int]],
    samplers: Sequence[Sampler],
    limit: int,
    vocab_size: int,
) -> Iterator[list[int]]:
    """Yields the next id of every row, `limit` times; the caller decides which rows have ended.

    Args:
        model: the weights.
        prompts: token ids of each row, at least one each.
        samplers: one for each row.
        limit: steps, at least 1.
        vocab_size: ids from here on are never drawn (rows of the embedding that have no token).
    """
    weight = model.embed_tokens.weight
    device, B = weight.device, len(prompts)
    longest = max(map(len, prompts))
    pads = [longest - len(prompt) for prompt in prompts]
    padded = [[0] * pad + list(prompt) for pad, prompt in zip(pads, prompts, strict=True)]
    tokens_BT = torch.tensor(padded, device=device)
    positions_BT = segments_BT = positions_B1 = None
    if any(pads):  # on the left, in segment 0, which no token of a prompt sees
        index_BT = torch.arange(longest, device=device) - torch.tensor(pads, device=device)[:, None]
        positions_BT, segments_BT = index_BT.clamp(min=0), (index_BT >= 0).long()
        positions_B1 = positions_BT[:, -1:].clone()

    # The last token drawn is never fed back, so it needs no room.
    cache = KVCache(model.config, B, longest + limit - 1, dtype=weight.dtype, device=device)
    chunk = max(1, PREFILL_TOKENS // B)
    x_BTD = torch.empty(0)
    for start in range(0, longest, chunk):
        part = slice(start, start + chunk)
        x_BTD = model.hidden_states(
            tokens_BT[:, part],
            positions_BT=None if positions_BT is None else positions_BT[:, part],
            segments_BT=None if segments_BT is None else segments_BT[:, part],
            cache=cache,
        )
    logits_BV = model.logits(x_BTD[:, -1])[:, :vocab_size]
    ids = _draw(logits_BV, samplers)
    yield ids

    tokens_B1 = torch.empty(B, 1, dtype=torch.long, device=device)
    for _ in range(limit - 1):
        if B == 1:
            tokens_B1.fill_(ids[0])
        else:
            tokens_B1.copy_(torch.tensor(ids).unsqueeze(1))
        if positions_B1 is not None:
            positions_B1 += 1
        x_B1D = model.hidden_states(tokens_B1, positions_BT=positions_B1, cache=cache)
        logits_BV = model.logits(x_B1D[:, -1])[:, :vocab_size]
        ids = _draw(logits_BV, samplers)
        yield ids


def _draw(logits_BV: Tensor, samplers: Sequence[Sampler]) -> list[int]:
    if all(sampler.params.greedy for sampler in samplers):
        ids: list[int] = logits_BV.argmax(-1).tolist()
        return ids
    return [sampler(logits_V) for sampler, logits_V in zip(samplers, logits_BV, strict=True)]
