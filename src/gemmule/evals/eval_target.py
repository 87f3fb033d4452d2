"""The model that is evaluated: the model itself, its identity, and where its results go."""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemmule.checkpoints.checkpoint import weights_fingerprint
from gemmule.errors import ConfigError
from gemmule.infer.language_model import LanguageModel, load
from gemmule.model.tokenizer import Tokenizer
from gemmule.model.tokenizer_files import DEFAULT_STOP_IDS
from gemmule.runs.layout import RunLayout
from gemmule.runtime import host


@dataclass(frozen=True)
class EvalTarget:
    """A loaded model and what a result must record about it.

    Attributes:
        lm: the model and its tokenizer.
        path: the path or id that the user gave.
        folder: folder of its results.
        identity: path, parameters, fingerprints of weights and tokenizer, dtype, quantization,
            versions. Two results can only be compared if it is known which models they describe.
    """

    lm: LanguageModel
    path: str
    folder: Path
    identity: dict[str, Any]

    @property
    def cache_key(self) -> dict[str, Any]:
        """The part of the identity that a model's responses depend on."""
        names = ("weights", "tokenizer", "dtype", "quantize", "device")
        own = {k: v for k, v in self.identity.items() if k == "chat_format"}
        return {name: self.identity.get(name) for name in names} | own

    @property
    def name(self) -> str:
        """The model's name in tables."""
        return Path(self.path).name or self.path


@dataclass(frozen=True)
class LoadOptions:
    """How a model is loaded; the same options as for `gemmule.load`.

    Attributes:
        dtype: data type of the weights; None: the checkpoint's.
        device: torch device.
        quantize: packed format to quantize the weights to while they are read.
    """

    dtype: str | None = None
    device: str = "cpu"
    quantize: str | None = None


def open_target(
    path: str, *, out: Path | None = None, options: LoadOptions | None = None
) -> EvalTarget:
    """Loads a model to be evaluated.

    Args:
        path: a run, an HF folder, a hub id, a .gguf, .ckpt or .npz file.
        out: folder of the results; None: see `results_folder`.
        options: how the model is loaded.

    Raises:
        UserError: if there is no readable model, or its tokenizer does not match it.
    """
    options = options or LoadOptions()
    lm = load(path, dtype=options.dtype, device=options.device, quantize=options.quantize)
    model = lm.model
    identity = {
        "path": path,
        "parameters": lm.config.parameters,
        "non_embedding_parameters": lm.config.non_embedding_parameters,
        "weights": weights_fingerprint(model),
        "tokenizer": lm.tokenizer.fingerprint,
        **_chat_format(lm.tokenizer),
        "dtype": str(model.norm.weight.dtype).removeprefix("torch."),
        "quantize": options.quantize,
        "device": options.device,
        "versions": host.versions(),
        "machine": host.machine(),
    }
    return EvalTarget(lm, path, out or results_folder(path), identity)


def _chat_format(tokenizer: Tokenizer) -> dict[str, str]:
    """A fingerprint of a chat format of the model's own, on which its answers depend."""
    if (tokenizer.chat_template, tokenizer.stop_ids) == (None, DEFAULT_STOP_IDS):
        return {}
    parts = [tokenizer.chat_template, tokenizer.stop_ids, sorted(tokenizer.token_names.items())]
    return {"chat_format": hashlib.sha256(json.dumps(parts).encode()).hexdigest()}


def results_folder(path: str) -> Path:
    """The folder of a model's results: a run's own evals/, else runs/evals/NAME.

    Raises:
        ConfigError: if no folder name can be made from `path`.
    """
    run = RunLayout(Path(path))
    if run.started:
        return run.evals
    parts = [re.sub(r"[^A-Za-z0-9._-]+", "-", p).strip("-.") for p in run.path.parts[-2:]]
    name = "--".join(p for p in parts if p)
    if not name:
        raise ConfigError(f"no folder name can be made from {path!r}: give one with --out")
    return Path("runs/evals") / name
