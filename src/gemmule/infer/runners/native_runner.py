"""Runs a model on the CPU with the kernels in C++: one native call per step.

Weights are used where they are: packed integers, or a torch module's own fp32 or bf16 matrices.
Everything between them is fp32. The logits after a token have the same bits whatever else is in the
step, however the sequence was cut into chunks, and whichever threads computed them: products of
integers are exact, and every other sum has one order.
"""

import ctypes
from array import array
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from gemmule.checkpoints.packed.model import QuantizedGemma
from gemmule.checkpoints.stored_tensor import empty
from gemmule.errors import ConfigError
from gemmule.infer.runners.protocol import (
    MAX_TOP_K,
    LogitsRequest,
    ScheduledChunk,
    StepOutput,
)
from gemmule.model.config import GemmaConfig
from gemmule.model.gemma import Gemma
from gemmule.quant import native
from gemmule.quant.layout import FLOATS
from gemmule.quant.native import CLayer, CMatrix, CModel, CStep
from gemmule.quant.packed import PackedMatrix, plain

CACHES = {"float16": 0, "int8": 1, "float32": 2}
# Multiplications in a step up to which one thread runs it: less than a millisecond. Each step has
# dozens of places where threads wait for each other, and where another program, or a server's
# thread, has a core, each may cost more than the second thread saves.
_SMALL_STEP = 2**24
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
    """Returns the matrix of a linear layer or an embedding, quantized, adapted or neither."""
    packed = getattr(module, "packed", None)
    if packed is not None:
        return packed
    weight = module.weight  # a module with an adapter merges it here
    assert isinstance(weight, Tensor)
    return plain(weight.detach())


def matrices_of(layer: nn.Module) -> dict[str, PackedMatrix]:
    """Returns all matrices of a layer, by the names of the kernels' interface."""
    return {name: packed_of(layer.get_submodule(path)) for name, path in _PROJECTIONS}


class _Results(NamedTuple):
    """What a step filled in, one row per logits request (O) or per whole row of logits (R)."""

    top_k: list[int]
    rows: list[int]
    ids_OK: Tensor
    logits_OK: Tensor
    target_O: Tensor
    log_z_O: Tensor
    logits_RV: Tensor


