"""Scores of judged answers as entries of result.json."""

import pytest
import torch

from gemmule.posttrain.answer_scores import AnswerScores


@pytest.mark.parametrize("good", [True, False])
def test_answers_of_one_label_have_nothing_to_compare(good: bool) -> None:
    scores = AnswerScores(torch.tensor([1.0, 2.0]), torch.tensor([good, good]), False, [0, 1])
    assert scores.result() == {"heldout_answers": 2}


def test_single_answers_are_compared_across_labels() -> None:
    labels = torch.tensor([True, True, False])
    scores = AnswerScores(torch.tensor([3.0, 0.0, 1.0]), labels, False, [0, 1, 2])
    assert scores.result() == {"heldout_answers": 3, "accuracy": {"value": 0.5}, "margin": 0.5}
