"""The answers that a preference run or a reward model learns from, as one list per split."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gemmule.data.dataset import Dataset
from gemmule.errors import DataError
from gemmule.posttrain.chat_data import ChatData
from gemmule.posttrain.rendering import Rendered, longest_conversation

SPLITS = ("train", "validation", "heldout")
LABEL = "label"  # field of a record that marks a single answer as good or bad


@dataclass(frozen=True)
class AnswerTable:
    """Answers with their prompts, by split.

    Attributes:
        answers: the conversations of each split; of pairs, 2i and 2i + 1 are the two of pair i.
        desirable: for each of them, whether it is a chosen or a good answer.
        margins: margin of each training pair, 0 where it has none; empty without pairs.
        paired: whether they are pairs.
    """

    answers: Mapping[str, list[Rendered]]
    desirable: Mapping[str, list[bool]]
    margins: list[float]
    paired: bool

    @classmethod
    def read(cls, dataset: Dataset, seq_len: int, *, unpaired: bool = False) -> "AnswerTable":
        """The answers of a chat data folder.

        Args:
            dataset: folder of preference pairs, or of conversations whose records have a LABEL.
            seq_len: number of tokens that no conversation may exceed.
            unpaired: whether single answers can be used too.

        Raises:
            DataError: for another kind of folder, a record without a label, or a conversation that
                is too long.
        """
        data = ChatData(dataset)
        if unpaired and data.kind == "conversations":
            table = cls._of_labels(data)
        else:
            table = cls._of_pairs(data)
        table._check_lengths(dataset, seq_len)
        return table

    @classmethod
    def _of_pairs(cls, data: ChatData) -> "AnswerTable":
        answers: dict[str, list[Rendered]] = {}
        margins: dict[str, list[float]] = {}
        for split in SPLITS:
            pairs = data.pairs(split)
            answers[split] = [answer for pair in pairs for answer in (pair.chosen, pair.rejected)]
            margins[split] = [pair.margin or 0.0 for pair in pairs]
        desirable = {split: [True, False] * len(part) for split, part in margins.items()}
        return cls(answers, desirable, margins["train"], paired=True)

    @classmethod
    def _of_labels(cls, data: ChatData) -> "AnswerTable":
        parts = {split: data.conversations(split) for split in SPLITS}
        return cls(
            {split: [c.rendered for c in part] for split, part in parts.items()},
            {split: [_label(c.record, data) for c in part] for split, part in parts.items()},
            [],
            paired=False,
        )

    def _check_lengths(self, dataset: Dataset, seq_len: int) -> None:
        lengths = [len(answer) for part in self.answers.values() for answer in part]
        longer = [length for length in lengths if length > longest_conversation(seq_len)]
        if longer:
            raise DataError(
                f"{len(longer)} of the {len(lengths)} answers in {dataset.path} are longer with "
                f"their prompts than data.seq_len = {seq_len} tokens (the longest has "
                f"{max(longer)}): raise data.seq_len, or leave the long ones out when the data are "
                "prepared"
            )


def _label(record: Mapping[str, Any], data: ChatData) -> bool:
    label = record.get(LABEL)
    if label not in (True, False):  # 1 and 0 are equal to them
        raise DataError(
            f"{data.dataset.path} has an answer whose {LABEL} is {label!r}: kto needs pairs, or "
            f'for each answer "{LABEL}": true or false'
        )
    return bool(label)
