"""Finds models in a folder of the hub's cache, as huggingface_hub lays it out.

hub/models--org--name/blobs/HASH             the files
                     /refs/main              the commit of a branch
                     /snapshots/COMMIT/…     links with the files' names
"""

from pathlib import Path

from gemmule.errors import CheckpointError

_MODEL = "models--"


def snapshot_of(folder: Path) -> Path | None:
    """The snapshot that `main` names, or the only one, if `folder` is a model in the cache.

    Raises:
        CheckpointError: when there is no snapshot, or several and no `main`.
    """
    snapshots = folder / "snapshots"
    if not snapshots.is_dir() or not (folder.name.startswith(_MODEL) or (folder / "refs").is_dir()):
        return None
    there = sorted(p for p in snapshots.iterdir() if p.is_dir())
    try:
        commit = (folder / "refs" / "main").read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        commit = ""
    named = [p for p in there if p.name == commit]
    if named or len(there) == 1:
        return (named or there)[0]
    name = folder.name.removeprefix(_MODEL).replace("--", "/")
    if not there:
        raise CheckpointError(
            f"{folder} holds no snapshot of {name}: its download did not finish; run it again"
        )
    why = f"refs/main names {commit!r}, which is not among them" if commit else "no refs/main"
    raise CheckpointError(
        f"{folder} holds {len(there)} snapshots of {name} and {why}: name one, such as {there[-1]}"
    )


def model_in_cache(folder: Path) -> Path | None:
    """The snapshot of the only model in a cache folder, such as ~/.cache/huggingface/hub.

    Raises:
        CheckpointError: when there are several models.
    """
    for cache in (folder, folder / "hub"):
        models = sorted(p for p in cache.glob(f"{_MODEL}*") if p.is_dir())
        if len(models) > 1:
            names = [m.name.removeprefix(_MODEL).replace("--", "/") for m in models]
            raise CheckpointError(
                f"{cache} is a cache of {len(models)} models ({', '.join(names[:4])}"
                f"{', …' if len(names) > 4 else ''}): name one, such as {models[0]}"
            )
        if models:
            return snapshot_of(models[0])
    return None


def name_of_blob(path: Path) -> Path:
    """The file of a snapshot that is a link to the blob `path`; any other path as it is."""
    if path.parent.name != "blobs":
        return path
    for link in sorted((path.parent.parent / "snapshots").glob("*/**/*")):
        if link.is_symlink() and link.resolve() == path.resolve():
            return link
    return path


def broken_links(folder: Path) -> list[str]:
    """Names of links to blobs that are not there."""
    return sorted(p.name for p in folder.iterdir() if p.is_symlink() and not p.exists())
