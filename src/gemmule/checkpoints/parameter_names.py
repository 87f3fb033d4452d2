"""Our parameter names from the names that weights have in files.

Wrappers that a model is trained in (torch.compile, DDP, FSDP, peft, a multimodal model around its
language model) put components before or between those of a name. They are removed; buffers that the
config determines are left out; and weights of a head that Gemma 2 does not have are named.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from gemmule.checkpoints.checkpoint import EMBEDDING, HEAD
from gemmule.checkpoints.stored_tensor import few
from gemmule.errors import CheckpointError

# Components that torch.compile, FSDP and activation checkpointing insert anywhere.
_INSERTED = {
    "_orig_mod", "_fsdp_wrapped_module", "_fpw_module", "_checkpoint_wrapped_module",
    "_forward_module",
}  # fmt: skip
# Components that only stand at the front; "model" is the usual one.
_OUTER = {"model", "module", "base_model", "language_model", "pretrained_model", "student"}
GEMMA_PYTORCH_EMBEDDING = "embedder.weight"
# Where the names of a Gemma 2 begin; any other component that all names begin with is a wrapper's.
_OWN = {"embed_tokens", "layers", "norm", "lm_head"}
# What a config determines, or what a model does not need: rotary angles, masks, scales, and the
# tokenizer's bytes, which ComfyUI puts among the weights.
_BUFFER = re.compile(
    r"(?:.*\.)?(?:rotary_emb\w*\.\w+|(?:local_|global_)?freqs_cis|inv_freq|position_ids"
    r"|embed_scale|normalizer|masked_bias|kv_cache\w*|spiece_model)"
)
_ADAPTER = re.compile(r"\.(?:lora_\w+|base_layer)\.")
_CLASSIFIER = re.compile(r"(?:score|classifier|classification_head)\.(?:.*\.)?(?:weight|bias)")
_VALUE_HEAD = re.compile(r"(?:v_head|value_head|reward_head|regression_layer|summary)\..+")


@dataclass(frozen=True)
class Names:
    """The weights of a language model among those of a file.

    Attributes:
        ours: our name of each weight, by its name in the file.
        buffers: names of what is left out because the config determines it.
        prefixes: what was removed from names, other than "model."; each once.
    """

    ours: Mapping[str, str]
    buffers: tuple[str, ...]
    prefixes: tuple[str, ...]

    @property
    def notes(self) -> tuple[str, ...]:
        """Remarks for the user."""
        notes = []
        if self.prefixes:
            notes.append(f"removed from the weights' names: {', '.join(self.prefixes)}")
        if self.buffers:
            notes.append(
                f"left out: {len(self.buffers)} buffers that the config determines, such as "
                f"{self.buffers[0]}"
            )
        as_head = [n for n, our in self.ours.items() if our == EMBEDDING and n.endswith(HEAD)]
        notes += [
            f"the embedding is stored as {name}, the head, which it equals" for name in as_head
        ]
        return tuple(notes)


def is_buffer(name: str) -> bool:
    """Whether a name is that of a buffer, which is no weight."""
    return _BUFFER.fullmatch(name) is not None


def parameter_name(name: str) -> str:
    """Our name of a weight, without the components of wrappers."""
    parts = [part for part in name.split(".") if part not in _INSERTED]
    while len(parts) > 1 and parts[0] in _OUTER:
        del parts[0]
    return ".".join(parts)


def parameter_names(stored: Mapping[str, tuple[int, ...]], source: str) -> Names:
    """Our names of the weights in a file or in several.

    Args:
        stored: shapes by the names in the files.
        source: the checkpoint, for messages.

    Raises:
        CheckpointError: when two weights get one name, and for the weights of an adapter, of a
            sequence classifier or of a model with a value head.
    """
    buffers = tuple(name for name in stored if is_buffer(name))
    ours = _without_common_front(
        {name: parameter_name(name) for name in stored if not is_buffer(name)}
    )
    first: dict[str, str] = {}
    for name, our in ours.items():
        if our in first:
            raise CheckpointError(f"{source}: {our} is stored twice, as {first[our]} and as {name}")
        first[our] = name
    _refuse_others(first, stored, source)
    if HEAD in first and not first.keys() & {EMBEDDING, GEMMA_PYTORCH_EMBEDDING}:
        # Of two names for one matrix, savers such as safetensors' save_model keep the other.
        ours[first[HEAD]] = EMBEDDING
    return Names(ours, buffers, _prefixes(ours))


def _without_common_front(ours: dict[str, str]) -> dict[str, str]:
    """Names without a component that all begin with, such as "policy" or "llm"."""
    while True:
        fronts = {name.partition(".")[0] for name in ours.values()}
        if len(fronts) != 1 or fronts & _OWN or not all("." in name for name in ours.values()):
            return ours
        ours = {name: parameter_name(our.partition(".")[2]) for name, our in ours.items()}


def _refuse_others(
    stored_name: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]], source: str
) -> None:
    adapters = [name for name in stored_name if _ADAPTER.search(name)]
    if adapters:
        raise CheckpointError(
            f"{source} holds an adapter inside the model ({few(adapters)}): save the adapter alone "
            "with peft's save_pretrained, or merge it with merge_and_unload and save the model"
        )
    for name, original in stored_name.items():
        if _CLASSIFIER.fullmatch(name) and name.endswith("weight"):
            raise CheckpointError(classifier_message(source, shapes[original][:1], name))
        if _VALUE_HEAD.fullmatch(name):
            raise CheckpointError(
                f"{source} is a Gemma 2 with a value head ({name}), as reinforcement learning "
                "trains it: the head cannot be run here; the library that wrote it can"
            )


def classifier_message(source: str, labels: Iterable[int], what: str) -> str:
    """The refusal of a sequence or token classifier, or reward model.

    Args:
        source: the checkpoint.
        labels: the number of labels, if it is known.
        what: what shows it: a weight's name, or the name of a class of transformers.
    """
    count = "".join(f"{n} label{'s' * (n != 1)}, " for n in labels)
    kind, name = "Sequence", "sequence classifier or reward model"
    if "TokenClassification" in what:
        kind, name = "Token", "token classifier"
    reward = "; with one label it is a reward for gemmule align" if kind == "Sequence" else ""
    return (
        f"{source} is a Gemma 2 {name} ({count}{what}), which does not write text: transformers "
        f"can run it (AutoModelFor{kind}Classification){reward}"
    )


def _prefixes(ours: Mapping[str, str]) -> tuple[str, ...]:
    removed: dict[str, None] = {}
    for name, our in ours.items():
        parts, kept = name.split("."), len(our.split("."))
        front = ".".join(parts[: len(parts) - kept]) if name.endswith(our) else ""
        inserted = [part for part in parts if part in _INSERTED]
        prefix = f"{front}." if front else "".join(f"{part}." for part in inserted)
        if prefix not in {"", "model."}:
            removed[prefix] = None
    shortest = [
        p for p in removed if not p.endswith("model.") or p[: -len("model.")] not in removed
    ]
    return tuple(shortest[:4])
