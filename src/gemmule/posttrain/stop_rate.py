"""How many answers end by themselves, rather than at a limit."""

from collections.abc import Sequence
from typing import Any

from gemmule import stats
from gemmule.infer.core.sampling import SamplingParams
from gemmule.model.gemma import Gemma
from gemmule.model.tokenizer import Tokenizer
from gemmule.posttrain.rollouts import RolloutPrompt, RolloutSampler


def stop_rate(
    model: Gemma,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    seed: int = 0,
) -> dict[str, Any]:
    """Has a model answer prompts, and counts the answers that a stop token ends.

    Answers are sampled from the model's own distribution, at temperature 1.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        prompts: ids of rendered prompts.
        max_new_tokens: limit of an answer, tokens.
        seed: seed of the answers.

    Returns:
        "value" with its interval "low" to "high", the number "n" of answers, and the mean length
        of the answers, "mean_tokens", stop token included.
    """
    sampler = RolloutSampler(model, tokenizer, SamplingParams.on_policy(max_new_tokens), seed)
    asked = [RolloutPrompt(tuple(ids), {}) for ids in prompts]
    answers = [group.rollouts[0] for group in sampler.sample(asked, range(len(asked)))]
    ended = stats.proportion(sum(answer.finished for answer in answers), len(answers))
    length = sum(len(answer.answer) for answer in answers) / len(answers)
    return {**ended.json(), "mean_tokens": round(length, 1), "max_new_tokens": max_new_tokens}
