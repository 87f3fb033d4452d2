"""What quantizing cost: a model's predictions against those of the model it was made from.

Both read the same text. The parent goes through layer by layer in fp32 and is never whole in
memory; the logits of both exist for a few tokens at a time.

Shapes: B sequences, T tokens, D width, C tokens of a chunk, V vocabulary.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gemmule.checkpoints.checkpoint import Checkpoint
from gemmule.checkpoints.packed.model import QuantizedGemma
from gemmule.checkpoints.packed.reader import EMBEDDING, QuantizedModel
from gemmule.checkpoints.streamed_forward import filled
from gemmule.losses.soft_cap import soft_cap
from gemmule.model.gemma import Block, RMSNorm, rope_tables
from gemmule.model.tokenizer import Tokenizer

_TOKENS = 2048  # through a layer at once
_LOGITS = 2**24  # at once

Stage = Callable[[str], None]


@dataclass(frozen=True)
class Predictor:
    """A model that has read the text.

    Attributes:
        x_BTD: what the head reads, fp32.
        head: soft-capped logits [C, V] of some of it.
    """

    x_BTD: Tensor
    head: Callable[[Tensor], Tensor]


def compare(parent: Predictor, other: Predictor, tokens_BT: Tensor) -> dict[str, float | int]:
    """The distance between two models' predictions of each next token.

    Args:
        parent: the reference.
        other: what is measured.
        tokens_BT: what both read; what follows the end of a document is not predicted.

    Returns:
        kl_nats: mean KL(parent || other) per token; kl_stderr: its standard error over the
        tokens; top1_agreement: share of tokens with the same likeliest continuation;
        parent_perplexity and perplexity of the text; tokens: how many were predicted.
    """
    real_BT = tokens_BT[:, 1:] != Tokenizer.bos_id
    target = tokens_BT[:, 1:][real_BT]
    p_x, q_x = (model.x_BTD[:, :-1][real_BT] for model in (parent, other))
    vocab = parent.head(p_x[:1]).shape[-1]
    kl, same, parent_nats, nats = [], 0, 0.0, 0.0
    for part in torch.arange(len(target)).split(max(1, _LOGITS // vocab)):
        log_p_CV = parent.head(p_x[part]).log_softmax(-1)
        log_q_CV = other.head(q_x[part]).log_softmax(-1)
        kl.append((log_p_CV.exp() * (log_p_CV - log_q_CV)).sum(-1).double())
        same += int((log_p_CV.argmax(-1) == log_q_CV.argmax(-1)).sum())
        parent_nats -= float(log_p_CV.gather(1, target[part, None]).double().sum())
        nats -= float(log_q_CV.gather(1, target[part, None]).double().sum())
    count, kl_C = len(target), torch.cat(kl)
    return {
        "kl_nats": float(kl_C.mean()),
        "kl_stderr": float(kl_C.std() / math.sqrt(count)) if count > 1 else 0.0,
        "top1_agreement": same / count,
        "parent_perplexity": math.exp(min(parent_nats / count, 700.0)),
        "perplexity": math.exp(min(nats / count, 700.0)),
        "tokens": count,
    }


@torch.inference_mode()
def read_streamed(
    checkpoint: Checkpoint, tokens_BT: Tensor, stage: Stage = lambda _: None
) -> Predictor:
    """Has a checkpoint read text, in fp32, one layer in memory at a time.

    Raises:
        CheckpointError: for tensors that are missing, of a wrong shape, NaN or Inf.
    """
    config = checkpoint.config
    checkpoint.weights()  # all there, and of the right shape
    rope = rope_tables(torch.arange(tokens_BT.shape[1])[None], config.head_dim, config.rope_theta)
    stored = checkpoint.tensors[EMBEDDING]
    head = nn.Linear(1, 1, bias=False, device="meta")
    head.weight = nn.Parameter(stored.copy(torch.float32, torch.device("cpu")), requires_grad=False)
    parts = _batches(tokens_BT)
    x = [head.weight[part] * config.hidden_size**0.5 for part in parts]
    for i in range(config.num_hidden_layers):
        with torch.device("meta"):
            block = Block(config, i)
        filled(checkpoint, block, f"layers.{i}.")
        x = [block(y, rope, documents(part)) for y, part in zip(x, parts, strict=True)]
        stage(f"the original: layer {i + 1} of {config.num_hidden_layers}")
    norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
    filled(checkpoint, norm, "norm.")
    cap = config.final_logit_softcapping
    return Predictor(torch.cat([norm(part) for part in x]), lambda y: soft_cap(head(y), cap))


@torch.inference_mode()
def read_quantized(
    model: QuantizedModel, tokens_BT: Tensor, stage: Stage = lambda _: None
) -> Predictor:
    """Has a quantized model read text, with the arithmetic it is run with here."""
    gemma = QuantizedGemma(model)
    parts = []
    for i, part in enumerate(_batches(tokens_BT)):
        parts.append(gemma.hidden_states(part, doc_ids_BT=documents(part)))
        stage(f"quantized: part {i + 1}")
    return Predictor(torch.cat(parts), gemma.logits)


def documents(tokens_BT: Tensor) -> Tensor:
    """Numbers the documents in each row: none sees another."""
    return (tokens_BT == Tokenizer.bos_id).cumsum(1) + 1


def _batches(tokens_BT: Tensor) -> tuple[Tensor, ...]:
    return tokens_BT.split(max(1, _TOKENS // tokens_BT.shape[1]))
