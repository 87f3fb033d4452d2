"""Which parts of the logits a request needs, and what is read from them."""

import numpy as np

from gemmule.infer.core.constraint import Mask, mask_of
from gemmule.infer.core.request import TokenLogProb
from gemmule.infer.core.sampler import Sampler
from gemmule.infer.core.sampling import SamplingParams, top_logits
from gemmule.infer.runners.protocol import MAX_TOP_K, LogitsRequest, StepOutput


def logits_request_for(
    params: SamplingParams, vocab_size: int, num_logits: int, masked: bool = False
) -> LogitsRequest:
    """Returns the smallest request that gives the same token as the whole row does.

    Args:
        params: settings of the request.
        vocab_size: number of ids that may be sampled.
        num_logits: number of logits; ids from `vocab_size` on may be among the largest, too.
        masked: whether the request will have a mask, which leaves those out.
    """
    count = 1 if params.greedy else params.top_k
    log_z = params.logprobs is not None
    if count is not None and not params.changes_logits:
        # The most likely ids that `logprobs` asks for need not be allowed ones.
        if masked and count <= MAX_TOP_K and not params.logprobs:
            return LogitsRequest(0, top_k=count, log_z=log_z)
        needed = max(count, params.logprobs or 0)
        top_k = needed + num_logits - vocab_size
        if not masked and needed < vocab_size and top_k <= MAX_TOP_K:
            return LogitsRequest(0, top_k=top_k, log_z=log_z)
    return LogitsRequest(0, all_logits=True, log_z=log_z)


def prompt_request_for(count: int, vocab_size: int, num_logits: int) -> LogitsRequest:
    """Returns the request for the log-probability of a given token and the `count` most likely ids.

    It never asks for whole rows, as there may be thousands of such tokens in a step. The target is
    missing. The arguments are those of `logits_request_for`.
    """
    padded = count and vocab_size < num_logits
    mask = mask_of(np.arange(vocab_size), num_logits) if padded else None
    return LogitsRequest(0, top_k=min(count, vocab_size), log_z=True, mask=mask)


def sample(
    sampler: Sampler, output: StepOutput, vocab_size: int, mask_W: Mask | None = None
) -> int:
    """Returns the next token, an id below `vocab_size` that the mask allows."""
    if output.logits is not None:
        return sampler(output.logits[:vocab_size], mask_W)
    assert output.top_ids is not None
    assert output.top_logits is not None
    count = 1 if sampler.params.greedy else sampler.params.top_k
    # Every logit may belong to an id that may be sampled.
    if mask_W is not None or len(output.top_ids) == count:
        return sampler.among(output.top_logits, output.top_ids)
    allowed = output.top_ids < vocab_size
    return sampler.among(output.top_logits[allowed][:count], output.top_ids[allowed][:count])


def log_prob(output: StepOutput, token: int, count: int, vocab_size: int) -> TokenLogProb:
    """Returns a token's log-probability, and those of the `count` most likely ids.

    Args:
        output: what was computed; its target, if it has one, is the token.
        token: the token.
        count: number of most likely ids.
        vocab_size: number of ids that may be sampled; others are not among the most likely.
    """
    assert output.log_z is not None
    logit = output.target_logit
    top: list[tuple[int, float]] = []
    if output.logits is not None:
        logit = float(output.logits[token])
        if count:
            logits_K, ids_K = top_logits(output.logits[:vocab_size], count)
            top = [*zip(ids_K.tolist(), logits_K.tolist(), strict=True)]
    elif output.top_ids is not None:
        assert output.top_logits is not None
        pairs = zip(output.top_ids.tolist(), output.top_logits.tolist(), strict=True)
        top = [(i, value) for i, value in pairs if i < vocab_size]
        if logit is None:
            logit = next(value for i, value in top if i == token)
        top = top[:count]
    assert logit is not None
    ranked = tuple((i, value - output.log_z) for i, value in top)
    return TokenLogProb(token, logit - output.log_z, ranked)
