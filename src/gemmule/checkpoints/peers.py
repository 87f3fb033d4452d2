"""Lets other programs read an export, each in its own process, so that a crash is only a finding.

    python -m gemmule.checkpoints.peers hf FOLDER QUESTION.json ANSWER

The question is a `Question`; ANSWER.npy gets the logits of its tokens, ANSWER.json the rest.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
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
class Question:
    """What another program is asked about an export.

    Attributes:
        tokens: T ids, <bos> first.
        texts: texts to tokenize.
        marked: texts with added tokens, to be tokenized with them.
        chat: messages to render with the chat template; empty: none.
    """

    tokens: Sequence[int]
    texts: Sequence[str] = ()
    marked: Sequence[str] = ()
    chat: Sequence[Mapping[str, str]] = ()


@dataclass(frozen=True)
class Answer:
    """The outputs of another program for an export.

    Attributes:
        version: version of the program.
        logits_TV: logits of the question's tokens, fp32.
        ids: ids of each text, <bos> included.
        marked: ids of each text with added tokens, <bos> included.
        chat: ids of the conversation; None if there was none, or the program renders none.
        stop_ids: ids that end an answer; None if the program does not tell.
    """

    version: str
    logits_TV: Tensor
    ids: list[list[int]]
    marked: list[list[int]]
    chat: list[int] | None = None
    stop_ids: list[int] | None = None


def installed(format: str) -> str | None:
    """The reader of a format as "name version", or None if it is not installed."""
    name, module = READERS.get(format, ("", ""))
    return f"{name} {metadata.version(name)}" if module and find_spec(module) else None


def ask(format: str, export: Path, question: Question) -> Answer:
    """Runs the format's reader on `export` in its own process.

    Args:
        format: "hf" or "gguf"; its reader must be installed.
        export: the exported folder.
        question: what to compute.

    Raises:
        PeerError: when it cannot read the export; the message ends with its last output lines.
    """
    reader = READERS[format][0]
    with tempfile.TemporaryDirectory() as scratch:
        asked, answer = Path(scratch) / "question.json", Path(scratch) / "answer"
        asked.write_text(json.dumps(asdict(question)), encoding="utf-8")
        done = subprocess.run(
            [
                sys.executable,
                "-P",
                "-m",
                "gemmule.checkpoints.peers",
                format,
                export,
                asked,
                answer,
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            check=False,
        )
        if done.returncode:
            output = "\n".join(done.stderr.strip().splitlines()[-_LAST_LINES:])
            raise PeerError(f"{reader} cannot read {export} (exit {done.returncode}):\n{output}")
        logits = torch.from_numpy(np.load(answer.with_suffix(".npy")))
        others = json.loads(answer.with_suffix(".json").read_text(encoding="utf-8"))
    return Answer(metadata.version(reader), logits, **others)


def _transformers(folder: Path, question: Question) -> tuple[Any, dict[str, Any]]:
    import transformers

    others: dict[str, Any] = {"ids": [], "marked": []}
    if question.texts or question.chat:  # a model without a tokenizer is asked for logits only
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        others["ids"] = [tokenizer(text).input_ids for text in question.texts]
        others["marked"] = [tokenizer(text).input_ids for text in question.marked]
        if question.chat:
            others["chat"] = tokenizer.apply_chat_template(
                [dict(m) for m in question.chat], add_generation_prompt=True, return_dict=False
            )
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    with torch.inference_mode():
        logits = model(torch.tensor([question.tokens])).logits[0].numpy()
    stops = model.generation_config.eos_token_id
    return logits, {**others, "stop_ids": stops if isinstance(stops, list) else [stops]}


def _llama_cpp(folder: Path, question: Question) -> tuple[Any, dict[str, Any]]:
    import llama_cpp

    count = len(question.tokens)
    model = llama_cpp.Llama(
        str(next(folder.glob("*.gguf"))),
        n_ctx=count,
        n_batch=count,
        n_ubatch=count,
        logits_all=True,
        type_k=llama_cpp.GGML_TYPE_F32,  # the default is fp16
        type_v=llama_cpp.GGML_TYPE_F32,
        flash_attn=False,
        verbose=False,
    )

    def tokenized(texts: Sequence[str], special: bool) -> list[list[int]]:
        return [model.tokenize(text.encode(), add_bos=True, special=special) for text in texts]

    others = {"ids": tokenized(question.texts, False), "marked": tokenized(question.marked, True)}
    model.eval(list(question.tokens))
    return np.array(model.scores[:count], dtype=np.float32), others


def _main(format: str, export: str, question: str, answer: str) -> None:
    asked = Question(**json.loads(Path(question).read_text(encoding="utf-8")))
    run = {"hf": _transformers, "gguf": _llama_cpp}[format]
    logits, others = run(Path(export), asked)
    np.save(f"{answer}.npy", logits)
    Path(f"{answer}.json").write_text(json.dumps(others), encoding="utf-8")


if __name__ == "__main__":
    _main(*sys.argv[1:])
