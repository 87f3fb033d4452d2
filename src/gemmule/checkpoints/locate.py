"""Finds the checkpoint that a user names: a run, a folder, a file or a hub id."""

from dataclasses import dataclass
from pathlib import Path

from gemmule import files
from gemmule.checkpoints import hub, hub_cache
from gemmule.checkpoints.file_kinds import kind_of
from gemmule.checkpoints.hf.config import read_object
from gemmule.checkpoints.model_folder import ADAPTER, ADAPTER_CONFIG, in_folder
from gemmule.checkpoints.other_models import GEMMA2, model_type_of, other_model
from gemmule.checkpoints.stored_tensor import few
from gemmule.checkpoints.weight_files import (
    INDEX,
    SINGLE,
    TORCH_INDEX,
    TORCH_SINGLE,
    is_numbered,
    is_weights,
)
from gemmule.errors import CheckpointError
from gemmule.runs.layout import RunLayout

_EXPECTED = (
    "expected a run directory (with model/ in it), a folder in Hugging Face's layout (with "
    "config.json and model.safetensors), a .gguf, .ckpt or .npz file or a folder with one, an "
    "orbax checkpoint, or a hub id such as google/gemma-2-2b"
)
# Models of a quickstart, in the order in which to suggest them.
_STAGES = ("student", "scratch", "scratch_equal_compute", "teacher")
# Files that stand for the whole folder they are in.
_WHOLE = {"config.json", ADAPTER_CONFIG, SINGLE, INDEX, TORCH_SINGLE, TORCH_INDEX}
_MAX_FOLDERS = 200  # folders to look into for the only model among them


@dataclass(frozen=True)
class Located:
    """A checkpoint's format and path.

    Attributes:
        format: "hf", "adapter" (of peft), "gguf", "torch", "npz" or "orbax".
        path: folder or file.
    """

    format: str
    path: Path


def locate(path: str | Path, revision: str | None = None, *, gemma_only: bool = False) -> Located:
    """Finds the checkpoint that `path` names.

    A local path takes precedence. A name such as `org/name` that is not a local path, and without a
    local folder `org`, is a hub id, which is downloaded into the hub's own cache. `hf://org/name`
    is always a hub id, and `hf://org/name/model-Q8_0.gguf` one file of it.

    Files are told by their content. A folder may be the model's own, a run, a model in the hub's
    cache, or one that holds a single model in a folder of its own.

    Args:
        path: the name.
        revision: branch, tag or commit on the hub; None: the default branch.
        gemma_only: refuse a model on the hub that is not a Gemma 2 before its weights are
            downloaded.

    Raises:
        CheckpointError: when there is no checkpoint or a download fails; the message says what is
            there and what is expected.
        Interrupted: when a download is stopped with Ctrl-C; it can be continued.
    """
    text = str(path)
    if text.startswith(hub.PREFIX):
        return _on_hub(text.removeprefix(hub.PREFIX), revision, gemma_only)
    path = files.expand(path)
    try:
        if path.is_dir():
            return _within(path)
        exists, is_file = path.exists(), path.is_file()
    except (OSError, ValueError) as e:
        raise CheckpointError(f"cannot read {text!r}: {e}; {_EXPECTED}") from None
    if is_file:
        return _file(path)
    if exists:
        raise CheckpointError(f"{path} is not a regular file; {_EXPECTED}")
    if hub.is_hub_id(text) and not path.parent.is_dir():
        return _on_hub(text, revision, gemma_only)
    raise CheckpointError(f"nothing at {path}{_neighbors(path)}; {_EXPECTED}")


def _within(folder: Path) -> Located:
    snapshot = hub_cache.snapshot_of(folder)
    if snapshot:
        return _within(snapshot)
    located = _directly_in(folder)
    if located:
        return Located(*located)
    _refuse_unfinished(folder)
    inner = hub_cache.model_in_cache(folder) or _only_model_in(folder)
    if inner:
        return _within(inner)
    names = sorted(p.name + "/" * p.is_dir() for p in folder.iterdir())
    listing = ", ".join(names[:6]) + (", …" if len(names) > 6 else "")
    raise CheckpointError(f"no model in {folder} (it holds {listing or 'nothing'}); {_EXPECTED}")


