"""Converts GemmaConfig to and from the config.json of Hugging Face's Gemma2ForCausalLM.

The field names are the same, so reading means to fill in defaults and to refuse what our forward
pass does not implement (facts read from transformers' configuration_gemma2.py).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gemmule import files
from gemmule.checkpoints import other_quantizations
from gemmule.checkpoints.other_models import GEMMA2, model_type_of, other_model
from gemmule.checkpoints.parameter_names import classifier_message
from gemmule.errors import CheckpointError, ConfigError, brief
from gemmule.model.config import GemmaConfig
from gemmule.model.tokenizer import Tokenizer
from gemmule.model.tokenizer_files import DEFAULT_STOP_IDS

PAD_ID, EOS_ID, BOS_ID = 0, 1, 2
ACTIVATION = "gelu_pytorch_tanh"

# What config.json says of a reward model: a sequence classifier with one label.
REWARD_MODEL: Mapping[str, Any] = {
    "architectures": ["Gemma2ForSequenceClassification"],
    "id2label": {"0": "REWARD"},
    "label2id": {"REWARD": 0},
    "num_labels": 1,
}
# Defaults of transformers' Gemma2Config for fields that config.json leaves out.
_DEFAULTS: Mapping[str, Any] = {
    "vocab_size": 256000,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 8192,
}


def _layer_types(config: GemmaConfig) -> list[str]:
    return [
        "sliding_attention" if config.is_local(i) else "full_attention"
        for i in range(config.num_hidden_layers)
    ]


def to_hf(config: GemmaConfig, dtype: str, tokenizer: Tokenizer | None = None) -> dict[str, Any]:
    """The content of config.json, with the same meaning in transformers 4 and 5.

    Args:
        config: the model's config.
        dtype: name of the weights' dtype, such as "float32".
        tokenizer: tokenizer with the model's stop and padding ids; None: Gemma's.
    """
    own = tokenizer is not None and tokenizer.stop_ids != DEFAULT_STOP_IDS
    return {
        "architectures": ["Gemma2ForCausalLM"],
        "model_type": "gemma2",
        **{name: getattr(config, name) for name in _DEFAULTS},
        "query_pre_attn_scalar": config.query_pre_attn_scalar or config.head_dim,
        "hidden_activation": ACTIVATION,
        "layer_types": _layer_types(config),
        # transformers 5 reads rope_parameters; version 4, vLLM and llama.cpp read rope_theta.
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "rope_theta": config.rope_theta,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "tie_word_embeddings": True,
        "initializer_range": 0.02,
        "use_cache": True,
        "pad_token_id": _pad_id(tokenizer),
        "eos_token_id": _one_or_list(tokenizer.stop_ids) if own and tokenizer else EOS_ID,
        "bos_token_id": BOS_ID,
        "dtype": dtype,
        "torch_dtype": dtype,
    }


def generation_config(tokenizer: Tokenizer | None = None) -> dict[str, Any]:
    """The content of generation_config.json: the ids that end an answer, and those of <bos>, <pad>.

    Args:
        tokenizer: tokenizer with the model's stop and padding ids; None: Gemma's.
    """
    return {
        "bos_token_id": BOS_ID,
        "eos_token_id": list(DEFAULT_STOP_IDS if tokenizer is None else tokenizer.stop_ids),
        "pad_token_id": _pad_id(tokenizer),
    }


def _pad_id(tokenizer: Tokenizer | None) -> int:
    return PAD_ID if tokenizer is None else tokenizer.named_id("pad_token")


def _one_or_list(ids: Sequence[int]) -> int | list[int]:
    return ids[0] if len(ids) == 1 else list(ids)


def from_hf(values: Mapping[str, Any], source: str = "config.json") -> GemmaConfig:
    """Reads the content of a config.json.

    Args:
        values: the parsed JSON.
        source: its origin, for error messages.

    Raises:
        CheckpointError: for another architecture, a feature we do not have, or a wrong value.
    """
    if model_type_of(values) != GEMMA2:
        raise CheckpointError(other_model(values).refusal(source))
    method = other_quantizations.method_of(values)
    if method:
        raise other_quantizations.refusal(method, source)
    _refuse_classifier(values, source)
    rope = values.get("rope_parameters") or {}
    if not isinstance(rope, Mapping):
        raise CheckpointError(f"{source}: rope_parameters is {rope!r}; expected an object")
    _refuse_unsupported(values, rope, source)
    ours = {name: values.get(name, default) for name, default in _DEFAULTS.items()}
    ours["rope_theta"] = rope.get("rope_theta", values.get("rope_theta", 10000.0))
    if ours["query_pre_attn_scalar"] is None or ours["sliding_window"] is None:
        raise CheckpointError(
            f"{source}: query_pre_attn_scalar and sliding_window must be numbers, got "
            f"{ours['query_pre_attn_scalar']!r} and {ours['sliding_window']!r}"
        )
    try:
        config = GemmaConfig.parse(ours, source=source)
    except ConfigError as e:
        raise CheckpointError(str(e)) from None
    # The length is compared first: a hostile layer count would make our list enormous.
    types = values.get("layer_types")
    if types is not None and (
        not isinstance(types, list)
        or len(types) != config.num_hidden_layers
        or types != _layer_types(config)
    ):
        raise CheckpointError(
            f"{source}: layer_types is {brief(types)}; Gemma 2 alternates 'sliding_attention' "
            f"and 'full_attention', sliding first, over {config.num_hidden_layers} layers"
        )
    return config


def _refuse_unsupported(values: Mapping[str, Any], rope: Mapping[str, Any], source: str) -> None:
    supported: dict[str, tuple[Any, ...]] = {
        "hidden_activation": (None, ACTIVATION),
        "attention_bias": (None, False),
        "attention_dropout": (None, 0),
        "use_bidirectional_attention": (None, False),
        "rope_scaling": (None,),
    }
    present = {name: values.get(name) for name in supported}
    present["rope_parameters.rope_type"] = rope.get("rope_type")
    supported["rope_parameters.rope_type"] = (None, "default")
    present["rope_parameters.partial_rotary_factor"] = rope.get("partial_rotary_factor")
    supported["rope_parameters.partial_rotary_factor"] = (None, 1)
    for name, value in present.items():
        if value not in supported[name]:
            allowed = supported[name][-1]
            raise CheckpointError(
                f"{source}: {name} is {brief(value)}, which is not supported; only "
                f"{'models without it' if allowed is None else repr(allowed)} can be loaded"
            )


def without_score(values: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The content of a reward model's config.json as that of a language model.

    Raises:
        CheckpointError: when it is not that of a sequence classifier with one label.
    """
    classes, labels = values.get("architectures"), values.get("id2label")
    count = len(labels) if isinstance(labels, Mapping) else values.get("num_labels")
    if classes != ["Gemma2ForSequenceClassification"] or count != 1:
        raise CheckpointError(
            f"{source} is not that of a reward model, a Gemma2ForSequenceClassification with one "
            f"label: it has architectures {brief(classes)} and {count or 'no'} labels; gemmule "
            "reward trains one"
        )
    return {name: value for name, value in values.items() if name not in REWARD_MODEL}


def _refuse_classifier(values: Mapping[str, Any], source: str) -> None:
    classes = values.get("architectures")
    for name in classes if isinstance(classes, list) else ():
        if str(name).endswith("Classification"):
            labels = values.get("id2label")
            count = [len(labels)] if isinstance(labels, Mapping) else []
            raise CheckpointError(classifier_message(source, count, str(name)[:80]))


def read_object(path: Path) -> dict[str, Any]:
    """Reads a JSON file whose content is an object.

    Raises:
        CheckpointError: when it is missing, unreadable or not an object.
    """
    try:
        return files.read_object(path, CheckpointError)
    except FileNotFoundError:
        raise CheckpointError(f"no {path.name} in {path.parent}") from None
