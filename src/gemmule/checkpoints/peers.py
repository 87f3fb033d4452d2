"""Lets other programs read an export, each in its own process, so that a crash is only a finding.

    python -m gemmule.checkpoints.peers hf FOLDER REQUEST.npz ANSWER.npz

The request holds token ids and texts; the answer holds the logits of the ids and the ids of the
texts.
"""

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gemmule.errors import GemmuleError

# By export format: the distribution to install, and its module.
READERS = {"hf": ("transformers", "transformers"), "gguf": ("llama-cpp-python", "llama_cpp")}
_LAST_LINES = 6


class PeerError(GemmuleError):
    """Another program could not read the export."""


@dataclass(frozen=True)
class Answer:
    """The outputs of another program for an export.

    Attributes:
        version: version of the program.
        logits_TV: logits of the requested tokens, fp32.
        ids: ids of each text from the program's tokenizer, <bos> included.
    """

    version: str
    logits_TV: Tensor
    ids: list[list[int]]


def installed(format: str) -> str | None:
    """The reader of a format as "name version", or None if it is not installed."""
    name, module = READERS.get(format, ("", ""))
    return f"{name} {metadata.version(name)}" if module and find_spec(module) else None


def ask(format: str, export: Path, tokens: Sequence[int], texts: Sequence[str]) -> Answer:
    """Runs the format's reader on `export` in its own process.

    Args:
        format: "hf" or "gguf"; its reader must be installed.
        export: the exported folder.
        tokens: T ids, <bos> first.
        texts: texts to tokenize.

    Raises:
        PeerError: when it cannot read the export; the message ends with its last output lines.
    """
    reader = READERS[format][0]
    with tempfile.TemporaryDirectory() as scratch:
        request, answer = Path(scratch) / "request.npz", Path(scratch) / "answer.npz"
        np.savez(request, tokens=np.array(tokens), texts=np.array(list(texts)))
        done = subprocess.run(
            [sys.executable, "-m", "gemmule.checkpoints.peers", format, export, request, answer],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            check=False,
        )
        if done.returncode:
            output = "\n".join(done.stderr.strip().splitlines()[-_LAST_LINES:])
            raise PeerError(f"{reader} cannot read {export} (exit {done.returncode}):\n{output}")
        with np.load(answer) as arrays:
            ends = np.cumsum(arrays["lengths"])[:-1]
            ids = [part.tolist() for part in np.split(arrays["ids"], ends)]
            logits = torch.from_numpy(arrays["logits"])
    return Answer(metadata.version(reader), logits, ids)


def _transformers(folder: Path, tokens: list[int], texts: list[str]) -> tuple[Any, list[list[int]]]:
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = [tokenizer(text).input_ids for text in texts]
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    with torch.inference_mode():
        return model(torch.tensor([tokens])).logits[0].numpy(), ids


def _llama_cpp(folder: Path, tokens: list[int], texts: list[str]) -> tuple[Any, list[list[int]]]:
    import llama_cpp

    model = llama_cpp.Llama(
        str(next(folder.glob("*.gguf"))),
        n_ctx=len(tokens),
        n_batch=len(tokens),
        n_ubatch=len(tokens),
        logits_all=True,
        type_k=llama_cpp.GGML_TYPE_F32,  # the default is fp16
        type_v=llama_cpp.GGML_TYPE_F32,
        flash_attn=False,
        verbose=False,
    )
    ids = [model.tokenize(text.encode(), add_bos=True, special=False) for text in texts]
    model.eval(tokens)
    return np.array(model.scores[: len(tokens)], dtype=np.float32), ids


def _main(format: str, export: str, request: str, answer: str) -> None:
    with np.load(request) as asked:
        tokens, texts = asked["tokens"].tolist(), asked["texts"].tolist()
    run = {"hf": _transformers, "gguf": _llama_cpp}[format]
    logits, ids = run(Path(export), tokens, texts)
    flat = np.array([i for row in ids for i in row], dtype=np.int64)
    np.savez(answer, logits=logits, ids=flat, lengths=np.array([len(row) for row in ids]))


if __name__ == "__main__":
    _main(*sys.argv[1:])
