"""Downloads models from the hub, through huggingface_hub's own cache."""

import errno
import os
import re
from pathlib import Path

from gemmule import files
from gemmule.errors import CheckpointError, Interrupted, first_line

PREFIX = "hf://"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
# The hub's client keeps complete files; an incomplete one starts over.
_AGAIN = "run the same command again: complete files are kept"
_TOKENIZER = ["config.json", "generation_config.json", "tokenizer*", "*.jinja", "added_tokens.json"]
_SAFE = ["*.json", "*.safetensors", "*.ckpt", "adapter_model.bin", "*.jinja", "tokenizer.model"]
_TORCH = ["pytorch_model*.bin"]


def is_hub_id(text: str) -> bool:
    """Whether a name has the form of a hub id, such as google/gemma-2-2b."""
    return _HUB_ID.fullmatch(text) is not None


def download_repository(repo: str, revision: str | None = None) -> Path:
    """Downloads the files of a model; those of torch only where there are no safetensors.

    Args:
        repo: a hub id.
        revision: branch, tag or commit; None: the default branch.

    Returns:
        The folder in the hub's cache.

    Raises:
        CheckpointError: when it fails.
        Interrupted: when it is stopped with Ctrl-C; it can be continued.
    """
    folder = _download(repo, revision, _SAFE, ignore=["*/*"])
    weights = ("*.safetensors", "*.ckpt", "adapter_model.bin")
    if not any(any(folder.glob(pattern)) for pattern in weights):
        folder = _download(repo, revision, _SAFE + _TORCH, ignore=["*/*"])
    return folder


def download_config(repo: str, revision: str | None = None) -> Path | None:
    """Downloads the config.json of a model, if it has one. Raises as above."""
    file = _download(repo, revision, ["config.json", "adapter_config.json"]) / "config.json"
    return file if file.is_file() and not file.with_name("adapter_config.json").is_file() else None


def download_file(repo: str, file: str, revision: str | None = None) -> Path:
    """Downloads one file of a model; returns its path in the hub's cache. Raises as above.

    The parts of a split GGUF file come together.
    """
    parts = re.sub(r"-\d{5}-of-(\d{5}\.gguf)$", r"-*-of-\1", file)
    folder = _download(repo, revision, [parts, *_TOKENIZER])
    if not (folder / file).is_file():
        raise CheckpointError(f"{repo} on the hub has no file {file}")
    return folder / file


def _download(
    repo: str, revision: str | None, allow: list[str], ignore: list[str] | None = None
) -> Path:
    import huggingface_hub
    from huggingface_hub import errors as hub

    try:
        folder = huggingface_hub.snapshot_download(
            repo, revision=revision, allow_patterns=allow, ignore_patterns=ignore
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
        _check_cache(repo, os.R_OK | os.X_OK)
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
        raise CheckpointError(f"{repo!r} is not a hub id: {first_line(e)}") from None
    except Exception as e:
        # Any other failure of the transfer: the HTTP library differs between hub versions.
        if isinstance(e, hub.HfHubHTTPError) and e.response.status_code in {401, 403, 404}:
            raise CheckpointError(_explain_refusal(repo)) from None
        if isinstance(e, OSError) and e.errno in {errno.ENOSPC, errno.EDQUOT, errno.EACCES}:
            _check_cache(repo, os.W_OK)
            with files.writing_to(Path(e.filename or "the hub's cache")):
                raise
        raise CheckpointError(f"the download of {repo} failed ({first_line(e)}); {_AGAIN}") from e
    return Path(folder)


def _check_cache(repo: str, access: int) -> None:
    """Raises a CheckpointError if the hub's cache, or a model in it, refuses this user."""
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE).absolute()
    model = cache / f"models--{repo.replace('/', '--')}"
    own = (cache, model, *(model / name for name in ("blobs", "refs", "snapshots")))
    # Not Path.is_dir, which raises for what this user may not see.
    existing = [p for p in (*reversed(cache.parents), *own) if os.path.isdir(p)]  # noqa: PTH112
    if access & os.W_OK and cache not in existing:  # it would be made in the last one
        own = (existing[-1],)
    for folder in existing:
        if not os.access(folder, access if folder in own else os.X_OK):
            verb = "written to" if access & os.W_OK else "read"
            raise CheckpointError(
                f"{repo} is in the hub's cache or belongs there, but {folder} cannot be {verb} "
                f"(it belongs to {_owner(folder)}): set HF_HOME to a folder of yours, or ask for "
                "access"
            ) from None


def _owner(path: Path) -> str:
    try:
        return f"user {path.owner()}"
    except (KeyError, OSError):
        return "another user"


def _explain_refusal(repo: str) -> str:
    return (
        f"there is no folder {repo} here and no model {repo} on the hub that you may read; "
        "check the name, and for a private model log in with `hf auth login`"
    )
