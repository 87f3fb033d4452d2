"""The plain runner: any Gemma module on any device, each span by itself.

A prediction depends on nothing else in the step. It may differ in its last bits between ways to
cut a sequence into spans, because the products of a matrix library depend on the number of rows;
the promise that no bit changes is the native runner's.
"""

import weakref
from collections.abc import Sequence

import torch
from torch import Tensor

from gemmule.infer.core.sampling import likeliest
from gemmule.infer.runners.protocol import PAGE, Output, Prediction, Span
from gemmule.model.gemma import Gemma

_LOGITS_AT_ONCE = 2**24  # 64 MiB of fp32: bounds memory at any vocabulary


class TorchRunner:
    """See `Runner`.

    Attributes:
        config: the model's.
        page_bytes: of one page.
        max_step_tokens: bounds what a long prompt takes beside the weights.
    """

    max_step_tokens = 512

    def __init__(self, model: Gemma) -> None:
        self.config = config = model.config
        self._model = model
        local = [config.is_local(i) for i in range(config.num_hidden_layers)]
        # Which of the layers of its kind a layer is: its place in a page.
        self._slots = [sum(kind == local[i] for kind in local[:i]) for i in range(len(local))]
        slots = max(self._slots) + 1
        self._page = (slots, 2, PAGE, config.num_key_value_heads, config.head_dim)
        norm = model.norm.weight  # never quantized: it has the activations' dtype
        self.device, self._dtype = norm.device, norm.dtype
        self.cache_format = str(norm.dtype).removeprefix("torch.")
        self.page_bytes = torch.Size(self._page).numel() * norm.element_size()
        self._pool = torch.empty(0, *self._page)

    def allocate(self, pages: int) -> None:
        """See `Runner`."""
        self._pool = torch.empty(pages, *self._page, dtype=self._dtype, device=self.device)

    def scores(self, spans: Sequence[Span]) -> list[list[tuple[float, bool]]]:
        """See `Runner`."""
        return [
            [
                _scored(prediction, output.target)
                for prediction, output in zip(found, span.outputs, strict=True)
            ]
            for found, span in zip(self.step(spans), spans, strict=True)
        ]

    def copy_page(self, source: int, target: int) -> None:
        """See `Runner`."""
        self._pool[target] = self._pool[source]

    @torch.inference_mode()
    def step(self, spans: Sequence[Span]) -> list[list[Prediction]]:
        """See `Runner`."""
        return [self._run(span) for span in spans]

    def _run(self, span: Span) -> list[Prediction]:
        tokens_BT = torch.tensor([list(span.tokens)], device=self.device)
        cache = _SpanCache(self, span)
        x_TD = self._model.hidden_states(tokens_BT, cache=cache)[0]
        if not span.outputs:
            return []
        x_OD = x_TD[torch.tensor([o.index for o in span.outputs], device=self.device)]
        found: list[Prediction] = []
        chunk = max(1, _LOGITS_AT_ONCE // self.config.vocab_size)
        for at in range(0, len(x_OD), chunk):
            logits_OV = self._model.logits(x_OD[at : at + chunk]).float()
            found += map(predict, span.outputs[at : at + chunk], logits_OV)
        return found

    def pages_of(self, layer: int) -> Tensor:
        """The pool's part for a layer, [pages, 2, PAGE, K, H]: keys, then values."""
        return self._pool[:, self._slots[layer]]


class _SpanCache:
    """The pages of one span, as the forward pass sees a cache."""

    segment_BS = torch.empty(0)  # one sequence, one segment

    def __init__(self, runner: TorchRunner, span: Span) -> None:
        self.length = span.start
        self._runner = weakref.proxy(runner)  # a layer's hooks may outlive the span
        config, end = runner.config, span.start + len(span.tokens)
        self._local = [config.is_local(i) for i in range(config.num_hidden_layers)]
        self._written = torch.arange(span.start, end, device=runner.device)
        self._read = {}
        for local, pages in ((False, span.global_pages), (True, span.local_pages)):
            oldest = max(0, span.start - config.sliding_window + 1) if local else 0
            first = oldest // PAGE
            numbers = torch.tensor(list(pages[first : -(-end // PAGE)]), device=runner.device)
            index = torch.arange(first * PAGE, end, device=runner.device)
            self._read[local] = (first, numbers, index)

    def begin(self, count: int, doc_ids_BT: Tensor | None) -> Tensor | None:
        """See `Cache`."""
        return None

    def extend(self, layer: int, k_BTKH: Tensor, v_BTKH: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `Cache`."""
        pool = self._runner.pages_of(layer)
        first, numbers, index = self._read[self._local[layer]]
        page, place = numbers[self._written // PAGE - first], self._written % PAGE
        pool[page, 0, place] = k_BTKH[0]
        pool[page, 1, place] = v_BTKH[0]
        k_BSKH, v_BSKH = (
            pool[numbers, part].flatten(0, 1)[None, : len(index)] for part in range(2)
        )
        return k_BSKH, v_BSKH, index


def predict(output: Output, logits_V: Tensor) -> Prediction:
    """What is wanted of a row of logits."""
    if output.kind == "logits":
        return Prediction(logits=logits_V)
    logits_K, ids_K = likeliest(logits_V, output.top_k if output.kind == "top_k" else 1)
    if output.kind != "score":
        return Prediction(ids_K, logits_K)
    log_z = float(logits_V.logsumexp(-1))
    return Prediction(ids_K, logits_K, log_z, float(logits_V[output.target]))


def _scored(prediction: Prediction, target: int) -> tuple[float, bool]:
    assert prediction.target_logit is not None
    assert prediction.log_z is not None
    assert prediction.ids is not None
    return prediction.target_logit - prediction.log_z, int(prediction.ids[0]) == target
