"""Batches with an answer in each row: prompt and answer as they were sampled or rendered.

Shapes: B rows, T tokens of the longest row.
"""

from collections.abc import Sequence

import torch
from torch.nn.utils.rnn import pad_sequence

from gemmule.data.batch import Batch
from gemmule.losses.labels import IGNORED
from gemmule.posttrain.rendering import Rendered
from gemmule.posttrain.rollouts import Rollout

# Extra of a batch of rollouts: log-probability of each label when it was sampled, elsewhere 0.
SAMPLED_LOGPROBS = "sampled_logprobs_BT"


def rows_of(conversations: Sequence[Rendered]) -> Batch:
    """A batch of conversations; labels are the tokens that are trained.

    The last token of a conversation predicts nothing and is left out.
    """
    tokens = [torch.tensor(c.ids[:-1]) for c in conversations]
    labels = [
        torch.where(torch.tensor(c.trained[1:]), torch.tensor(c.ids[1:]), IGNORED)
        for c in conversations
    ]
    return _padded(tokens, labels)


def rows_of_rollouts(rollouts: Sequence[Rollout]) -> Batch:
    """A batch of rollouts; labels are all tokens of an answer, its stop token included."""
    batch = rows_of(
        [
            Rendered(r.prompt + r.answer, (False,) * len(r.prompt) + (True,) * len(r.answer))
            for r in rollouts
        ]
    )
    logprobs = [torch.tensor([0.0] * (len(r.prompt) - 1) + [*r.logprobs]) for r in rollouts]
    extras = {SAMPLED_LOGPROBS: pad_sequence(logprobs, batch_first=True)}
    return Batch(batch.tokens_BT, batch.labels_BT, batch.doc_ids_BT, extras=extras)


def batches_of_rollouts(rollouts: Sequence[Rollout], rows: int) -> list[Batch]:
    """Batches of `rows` rollouts each, in order."""
    starts = range(0, len(rollouts), rows)
    return [rows_of_rollouts(rollouts[start : start + rows]) for start in starts]


def _padded(tokens: Sequence[torch.Tensor], labels: Sequence[torch.Tensor]) -> Batch:
    real = [torch.ones_like(row) for row in tokens]
    return Batch(
        pad_sequence(list(tokens), batch_first=True),
        pad_sequence(list(labels), batch_first=True, padding_value=IGNORED),
        pad_sequence(real, batch_first=True),
    )