class NativeRunner:
    """Runs a model with the native kernels; implements `Runner`.

    Args:
        model: a module on the CPU that is supported; its weights are not copied.
        cache: format of keys and values: "float32", "float16", or "int8" with one scale per head
            and position. None: "float32" if the weights are, else "float16".
        threads: number of threads; None: as many as torch uses, and one for steps that are small.

    Attributes:
        config: shape of the model.
        device: the CPU.
        cache_format: format of keys and values.
        page_bytes: size of a page.
        max_step_tokens: maximum number of tokens in a step.
        pool: keys and values of all pages, as bytes.

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
        self._parameters = self.config.parameters
        self._one_thread = native.threads(1) if threads is None else self._threads
        self._module, self._cache = model, CACHES[cache]
        self._huge_pages = model.huge_pages if isinstance(model, QuantizedGemma) else None
        self._referenced: list[object] = []  # what the pointers in the struct below point to
        self._model = self._c_model()
        self.cache_format = cache
        self.page_bytes = int(native.loaded().gm_page_bytes(self._model))
        self.pool = torch.empty(0, dtype=torch.uint8)

    @staticmethod
    def supports(model: nn.Module) -> bool:
        """Whether the library is installed and can run `model` on its device and in its dtype."""
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
        """Makes the pool; memory is taken as pages are first used."""
        self.pool = empty((pages * self.page_bytes,), torch.uint8, torch.device("cpu"))

    def copy_page(self, source: int, target: int) -> None:
        """Copies the contents of one page to another."""
        pages = self.pool.view(-1, self.page_bytes)
        pages[target] = pages[source]

    def weights_changed(self) -> None:
        """Reads the module's parameters again: bf16 norms were copied, others may have moved."""
        self._referenced = []
        self._model = self._c_model()

    def step(self, chunks: Sequence[ScheduledChunk]) -> list[list[StepOutput]]:
        """Computes all chunks; see `Runner`."""
        requests = [request for chunk in chunks for request in chunk.logits]
        results = self._run(chunks, requests)
        outputs = iter(
            StepOutput(
                top_ids=ids_K[:top_k].long() if request.top_k else None,
                top_logits=logits_K[:top_k] if request.top_k else None,
                logits=results.logits_RV[row] if request.all_logits else None,
                log_z=float(log_z) if request.log_z else None,
                target_logit=float(target) if request.target >= 0 else None,
            )
            for request, top_k, row, ids_K, logits_K, log_z, target in zip(
                requests, results.top_k, results.rows, results.ids_OK, results.logits_OK,
                results.log_z_O, results.target_O, strict=False,
            )
        )  # fmt: skip
        return [[next(outputs) for _ in chunk.logits] for chunk in chunks]

    def scores(self, chunks: Sequence[ScheduledChunk]) -> list[list[tuple[float, bool]]]:
        """Returns log-probabilities of targets, without an object per token; see `Runner`."""
        requests = [request for chunk in chunks for request in chunk.logits]
        results = self._run(chunks, requests)
        if not requests:
            return [[] for _ in chunks]
        values = (results.target_O.double() - results.log_z_O.double()).tolist()
        top = results.ids_OK[:, 0].tolist()
        targets = (request.target for request in requests)
        rest = iter([(v, i == t) for v, i, t in zip(values, top, targets, strict=True)])
        return [[next(rest) for _ in chunk.logits] for chunk in chunks]

    def _run(self, chunks: Sequence[ScheduledChunk], requests: Sequence[LogitsRequest]) -> _Results:
        first = [0, *accumulate(len(chunk.tokens) for chunk in chunks)]
        top = [request.top_k for request in requests]
        rows = list(accumulate((request.all_logits for request in requests), initial=0))
        max_top = max(top, default=0)
        assert max_top <= MAX_TOP_K
        ids_OK = torch.empty(len(requests), max_top, dtype=torch.int32)
        logits_OK = torch.empty(ids_OK.shape)
        target_O, log_z_O = torch.empty(len(requests)), torch.empty(len(requests))
        logits_RV = torch.empty(rows[-1], self.config.vocab_size)
        arrays = {
            "token": array("i", [token for chunk in chunks for token in chunk.tokens]),
            "span_first": array("i", first),
            "span_start": array("i", [chunk.start for chunk in chunks]),
            "span_pages": array("q", [0, *accumulate(len(c.global_pages) for c in chunks)][:-1]),
            "global_pages": array("i", [page for chunk in chunks for page in chunk.global_pages]),
            "local_pages": array("i", [page for chunk in chunks for page in chunk.local_pages]),
            "output_token": array(
                "i",
                [
                    at + request.index
                    for at, chunk in zip(first, chunks, strict=False)
                    for request in chunk.logits
                ],
            ),
            "output_top": array("i", top),
            "output_target": array("i", [request.target for request in requests]),
            "output_z": array("i", [request.log_z for request in requests]),
            "output_row": array(
                "i",
                [
                    row if request.all_logits else -1
                    for row, request in zip(rows, requests, strict=False)
                ],
            ),
        }
        masked = [i for i, request in enumerate(requests) if request.mask is not None]
        if masked:
            arrays["output_mask"] = array(
                "Q", [_address(request.mask, self.config.vocab_size) for request in requests]
            )
        assert len(arrays["global_pages"]) == len(arrays["local_pages"])
        step = CStep(
            tokens=first[-1],
            spans=len(chunks),
            outputs=len(requests),
            pool=self.pool.data_ptr(),
            page_bytes=self.page_bytes,
            top_stride=ids_OK.shape[1],
            top_ids=ids_OK.data_ptr(),
            top_logits=logits_OK.data_ptr(),
            target_logit=target_O.data_ptr(),
            log_z=log_z_O.data_ptr(),
            logits=logits_RV.data_ptr(),
            **{name: values.buffer_info()[0] for name, values in arrays.items()},
        )
        small = first[-1] * self._parameters <= _SMALL_STEP
        threads = self._one_thread if small else self._threads
        done = native.loaded().gm_run(threads.handle, self._model, step)
        threads.check(done, f"a step of {first[-1]} tokens")
        if self._huge_pages is not None:  # not before the first token, which they would delay
            self._huge_pages.start()
            self._huge_pages = None
        for i in masked:  # a mask may allow fewer than asked for
            top[i] = int((ids_OK[i, : top[i]] >= 0).sum())
        return _Results(top, rows, ids_OK, logits_OK, target_O, log_z_O, logits_RV)

    def _c_model(self) -> CModel:
        model, config = self._module, self.config
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
            cache=self._cache,
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
        self._referenced.append(matrix)
        return native.c_matrix(matrix)

    def _floats(self, values: Tensor) -> int:
        referenced = values.detach().float().contiguous()
        self._referenced.append(referenced)
        return referenced.data_ptr()


def _address(mask: npt.NDArray[np.uint32] | None, num_ids: int) -> int:
    if mask is None:
        return 0
    # The library reads as many words as there are ids for.
    assert mask.dtype == np.uint32
    assert mask.flags.c_contiguous
    assert mask.shape == (-(-num_ids // 32),)
    return int(mask.__array_interface__["data"][0])


def _activations(embed: PackedMatrix) -> torch.dtype:
    return FLOATS.get(embed.format, torch.float32)
