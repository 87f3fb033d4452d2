"""The model under examination, who exactly it is, and where its results go."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemmule.checkpoints.checkpoint import weights_fingerprint
from gemmule.errors import ConfigError
from gemmule.infer.language_model import LanguageModel, load
from gemmule.runtime import host


@dataclass(frozen=True)
class Subject:
    """A loaded model with what a result must say about it.

    Attributes:
        lm: the model and its tokenizer.
        path: as the user named it.
        folder: where its results go.
        identity: path, parameters, fingerprints of weights and tokenizer, dtype, quantization,
            versions: two results compare only if one knows what they are of.
    """

    lm: LanguageModel
    path: str
    folder: Path
    identity: dict[str, Any]

    @property
    def decides(self) -> dict[str, Any]:
        """What of the identity a model's answers depend on."""
        names = ("weights", "tokenizer", "dtype", "quantize", "device")
        return {name: self.identity.get(name) for name in names}

    @property
    def name(self) -> str:
        """What tables call it."""
        return Path(self.path).name or self.path


def open_subject(
    path: str,
    *,
    out: Path | None = None,
    dtype: str | None = None,
    device: str = "cpu",
    quantize: str | None = None,
) -> Subject:
    """Loads a model to be examined; arguments as for `gemmule.load`.

    Args:
        path: a run, an HF folder, a hub id, a .gguf, .ckpt or .npz file.
        out: where results go; None: see `results_folder`.
        dtype: of the weights.
        device: where it runs.
        quantize: pack the weights while they are read.

    Raises:
        UserError: when there is no readable model, or its tokenizer is not its partner.
    """
    lm = load(path, dtype=dtype, device=device, quantize=quantize)
    model = lm.model
    identity = {
        "path": path,
        "parameters": lm.config.parameters,
        "non_embedding_parameters": lm.config.non_embedding_parameters,
        "weights": weights_fingerprint(model),
        "tokenizer": lm.tokenizer.fingerprint,
        "dtype": str(model.norm.weight.dtype).removeprefix("torch."),
        "quantize": quantize,
        "device": device,
        "versions": host.versions(),
        "machine": host.machine(),
    }
    return Subject(lm, path, out or results_folder(path), identity)


def results_folder(path: str) -> Path:
    """A run's own `evals/`, where its card finds it; for any other model runs/evals/NAME.

    Raises:
        ConfigError: for a name of which no folder's name can be made.
    """
    run = Path(path)
    if (run / "manifest.json").is_file():
        return run / "evals"
    parts = [re.sub(r"[^A-Za-z0-9._-]+", "-", p).strip("-.") for p in run.parts[-2:]]
    name = "--".join(p for p in parts if p)
    if not name:
        raise ConfigError(f"no folder can be named after {path!r}: name one with --out")
    return Path("runs/evals") / name
