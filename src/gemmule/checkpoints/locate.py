"""Finds the checkpoint that a user names: a run, a folder, a file or a hub id."""

import errno
import re
from dataclasses import dataclass
from pathlib import Path

from gemmule import files
from gemmule.errors import CheckpointError, Interrupted, first_line
from gemmule.runs.layout import RunLayout

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_HUB_PREFIX = "hf://"
_EXPECTED = (
    "expected a run directory (with model/ in it), a folder in Hugging Face's layout (with "
    "config.json and model.safetensors), a .gguf, .ckpt or .npz file or a folder with one, an "
    "orbax checkpoint, or a hub id such as google/gemma-2-2b"
)
# The hub's client keeps complete files; an incomplete one starts over.
_AGAIN = "run the same command again: complete files are kept"
# Models of a quickstart, in the order in which to suggest them.
_STAGES = ("student", "scratch", "scratch_equal_compute", "teacher")
ADAPTER_CONFIG, ADAPTER = "adapter_config.json", "adapter_model"
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_HUB_FILES = [
    "*.json",
    "*.safetensors",
    "*.ckpt",
    "adapter_model.bin",
    "*.jinja",
    "tokenizer.model",
]
_SUFFIXES = {".gguf": "gguf", ".ckpt": "gemma_pytorch", ".npz": "npz"}
_SHARDED_CKPT = "pytorch_model.bin.index.json"
# Any of these marks a folder that orbax wrote.
_ORBAX = ("_METADATA", "_CHECKPOINT_METADATA", "manifest.ocdbt")


@dataclass(frozen=True)
class Located:
    """A checkpoint's format and path.

    Attributes:
        format: "hf", "adapter" (of peft), "gguf", "gemma_pytorch", "npz" or "orbax".
        path: folder or file.
    """

    format: str
    path: Path


def locate(path: str | Path) -> Located:
    """Finds the checkpoint that `path` names.

    A local path takes precedence. A name such as `org/name` that is not a local path, and without a
    local folder `org`, is a hub id, which is downloaded into the hub's own cache. `hf://org/name`
    is always a hub id, and `hf://org/name/model-Q8_0.gguf` one file of it.

    Raises:
        CheckpointError: when there is no checkpoint or a download fails; the message says what is
            there and what is expected.
        Interrupted: when a download is stopped with Ctrl-C; it can be continued.
    """
    text = str(path)
    if text.startswith(_HUB_PREFIX):
        return _on_hub(text.removeprefix(_HUB_PREFIX))
    path = Path(path).expanduser()
    try:
        if path.is_dir():
            return _within(path)
        exists = path.exists()
    except (OSError, ValueError) as e:
        raise CheckpointError(f"cannot read {text!r}: {e}; {_EXPECTED}") from None
    if exists:
        return _file(path)
    if _HUB_ID.fullmatch(text) and not path.parent.is_dir():
        return _on_hub(text)
    raise CheckpointError(f"nothing at {path}{_neighbors(path)}; {_EXPECTED}")


def _within(folder: Path) -> Located:
    located = _directly_in(folder) or _directly_in(folder / "model")
    if located:
        return located
    stages = [name for name in _STAGES if _directly_in(folder / name / "model")]
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
    names = sorted(p.name + "/" * p.is_dir() for p in folder.iterdir())
    listing = ", ".join(names[:6]) + (", …" if len(names) > 6 else "")
    raise CheckpointError(f"no model in {folder} (it holds {listing or 'nothing'}); {_EXPECTED}")


def _directly_in(folder: Path) -> Located | None:
    """The checkpoint whose files are in `folder` itself, or None."""
    if not folder.is_dir():
        return None
    marks = {
        # First: the base of an adapter may be in the same folder.
        "adapter": (folder / ADAPTER_CONFIG).is_file() and any(folder.glob(f"{ADAPTER}.*")),
        "hf": any((folder / name).is_file() for name in (SINGLE, INDEX)),
        "gemma_pytorch": (folder / _SHARDED_CKPT).is_file(),
        "orbax": any((folder / name).exists() for name in _ORBAX),
    }
    for format, is_there in marks.items():
        if is_there:
            return Located(format, folder)
    single = sorted(p for p in folder.iterdir() if p.suffix in _SUFFIXES and p.is_file())
    if len(single) > 1:
        raise CheckpointError(
            f"{folder} holds several models: name one, such as {single[0]} (also "
            f"{', '.join(p.name for p in single[1:5])}{', …' if len(single) > 5 else ''})"
        )
    if single:
        return _file(single[0])
    # A config alone is a model without weights, which the reader reports.
    return Located("hf", folder) if (folder / "config.json").is_file() else None


