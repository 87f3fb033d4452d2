"""Teachers that gemmule loads itself: runs, and any Gemma 2 checkpoint."""

from typing import Any

import torch
from torch import Tensor

from gemmule.checkpoints.checkpoint import weights_fingerprint
from gemmule.checkpoints.load import open_checkpoint
from gemmule.data.batch import Batch
from gemmule.data.dataset import Dataset
from gemmule.errors import TokenizerError
from gemmule.losses.head import Head
from gemmule.model.gemma import Gemma
from gemmule.runtime import torch_compile
from gemmule.teachers.teacher import LocalTeacher


def load_partner(name: str, what: str, dataset: Dataset, otherwise: str = "") -> Gemma:
    """Loads a model that has the data's tokenizer, compared by content; in fp32.

    Args:
        name: run, folder, file or hub id.
        what: name of the model's role in an error message.
        dataset: the data.
        otherwise: further advice in the error message for a different tokenizer.

    Raises:
        TokenizerError: when the tokenizers differ.
        CheckpointError: when there is no readable model.
    """
    with open_checkpoint(name) as checkpoint:
        ours, theirs = dataset.tokenizer, checkpoint.tokenizer
        if theirs.fingerprint != ours.fingerprint:
            raise TokenizerError(
                f"{what}, {name}, has another tokenizer ({theirs.vocab_size} tokens, fingerprint "
                f"{theirs.fingerprint[:12]}) than the data in {dataset.path} "
                f"({ours.vocab_size} tokens, {ours.fingerprint[:12]}): prepare the data "
                f"with {name}'s tokenizer{otherwise}"
            )
        return checkpoint.load(torch.float32)


class GemmaTeacher(LocalTeacher):
    """A Gemma 2 of any size.

    Args:
        path: its location, as the user gave it.
        model: the network.
        fingerprint: SHA-256 of its weights; None: computed here.
    """

    model: Gemma

    def __init__(self, path: str, model: Gemma, fingerprint: str | None = None) -> None:
        self.path, self.model = path, model.requires_grad_(False).eval()
        self._fingerprint = weights_fingerprint(model) if fingerprint is None else fingerprint

    @classmethod
    def open(cls, path: str, dataset: Dataset) -> "GemmaTeacher":
        """Loads a teacher with the data's tokenizer; raises as `load_partner` does."""
        otherwise = ", or learn across tokenizers: gemmule distill --cross-tokenizer"
        return cls(path, load_partner(path, "the teacher", dataset, otherwise))

    @property
    def vocab_size(self) -> int:
        """Rows of its head."""
        return self.model.config.vocab_size

    @property
    def head(self) -> Head:
        """The model's output head."""
        return self.model.head

    def hidden_states(self, batch: Batch) -> Tensor:
        """Final hidden states [B, T, D]."""
        return self.model.hidden_states(batch.tokens_BT, doc_ids_BT=batch.doc_ids_BT)

    def compile(self) -> None:
        """Compiles each of its blocks."""
        torch_compile.compile_blocks(self.model.layers)

    def describe(self) -> dict[str, Any]:
        """Path, fingerprint of the weights, parameters and soft caps."""
        config = self.model.config
        return {
            "path": self.path,
            "backend": "gemmule",
            "fingerprint": self._fingerprint,
            "parameters": config.parameters,
            "final_logit_softcapping": config.final_logit_softcapping,
            "attn_logit_softcapping": config.attn_logit_softcapping,
        }

    @property
    def context(self) -> int:
        """Longest sequence according to its config."""
        return self.model.config.max_position_embeddings

    def forward_flops_per_token(self, seq_len: int) -> float:
        """Operations for one token's forward pass, head included."""
        return self.model.config.forward_flops_per_token(seq_len)
