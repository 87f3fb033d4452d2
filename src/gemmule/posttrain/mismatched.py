"""Prompts with answers that were given to other prompts."""

from collections.abc import Sequence

from gemmule.errors import DataError
from gemmule.posttrain.rendering import Rendered


def prompt_of(conversation: Rendered) -> tuple[int, ...]:
    """The ids before the first trained one."""
    return conversation.ids[: conversation.trained.index(True)]


def mismatched(conversations: Sequence[Rendered], longest: int) -> list[Rendered]:
    """For each conversation, its prompt with the answer of the next one that has another prompt.

    An answer that would make the conversation longer than `longest` tokens is passed over.

    Raises:
        DataError: when a conversation is left without an answer.
    """
    prompts = [prompt_of(c) for c in conversations]
    count, result = len(conversations), []
    for i, prompt in enumerate(prompts):
        for j in (*range(i + 1, count), *range(i)):
            other = conversations[j]
            start = len(prompts[j])
            if prompts[j] != prompt and len(prompt) + len(other) - start <= longest:
                trained = (False,) * len(prompt) + other.trained[start:]
                result.append(Rendered(prompt + other.ids[start:], trained))
                break
        else:
            raise DataError(
                f"no answer to another prompt fits behind prompt {i} within {longest} tokens: kto "
                "compares with such answers and needs at least two different prompts; raise "
                "data.seq_len, or give more data"
            )
    return result
