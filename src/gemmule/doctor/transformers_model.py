"""A Gemma 2 model of transformers behind the interface of the checks."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gemmule import files
from gemmule.doctor.local import positions
from gemmule.errors import CheckpointError, ConfigError
from gemmule.model.chat_template import is_gemmas
from gemmule.model.config import GemmaConfig
from gemmule.model.hf_tokenizer import CHAT_TEMPLATE
from gemmule.model.spm_train import FIRST_LEARNED_ID
from gemmule.teachers.transformers_model import import_transformers

_OPTION = "--backend transformers"


def load(
    path: str, attention: str, dtype: torch.dtype
) -> "tuple[TransformersModel, TransformersText]":
    """Loads a model and its tokenizer as a user of transformers would.

    Args:
        path: a run with model/ in it, a folder in HF layout, or a hub id.
        attention: attn_implementation of transformers.
        dtype: dtype of weights and activations.

    Raises:
        MissingExtraError: when transformers is not installed.
        CheckpointError: when it cannot load the model, or the model is not a Gemma 2.
        ConfigError: when it does not support the attention implementation.
    """
    transformers = import_transformers(_OPTION)
    outer = files.expand(path)
    inner = outer / "model"
    folder = str(inner if (inner / "config.json").is_file() else outer)
    if not Path(folder).exists():
        folder = path.removeprefix("hf://")
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, attn_implementation=attention, dtype=dtype
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    except (ValueError, ImportError) as e:
        message = " ".join(str(e).split())
        if "attention implementation" in message or "attn_implementation" in message:
            raise ConfigError(
                f"this transformers refuses attn_implementation={attention!r} for Gemma 2 "
                f"({message[:160]}): use eager"
            ) from None
        raise CheckpointError(f"transformers cannot load {folder}: {message}") from None
    except OSError as e:
        raise CheckpointError(f"transformers cannot load {folder}: {e}") from None
    if model.config.model_type != "gemma2":
        raise CheckpointError(f"{folder} is a {model.config.model_type} model, not a gemma2 one")
    return TransformersModel(model), TransformersText(tokenizer)


class TransformersModel:
    """Wraps a Gemma2ForCausalLM."""

    def __init__(self, model: Any) -> None:
        self._model = model.eval()

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights, and so of the activations."""
        return self._model.get_input_embeddings().weight.dtype

    @torch.inference_mode()
    def logits(self, tokens_BT: Tensor, mask_BT: Tensor | None = None, start: int = 0) -> Tensor:
        """Logits [B, T, V] without a cache."""
        if mask_BT is not None:
            places = positions(mask_BT)
        else:
            places = torch.arange(start, start + tokens_BT.shape[1])[None].expand_as(tokens_BT)
        out = self._model(tokens_BT, attention_mask=mask_BT, position_ids=places, use_cache=False)
        return out.logits

    @torch.inference_mode()
    def decode(self, tokens_BT: Tensor, chunks: Sequence[int]) -> Tensor:
        """Logits [B, T, V] through the cache of transformers."""
        cache, parts = None, []
        for part in tokens_BT.split(list(chunks), dim=1):
            out = self._model(part, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            parts.append(out.logits)
        return torch.cat(parts, dim=1)

    @torch.inference_mode()
    def complete(self, prompts: Sequence[Sequence[int]], count: int) -> list[list[int]]:
        """The next `count` most likely tokens; prompts are padded on the left for generate."""
        transformers = import_transformers(_OPTION)
        longest = max(map(len, prompts))
        pads = [longest - len(prompt) for prompt in prompts]
        tokens = [[0] * pad + list(prompt) for pad, prompt in zip(pads, prompts, strict=True)]
        mask = [[0] * pad + [1] * (longest - pad) for pad in pads]
        settings = transformers.GenerationConfig(
            max_new_tokens=count,
            do_sample=False,
            pad_token_id=0,
            bos_token_id=2,
            eos_token_id=self._model.config.vocab_size,  # not a token: generation never stops early
        )
        out = self._model.generate(
            torch.tensor(tokens), attention_mask=torch.tensor(mask), generation_config=settings
        )
        return out[:, longest:].tolist()

    def sibling(self, config: GemmaConfig, weights: Mapping[str, Tensor]) -> "TransformersModel":
        """A model of the same class and attention; only its shape differs from the user's."""
        theirs = copy.deepcopy(self._model.config)
        shape = config.model_dump()
        theta = shape.pop("rope_theta")
        for name, value in shape.items():
            setattr(theirs, name, value)
        layers = config.num_hidden_layers
        theirs.layer_types = (list(theirs.layer_types) * layers)[:layers]
        theirs.rope_parameters = {**theirs.rope_parameters, "rope_theta": theta}
        attention = self._model.config._attn_implementation
        dtype = weights["embed_tokens.weight"].dtype
        model = type(self._model)._from_config(theirs, attn_implementation=attention, dtype=dtype)
        model.model.load_state_dict(dict(weights))
        return TransformersModel(model)

    def untied_head(self) -> str | None:
        """A message if the head is not the embedding."""
        head = self._model.get_output_embeddings().weight
        embedding = self._model.get_input_embeddings().weight
        if head is embedding or head.data_ptr() == embedding.data_ptr():
            return None
        different = not torch.equal(head, embedding)
        return "lm_head differs from embed_tokens" if different else None


class TransformersText:
    """A transformers tokenizer, called in the usual ways."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def encode(self, text: str) -> list[int]:
        """Ids of a text, with the tokenizer's special tokens."""
        return list(self._tokenizer(text).input_ids)

    def encode_chat(self, text: str) -> list[int]:
        """Ids of a conversation, by the chat template."""
        message = [{"role": "user", "content": text}]
        return list(
            self._tokenizer.apply_chat_template(
                message, add_generation_prompt=True, return_dict=False
            )
        )

    def encode_plain(self, text: str) -> list[int]:
        """Ids of a text without special tokens."""
        return list(self._tokenizer(text, add_special_tokens=False).input_ids)

    def piece(self, token: int) -> bytes:
        """Bytes of a token; byte-fallback tokens are decoded."""
        piece = str(self._tokenizer.convert_ids_to_tokens(token))
        if len(piece) == 6 and piece.startswith("<0x"):
            return bytes([int(piece[3:5], 16)])
        return piece.replace("\u2581", " ").encode()

    def turn_markers(self) -> dict[str, int] | None:
        """Control tokens of a chat format of the model's own, with their ids; None: Gemma's."""
        template = self._tokenizer.chat_template
        if not isinstance(template, str) or is_gemmas(template, CHAT_TEMPLATE):
            return None
        added = self._tokenizer.added_tokens_decoder
        return {str(t): i for i, t in added.items() if t.special and i >= FIRST_LEARNED_ID}
