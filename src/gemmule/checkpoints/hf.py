"""Models in Hugging Face's layout: config.json, model.safetensors and the tokenizer's files.

This is the native form: what training leaves in `model/`, and what every command loads.
"""

import errno
import hashlib
import re
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor

from gemmule import files
from gemmule.checkpoints.hf_config import from_hf, generation_config, read_object, to_hf
from gemmule.checkpoints.locate import resolve_model_folder
from gemmule.errors import CheckpointError, ConfigError
from gemmule.model.config import GemmaConfig
from gemmule.model.gemma import Gemma
from gemmule.model.tokenizer import Tokenizer

__all__ = [
    "load_model",
    "parse_device",
    "parse_dtype",
    "resolve_model_folder",
    "save_model",
    "weights_fingerprint",
]

_PREFIX = "model."
_HEAD = "lm_head.weight"
_STORED = {  # safetensors' names of the dtypes weights may have
    "F64": torch.float64,
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
}
_NAMES = {str(d).removeprefix("torch."): d for d in _STORED.values()}


def parse_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """A floating dtype given as such or by name; None stays None.

    Raises:
        ConfigError: for anything else.
    """
    if dtype is None:
        return None
    found = _NAMES.get(dtype) if isinstance(dtype, str) else dtype
    if found not in _NAMES.values():
        raise ConfigError(f"dtype {str(dtype)!r} is not one of {', '.join(_NAMES)}")
    return found


def parse_device(device: torch.device | str) -> torch.device:
    """A device that this machine has.

    Raises:
        ConfigError: for an unknown name, or a device this machine or torch build lacks.
    """
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, NotImplementedError) as e:
        reason = str(e).splitlines()[0]
        raise ConfigError(f"device {str(device)!r} cannot be used here: {reason}") from None
    return found


# --- saving -------------------------------------------------------------------------------------


def save_model(
    model: Gemma, tokenizer: Tokenizer, folder: Path, *, dtype: torch.dtype | None = None
) -> None:
    """Writes `model` and `tokenizer` to `folder` as one atomic replacement.

    Args:
        model: the weights; any device.
        tokenizer: saved beside them.
        folder: created or replaced as a whole.
        dtype: what the weights are stored in; None keeps theirs.

    Raises:
        OutputError: when the place cannot be written to.
    """
    weights = {_PREFIX + name: _plain(tensor, dtype) for name, tensor in model.state_dict().items()}
    stored = str(weights[_PREFIX + "embed_tokens.weight"].dtype).removeprefix("torch.")
    with files.atomic_dir(folder) as tmp:
        files.write_json(tmp / "config.json", to_hf(model.config, stored))
        files.write_json(tmp / "generation_config.json", generation_config())
        _save_weights(weights, tmp / "model.safetensors")
        # safetensors makes its file private to the user; it is to be as readable as the others.
        (tmp / "model.safetensors").chmod((tmp / "config.json").stat().st_mode & 0o777)
        tokenizer.save(tmp)


