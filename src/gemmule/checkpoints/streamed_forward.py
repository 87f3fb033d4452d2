"""The forward pass of a checkpoint that is not loaded: one layer in memory at a time, in fp32.

Exports and quantized models are checked with it: a model of any size takes a few gigabytes at most,
and quantized weights are read as the values they stand for.

Shapes: B sequences, T tokens, C rows of the embedding, D model, V vocabulary.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from gemmule.checkpoints.checkpoint import Checkpoint
from gemmule.losses.soft_cap import soft_cap
from gemmule.model.gemma import Block, RMSNorm, rope_tables


@torch.inference_mode()
def streamed_logits(checkpoint: Checkpoint, tokens: list[int]) -> Tensor:
    """Soft-capped logits [T, V] of one sequence, fp32.

    Raises:
        CheckpointError: for tensors that are missing, of a wrong shape, NaN or Inf.
    """
    config = checkpoint.config
    checkpoint.weights()  # all there, and of the right shape
    rows_TD = _embed(checkpoint, torch.tensor(tokens))
    (x_BTD,) = streamed_hidden_states(checkpoint, [rows_TD[None]], [None])
    x_TD = x_BTD[0]
    logits_TV = torch.empty(len(tokens), config.vocab_size)
    at = 0
    for rows_CD in checkpoint.tensors["embed_tokens.weight"].rows_as(torch.float32):
        logits_TV[:, at : at + len(rows_CD)] = x_TD @ rows_CD.T
        at += len(rows_CD)
    return soft_cap(logits_TV, config.final_logit_softcapping)


@torch.inference_mode()
def streamed_hidden_states(
    checkpoint: Checkpoint,
    rows: Sequence[Tensor],
    doc_ids: Sequence[Tensor | None],
    progress: Callable[[int], None] = lambda _: None,
) -> list[Tensor]:
    """Final hidden states of batches of the same length, fp32.

    Uses the modules of gemma.py, filled layer by layer; weights and activations are fp32 whatever
    the checkpoint's dtype. Each layer is read once, and all batches go through it.

    Args:
        checkpoint: checkpoint whose tensors were checked (`Checkpoint.weights`).
        rows: rows of the embedding for each batch [B, T, D], not yet scaled.
        doc_ids: document of each token of each batch [B, T]; None: each sequence is one document.
        progress: called with the number of layers that are done.

    Returns:
        Hidden states of each batch [B, T, D].

    Raises:
        CheckpointError: for tensors that are NaN or Inf.
    """
    config = checkpoint.config
    positions_BT = torch.arange(rows[0].shape[1])[None]
    rope = rope_tables(positions_BT, config.head_dim, config.rope_theta)
    x = [rows_BTD * config.hidden_size**0.5 for rows_BTD in rows]
    for i in range(config.num_hidden_layers):
        with torch.device("meta"):
            block = Block(config, i)
        filled(checkpoint, block, f"layers.{i}.")
        x = [block(x_BTD, rope, ids_BT) for x_BTD, ids_BT in zip(x, doc_ids, strict=True)]
        progress(i + 1)
    norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
    filled(checkpoint, norm, "norm.")
    return [norm(x_BTD) for x_BTD in x]


def _embed(checkpoint: Checkpoint, tokens_T: Tensor) -> Tensor:
    """Rows of the embedding [T, D] for the tokens, which is read once."""
    x_TD = torch.empty(len(tokens_T), checkpoint.config.hidden_size)
    at = 0
    for rows_CD in checkpoint.tensors["embed_tokens.weight"].rows_as(torch.float32):
        here_T = (tokens_T >= at) & (tokens_T < at + len(rows_CD))
        x_TD[here_T] = rows_CD[tokens_T[here_T] - at]
        at += len(rows_CD)
    return x_TD


def filled(checkpoint: Checkpoint, module: nn.Module, prefix: str) -> nn.Module:
    """The module with its fp32 weights: the tensors whose names begin with `prefix`."""
    cpu = torch.device("cpu")
    weights = {
        name: checkpoint.tensors[prefix + name].copy(torch.float32, cpu)
        for name in module.state_dict()
    }
    module.load_state_dict(weights, assign=True)
    return module
