"""Tells what a file is by its first bytes, whatever its name."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gemmule import files
from gemmule.checkpoints.zip_archive import opened_zip
from gemmule.errors import CheckpointError

_FIRST_BYTES = 512


@dataclass(frozen=True)
class FileKind:
    """A kind of file.

    Attributes:
        what: the kind, as in a sentence: "a GGUF file".
        format: Located's format when files of this kind can be read, else None.
        advice: what to do with one that cannot be read.
    """

    what: str
    format: str | None = None
    advice: str = ""


GGUF = FileKind("a GGUF file", "gguf")
TORCH = FileKind("a file of torch.save", "torch")
NPZ = FileKind("a numpy archive (.npz)", "npz")
SAFETENSORS = FileKind("a safetensors file", "hf")
_what, _, _advice = files.LFS_POINTER.partition(": ")
LFS_POINTER = FileKind(_what, None, _advice)
EMPTY = FileKind("an empty file", None, "download it again")

_TRANSFORMERS = "load it with transformers, which can save safetensors (save_pretrained)"
_ORIGINAL = "give the model that it was made from"
_CONVERT = "convert the original model again with llama.cpp's convert_hf_to_gguf.py"
_UNPACK = "unpack it and give what is inside"
# First bytes, the most telling first.
_MAGIC: tuple[tuple[bytes, FileKind], ...] = (
    (b"GGUF", GGUF),
    (b"FUGG", FileKind("a byte-swapped GGUF file", None, _CONVERT)),
    (b"lmgg", FileKind("a GGML file from before GGUF", None, _CONVERT)),
    (b"fmgg", FileKind("a GGMF file from before GGUF", None, _CONVERT)),
    (b"tjgg", FileKind("a GGJT file from before GGUF", None, _CONVERT)),
    (b"algg", FileKind("a LoRA adapter in GGLA, a format from before GGUF", None, _CONVERT)),
    (b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19", TORCH),  # before torch 1.6
    (b"\x89HDF\r\n\x1a\n", FileKind("an HDF5 file (Keras, TensorFlow)", None, _TRANSFORMERS)),
    (b"LITERTLM", FileKind("a LiteRT-LM file (.litertlm)", None, _ORIGINAL)),
    (b"\x93NUMPY", FileKind("a single numpy array (.npy)", None, "write a model with numpy.savez")),
    (b"\x1f\x8b", FileKind("a gzip file", None, _UNPACK)),
    (b"\x28\xb5\x2f\xfd", FileKind("a Zstandard file", None, _UNPACK)),
    (b"\xfd7zXZ\0", FileKind("an xz file", None, _UNPACK)),
    (b"7z\xbc\xaf", FileKind("a 7-Zip archive", None, _UNPACK)),
    (b"BZh", FileKind("a bzip2 file", None, _UNPACK)),
    (b"%PDF", FileKind("a PDF", None, "download the model's files")),
)
_HTML = FileKind("a web page, not the file it is named after", None, "download the file itself")
_TFLITE = FileKind("a TensorFlow Lite file (.tflite)", None, _ORIGINAL)
_TAR = FileKind("a tar archive", None, _UNPACK)
_PICKLES = {b"\x80\2", b"\x80\3", b"\x80\4", b"\x80\5"}
_PICKLE = FileKind("a Python pickle", None, "write it with torch.save, or as safetensors")
_ZIPS: Mapping[str, FileKind] = {
    "a TorchScript program": FileKind("a TorchScript program", None, _ORIGINAL),
    "a task": FileKind("a MediaPipe bundle (.task)", None, _ORIGINAL),
    "keras": FileKind("a Keras model (.keras)", None, _ORIGINAL),
    "zip": FileKind("a zip archive without weights", None, _UNPACK),
}
# By ending, for formats that have no magic number, and for files too damaged to be told.
_ENDINGS: Mapping[str, FileKind] = {
    ".gguf": GGUF,
    ".ckpt": TORCH,
    ".npz": NPZ,
    ".safetensors": SAFETENSORS,
    ".onnx": FileKind("an ONNX file", None, _ORIGINAL),
    ".msgpack": FileKind("Flax weights (.msgpack)", None, _TRANSFORMERS),
    ".h5": FileKind("an HDF5 file (Keras, TensorFlow)", None, _TRANSFORMERS),
    ".tflite": _TFLITE,
    ".task": FileKind("a MediaPipe bundle (.task)", None, _ORIGINAL),
    ".litertlm": FileKind("a LiteRT-LM file (.litertlm)", None, _ORIGINAL),
    ".pte": FileKind("an ExecuTorch program (.pte)", None, _ORIGINAL),
    ".engine": FileKind("a TensorRT engine", None, _ORIGINAL),
    ".distcp": FileKind(
        "a part of a torch.distributed checkpoint",
        None,
        "run python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER model.pt",
    ),
    ".imatrix": FileKind("an importance matrix of llama.cpp", None, "give the model's GGUF file"),
}
_IMATRIX = _ENDINGS[".imatrix"]


def kind_of(path: Path) -> FileKind | None:
    """Tells what a file is; None when that cannot be told.

    Raises:
        CheckpointError: when it cannot be read.
    """
    try:
        with path.open("rb") as f:
            head = f.read(_FIRST_BYTES)
        size = path.stat().st_size
    except OSError as e:
        raise CheckpointError(f"{path} cannot be read: {e.strerror}") from None
    if head.startswith(b"PK\3\4"):
        return _zip_kind(path)
    by_name = _ENDINGS.get(path.suffix.lower())
    if path.suffix.lower() == ".dat" and path.name.lower().startswith("imatrix"):
        by_name = _IMATRIX
    if not head:
        return by_name if by_name and by_name.format else EMPTY
    return _by_content(head, size, path) or by_name


def told_apart(path: Path, expected: FileKind) -> str:
    """What a file is if its content is not of the expected kind, as an addition to a message."""
    kind = kind_of(path)
    return f" (it is {kind.what})" if kind is not None and kind is not expected else ""


def _by_content(head: bytes, size: int, path: Path) -> FileKind | None:
    for magic, kind in _MAGIC:
        if head.startswith(magic):
            return kind
    length = int.from_bytes(head[:8], "little")
    signs = {
        LFS_POINTER: files.begins_as_lfs_pointer(head),
        _TFLITE: head[4:8] == b"TFL3",
        _TAR: head[257:262] == b"ustar",
        SAFETENSORS: head[8:9] == b"{" and 2 <= length <= size - 8,
        _HTML: head.lstrip()[:15].lower().startswith((b"<!doctype html", b"<html")),
        _PICKLE: head[:2] in _PICKLES and path.suffix.lower() not in _ENDINGS,
    }
    return next((kind for kind, is_it in signs.items() if is_it), None)


def _zip_kind(path: Path) -> FileKind:
    """What a zip archive holds; a damaged one goes by its ending, and its reader reports it."""
    by_name = _ENDINGS.get(path.suffix.lower(), TORCH)
    try:
        with opened_zip(path) as archive:
            names = archive.namelist()
    except CheckpointError:
        return by_name
    inner = {name.rpartition("/")[2] for name in names}
    if "data.pkl" in inner:
        return _ZIPS["a TorchScript program"] if "constants.pkl" in inner else TORCH
    if names and all(name.endswith(".npy") for name in names):
        return NPZ
    if any(name.startswith("TF_LITE") or name.endswith(".tflite") for name in names):
        return _ZIPS["a task"]
    if "model.weights.h5" in inner:
        return _ZIPS["keras"]
    return by_name if path.suffix.lower() in {".ckpt", ".npz"} else _ZIPS["zip"]
