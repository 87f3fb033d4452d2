"""How well scores of answers agree with people's judgments, on answers that were not trained on.

Shapes: S answers, P pairs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gemmule import stats
from gemmule.posttrain.answer_source import in_batches, packed
from gemmule.posttrain.answer_table import AnswerTable
from gemmule.posttrain.segments import Segments
from gemmule.posttrain.spread import spread
from gemmule.train.config import EvaluationConfig
from gemmule.train.probe import Probe

# Scores [S] of conversations; the second argument is their indices in the split.
Score = Callable[[str, Segments, Sequence[int]], Tensor]


@dataclass(frozen=True)
class AnswerScores:
    """Scores of judged answers, float64 on the CPU.

    Attributes:
        scores_S: score of each answer.
        desirable_S: whether it was chosen, or called good.
        paired: whether 2i and 2i + 1 are the chosen and the rejected answer of a pair.
        indices: index of each answer in its split.
    """

    scores_S: Tensor
    desirable_S: Tensor
    paired: bool
    indices: Sequence[int]

    @property
    def right(self) -> list[bool]:
        """For each pair, whether the chosen answer has the higher score; a tie is wrong."""
        right: list[bool] = (self.scores_S[0::2] > self.scores_S[1::2]).tolist()
        return right

    @property
    def accuracy(self) -> float:
        """Part of the pairs that are right; of single answers, of all pairs of good and bad."""
        if self.paired:
            return sum(self.right) / len(self.right)
        good_G, bad_B = self.scores_S[self.desirable_S], self.scores_S[~self.desirable_S]
        return (good_G[:, None] > bad_B).double().mean().item()

    def metrics(self) -> dict[str, float]:
        """Metrics under TRL's names; of pairs also the mean of -log sigmoid(difference)."""
        log_loss = {}
        if self.paired:
            differences_P = self.scores_S[0::2] - self.scores_S[1::2]
            log_loss = {"log_loss": -F.logsigmoid(differences_P).mean().item()}
        chosen = self.scores_S[self.desirable_S].mean().item()
        rejected = self.scores_S[~self.desirable_S].mean().item()
        return {
            "rewards/chosen": chosen,
            "rewards/rejected": rejected,
            "rewards/margins": chosen - rejected,
            "rewards/accuracies": self.accuracy,
            **log_loss,
        }

    def result(self) -> dict[str, Any]:
        """Entries of result.json; of pairs, the accuracy has its Wilson interval.

        Without pairs, and with good answers only or bad ones only, there is nothing to compare.
        """
        count = {"heldout_answers": len(self.scores_S)}
        if not self.paired and (self.desirable_S.all() or not self.desirable_S.any()):
            return count
        accuracy: Any = {"value": self.accuracy}
        if self.paired:
            accuracy = stats.proportion(sum(self.right), len(self.right)).json()
        metrics = self.metrics()
        return {
            **count,
            "accuracy": accuracy,
            "margin": metrics["rewards/margins"],
            **({"log_loss": metrics["log_loss"]} if self.paired else {}),
        }


@torch.no_grad()
def score_split(
    table: AnswerTable, split: str, score: Score, device: str, *, batch: int, tokens: int | None
) -> AnswerScores:
    """Scores the answers of a split.

    Args:
        table: the answers.
        split: name of the split.
        score: function that scores some of them.
        device: device of its model.
        batch: tokens of a forward pass, about.
        tokens: tokens to read, in answers or pairs spread evenly over the split; None: all.
    """
    answers = table.answers[split]
    indices = spread([len(answer) for answer in answers], tokens, 2 if table.paired else 1)
    parts = []
    for part in in_batches([len(answers[i]) for i in indices], batch):
        segments = Segments.of(packed([answers[i] for i in indices[part]]).to(device))
        parts.append(score(split, segments, indices[part]).double().cpu())
    desirable = [table.desirable[split][i] for i in indices]
    return AnswerScores(torch.cat(parts), torch.tensor(desirable), table.paired, indices)


def validation_scores(config: EvaluationConfig, measure: Callable[[], AnswerScores]) -> Probe:
    """Evaluation on the validation split, every `config.every` steps."""
    return Probe("validation", config.every, lambda _: measure().metrics(), label="split")
