"""DCP's index of what ranks have written, read without running what a stranger put into it.

torch writes the index as a pickle, and a pickle may call anything. This reader lets it name only
the classes that DCP writes and torch's own types.
"""

import pickle
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta

INDEX = ".metadata"
_DCP = "torch.distributed.checkpoint."
_ALLOWED = {
    *((_DCP + "metadata", name) for name in (
        "BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta",
        "TensorProperties", "TensorStorageMetadata", "_MEM_FORMAT_ENCODING",
    )),
    (_DCP + "filesystem", "_StorageInfo"), ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("pathlib", "PosixPath"), ("pathlib", "WindowsPath"), ("pathlib", "Path"),
}  # fmt: skip


class ShardReader(FileSystemReader):
    """Reads a folder that DCP has written.

    Args:
        folder: the folder.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._folder = folder

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The index.

        Raises:
            OSError: when it cannot be read.
            ValueError: when it is damaged, or names anything that DCP does not write.
        """
        with (self._folder / INDEX).open("rb") as f:
            try:
                metadata = _Unpickler(f).load()
            except (pickle.UnpicklingError, EOFError, AttributeError, ImportError, TypeError) as e:
                raise ValueError(f"{INDEX}: {e}") from None
        if not isinstance(metadata, Metadata):
            raise ValueError(f"{INDEX} is not an index of shards")
        if metadata.storage_meta is None:
            metadata.storage_meta = StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """A class or function that the index may name."""
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which no such index does")
        return super().find_class(module, name)
