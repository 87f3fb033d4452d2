"""Teachers that transformers runs: any causal language model it knows, without code of its own.

Documents of a row are taken apart and run each alone, several at a time, filled up on the right.
A causal model cannot see what comes later, so what stands there changes nothing: it needs no mask,
and holds for every architecture. A 4-D mask would not do: transformers uses it as it is in every
layer, local ones too, whose window is then lost. Positions start anew with each document; those of
a GemmaTeacher count on through the row, which to rotary positions is the same.

Shapes: B batch, T tokens of a row, M tokens of a document, R documents at once, D model,
V vocabulary.
"""

import importlib
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from gemmule.checkpoints.checkpoint import weights_fingerprint
from gemmule.data.batch import Batch
from gemmule.errors import CheckpointError, MissingExtraError, first_line
from gemmule.losses.head import Head
from gemmule.losses.soft_cap import soft_cap
from gemmule.teachers.teacher import LocalTeacher

# What transformers raises for a folder that it can make nothing of.
_REFUSALS = (ValueError, OSError, ImportError, KeyError, TypeError, AttributeError)
_PROBE_TOKENS = 12
_TOLERANCE = 1e-4


def import_transformers(what: str = "a teacher that is not a Gemma 2") -> Any:
    """The transformers package, with its own progress bars disabled.

    Args:
        what: what it is needed for, for the error message.

    Raises:
        MissingExtraError: when it is not installed.
    """
    try:
        transformers = importlib.import_module("transformers")
    except ImportError:
        raise MissingExtraError("transformers", "teachers", what) from None
    transformers.utils.logging.disable_progress_bar()
    return transformers


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer in a folder, as transformers reads it; no code of the folder's is run.

    Raises:
        MissingExtraError: when transformers is not installed.
        CheckpointError: when it finds none that it can read.
    """
    transformers = import_transformers()
    try:
        return transformers.AutoTokenizer.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        )
    except _REFUSALS as e:
        raise CheckpointError(
            f"transformers finds no tokenizer that it can read in {folder} ({first_line(e)})"
        ) from None


class TransformersTeacher(LocalTeacher):
    """A causal language model of transformers.

    Args:
        path: where it was found, as the user called it.
        model: the network with its head.
        vocab_size: pieces of its tokenizer; further rows of its head are padding.

    Raises:
        CheckpointError: when its logits are not its head's product with its hidden states.
    """

    def __init__(self, path: str, model: Any, vocab_size: int) -> None:
        self.path, self._vocab_size = path, vocab_size
        self.module: nn.Module = model.requires_grad_(False).eval()
        self._base, self._config = model.base_model, model.config.get_text_config()
        self._out = model.get_output_embeddings()
        rows = 0 if self._out is None else len(self._out.weight)
        if rows < vocab_size:
            raise CheckpointError(
                f"the head of {path} has {rows} rows, and its tokenizer {vocab_size} pieces: its "
                "files do not belong together"
            )
        self._check_head()
        self._fingerprint = weights_fingerprint(model)

    @classmethod
    def open(cls, path: str, folder: Path, vocab_size: int) -> "TransformersTeacher":
        """Loads a model from its folder: safetensors only, in fp32, no code of its own.

        Raises:
            MissingExtraError: when transformers is not installed.
            CheckpointError: when it cannot load the model.
        """
        transformers = import_transformers()
        try:
            model = transformers.AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=torch.float32,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
            )
        except (*_REFUSALS, RuntimeError, SafetensorError) as e:
            raise CheckpointError(
                f"transformers cannot load {path} ({first_line(e)}): a teacher is a causal "
                "language model that it knows without code of the model's own, with weights in "
                "safetensors"
            ) from None
        return cls(path, model, vocab_size)

    @property
    def vocab_size(self) -> int:
        """Pieces of its tokenizer."""
        return self._vocab_size

    @property
    def head(self) -> Head:
        """The output embedding, without the rows that belong to no token of the tokenizer."""
        return Head(self._out.weight, self._cap, self._vocab_size)

    @property
    def _cap(self) -> float | None:
        return getattr(self._config, "final_logit_softcapping", None)

    @property
    def context(self) -> int | None:
        """As its config says, where it does."""
        found = getattr(self._config, "max_position_embeddings", None)
        return int(found) if isinstance(found, int) and found > 0 else None

    def hidden_states(self, batch: Batch) -> Tensor:
        """Final hidden states [B, T, D]; zero where there is padding."""
        documents = _documents(batch.doc_ids_BT)
        rows, length = batch.tokens_BT.shape
        width, dtype = self._out.weight.shape[1], self._out.weight.dtype
        if torch.is_autocast_enabled(batch.tokens_BT.device.type):
            dtype = torch.get_autocast_dtype(batch.tokens_BT.device.type)
        x_BTD = torch.zeros(rows, length, width, dtype=dtype, device=batch.tokens_BT.device)
        for group in _groups(documents, rows * length):
            longest = max(stop - start for _, start, stop in group)
            tokens_RM = torch.zeros(
                len(group), longest, dtype=torch.long, device=batch.tokens_BT.device
            )
            for i, (row, start, stop) in enumerate(group):
                tokens_RM[i, : stop - start] = batch.tokens_BT[row, start:stop]
            x_RMD = self._base(tokens_RM, use_cache=False).last_hidden_state
            for i, (row, start, stop) in enumerate(group):
                x_BTD[row, start:stop] = x_RMD[i, : stop - start].to(dtype)
        return x_BTD

    def describe(self) -> dict[str, Any]:
        """Path, weights' fingerprint, parameters, architecture and final cap."""
        return {
            "path": self.path,
            "backend": "transformers",
            "fingerprint": self._fingerprint,
            "parameters": sum(p.numel() for p in self.module.parameters()),
            "architecture": type(self.module).__name__,
            "final_logit_softcapping": self._cap,
        }

    def forward_flops_per_token(self, seq_len: int) -> float:
        """Two for each weight that is multiplied (all experts of a mixture), and attention's."""
        weights = sum(p.numel() for p in self._base.parameters()) + self._out.weight.numel()
        embedding = self.module.get_input_embeddings().weight.numel()  # type: ignore[operator]
        layers = getattr(self._config, "num_hidden_layers", 0)
        return 2.0 * (weights - embedding) + 2.0 * layers * seq_len * self._out.weight.shape[1]

    @torch.no_grad()
    def _check_head(self) -> None:
        """Compares logits made from hidden states with the model's own, on random ids."""
        generator = torch.Generator().manual_seed(0)
        tokens_BT = torch.randint(self._vocab_size, (2, _PROBE_TOKENS), generator=generator)
        try:
            theirs = self.module(tokens_BT, use_cache=False).logits
            x_BTD = self._base(tokens_BT, use_cache=False).last_hidden_state
            ours = soft_cap(x_BTD @ self._out.weight.T, self._cap)
        except (RuntimeError, TypeError, ValueError, AttributeError) as e:
            raise CheckpointError(
                f"{self.path} ({type(self.module).__name__}) cannot be run on token ids alone "
                f"({first_line(e)}): a teacher is a decoder of text"
            ) from None
        size = theirs.abs().max()
        off = float(((ours - theirs).abs().max() / size).nan_to_num(torch.inf))
        if not bool(theirs.isfinite().all()):
            raise CheckpointError(f"{self.path} computes NaN or Inf on ordinary ids")
        if off > _TOLERANCE:
            raise CheckpointError(
                f"{self.path} ({type(self.module).__name__}) makes its logits otherwise than as "
                f"its head's product with its hidden states (they differ by {off:.1e} of the "
                f"largest): {self._what_differs(theirs / ours)}. Such a teacher cannot be used"
            )

    def _what_differs(self, ratio: Tensor) -> str:
        if getattr(self._out, "bias", None) is not None:
            return "its head has a bias"
        scales = ("logit_scale", "logits_scaling", "logits_scale", "output_multiplier_scale")
        named = [name for name in scales if getattr(self._config, name, None) is not None]
        if named:
            return f"its config scales the logits ({named[0]})"
        if bool(((ratio - ratio.mean()).abs() < 1e-2 * ratio.mean().abs()).all()):
            return f"they are multiplied by {float(ratio.mean()):.3g}"
        return "something is done to them that its config does not name"


Document = tuple[int, int, int]  # row, first token, token after the last


def _documents(doc_ids_BT: Tensor) -> list[Document]:
    """Where the documents of a batch are; padding is none."""
    found: list[Document] = []
    for row, segments_T in enumerate(doc_ids_BT.cpu()):
        values, counts = segments_T.unique_consecutive(return_counts=True)
        stop = 0
        for value, count in zip(values.tolist(), counts.tolist(), strict=True):
            start, stop = stop, stop + count
            if value:
                found.append((row, start, stop))
    return found


def _groups(documents: list[Document], most: int) -> list[list[Document]]:
    """Documents to run at once: of like length, and with filling no more than `most` tokens."""
    groups: list[list[Document]] = []
    for document in sorted(documents, key=lambda d: d[1] - d[2]):
        # The longest comes first in a group, and says what each of it takes.
        if groups:
            _, start, stop = groups[-1][0]
            same_size = 2 * (document[2] - document[1]) >= stop - start
            if same_size and (len(groups[-1]) + 1) * (stop - start) <= most:
                groups[-1].append(document)
                continue
        groups.append([document])
    return groups
