"""Teachers that transformers runs: any causal language model it knows, without code of the model's.

The documents of a sequence must not attend to each other. transformers makes masks from positions
that start again at 0, for global, local and chunked layers, where a model uses its masks.
Whether this one does is tried when it is opened, on documents alone and one after the other in a
row: recurrent models do not, and some have masks of their own. Those run each document by itself,
several at a time, padded on the right, which a causal model cannot see. A 4-D mask of ours would be
wrong: transformers applies it unchanged in every layer, so that local layers lose their window.

Positions start at 0 in each document; a GemmaTeacher's count through the sequence, which makes no
difference to rotary embeddings.

A sequence that begins within a document is opened with <bos> where the model's tokenizer puts it
before every text: such a model has seen no text without it.

Shapes: B sequences, T tokens of a sequence, R rows of documents, M tokens of a row, D model,
V vocabulary.
"""

import importlib
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from gemmule.checkpoints.checkpoint import weights_fingerprint
from gemmule.data.batch import Batch
from gemmule.errors import CheckpointError, MissingExtraError, first_line
from gemmule.losses.head import Head
from gemmule.losses.soft_cap import soft_cap
from gemmule.teachers.document_rows import alone, documents_of, laid_out, packed, put_back
from gemmule.teachers.opening import DESCRIPTION, opened
from gemmule.teachers.teacher import LocalTeacher

# Exceptions that transformers raises for a folder that it cannot read.
REFUSALS = (ValueError, OSError, ImportError, KeyError, TypeError, AttributeError)
# Exceptions of a forward pass with arguments that a model does not take.
_CANNOT_RUN = (RuntimeError, TypeError, ValueError, AttributeError)
_PROBE_TOKENS = 12
_PROBE_DOCUMENTS = (5, 1, 7)  # tokens of documents that are run alone and in a row
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
    """The tokenizer in a folder, as transformers reads it, without running code from the folder.

    Raises:
        MissingExtraError: when transformers is not installed.
        CheckpointError: when there is no readable tokenizer.
    """
    transformers = import_transformers()
    try:
        return transformers.AutoTokenizer.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        )
    except REFUSALS as e:
        raise CheckpointError(
            f"transformers finds no tokenizer that it can read in {folder} ({first_line(e)})"
        ) from None


def bos_before_text(tokenizer: Any) -> int | None:
    """The <bos> that a tokenizer of transformers puts before every text; None: it puts none."""
    bos: int | None = tokenizer.bos_token_id
    return bos if bos is not None and list(tokenizer("a").input_ids[:1]) == [bos] else None


