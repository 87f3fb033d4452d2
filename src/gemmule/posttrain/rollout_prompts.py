"""Prompts of chat data folders that a model is asked to answer."""

from collections.abc import Mapping
from dataclasses import dataclass

from gemmule.console import console
from gemmule.errors import DataError
from gemmule.posttrain.answer_table import SPLITS
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


@dataclass(frozen=True)
class PromptTable:
    """The prompts of a run that leave room for an answer.

    Attributes:
        prompts: prompts of each split.
        too_long: number of prompts of each split that are left out.
    """

    prompts: Mapping[str, list[RolloutPrompt]]
    too_long: Mapping[str, int]

    @classmethod
    def read(cls, data: ChatData, *, seq_len: int, max_new_tokens: int) -> "PromptTable":
        """The prompts of a chat data folder.

        Args:
            data: the folder.
            seq_len: data.seq_len of a run.
            max_new_tokens: longest answer.

        Raises:
            DataError: when no prompt of a split leaves room.
        """
        prompts, too_long = {}, {}
        room = seq_len - max_new_tokens
        for split in SPLITS:
            every = prompts_of(data, split)
            prompts[split] = [prompt for prompt in every if len(prompt.ids) <= room]
            too_long[split] = len(every) - len(prompts[split])
            if not prompts[split]:
                raise DataError(
                    f"none of the {len(every)} prompts of the {split} split has at most {room} "
                    f"tokens, data.seq_len = {seq_len} less objective.max_new_tokens = "
                    f"{max_new_tokens}: raise the one or lower the other"
                )
        return cls(prompts, too_long)

    def counts(self) -> dict[str, int]:
        """Number of prompts of each split."""
        return {split: len(prompts) for split, prompts in self.prompts.items()}

    def say_left_out(self) -> None:
        """Prints how many prompts are left out, if any are."""
        count = sum(self.too_long.values())
        if count:
            splits = ", ".join(f"{n:,} {split}" for split, n in self.too_long.items() if n)
            total = count + sum(self.counts().values())
            console.print(
                f"left out: {count:,} of {total:,} prompts, which leave no room for an answer "
                f"({splits})",
                markup=False,
            )
