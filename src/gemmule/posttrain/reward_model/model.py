"""A Gemma 2 with a scalar head, in the layout of transformers' Gemma2ForSequenceClassification.

The score of a conversation is a linear function of the hidden state of its last token, `<eos>` or
the `<end_of_turn>` of a chat template. A conversation's score has the same bits in every batch.

Shapes: S conversations, N tokens of all of them, D model.
"""

from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from gemmule.checkpoints.checkpoint import Undrawn
from gemmule.checkpoints.load import open_reward_checkpoint
from gemmule.model.config import GemmaConfig
from gemmule.model.gemma import Gemma
from gemmule.model.tokenizer import Tokenizer
from gemmule.posttrain.segments import Segments, hidden_states


class RewardModel(Gemma):
    """A Gemma whose head gives one number for a conversation.

    The head starts at zero: before training, all conversations have the score 0.
    """

    def __init__(self, config: GemmaConfig) -> None:
        super().__init__(config)
        self.score = nn.Linear(config.hidden_size, 1, bias=False)
        if not self.score.weight.is_meta:  # where writing zeros imports half of torch
            nn.init.zeros_(self.score.weight)

    @classmethod
    def on(cls, body: Gemma, score_1D: Tensor | None = None) -> Self:
        """A reward model that takes over the body of a language model.

        Args:
            body: the model; its parameters are shared.
            score_1D: weight of the head; None: zeros.
        """
        with torch.device("meta"), Undrawn():
            model = cls(body.config)
        model.embed_tokens, model.layers, model.norm = body.embed_tokens, body.layers, body.norm
        like = body.norm.weight
        weight = torch.zeros(1, body.config.hidden_size) if score_1D is None else score_1D
        model.score.weight = nn.Parameter(weight.to(like))
        return model

    def scores(self, segments: Segments, *, compiled: bool = False) -> Tensor:
        """Score [S] of each conversation, fp32.

        Args:
            segments: conversations; the label mask is not used.
            compiled: whether the blocks are compiled.
        """
        x_ND = hidden_states(self, segments, compiled=compiled)
        last_S = torch.tensor(segments.lengths, device=x_ND.device).cumsum(0) - 1
        weight_D = self.score.weight[0].float()
        # One sum for each conversation: a reduction over [S, D] may be split as S says.
        return torch.stack([(x_D.float() * weight_D).sum() for x_D in x_ND[last_S]])


def load_reward_model(
    path: str | Path, device: torch.device | str = "cpu"
) -> tuple[RewardModel, Tokenizer]:
    """Loads a reward model: a run of `gemmule reward`, or a folder that transformers wrote.

    Raises:
        CheckpointError: when there is no readable reward model with one label.
        TokenizerError: when its tokenizer is missing or broken.
    """
    with open_reward_checkpoint(path) as checkpoint:
        tokenizer = checkpoint.tokenizer
        body = checkpoint.load(torch.float32, device)
        assert checkpoint.score is not None
        score_1D = torch.cat([chunk.clone() for chunk in checkpoint.score.chunks()])
    return RewardModel.on(body, score_1D), tokenizer
