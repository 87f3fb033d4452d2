"""Runs a model on the processor with the kernels in C++: one native call a step.

Weights are used where they lie: packed integers, or a torch module's own fp32 or bf16 matrices.
Everything between them is fp32. A token's prediction has the same bits whatever else is in the
step, however its sequence was cut into spans, and on whichever threads it was computed: products
of integers are exact, and every other sum has one order.
"""

import ctypes
from array import array
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gemmule.checkpoints.stored_tensor import empty
from gemmule.errors import ConfigError
from gemmule.infer.runners.protocol import MOST_CANDIDATES, Output, Prediction, Span
from gemmule.model.config import GemmaConfig
from gemmule.model.gemma import Gemma
from gemmule.quant import native
from gemmule.quant.layout import FLOATS
from gemmule.quant.native import CLayer, CMatrix, CModel, CStep
from gemmule.quant.packed import PackedMatrix, plain

CACHES = {"float16": 0, "int8": 1, "float32": 2}
_STEP_TOKENS = 512  # enough for the arithmetic, not the memory, to be what limits a long prompt
_PROJECTIONS = (
    ("q", "self_attn.q_proj"), ("k", "self_attn.k_proj"), ("v", "self_attn.v_proj"),
    ("o", "self_attn.o_proj"), ("gate", "mlp.gate_proj"), ("up", "mlp.up_proj"),
    ("down", "mlp.down_proj"),
)  # fmt: skip
_NORMS = (
    "input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
)  # fmt: skip


def packed_of(module: nn.Module) -> PackedMatrix:
    """The matrix of a linear layer or an embedding, quantized or not."""
    packed = getattr(module, "packed", None)
    return packed if packed is not None else plain(module.get_parameter("weight").detach())


def matrices_of(layer: nn.Module) -> dict[str, PackedMatrix]:
    """All matrices of a layer, by the names of the kernels' interface."""
    return {name: packed_of(layer.get_submodule(path)) for name, path in _PROJECTIONS}


class _Found(NamedTuple):
    """What a step filled in, an output a row."""

    top: list[int]
    rows: list[int]
    ids_OK: Tensor
    logits_OK: Tensor
    target_O: Tensor
    z_O: Tensor
    logits_RV: Tensor


