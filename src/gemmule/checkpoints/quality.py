"""The loss in quality from quantization: a model's predictions against those of its original.

Both read the same text. The original is read layer by layer in fp32 and is never whole in memory;
the logits of both exist for a few tokens at a time.

Shapes: B sequences, T tokens, D model, C tokens of a chunk, V vocabulary.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gemmule.checkpoints.checkpoint import Checkpoint
from gemmule.checkpoints.packed.model import QuantizedGemma
from gemmule.checkpoints.packed.reader import EMBEDDING, QuantizedModel
from gemmule.checkpoints.streamed_forward import streamed_hidden_states
from gemmule.losses.chunked_head import row_chunks
from gemmule.losses.head import Head
from gemmule.model.tokenizer import Tokenizer

_TOKENS = 2048  # tokens that go through a layer at once
_LOGITS = 2**24  # logits that exist at once

Stage = Callable[[str], None]


@dataclass(frozen=True)
class Predictor:
    """A model that has read the text.

    Attributes:
        x_BTD: final hidden states, fp32.
        logits: computes soft-capped logits [C, V] from rows of the hidden states [C, D].
    """

    x_BTD: Tensor
    logits: Callable[[Tensor], Tensor]


def compare(parent: Predictor, other: Predictor, tokens_BT: Tensor) -> dict[str, float | int]:
    """The distance between two models' predictions of each next token.

    Args:
        parent: the reference.
        other: the model that is measured.
        tokens_BT: the text that both read; <bos> after the end of a document is not predicted.

    Returns:
        kl_nats: mean KL(parent || other) per token; kl_stderr: its standard error over the
        tokens; top1_agreement: fraction of tokens with the same most likely next token;
        parent_perplexity and perplexity of the text; tokens: number of predicted tokens.
    """
    real_BT = tokens_BT[:, 1:] != Tokenizer.bos_id
    labels_N = tokens_BT[:, 1:][real_BT]
    p_x_ND, q_x_ND = (model.x_BTD[:, :-1][real_BT] for model in (parent, other))
    vocab_size = parent.logits(p_x_ND[:1]).shape[-1]
    kl, same, parent_nats, nats = [], 0, 0.0, 0.0
    for rows in row_chunks(len(labels_N), max(1, _LOGITS // vocab_size), vocab_size):
        log_p_CV = parent.logits(p_x_ND[rows]).log_softmax(-1)
        log_q_CV = other.logits(q_x_ND[rows]).log_softmax(-1)
        kl.append((log_p_CV.exp() * (log_p_CV - log_q_CV)).sum(-1).double())
        same += int((log_p_CV.argmax(-1) == log_q_CV.argmax(-1)).sum())
        parent_nats -= float(log_p_CV.gather(1, labels_N[rows, None]).double().sum())
        nats -= float(log_q_CV.gather(1, labels_N[rows, None]).double().sum())
    count, kl_N = len(labels_N), torch.cat(kl)
    return {
        "kl_nats": float(kl_N.mean()),
        "kl_stderr": float(kl_N.std() / math.sqrt(count)) if count > 1 else 0.0,
        "top1_agreement": same / count,
        "parent_perplexity": math.exp(min(parent_nats / count, 700.0)),
        "perplexity": math.exp(min(nats / count, 700.0)),
        "tokens": count,
    }


@torch.inference_mode()
def read_streamed(
    checkpoint: Checkpoint, tokens_BT: Tensor, stage: Stage = lambda _: None
) -> Predictor:
    """Lets a checkpoint read text, in fp32, with one layer in memory at a time.

    Raises:
        CheckpointError: for tensors that are missing, of a wrong shape, NaN or Inf.
    """
    config = checkpoint.config
    checkpoint.weights()  # all there, and of the right shape
    weight_VD = checkpoint.tensors[EMBEDDING].copy(torch.float32, torch.device("cpu"))
    parts = _batches(tokens_BT)
    states = streamed_hidden_states(
        checkpoint,
        [weight_VD[part] for part in parts],
        [documents(part) for part in parts],
        lambda layers: stage(f"the original: layer {layers} of {config.num_hidden_layers}"),
    )
    return Predictor(torch.cat(states), Head(weight_VD, config.final_logit_softcapping).logits)


@torch.inference_mode()
def read_quantized(
    model: QuantizedModel, tokens_BT: Tensor, stage: Stage = lambda _: None
) -> Predictor:
    """Lets a quantized model read text, with the arithmetic of its kernels on this machine."""
    gemma = QuantizedGemma(model)
    parts = []
    for i, part in enumerate(_batches(tokens_BT)):
        parts.append(gemma.hidden_states(part, doc_ids_BT=documents(part)))
        stage(f"quantized: part {i + 1}")
    return Predictor(torch.cat(parts), gemma.logits)


def documents(tokens_BT: Tensor) -> Tensor:
    """Document of each token within its sequence [B, T], numbered from <bos> to <bos>."""
    return (tokens_BT == Tokenizer.bos_id).cumsum(1) + 1


def _batches(tokens_BT: Tensor) -> tuple[Tensor, ...]:
    return tokens_BT.split(max(1, _TOKENS // tokens_BT.shape[1]))
