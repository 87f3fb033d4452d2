"""The plain runner: any Gemma module on any device, one chunk after the other.

The logits after a token do not depend on the other chunks of a step. They may differ in the last
bits between ways to cut a sequence into chunks, because the products of a matrix library depend on
the number of rows; the native runner and the batch runner are batch-invariant.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from gemmule.infer.core.constraint import allowed_ids
from gemmule.infer.core.sampling import top_logits
from gemmule.infer.runners.protocol import PAGE, LogitsRequest, ScheduledChunk, StepOutput
from gemmule.model.gemma import Gemma
from gemmule.model.kv_cache import KVCache, PagedKV

MAX_LOGITS = 2**24  # elements at once, 64 MiB of fp32: bounds memory for any vocabulary


class TorchRunner:
    """Runs a Gemma module; implements `Runner`.

    Attributes:
        config: shape of the model.
        device: device of the model.
        cache_format: dtype of keys and values.
        kv: keys and values.
        page_bytes: size of a page.
        max_step_tokens: maximum number of tokens in a step; bounds the memory of activations.
    """

    max_step_tokens = 512

    def __init__(self, model: Gemma) -> None:
        """Starts without pages.

        Args:
            model: the module; its weights are read at each step.
        """
        self.config = model.config
        self._model = model
        norm = model.norm.weight  # never quantized: it has the activations' dtype
        self.device = norm.device
        self.cache_format = str(norm.dtype).removeprefix("torch.")
        self.kv = PagedKV(model.config, norm.dtype, norm.device, PAGE)
        self.page_bytes = self.kv.page_bytes

    def allocate(self, pages: int) -> None:
        """Makes the pool."""
        self.kv.allocate(pages)

    def copy_page(self, source: int, target: int) -> None:
        """Copies the contents of one page to another."""
        self.kv.copy_page(source, target)

    def weights_changed(self) -> None:
        """Does nothing: no weight is copied."""

    def scores(self, chunks: Sequence[ScheduledChunk]) -> list[list[tuple[float, bool]]]:
        """Returns log-probabilities of targets; see `Runner`."""
        return [
            [
                _score(output, request.target)
                for output, request in zip(outputs, chunk.logits, strict=True)
            ]
            for outputs, chunk in zip(self.step(chunks), chunks, strict=True)
        ]

    @torch.inference_mode()
    def step(self, chunks: Sequence[ScheduledChunk]) -> list[list[StepOutput]]:
        """Computes all chunks; see `Runner`."""
        return [self.run_chunk(chunk) for chunk in chunks]

    def run_chunk(self, chunk: ScheduledChunk) -> list[StepOutput]:
        """Computes one chunk."""
        tokens_BT = torch.tensor([list(chunk.tokens)], device=self.device)
        cache = KVCache(self.kv, [chunk.global_pages], [chunk.local_pages], chunk.start)
        x_TD = self._model.hidden_states(tokens_BT, cache=cache)[0]
        if not chunk.logits:
            return []
        x_OD = x_TD[torch.tensor([request.index for request in chunk.logits], device=self.device)]
        outputs: list[StepOutput] = []
        rows = max(1, MAX_LOGITS // self.config.vocab_size)
        for at in range(0, len(x_OD), rows):
            logits_OV = self._model.logits(x_OD[at : at + rows]).float()
            outputs += map(step_output, chunk.logits[at : at + rows], logits_OV)
        return outputs


def step_output(request: LogitsRequest, logits_V: Tensor) -> StepOutput:
    """Returns the parts of a row of logits that a request needs."""
    logits_K = ids_K = None
    if request.top_k and request.mask is not None:
        ids_S = torch.from_numpy(allowed_ids(request.mask, len(logits_V))).to(logits_V.device)
        logits_K, places_K = top_logits(logits_V[ids_S], request.top_k)
        ids_K = ids_S[places_K]
    elif request.top_k:
        logits_K, ids_K = top_logits(logits_V, request.top_k)
    return StepOutput(
        top_ids=ids_K,
        top_logits=logits_K,
        logits=logits_V if request.all_logits else None,
        log_z=float(logits_V.logsumexp(-1)) if request.log_z else None,
        target_logit=float(logits_V[request.target]) if request.target >= 0 else None,
    )


def _score(output: StepOutput, target: int) -> tuple[float, bool]:
    assert output.target_logit is not None
    assert output.log_z is not None
    assert output.top_ids is not None
    return output.target_logit - output.log_z, int(output.top_ids[0]) == target