class NativeRunner:
    """See Runner.

    Args:
        model: a module on the CPU that `supports` says yes to.
        cache: what keys and values are kept as: "float32", "float16", or "int8" with one scale a
            head and position. None: "float32" where the weights are, else "float16".
        threads: how many; None: as many as torch uses.

    Raises:
        ConfigError: for an unknown cache.
    """

    def __init__(
        self, model: Gemma, *, cache: str | None = None, threads: int | None = None
    ) -> None:
        if cache is None:
            cache = "float32" if packed_of(model.embed_tokens).format == "f32" else "float16"
        if cache not in CACHES:
            raise ConfigError(f"cache {cache!r} is not one of {', '.join(CACHES)}")
        self.config: GemmaConfig = model.config
        self.device = torch.device("cpu")
        self.max_step_tokens = _STEP_TOKENS
        self._threads = native.threads(threads)
        self._kept: list[object] = []  # what the pointers below point to
        self._model = self._c_model(model, CACHES[cache])
        self.cache_format = cache
        self.page_bytes = int(native.loaded().gm_page_bytes(self._model))
        self._pool = torch.empty(0, dtype=torch.uint8)

    @staticmethod
    def supports(model: nn.Module) -> bool:
        """Whether the library is there, and can run `model` where and as it is."""
        if not isinstance(model, Gemma) or not native.available():
            return False
        if any(t.device.type != "cpu" for t in (*model.parameters(), *model.buffers())):
            return False
        return all(
            module.weight.dtype in FLOATS.values()
            for module in model.modules()
            if isinstance(module, nn.Linear | nn.Embedding)
        )

    def allocate(self, pages: int) -> None:
        """See Runner."""
        self._pool = empty((pages * self.page_bytes,), torch.uint8, torch.device("cpu"))

    def copy_page(self, source: int, target: int) -> None:
        """See Runner."""
        pages = self._pool.view(-1, self.page_bytes)
        pages[target] = pages[source]

    def step(self, spans: Sequence[Span]) -> list[list[Prediction]]:
        """See Runner."""
        outputs = [output for span in spans for output in span.outputs]
        found = self._run(spans, outputs)
        predictions = iter(
            Prediction(
                ids=None if output.kind == "logits" else ids_K[:k].long(),
                logits=found.logits_RV[row] if output.kind == "logits" else logits_K[:k],
                log_z=float(z) if output.kind == "score" else None,
                target_logit=float(target) if output.kind == "score" else None,
            )
            for output, k, row, ids_K, logits_K, z, target in zip(
                outputs, found.top, found.rows, found.ids_OK, found.logits_OK, found.z_O,
                found.target_O, strict=False,
            )
        )  # fmt: skip
        return [[next(predictions) for _ in span.outputs] for span in spans]

    def scores(self, spans: Sequence[Span]) -> list[list[tuple[float, bool]]]:
        """See Runner."""
        outputs = [output for span in spans for output in span.outputs]
        found = self._run(spans, outputs)
        if not outputs:
            return [[] for _ in spans]
        values = (found.target_O.double() - found.z_O.double()).tolist()
        likeliest = found.ids_OK[:, 0].tolist()
        targets = (output.target for output in outputs)
        rest = iter([(v, i == t) for v, i, t in zip(values, likeliest, targets, strict=True)])
        return [[next(rest) for _ in span.outputs] for span in spans]

    def _run(self, spans: Sequence[Span], outputs: Sequence[Output]) -> "_Found":
        lengths = [len(span.tokens) for span in spans]
        first = [0, *accumulate(lengths)]
        top = [_candidates(output) for output in outputs]
        rows = list(accumulate((output.kind == "logits" for output in outputs), initial=0))
        ids_OK = torch.empty(len(outputs), max(top, default=0), dtype=torch.int32)
        logits_OK = torch.empty(ids_OK.shape)
        target_O, z_O = torch.empty(len(outputs)), torch.empty(len(outputs))
        logits_RV = torch.empty(rows[-1], self.config.vocab_size)
        arrays = {
            "token": array("i", [token for span in spans for token in span.tokens]),
            "span_first": array("i", first),
            "span_start": array("i", [span.start for span in spans]),
            "span_pages": array("q", [0, *accumulate(len(s.global_pages) for s in spans)][:-1]),
            "global_pages": array("i", [page for span in spans for page in span.global_pages]),
            "local_pages": array("i", [page for span in spans for page in span.local_pages]),
            "output_token": array(
                "i",
                [
                    at + output.index
                    for at, span in zip(first, spans, strict=False)
                    for output in span.outputs
                ],
            ),
            "output_top": array("i", top),
            "output_target": array("i", [output.target for output in outputs]),
            "output_z": array("i", [output.kind == "score" for output in outputs]),
            "output_row": array(
                "i",
                [
                    row if output.kind == "logits" else -1
                    for row, output in zip(rows, outputs, strict=False)
                ],
            ),
        }
        assert len(arrays["global_pages"]) == len(arrays["local_pages"])
        step = CStep(
            tokens=first[-1],
            spans=len(spans),
            outputs=len(outputs),
            pool=self._pool.data_ptr(),
            page_bytes=self.page_bytes,
            top_stride=ids_OK.shape[1],
            top_ids=ids_OK.data_ptr(),
            top_logits=logits_OK.data_ptr(),
            target_logit=target_O.data_ptr(),
            log_z=z_O.data_ptr(),
            logits=logits_RV.data_ptr(),
            **{name: values.buffer_info()[0] for name, values in arrays.items()},
        )
        if native.loaded().gm_run(self._threads.handle, self._model, step) != 0:
            raise MemoryError(f"no memory for a step of {first[-1]} tokens")
        return _Found(top, rows, ids_OK, logits_OK, target_O, z_O, logits_RV)

    def _c_model(self, model: Gemma, cache: int) -> CModel:
        config = model.config
        embed = packed_of(model.embed_tokens)
        layers = (CLayer * config.num_hidden_layers)(
            *(self._c_layer(config, i, layer) for i, layer in enumerate(model.layers))
        )
        pairs = torch.arange(0, config.head_dim, 2, dtype=torch.float32)
        return CModel(
            layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            ffn=config.intermediate_size,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            vocab=config.vocab_size,
            cache=cache,
            eps=config.rms_norm_eps,
            attention_scale=config.attention_scale,
            attention_cap=config.attn_logit_softcapping or 0.0,
            final_cap=config.final_logit_softcapping or 0.0,
            # Rounded as the module's activations are: see Gemma.hidden_states.
            embed_scale=float(torch.tensor(config.hidden_size**0.5, dtype=_activations(embed))),
            embed=self._c_matrix(embed),
            norm=self._floats(model.norm.weight),
            inv_freq=self._floats(config.rope_theta ** -(pairs / config.head_dim)),
            layer=layers,
        )

    def _c_layer(self, config: GemmaConfig, index: int, layer: nn.Module) -> CLayer:
        matrices = {name: self._c_matrix(m) for name, m in matrices_of(layer).items()}
        norms = [self._floats(layer.get_parameter(f"{name}.weight")) for name in _NORMS]
        return CLayer(
            **matrices,
            norms=(ctypes.c_void_p * 4)(*norms),
            window=config.sliding_window if config.is_local(index) else 0,
            slot=index // 2,
        )

    def _c_matrix(self, matrix: PackedMatrix) -> CMatrix:
        self._kept.append(matrix)
        return native.c_matrix(matrix)

    def _floats(self, values: Tensor) -> int:
        held = values.detach().float().contiguous()
        self._kept.append(held)
        return held.data_ptr()


def _activations(embed: PackedMatrix) -> torch.dtype:
    return FLOATS.get(embed.format, torch.float32)


def _candidates(output: Output) -> int:
    """How many of the likeliest ids an output needs."""
    assert output.top_k <= MOST_CANDIDATES
    return {"top_k": output.top_k, "logits": 0}.get(output.kind, 1)
