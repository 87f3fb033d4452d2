"""Prompts of chat data folders that a model is asked to answer."""

from gemmule.errors import DataError
from gemmule.posttrain.chat_data import ChatData
from gemmule.posttrain.rollouts import RolloutPrompt


def prompts_of(data: ChatData, split: str) -> list[RolloutPrompt]:
    """The prompts of a split: of conversations and pairs what comes before the last answer.

    The fields of a conversation's record are about that answer.
    """
    if data.kind == "prompts":
        return [RolloutPrompt(prompt.ids, prompt.record) for prompt in data.prompts(split)]
    if data.kind == "pairs":
        return [
            RolloutPrompt(pair.chosen.ids[: pair.prompt_tokens], pair.record)
            for pair in data.pairs(split)
        ]
    return [RolloutPrompt(c.prompt, c.record) for c in data.conversations(split)]


def fitting_prompts(
    data: ChatData, split: str, *, seq_len: int, max_new_tokens: int
) -> list[RolloutPrompt]:
    """The prompts of a split that leave room for an answer.

    Args:
        data: the folder.
        split: name of the split.
        seq_len: data.seq_len of a run.
        max_new_tokens: longest answer.

    Raises:
        DataError: when none does.
    """
    prompts = prompts_of(data, split)
    room = seq_len - max_new_tokens
    fitting = [prompt for prompt in prompts if len(prompt.ids) <= room]
    if not fitting:
        raise DataError(
            f"none of the {len(prompts)} prompts of the {split} split has at most {room} tokens, "
            f"data.seq_len = {seq_len} less objective.max_new_tokens = {max_new_tokens}: raise the "
            "one or lower the other"
        )
    return fitting