class TransformersTeacher(LocalTeacher):
    """A causal language model of transformers.

    Args:
        path: its location, as the user gave it.
        model: the network with its head.
        vocab_size: size of its tokenizer's vocabulary; further rows of its head are padding.
        bos: id of the <bos> that opens sequences which begin within a document; None: none does.

    Attributes:
        packs: whether several documents can lie in a row without attending to each other.

    Raises:
        CheckpointError: when its logits are not the product of its head and hidden states.
    """

    def __init__(self, path: str, model: Any, vocab_size: int, bos: int | None = None) -> None:
        self.path, self._vocab_size, self._bos = path, vocab_size, bos
        self.model = model.requires_grad_(False).eval()
        self._base, self._config = model.base_model, model.config.get_text_config()
        self._out = model.get_output_embeddings()
        rows = 0 if self._out is None else len(self._out.weight)
        if rows < vocab_size:
            raise CheckpointError(
                f"the head of {path} has {rows} rows, and its tokenizer {vocab_size} tokens: its "
                "files do not belong together"
            )
        self._check_head()
        self.packs = self._keeps_documents_apart()
        self._fingerprint = weights_fingerprint(model)

    @classmethod
    def open(
        cls, path: str, folder: Path, vocab_size: int, bos: int | None = None
    ) -> "TransformersTeacher":
        """Loads a model from its folder: from safetensors, in fp32, without running code from it.

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
        except (*REFUSALS, RuntimeError, SafetensorError) as e:
            raise CheckpointError(
                f"transformers cannot load {path} ({first_line(e)}): a teacher is a causal "
                "language model of an architecture that transformers has, with weights in "
                "safetensors"
            ) from None
        return cls(path, model, vocab_size, bos)

    @property
    def vocab_size(self) -> int:
        """Size of its tokenizer's vocabulary."""
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
        """Longest sequence according to its config, without the <bos> that may open it.

        None where the config says nothing.
        """
        length = getattr(self._config, "max_position_embeddings", None)
        if not isinstance(length, int) or length <= 0:
            return None
        return length - (self._bos is not None)

    def hidden_states(self, batch: Batch) -> Tensor:
        """Final hidden states [B, T, D], zero at padding."""
        if self._bos is None:
            return self._of_documents(batch)
        return self._of_documents(opened(batch, self._bos))[:, 1:]

    def _of_documents(self, batch: Batch) -> Tensor:
        sequences, length = batch.tokens_BT.shape
        width, dtype = self._out.weight.shape[1], self._out.weight.dtype
        if torch.is_autocast_enabled(batch.tokens_BT.device.type):
            dtype = torch.get_autocast_dtype(batch.tokens_BT.device.type)
        x_BTD = torch.zeros(sequences, length, width, dtype=dtype, device=batch.tokens_BT.device)
        documents = documents_of(batch.doc_ids_BT)
        groups = [packed(documents)] if self.packs else alone(documents, sequences * length)
        for rows in filter(None, groups):
            tokens_RM, positions_RM = laid_out(batch.tokens_BT, rows)
            several = any(len(row) > 1 for row in rows)
            x_RMD = self._last_hidden_state(tokens_RM, positions_RM if several else None)
            put_back(x_RMD.to(dtype), rows, x_BTD)
        return x_BTD

    def _last_hidden_state(self, tokens_RM: Tensor, positions_RM: Tensor | None = None) -> Tensor:
        positions = {} if positions_RM is None else {"position_ids": positions_RM}
        states: Tensor = self._base(tokens_RM, use_cache=False, **positions).last_hidden_state
        return states

    def describe(self) -> dict[str, Any]:
        """Path, fingerprint of the weights, parameters, architecture, final soft cap, and <bos>."""
        opening = {} if self._bos is None else {"bos": DESCRIPTION}
        return {
            "path": self.path,
            "backend": "transformers",
            "fingerprint": self._fingerprint,
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "architecture": type(self.model).__name__,
            "final_logit_softcapping": self._cap,
            **opening,
        }

    def forward_flops_per_token(self, seq_len: int) -> float:
        """Two operations per multiplied weight (all experts of a mixture), and attention's."""
        weights = sum(p.numel() for p in self._base.parameters()) + self._out.weight.numel()
        embedding = self.model.get_input_embeddings().weight.numel()  # type: ignore[operator]
        layers = getattr(self._config, "num_hidden_layers", 0)
        return 2.0 * (weights - embedding) + 2.0 * layers * seq_len * self._out.weight.shape[1]

    @torch.no_grad()
    def _check_head(self) -> None:
        """Compares logits computed from hidden states with the model's own, on random ids."""
        generator = torch.Generator().manual_seed(0)
        tokens_BT = torch.randint(self._vocab_size, (2, _PROBE_TOKENS), generator=generator)
        try:
            theirs = self.model(tokens_BT, use_cache=False).logits
            x_BTD = self._last_hidden_state(tokens_BT)
            ours = soft_cap(x_BTD @ self._out.weight.T, self._cap)
        except _CANNOT_RUN as e:
            raise CheckpointError(
                f"{self.path} ({type(self.model).__name__}) cannot be run on token ids alone "
                f"({first_line(e)}): a teacher is a decoder of text"
            ) from None
        size = theirs.abs().max()
        error = float(((ours - theirs).abs().max() / size).nan_to_num(torch.inf))
        if not bool(theirs.isfinite().all()):
            raise CheckpointError(f"{self.path} computes NaN or Inf on ordinary ids")
        if error > _TOLERANCE:
            raise CheckpointError(
                f"the logits of {self.path} ({type(self.model).__name__}) are not the product of "
                f"its head and its hidden states (they differ by {error:.1e} of the largest): "
                f"{self._what_differs(theirs / ours)}. Such a teacher cannot be used"
            )

    @torch.no_grad()
    def _keeps_documents_apart(self) -> bool:
        """Compares documents in one row with the same documents alone, on random ids."""
        generator = torch.Generator().manual_seed(1)
        tokens_M = torch.randint(self._vocab_size, (sum(_PROBE_DOCUMENTS),), generator=generator)
        positions_M = torch.cat([torch.arange(tokens) for tokens in _PROBE_DOCUMENTS])
        parts = tokens_M.split(_PROBE_DOCUMENTS)
        alone_MD = torch.cat([self._last_hidden_state(part[None])[0] for part in parts])
        try:
            x_MD = self._last_hidden_state(tokens_M[None], positions_M[None])[0]
        except _CANNOT_RUN:
            return False
        return bool((x_MD - alone_MD).abs().max() <= _TOLERANCE * alone_MD.abs().max())

    def _what_differs(self, ratio: Tensor) -> str:
        if getattr(self._out, "bias", None) is not None:
            return "its head has a bias"
        scales = ("logit_scale", "logits_scaling", "logits_scale", "output_multiplier_scale")
        named = [name for name in scales if getattr(self._config, name, None) is not None]
        if named:
            return f"its config scales the logits ({named[0]})"
        if bool(((ratio - ratio.mean()).abs() < 1e-2 * ratio.mean().abs()).all()):
            return f"they are multiplied by {float(ratio.mean()):.3g}"
        return "its config does not name the reason"