def _plain(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    return tensor.detach().to(device="cpu", dtype=dtype or tensor.dtype).contiguous()


def _save_weights(weights: dict[str, Tensor], path: Path) -> None:
    try:
        save_file(weights, path, metadata={"format": "pt"})
    except safetensors.SafetensorError as e:
        # It reports a full disk as its own error type; give the number back to the caller.
        number = re.search(r"os error (\d+)", str(e))
        raise OSError(int(number[1]) if number else errno.EIO, str(e)) from e


# --- loading ------------------------------------------------------------------------------------


def load_model(
    folder: Path, dtype: torch.dtype | str | None = None, device: torch.device | str = "cpu"
) -> Gemma:
    """Reads a model in HF layout.

    The files are memory-mapped and copied, so the weights are aligned to 64 bytes and do not
    depend on the files afterwards.

    Args:
        folder: holds config.json, and model.safetensors or a sharded model.safetensors.index.json.
        dtype: of the weights in memory. None: as stored, except that float16 becomes float32
            (Gemma 2's activations overflow float16).
        device: where they go.

    Raises:
        CheckpointError: for files that are missing, broken, of another architecture, or hold
            other tensors than config.json asks for, or NaN or Inf.
        ConfigError: for an impossible dtype or device.
    """
    dtype, device = parse_dtype(dtype), parse_device(device)
    config = from_hf(read_object(folder / "config.json"), str(folder / "config.json"))
    with ExitStack() as stack:
        stored = _open_all(folder, stack)
        model = _empty_model(config, stored, folder)
        wanted = model.state_dict()
        _check_names(wanted, stored, folder)
        if dtype is None:
            dtype = _widest(stored.values())
        # One tensor at a time: at most one is in memory twice.
        weights = {name: stored[name].copy(dtype, device) for name in wanted}
        if _HEAD in stored and not torch.equal(
            stored[_HEAD].copy(dtype, device), weights["embed_tokens.weight"]
        ):
            raise CheckpointError(
                f"{folder}: lm_head.weight differs from the embedding; only a tied head "
                "is supported"
            )
        model.load_state_dict(weights, assign=True)
    return model.requires_grad_(True)


class _Stored:
    """One tensor in an opened safetensors file; nothing is read before `copy`."""

    def __init__(self, file: Any, name: str, path: Path) -> None:
        described = file.get_slice(name)
        self._file, self.name, self.path = file, name, path
        self.shape = tuple(described.get_shape())
        code = described.get_dtype()
        if code not in _STORED:
            raise CheckpointError(
                f"{path}: {name} is stored as {code}; supported are {', '.join(_STORED)}"
            )
        self.dtype = _STORED[code]

    def copy(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        """A fresh tensor, checked for NaN and Inf."""
        mapped: Tensor = self._file.get_tensor(self.name)
        fresh = torch.empty(self.shape, dtype=dtype, device=device).copy_(mapped)
        if fresh.numel() and not torch.stack(torch.aminmax(fresh)).isfinite().all():
            overflowed = bool(torch.stack(torch.aminmax(mapped)).isfinite().all())
            raise CheckpointError(
                f"{self.path}: {self.name} "
                + (f"does not fit in {dtype}" if overflowed else "holds NaN or Inf")
            )
        return fresh


def _open_all(folder: Path, stack: ExitStack) -> dict[str, _Stored]:
    """Every stored tensor of a single-file or sharded checkpoint, under our names."""
    index_path = folder / "model.safetensors.index.json"
    expected: Mapping[str, str] | None = None
    if (folder / "model.safetensors").exists():
        paths = [folder / "model.safetensors"]
    elif index_path.exists():
        expected = read_object(index_path).get("weight_map")
        if not isinstance(expected, dict) or not expected:
            raise CheckpointError(f"{index_path}: weight_map is missing or not an object")
        for file in expected.values():
            if not isinstance(file, str) or file in {".", ".."} or Path(file).name != file:
                raise CheckpointError(f"{index_path}: {file!r} is not a file name in this folder")
        paths = [folder / file for file in sorted(set(expected.values()))]
    else:
        raise CheckpointError(
            f"no weights in {folder}: expected model.safetensors or {index_path.name}"
        )
    stored: dict[str, _Stored] = {}
    for path in paths:
        for name, tensor in _open(path, stack):
            if expected is not None and expected.get(name) != path.name:
                raise CheckpointError(f"{path}: {name} is not where {index_path.name} has it")
            if name.removeprefix(_PREFIX) in stored:
                raise CheckpointError(f"{path}: {name} is stored twice")
            stored[name.removeprefix(_PREFIX)] = tensor
    if expected is not None and len(expected) != len(stored):
        lost = [name for name in expected if name.removeprefix(_PREFIX) not in stored]
        raise CheckpointError(f"{folder}: the shards lack {_few(lost)}; download them again")
    return stored


def _open(path: Path, stack: ExitStack) -> Iterable[tuple[str, _Stored]]:
    try:
        file = stack.enter_context(safetensors.safe_open(path, framework="pt"))
        return [(name, _Stored(file, name, path)) for name in file.keys()]  # noqa: SIM118
    except FileNotFoundError:
        raise CheckpointError(f"no {path.name} in {path.parent}; download it again") from None
    except (safetensors.SafetensorError, OSError, ValueError) as e:
        raise CheckpointError(
            f"{path} is no readable safetensors file, or was cut short: {e}"
        ) from None


def _empty_model(config: GemmaConfig, stored: Mapping[str, _Stored], folder: Path) -> Gemma:
    """The model on the meta device, once the file is seen to hold as many layers."""
    layers = {name.split(".")[1] for name in stored if name.startswith("layers.")}
    if len(layers) != config.num_hidden_layers:
        raise CheckpointError(
            f"{folder}: config.json says {config.num_hidden_layers} layers, the weights hold "
            f"{len(layers)}"
        )
    try:
        with torch.device("meta"):
            return Gemma(config)
    except (RuntimeError, OverflowError, TypeError) as e:
        raise CheckpointError(
            f"{folder / 'config.json'} describes an impossible model: {str(e).splitlines()[0]}"
        ) from None


def _check_names(wanted: Mapping[str, Tensor], stored: Mapping[str, _Stored], folder: Path) -> None:
    missing = [name for name in wanted if name not in stored]
    unexpected = [name for name in stored if name not in wanted and name != _HEAD]
    if missing or unexpected:
        parts = [f"lack {_few(missing)}"] if missing else []
        parts += [f"hold unexpected {_few(unexpected)}"] if unexpected else []
        raise CheckpointError(f"{folder}: the weights {' and '.join(parts)}")
    wrong = [
        f"{name} {list(stored[name].shape)} instead of {list(tensor.shape)}"
        for name, tensor in wanted.items()
        if stored[name].shape != tuple(tensor.shape)
    ]
    if wrong:
        raise CheckpointError(f"{folder}: shapes differ from config.json: {_few(wrong)}")


def _widest(stored: Iterable[_Stored]) -> torch.dtype:
    dtypes = {tensor.dtype for tensor in stored}
    if dtypes == {torch.float16}:
        return torch.float32
    widest = dtypes.pop()
    for dtype in dtypes:  # float16 with bfloat16 promotes to float32
        widest = torch.promote_types(widest, dtype)
    return widest


def _few(names: list[str]) -> str:
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(names[:4]) + more


# --- identity -----------------------------------------------------------------------------------


def weights_fingerprint(model: torch.nn.Module) -> str:
    """SHA-256 over the sorted names, shapes, dtypes and bytes of `model`'s weights, hexadecimal."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(_plain(tensor, None).view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
