"""What documents are judged by, on disk: arrays as safetensors, and a JSON file about them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt

from gemmule import files
from gemmule.errors import DataError


def save(
    folder: Path, names: tuple[str, str], arrays: dict[str, npt.NDArray[Any]], about: dict[str, Any]
) -> None:
    """Writes both files to a folder, which may exist.

    Args:
        folder: the folder.
        names: names of the safetensors file and of the JSON file.
        arrays: the arrays by name.
        about: what the JSON file is to hold.
    """
    from safetensors.numpy import save_file

    with files.writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with files.atomic_path(folder / names[0]) as path:
            save_file(arrays, path)
        files.write_json(folder / names[1], about)


def load(
    folder: Path, names: tuple[str, str], arrays: Sequence[str], what: str, advice: str
) -> tuple[list[npt.NDArray[Any]], Mapping[str, Any]]:
    """Reads what `save` wrote.

    Args:
        folder: the folder.
        names: names of the safetensors file and of the JSON file.
        arrays: names of the arrays.
        what: what the folder should hold, for the error.
        advice: how that is made, for the error.

    Raises:
        DataError: when it does not hold both files, or one cannot be read.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        about = files.read_object(folder / names[1], DataError)
        stored = load_file(folder / names[0])
        return [stored[name] for name in arrays], about
    except (OSError, SafetensorError, KeyError) as e:
        reason = getattr(e, "strerror", None) or e
        raise DataError(f"{folder} holds no {what} ({reason}): {advice}") from None