def _file(path: Path) -> Located:
    if path.suffix in _SUFFIXES:
        return Located(_SUFFIXES[path.suffix], path)
    if path.name in {"config.json", SINGLE, INDEX, _SHARDED_CKPT}:
        raise CheckpointError(f"{path} is one file of a model: give its folder, {path.parent}")
    raise CheckpointError(f"{path} is not a kind of file that can be loaded; {_EXPECTED}")


def _neighbors(path: Path) -> str:
    if not path.parent.is_dir():
        return ""
    names = sorted(p.name for p in path.parent.iterdir() if p.is_dir())
    if not names:
        return ""
    return f" ({path.parent} holds {', '.join(names[:6])}{', …' if len(names) > 6 else ''})"


def _on_hub(name: str) -> Located:
    """Downloads a model, or one file of it, from the hub."""
    repo, file = "/".join(name.split("/")[:2]), "/".join(name.split("/")[2:])
    if file:
        folder = _download(repo, [file, "config.json", "tokenizer.model"])
        if not (folder / file).is_file():
            raise CheckpointError(f"{repo} on the hub has no file {file}")
        return _file(folder / file)
    folder = _download(repo, _HUB_FILES, ignore=["*/*"])
    located = _directly_in(folder)
    if located is None:
        raise CheckpointError(
            f"{repo} holds no model in Hugging Face's layout and no .ckpt file; if it has GGUF "
            f"files, name one: {_HUB_PREFIX}{repo}/FILE.gguf"
        )
    return located


def _download(repo: str, allow: list[str], ignore: list[str] | None = None) -> Path:
    import huggingface_hub
    from huggingface_hub import errors as hub

    try:
        folder = huggingface_hub.snapshot_download(
            repo, allow_patterns=allow, ignore_patterns=ignore
        )
    except KeyboardInterrupt:
        raise Interrupted(f"stopped downloading {repo}: {_AGAIN}") from None
    except hub.GatedRepoError:
        raise CheckpointError(
            f"{repo} is gated: accept its license at https://huggingface.co/{repo}, then log in "
            "with `hf auth login` (or set HF_TOKEN)"
        ) from None
    except hub.RepositoryNotFoundError:
        raise CheckpointError(_explain_refusal(repo)) from None
    except hub.LocalEntryNotFoundError as e:
        cause = e.__cause__ or e
        offline = isinstance(cause, hub.OfflineModeIsEnabled) or "HF_HUB_OFFLINE" in str(e)
        reason = (
            "HF_HUB_OFFLINE is set"
            if offline
            else f"the hub cannot be reached ({first_line(cause)})"
        )
        raise CheckpointError(
            f"there is no folder {repo} here, the hub's cache has no such model, and {reason}; "
            "with a network the same command downloads it"
        ) from None
    except hub.HFValidationError as e:
        raise CheckpointError(f"{repo!r} is not a hub id: {first_line(e)}; {_EXPECTED}") from None
    except Exception as e:
        # Any other failure of the transfer: the HTTP library differs between hub versions.
        if isinstance(e, hub.HfHubHTTPError) and e.response.status_code in {401, 403, 404}:
            raise CheckpointError(_explain_refusal(repo)) from None
        if isinstance(e, OSError) and e.errno in {errno.ENOSPC, errno.EDQUOT, errno.EACCES}:
            with files.writing_to(Path(e.filename or "the hub's cache")):
                raise
        raise CheckpointError(f"the download of {repo} failed ({first_line(e)}); {_AGAIN}") from e
    return Path(folder)


def _explain_refusal(repo: str) -> str:
    return (
        f"there is no folder {repo} here and no model {repo} on the hub that you may read; "
        "check the name, and for a private model log in with `hf auth login`"
    )
