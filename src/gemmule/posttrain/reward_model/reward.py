"""A reward model as a reward for reinforcement learning and for choosing the best of n answers."""

from collections.abc import Sequence
from typing import Any

import torch

from gemmule.checkpoints.checkpoint import weights_fingerprint
from gemmule.errors import TokenizerError
from gemmule.model.tokenizer import Tokenizer
from gemmule.posttrain.answer_source import in_batches, packed
from gemmule.posttrain.conversations import Message
from gemmule.posttrain.rendering import Rendered, render_conversation
from gemmule.posttrain.reward_model.model import RewardModel, load_reward_model
from gemmule.posttrain.rewards.protocol import Answer
from gemmule.posttrain.segments import Segments

_BATCH_TOKENS = 8192


class LearnedReward:
    """The score of a reward model.

    Attributes:
        name: path of the reward model.
        tokenizer: its tokenizer, whose ids it reads.
    """

    def __init__(self, name: str, model: RewardModel, tokenizer: Tokenizer) -> None:
        """Takes the model in evaluation mode; its weights stay as they are."""
        self.name, self.tokenizer = name, tokenizer
        self._model = model.requires_grad_(False).eval()
        self._closing = _closing(tokenizer)

    @classmethod
    def open(cls, path: str) -> "LearnedReward":
        """Loads a reward model: a run of `gemmule reward`, or a folder that transformers wrote.

        Raises:
            CheckpointError: when there is none.
            TokenizerError: when its tokenizer is missing or broken.
        """
        return cls(path, *load_reward_model(path))

    def check_tokenizer(self, policy: Tokenizer) -> None:
        """Checks that the ids of the answers mean the same to the reward model.

        Raises:
            TokenizerError: when they do not.
        """
        if policy.fingerprint != self.tokenizer.fingerprint:
            raise TokenizerError(
                f"the reward model {self.name} has another tokenizer (fingerprint "
                f"{self.tokenizer.fingerprint[:12]}) than the model whose answers it scores "
                f"({policy.fingerprint[:12]}): train one on a model with the same tokenizer"
            )

    @torch.no_grad()
    def score(self, answers: Sequence[Answer]) -> list[float]:
        """The score of each answer, read at the end of the conversation as it was in training.

        The end, `<end_of_turn><eos>`, is added where it is missing: a sampler stops at the first of
        the two.
        """
        conversations = [self._conversation(answer) for answer in answers]
        scores: list[float] = []
        for part in in_batches([len(c) for c in conversations], _BATCH_TOKENS):
            segments = Segments.of(packed(conversations[part]))
            scores += self._model.scores(segments).tolist()
        return scores

    def describe(self) -> dict[str, Any]:
        """Path and fingerprint of the weights."""
        return {
            "name": "reward model",
            "path": self.name,
            "fingerprint": weights_fingerprint(self._model),
        }

    def _conversation(self, answer: Answer) -> Rendered:
        content = list(answer.ids)
        while content and content[-1] in self._closing:
            content.pop()
        ids = (*answer.prompt, *content, *self._closing)
        return Rendered(ids, (False,) * len(ids))


def _closing(tokenizer: Tokenizer) -> tuple[int, ...]:
    """The ids that end a rendered conversation."""
    messages = [Message("user", "a"), Message("assistant", "a")]
    ids = render_conversation(messages, tokenizer).ids
    return ids[-2:] if tokenizer.chat_template is None else ids[-1:]
