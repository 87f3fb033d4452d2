"""A runner whose logits depend on every token before, read from the pages it is told."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from constraints import next_ids

from gemmule.infer.core.constraint import mask_of
from gemmule.infer.core.request import Completion, Request, TokenLogProb
from gemmule.infer.core.sampler import Sampler
from gemmule.infer.core.text_stream import TextStream
from gemmule.infer.runners.protocol import PAGE, ScheduledChunk, StepOutput
from gemmule.infer.runners.torch_runner import step_output
from gemmule.model.config import GemmaConfig
from models import SMALLEST, tiny_config

WINDOW, ROWS, WORDS = 40, 29, 27
TEXT = {*range(3, WORDS)}  # neither control ids nor the one that ends an answer
_LARGE = 2**40
# Few different values: many ties.
_TABLE = torch.randint(-9, 9, (4096, ROWS), generator=torch.Generator().manual_seed(1)) * 0.5
_TABLE[:, 1] -= 4  # most answers go on for a while


def config(context: int = 160) -> GemmaConfig:
    return tiny_config(
        SMALLEST, vocab_size=ROWS, intermediate_size=8, num_hidden_layers=2, num_attention_heads=1,
        head_dim=8, sliding_window=WINDOW, max_position_embeddings=context,
    )  # fmt: skip


def key(token: int, position: int, seen: int, seen_locally: int) -> int:
    """What a position leaves behind: it depends on all that it saw."""
    x = (token + 1) * 0x9E3779B1 + position * 0x85EBCA77 + seen * 31 + seen_locally * 1009
    return (x ^ (x >> 17)) * 0xC2B2AE3D % _LARGE


def row(left: int) -> torch.Tensor:
    return _TABLE[left // 7 % len(_TABLE)]


class History:
    """The same without pages: what is to come out."""

    def __init__(self) -> None:
        self.keys: list[int] = []

    def push(self, token: int) -> torch.Tensor:
        local = self.keys[-(WINDOW - 1) :] if WINDOW > 1 else []
        self.keys.append(key(token, len(self.keys), sum(self.keys), sum(local)))
        return row(self.keys[-1])


class FakeRunner:
    def __init__(self, max_step_tokens: int = 48, context: int = 160) -> None:
        self.config = config(context)
        self.device = torch.device("cpu")
        self.page_bytes, self.cache_format = 1024, "float32"
        self.max_step_tokens = max_step_tokens
        self.steps = self.tokens = 0

    def allocate(self, pages: int) -> None:
        self.pool = np.random.default_rng(0).integers(0, _LARGE, (pages, PAGE))

    def weights_changed(self) -> None:
        """Has none."""

    def step(self, chunks: Sequence[ScheduledChunk]) -> list[list[StepOutput]]:
        assert 0 < sum(len(chunk.tokens) for chunk in chunks) <= self.max_step_tokens
        written = [page for chunk in chunks for page in self.written(chunk)]
        assert len(written) == len(set(written)), "two sequences write on one page"
        self.steps += 1
        self.tokens += sum(len(chunk.tokens) for chunk in chunks)
        return [self.run(chunk) for chunk in chunks]

    def written(self, chunk: ScheduledChunk) -> Iterator[int]:
        for i in range(chunk.start // PAGE, (chunk.start + len(chunk.tokens) - 1) // PAGE + 1):
            yield from (chunk.global_pages[i], chunk.local_pages[i])

    def run(self, chunk: ScheduledChunk) -> list[StepOutput]:
        assert chunk.tokens
        oldest = max(0, chunk.start - WINDOW + 1)
        keys = self.read(chunk.global_pages, 0, chunk.start)
        local = [x ^ 5 for x in self.read(chunk.local_pages, oldest, chunk.start)]
        total, outputs = sum(keys), []
        requests = {request.index: request for request in chunk.logits}
        assert len(requests) == len(chunk.logits)
        for i, token in enumerate(chunk.tokens):
            position = chunk.start + i
            left = key(token, position, total, sum(local[-(WINDOW - 1) :]))
            page, place = divmod(position, PAGE)
            self.pool[chunk.global_pages[page], place] = left
            self.pool[chunk.local_pages[page], place] = left ^ 5  # never to be read as the other
            total += left
            local.append(left)
            if i in requests:
                outputs.append(step_output(requests[i], row(left)))
        return outputs

    def read(self, pages: Sequence[int], start: int, end: int) -> list[int]:
        first = start // PAGE
        numbers = list(pages[first : -(-end // PAGE)])
        assert all(0 <= page < len(self.pool) for page in numbers), "a page was given back too soon"
        keys = self.pool[numbers].reshape(-1)[start - first * PAGE : end - first * PAGE]
        return [int(x) for x in keys]


class FakeTokenizer:
    """Letters; 1 ends an answer."""

    vocab_size = WORDS
    stop_ids = (1,)

    def token_bytes(self) -> np.ndarray:
        return np.array([0, 0, 0, *[1] * (WORDS - 3)])  # two controls and the end

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        return bytes(97 + i if i > 1 else 32 for i in ids)


def expected(request: Request, context: int = 160) -> Completion:
    """What a request of one sample gets, by the definition, but for sampled log-probabilities."""
    history, params = History(), request.params
    rows = [history.push(token) for token in request.prompt]
    logits = rows[-1]
    room = context - len(request.prompt)
    sampler = Sampler(params, request.row, request.prompt)
    tokenizer: Any = FakeTokenizer()
    stream = TextStream(
        tokenizer, tuple(params.stop), params.max_new_tokens, room, params.min_tokens
    )
    constraint: Any = request.constraint
    text, reason, tokens = "", None if params.max_new_tokens else "length", list[int]()
    while stream.reason is None and reason is None:
        early = params.ignore_eos or len(tokens) < params.min_tokens
        allowed = next_ids(constraint, tokens, {*range(WORDS)}, TEXT, {1}, early)
        if allowed is not None and not allowed:
            reason = "error"
            break
        token = sampler(logits[:WORDS], None if allowed is None else mask_of([*allowed], ROWS))
        tokens.append(token)
        complete = constraint is not None and len(tokens) == constraint.length and token != 1
        text += stream.push(token, complete)
        logits = history.push(token)
    log_probs = None
    if params.prompt_logprobs is not None:
        pairs = zip(rows, request.prompt[1:], strict=False)
        log_probs = tuple(scored(row, token, params.prompt_logprobs) for row, token in pairs)
    ended = reason or str(stream.reason)
    return Completion(
        text, tuple(stream.ids), ended, prompt_logprobs=log_probs, stop_id=stream.stop_id
    )


def scored(logits_V: torch.Tensor, token: int, count: int) -> TokenLogProb:
    """The log-probability of a token, and the most likely ids."""
    log_z = float(logits_V.logsumexp(-1))
    order = sorted(range(WORDS), key=lambda i: (-float(logits_V[i]), i))[:count]
    top = tuple((i, float(logits_V[i]) - log_z) for i in order)
    return TokenLogProb(token, float(logits_V[token]) - log_z, top)
