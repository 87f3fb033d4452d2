"""A checkpoint's logits without loading it: one layer in memory at a time, in fp32.

What an export is checked with: a model of any size takes a few gigabytes at most, and quantized
weights are read as the values they stand for.
"""

import torch
from torch import Tensor, nn

from gemmule.checkpoints.checkpoint import Checkpoint
from gemmule.losses.soft_cap import soft_cap
from gemmule.model.gemma import Block, RMSNorm, rope_tables


@torch.inference_mode()
def streamed_logits(checkpoint: Checkpoint, tokens: list[int]) -> Tensor:
    """Soft-capped logits [T, V] of one sequence, fp32.

    The same modules as gemma.py's, filled layer by layer; weights and activations in fp32
    whatever the checkpoint's dtype.

    Raises:
        CheckpointError: for tensors that are missing, of a wrong shape, NaN or Inf.
    """
    config = checkpoint.config
    checkpoint.weights()  # all there, and of the right shape
    tokens_T = torch.tensor(tokens)
    rope = rope_tables(torch.arange(len(tokens))[None], config.head_dim, config.rope_theta)
    x_BTD = _embed(checkpoint, tokens_T)[None] * config.hidden_size**0.5
    for i in range(config.num_hidden_layers):
        with torch.device("meta"):
            block = Block(config, i)
        x_BTD = filled(checkpoint, block, f"layers.{i}.")(x_BTD, rope)
    norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
    x_TD = filled(checkpoint, norm, "norm.")(x_BTD)[0]
    logits_TV = torch.empty(len(tokens), config.vocab_size)
    at = 0
    for rows_CD in checkpoint.tensors["embed_tokens.weight"].rows_as(torch.float32):
        logits_TV[:, at : at + len(rows_CD)] = x_TD @ rows_CD.T
        at += len(rows_CD)
    return soft_cap(logits_TV, config.final_logit_softcapping)


def _embed(checkpoint: Checkpoint, tokens_T: Tensor) -> Tensor:
    """The tokens' rows of the embedding, [T, D]."""
    x_TD = torch.empty(len(tokens_T), checkpoint.config.hidden_size)
    at = 0
    for rows_CD in checkpoint.tensors["embed_tokens.weight"].rows_as(torch.float32):
        here_T = (tokens_T >= at) & (tokens_T < at + len(rows_CD))
        x_TD[here_T] = rows_CD[tokens_T[here_T] - at]
        at += len(rows_CD)
    return x_TD


def filled(checkpoint: Checkpoint, module: nn.Module, prefix: str) -> nn.Module:
    """Gives a module its weights in fp32: those whose names begin with `prefix`."""
    cpu = torch.device("cpu")
    weights = {
        name: checkpoint.tensors[prefix + name].copy(torch.float32, cpu)
        for name in module.state_dict()
    }
    module.load_state_dict(weights, assign=True)
    return module
