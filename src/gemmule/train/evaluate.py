"""Loss on held-out text: nats per token, perplexity, bits per byte."""

import math

import torch

from gemmule.data.dataset import Split
from gemmule.data.packed_text import eval_batches
from gemmule.model.gemma import Gemma
from gemmule.model.tokenizer import Tokenizer


@torch.no_grad()
def evaluate(
    model: Gemma,
    split: Split,
    tokenizer: Tokenizer,
    *,
    seq_len: int,
    batch_size: int = 16,
    max_tokens: int | None = None,
    compiled: bool = False,
) -> dict[str, float]:
    """Measures `model` on a split.

    Bits per byte divide the nats by the UTF-8 bytes of the predicted tokens, so that models with
    different tokenizers can be compared; end-of-document tokens cost nats and stand for no byte.

    Returns:
        nats_per_token, perplexity, bits_per_byte, and tokens, the number predicted.
    """
    nats, count, size = 0.0, 0, 0
    device = model.embed_tokens.weight.device
    byte_length_V = torch.from_numpy(tokenizer.token_bytes()).to(device)
    # What training compiled is used; compiling more for a forward pass would not pay.
    with torch.compiler.set_stance("eager_on_recompile"):
        for batch in eval_batches(split, batch_size, seq_len, max_tokens):
            target = batch.labels_BT.to(device)
            segments = batch.doc_ids_BT.to(device)
            x_BTD = model.hidden_states(batch.tokens_BT.to(device), doc_ids_BT=segments)
            x_ND = x_BTD.flatten(0, 1)
            nats += model.head.cross_entropy(x_ND, target.flatten(), compiled=compiled).item()
            real = target[target >= 0]
            count += real.numel()
            size += int(byte_length_V[real].sum())
    return {
        "nats_per_token": nats / count,
        "perplexity": math.exp(min(nats / count, 700.0)),
        "bits_per_byte": nats / math.log(2) / max(size, 1),
        "tokens": count,
    }
