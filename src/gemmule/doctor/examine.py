"""Runs all checks of an implementation, in order."""

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gemmule.checkpoints.locate import locate
from gemmule.checkpoints.packed.reader import is_quantized
from gemmule.checkpoints.stored_tensor import dtype_name
from gemmule.checkpoints.verify import random_ids
from gemmule.console import ProgressBar
from gemmule.doctor import (
    endpoint,
    local_checks,
    stress,
    text_checks,
    transformers_model,
)
from gemmule.doctor.bugs import Bug
from gemmule.doctor.findings import logit_rows
from gemmule.doctor.local import GemmuleModel, GemmuleText, LocalModel, Text, weights_of
from gemmule.doctor.local_checks import TestedModel
from gemmule.doctor.report import FAIL, Check, DoctorReport
from gemmule.errors import ConfigError
from gemmule.infer.language_model import LanguageModel, load
from gemmule.teachers.completions import CompletionServer

BACKENDS = ("gemmule", "transformers", "openai")
DTYPES = ("float32", "bfloat16", "float16")
_FLOPS = 1e11  # budget of one pass over the user's own weights; there are about ten passes
_SHORTEST, _LONGEST = 24, 320  # tokens


def run_doctor(
    path: str,
    backend: str = "gemmule",
    url: str | None = None,
    served: str | None = None,
    attention: str = "eager",
    dtype: str | None = None,
) -> DoctorReport:
    """Examines an implementation of Gemma 2.

    Args:
        path: the model: a run, a folder in HF layout, or a hub id.
        backend: what runs it: "gemmule", "transformers", or "openai" (a server at `url`).
        url: base address of an OpenAI-compatible server, such as http://127.0.0.1:8000/v1.
        served: the server's name of the model; None: the first that it lists.
        attention: attn_implementation of transformers.
        dtype: dtype of weights and activations; None: as stored.

    Raises:
        ConfigError: for an unknown backend, dtype or attention, or an endpoint that cannot be used.
        CheckpointError: when the model cannot be read.
        MissingExtraError: when transformers is not installed.
    """
    if backend not in BACKENDS:
        raise ConfigError(f"unknown backend {backend!r}: use one of {', '.join(BACKENDS)}")
    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(f"unknown dtype {dtype!r}: use one of {', '.join(DTYPES)}")
    if (backend == "openai") != (url is not None):
        raise ConfigError("--backend openai needs --url, and only that backend takes it")
    began = time.monotonic()
    lm = load(path, dtype=dtype if dtype and backend == "gemmule" else _dtype(path))
    if backend == "openai":
        chosen = getattr(torch, dtype) if dtype else lm.model.embed_tokens.weight.dtype
        server = CompletionServer(url or "", served, pauses=(), option="--model")
        rows = endpoint.examine(server, lm, chosen)
    else:
        model: LocalModel = GemmuleModel(lm.model)
        text: Text | None = GemmuleText(lm) if lm.has_tokenizer else None
        chosen = model.dtype
        if backend == "transformers":
            wanted = getattr(torch, dtype) if dtype else chosen
            model, text = transformers_model.load(path, attention, wanted)
            chosen = wanted
        rows = examine(model, text, lm, library_default=backend == "transformers")
    name = f"{backend} at {url}" if url else backend
    return DoctorReport(str(path), name, dtype_name(chosen), tuple(rows), time.monotonic() - began)


def _dtype(path: str) -> str | None:
    """The dtype to load with: the checks need the weights of a packed model as numbers."""
    return "float32" if is_quantized(locate(path).path) else None


def examine(
    model: LocalModel, text: Text | None, lm: LanguageModel, library_default: bool
) -> list[Check]:
    """Runs every check of a model in this process.

    Args:
        model: the model.
        text: its tokenizer; None: it has none, and checks of text are left out.
        lm: the checkpoint as gemmule reads it, whose weights the reference uses.
        library_default: see `text_checks.markers_row`.
    """
    config, weights = lm.config, weights_of(lm)
    layers = config.num_hidden_layers
    with ProgressBar("examining", 12 + 2 * layers, "steps") as bar:
        done = 0

        def tick(label: str = "reference") -> None:
            nonlocal done
            done += 1
            bar.update(min(done, 12 + 2 * layers), label)

        tick("stressed weights")
        near = local_checks.stressed_model(model, config, torch.float32)
        suspects = near.probe.causes or ()
        tested = [near]
        for dtype in dict.fromkeys((torch.float32, model.dtype)):
            for start in (0, stress.FAR):
                if dtype != torch.float32 or start:
                    tested.append(
                        local_checks.stressed_model(model, config, dtype, start, suspects)
                    )
        tick("own weights")
        own = _own_model(model, text, lm, weights, suspects, tick)
        tested.append(own)
        loud = local_checks.loud_logits(model, config, model.dtype)
        finite = local_checks.finite_row(tested, loud)
        tick("logits")
        tied = local_checks.tied_row(near, model)
        logits = logit_rows([s.probe for s in tested], tied.result == FAIL)
        near_ones = [s for s in tested if "positions" not in s.name]
        invariances = local_checks.invariance_rows(near_ones, tick)
        tick("text")
        about_text = text_checks.rows_without_tokenizer()
        if text is not None:
            about_text = [
                text_checks.bos_row(text, _bos_losses(model, text, own)),
                text_checks.ids_row(text),
                text_checks.markers_row(text, library_default),
            ]
        return [
            *logits[:-1], tied, *invariances, finite,
            text_checks.published_row(config), *about_text, logits[-1],
        ]  # fmt: skip


def _own_model(
    model: LocalModel,
    text: Text | None,
    lm: LanguageModel,
    weights: dict[str, Tensor],
    suspects: Sequence[Bug],
    tick: Callable[[], None],
) -> TestedModel:
    config = lm.config
    afford = int(_FLOPS / (2 * config.parameters))
    length = min(max(afford, _SHORTEST), _LONGEST, config.max_position_embeddings)
    prose = random_ids(config, length) if text is None else text.encode_plain(text_checks.PROSE)
    ids = [text_checks.BOS, *(prose * (length // len(prose) + 1))][:length]
    stored = weights["embed_tokens.weight"].dtype
    if torch.promote_types(stored, model.dtype) != model.dtype:  # the model has rounded them
        weights = {name: w.to(model.dtype) for name, w in weights.items()}
    return local_checks.tested_model(
        "your weights",
        model,
        weights,
        config,
        local_checks.Prompt(ids),
        stressed=False,
        suspects=suspects,
        tick=tick,
    )


def _bos_losses(model: LocalModel, text: Text, own: TestedModel) -> dict[int, float]:
    """Nats per token of the same text with none, one and two <bos>."""
    ids = text.encode_plain(text_checks.PROSE)[: len(own.ids) // 2]
    losses = {}
    for count in (0, 1, 2):
        row = torch.tensor([text_checks.BOS] * count + ids)
        log_probs = model.logits(row[None])[0].float().log_softmax(-1)
        chosen = log_probs[:-1].gather(1, row[1:, None])[:, 0]
        losses[count] = -chosen[-len(ids) + 1 :].mean().item()
    return losses
