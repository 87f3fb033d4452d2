"""From what a user types (a run, a folder, a hub id) to the folder that holds the model."""

import errno
import re
from pathlib import Path

from gemmule import files
from gemmule.errors import CheckpointError, Interrupted

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_HUB_PREFIX = "hf://"
_EXPECTED = (
    "expected a run directory (with model/ in it), a folder in Hugging Face's layout (with "
    "config.json and model.safetensors), or a hub id such as google/gemma-2-2b"
)
# The hub's client keeps whole files; one that was cut starts over.
_AGAIN = "run the same command again: files that came whole are kept"
# In the order in which to suggest them.
_STAGES = ("student", "scratch", "scratch_equal_compute", "teacher")


def resolve_model_folder(path: str | Path) -> Path:
    """Finds the HF-layout folder that `path` means.

    A local path always wins. What is none, looks like `org/name` and has no local folder `org`
    is taken as a hub id and downloaded into the hub's own cache; `hf://org/name` is always one.

    Raises:
        CheckpointError: saying what was found there and what is expected, or why a download
            failed.
        Interrupted: when a download is stopped with Ctrl-C; it can be continued.
    """
    text = str(path)
    if text.startswith(_HUB_PREFIX):
        return _download(text.removeprefix(_HUB_PREFIX))
    path = Path(path).expanduser()
    try:
        if path.is_dir():
            return _within(path)
        exists = path.exists()
    except (OSError, ValueError) as e:
        raise CheckpointError(f"cannot read {text!r}: {e}; {_EXPECTED}") from None
    if exists:
        raise CheckpointError(_explain_file(path))
    if _HUB_ID.fullmatch(text) and not path.parent.is_dir():
        return _download(text)
    raise CheckpointError(f"nothing at {path}{_neighbours(path)}; {_EXPECTED}")


def _within(folder: Path) -> Path:
    if (folder / "config.json").is_file():
        return folder
    if (folder / "model" / "config.json").is_file():
        return folder / "model"
    stages = [name for name in _STAGES if (folder / name / "model" / "config.json").is_file()]
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
    if (folder / "checkpoints").is_dir() or (folder / "metrics.jsonl").is_file():
        raise CheckpointError(
            f"{folder} is a run that has not finished: its model/ is written at the end; "
            "continue it with --resume"
        )
    names = sorted(p.name + "/" * p.is_dir() for p in folder.iterdir())
    other = [n for n in names if n.endswith((".gguf", ".ckpt", ".bin", ".pt", ".pth"))]
    if other:
        raise CheckpointError(
            f"{folder} holds {other[0]}, a format that cannot be loaded yet; {_EXPECTED}"
        )
    found = ", ".join(names[:6]) + (", …" if len(names) > 6 else "")
    raise CheckpointError(f"no model in {folder} (it holds {found or 'nothing'}); {_EXPECTED}")


def _explain_file(path: Path) -> str:
    if path.name in {"config.json", "model.safetensors", "model.safetensors.index.json"}:
        return f"{path} is one file of a model: give its folder, {path.parent}"
    return f"{path} is a file of a kind that cannot be loaded; {_EXPECTED}"


def _neighbours(path: Path) -> str:
    if not path.parent.is_dir():
        return ""
    names = sorted(p.name for p in path.parent.iterdir() if p.is_dir())
    if not names:
        return ""
    return f" ({path.parent} holds {', '.join(names[:6])}{', …' if len(names) > 6 else ''})"


def _download(repo: str) -> Path:
    import huggingface_hub
    from huggingface_hub import errors as hub

    try:
        found = huggingface_hub.snapshot_download(
            repo,
            allow_patterns=["*.json", "*.safetensors", "tokenizer.model", "*.jinja"],
            ignore_patterns=["*/*"],
        )
    except KeyboardInterrupt:
        raise Interrupted(f"stopped downloading {repo}: {_AGAIN}") from None
    except hub.GatedRepoError:
        raise CheckpointError(
            f"{repo} is gated: accept its licence at https://huggingface.co/{repo}, then log in "
            "with `hf auth login` (or set HF_TOKEN)"
        ) from None
    except hub.RepositoryNotFoundError:
        raise CheckpointError(_explain_refusal(repo)) from None
    except hub.LocalEntryNotFoundError as e:
        cause = e.__cause__ or e
        offline = isinstance(cause, hub.OfflineModeIsEnabled) or "HF_HUB_OFFLINE" in str(e)
        reason = (
            "HF_HUB_OFFLINE is set" if offline else f"the hub cannot be reached ({_first(cause)})"
        )
        raise CheckpointError(
            f"there is no folder {repo} here, and as a hub id it is not in the cache and {reason}; "
            "with a network the same command downloads what is missing"
        ) from None
    except hub.HFValidationError as e:
        raise CheckpointError(f"{repo!r} is no hub id: {_first(e)}; {_EXPECTED}") from None
    except Exception as e:
        # Whatever else a transfer can die of: the HTTP library differs between hub versions.
        if isinstance(e, hub.HfHubHTTPError) and e.response.status_code in {401, 403, 404}:
            raise CheckpointError(_explain_refusal(repo)) from None
        if isinstance(e, OSError) and e.errno in {errno.ENOSPC, errno.EDQUOT, errno.EACCES}:
            with files.writing_to(Path(e.filename or "the hub's cache")):
                raise
        raise CheckpointError(f"the download of {repo} broke off ({_first(e)}); {_AGAIN}") from e
    folder = Path(found)
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{repo} has no config.json: it is no model in Hugging Face's layout")
    return folder


def _explain_refusal(repo: str) -> str:
    return (
        f"there is no folder {repo} here and no model {repo} on the hub that you may read; "
        "check the name, and for a private model log in with `hf auth login`"
    )


def _first(e: BaseException) -> str:
    return (str(e) or type(e).__name__).strip().splitlines()[0]