def _directly_in(folder: Path) -> tuple[str, Path] | None:
    """The model in a folder, or in its model/; as `in_folder`.

    A run keeps its model in model/, and other tensors next to that, such as the log-probabilities
    that preference tuning compares with.
    """
    own = None if RunLayout(folder).config.is_file() else in_folder(folder)
    return own or in_folder(folder / "model")


def _refuse_unfinished(folder: Path) -> None:
    """Names the models of a quickstart, and a run that has none yet."""
    stages = [name for name in _STAGES if in_folder(folder / name / "model")]
    if stages:
        others = ", ".join(str(folder / name) for name in stages[1:])
        raise CheckpointError(
            f"{folder} holds several models: name one, such as {folder / stages[0]}"
            + (f" (also {others})" if others else "")
        )
    if any((folder / name).is_dir() for name in _STAGES):
        raise CheckpointError(
            f"{folder} is a quickstart that has not finished a model yet: run it again to continue"
        )
    run = RunLayout(folder)
    if run.checkpoints.is_dir() or run.metrics.is_file():
        raise CheckpointError(
            f"{folder} is a run that has not finished: its model/ is written at the end; "
            "continue it with --resume"
        )


def _only_model_in(folder: Path) -> Path | None:
    """The folder in `folder` that holds a model, if it is the only one."""
    inner = [p for p in sorted(folder.iterdir()) if p.is_dir() and not p.name.startswith(".")]
    models = [p for p in inner[:_MAX_FOLDERS] if _holds_model(p)]
    if len(models) > 1:
        raise CheckpointError(
            f"{folder} holds several models: name one, such as {models[-1]} (also "
            f"{few([p.name for p in models[:-1]])})"
        )
    return models[0] if models else None


def _holds_model(folder: Path) -> bool:
    try:
        return _directly_in(folder) is not None
    except (CheckpointError, OSError):  # several of them; or a folder that cannot be read
        return False


def _file(path: Path) -> Located:
    path = hub_cache.name_of_blob(path)
    folder = path.parent
    if path.name in _WHOLE or path.name.startswith(f"{ADAPTER}."):
        located = in_folder(folder)
        if located:
            return Located(*located)
    kind = kind_of(path)
    if kind is None:
        raise CheckpointError(f"{path} is not a kind of file that can be loaded; {_EXPECTED}")
    if kind.format is None:
        raise CheckpointError(f"{path} is {kind.what}: {kind.advice}")
    if not is_weights(path.name):
        raise CheckpointError(f"{path} does not hold a model's weights; {_EXPECTED}")
    is_part = kind.format in {"hf", "torch"} and is_numbered(path.name)
    return Located(kind.format, folder if is_part else path)


def _neighbors(path: Path) -> str:
    if not path.parent.is_dir():
        return ""
    names = sorted(p.name for p in path.parent.iterdir() if p.is_dir())
    if not names:
        return ""
    return f" ({path.parent} holds {', '.join(names[:6])}{', …' if len(names) > 6 else ''})"


def _on_hub(name: str, revision: str | None, gemma_only: bool) -> Located:
    """Downloads a model, or one file of it, from the hub."""
    repo, file = "/".join(name.split("/")[:2]), "/".join(name.split("/")[2:])
    if file:
        return _file(hub.download_file(repo, file, revision))
    config = hub.download_config(repo, revision) if gemma_only else None
    if config is not None:
        values = read_object(config)
        if model_type_of(values) != GEMMA2:
            raise CheckpointError(other_model(values).refusal(f"{repo} on the hub"))
    located = in_folder(hub.download_repository(repo, revision))
    if located is None:
        raise CheckpointError(
            f"{repo} holds no model in Hugging Face's layout and no .ckpt file; if it has GGUF "
            f"files, name one: {hub.PREFIX}{repo}/FILE.gguf"
        )
    return Located(*located)
