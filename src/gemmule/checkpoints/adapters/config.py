"""The adapter_config.json of a LoRA or DoRA adapter.

Facts read from peft 0.21: LoraConfig, and LoraModel's choice of rank, alpha and modules.
"""

import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemmule.checkpoints.hf.config import read_object
from gemmule.checkpoints.model_folder import ADAPTER_CONFIG
from gemmule.errors import CheckpointError, brief

MERGE = "merge it with peft (merge_and_unload, then save_pretrained) and give the merged model"
_UNMERGEABLE = {"PREFIX_TUNING", "PROMPT_TUNING", "P_TUNING", "MULTITASK_PROMPT_TUNING", "CPT"}
_ELSEWHERE = "run it with peft: it cannot be merged"
# Settings that change what the adapter computes: what they switch on, and what to do instead.
_REFUSED = {
    "alora_invocation_tokens": ("activated LoRA", _ELSEWHERE),
    "arrow_config": ("Arrow routing", _ELSEWHERE),
    "kasa_config": ("KaSA", MERGE),
    "layer_replication": ("layer replication", MERGE),
    "lora_bias": ("biases", f"Gemma 2 has none; {_ELSEWHERE}"),
    "megatron_config": ("Megatron's parallel layers", MERGE),
    "monteclora_config": ("MonteCLoRA", MERGE),
    "target_parameters": ("adapters of single parameters", MERGE),
    "use_bdlora": ("BD-LoRA", MERGE),
    "use_qalora": ("QA-LoRA", MERGE),
}
# Initializations that also change the base model's weights. An adapter that was converted when it
# was saved says `true` instead.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
# Settings that matter only in training, or to the choice of modules, or to other programs.
_IGNORED = {
    "auto_mapping", "bias", "corda_config", "eva_config", "fan_in_fan_out", "inference_mode",
    "layers_pattern", "lora_dropout", "lora_ga_config", "loftq_config", "megatron_core",
    "peft_version", "qalora_group_size", "runtime_config", "velora_config",
}  # fmt: skip
# A pattern is a regular expression from a file of strangers: these parts can take forever.
_SLOW = re.compile(r"\)\s*[*+{]|\\[1-9]|\(\?(?!:)")
_MAX_REPEATS, _MAX_PATTERN, _MAX_PATTERNS = 3, 300, 5_000

# Values by pattern of module names.
Patterns = Sequence[tuple[re.Pattern[str], Any]]


@dataclass(frozen=True)
class AdapterConfig:
    """What an adapter_config.json says about merging.

    Attributes:
        source: the file, for messages.
        base: name of the base model; None if the file does not say.
        revision: revision of the base on the hub; None: the newest.
        r: rank, where `ranks` names no other.
        alpha: numerator of the scale, where `alphas` names no other.
        ranks: ranks by pattern of module names.
        alphas: alphas by pattern of module names.
        rslora: whether the scale is alpha / sqrt(rank) instead of alpha / rank.
        dora: whether rows are normalized and multiplied by trained magnitudes.
        tied: whether the head's adapter is the embedding's (ensure_weight_tying).
        rounded: whether peft rounds the product to the base's dtype before adding it.
        targets: ends of the names of adapted modules, a pattern of whole names, or None.
        excluded: the same, of modules that are not adapted.
        layers: layers that are adapted; None: all.
        token_indices: trained rows of the embedding or head, by module.
        unknown: settings that this version does not know.
    """

    source: Path
    base: str | None
    revision: str | None
    r: int
    alpha: float
    ranks: Patterns
    alphas: Patterns
    rslora: bool
    dora: bool
    tied: bool
    rounded: bool
    targets: tuple[str, ...] | str | None
    excluded: tuple[str, ...] | str | None
    layers: tuple[int, ...] | None
    token_indices: Mapping[str, tuple[int, ...]]
    unknown: tuple[str, ...]

    @property
    def method(self) -> str:
        """The name of the method: LoRA, rsLoRA or DoRA."""
        return "DoRA" if self.dora else "rsLoRA" if self.rslora else "LoRA"

    def rank(self, module: str) -> int:
        """The rank of a module's adapter, by its full name such as model.layers.0.mlp.up_proj."""
        return _matching(self.ranks, module, self.r)

    def scale(self, module: str) -> float:
        """The factor of a module's B @ A."""
        alpha, rank = _matching(self.alphas, module, self.alpha), self.rank(module)
        return alpha / (math.sqrt(rank) if self.rslora else rank)

    def adapts(self, module: str) -> bool | None:
        """Whether the config names a module for adapting; None: that cannot be told."""
        targets, excluded = self.targets, self.excluded
        if targets is None or targets == "all-linear" or isinstance(excluded, str):
            return None
        if excluded and _ends_with(module, excluded):
            return False
        if isinstance(targets, str):
            compiled = _compiled(targets)
            return None if compiled is None else compiled.fullmatch(module) is not None
        if module in targets:
            return True
        index = re.search(r"\.(\d+)\.", module)
        in_layers = self.layers is None or (index is not None and int(index[1]) in self.layers)
        return in_layers and _ends_with(module, targets)


def _matching(values: Patterns, module: str, default: Any) -> Any:
    """The value of the first pattern that matches the end of a module's name, as in peft."""
    return next((value for pattern, value in values if pattern.match(module)), default)


def read_config(folder: Path) -> AdapterConfig:
    """Reads the adapter_config.json in a folder.

    Raises:
        CheckpointError: when it is missing, broken, or describes what cannot be merged here.
    """
    path = folder / ADAPTER_CONFIG
    values = read_object(path)
    _refuse(values, path)
    reader = _Reader(values, path)
    dora = reader.flag("use_dora")
    initial = values.get("init_lora_weights")
    return AdapterConfig(
        source=path,
        base=reader.text("base_model_name_or_path"),
        revision=reader.text("revision"),
        r=reader.check("r", values.get("r", 8), _is_rank, "a whole number from 1 on"),
        alpha=float(
            reader.check("lora_alpha", values.get("lora_alpha", 8), _is_number, "a finite number")
        ),
        ranks=reader.patterns("rank_pattern", _is_rank, "whole numbers from 1 on"),
        alphas=reader.patterns("alpha_pattern", _is_number, "finite numbers"),
        rslora=reader.flag("use_rslora"),
        dora=dora,
        tied=reader.flag("ensure_weight_tying"),
        rounded=initial == "mica",
        targets=reader.names("target_modules"),
        excluded=reader.names("exclude_modules"),
        layers=reader.indices("layers_to_transform"),
        token_indices=reader.token_indices(),
        unknown=tuple(name for name in values if name not in _KNOWN),
    )


def _refuse(values: Mapping[str, Any], path: Path) -> None:
    kind = values.get("peft_type")
    if kind != "LORA":
        if kind is None and "fine_tune_type" in values:
            raise CheckpointError(
                f"{path}: an adapter of MLX, which cannot be read: merge it with mlx_lm.fuse and "
                "give the fused model"
            )
        if not isinstance(kind, str):
            raise CheckpointError(
                f"{path}: peft_type is {brief(kind)}; expected 'LORA', as peft writes it"
            )
        advice = _ELSEWHERE if kind in _UNMERGEABLE else MERGE
        raise CheckpointError(
            f"{path}: an adapter of type {brief(kind)}; only LoRA and DoRA can be read: {advice}"
        )
    task = values.get("task_type")
    if task not in {None, "CAUSAL_LM"}:
        raise CheckpointError(
            f"{path}: task_type is {brief(task)}; only adapters of language models (CAUSAL_LM) "
            "can be read"
        )
    for name, (what, advice) in _REFUSED.items():
        if values.get(name):
            raise CheckpointError(
                f"{path}: {name} is set, and gemmule does not implement {what}: {advice}"
            )
    initial = values.get("init_lora_weights")
    if isinstance(initial, str) and initial.lower().startswith(_CHANGES_BASE):
        raise CheckpointError(
            f"{path}: init_lora_weights is {brief(initial)}, which also changed the base's "
            "weights: save the adapter with path_initial_model_for_weight_conversion, or "
            f"{MERGE}"
        )


class _Reader:
    """Checked values of the parsed JSON."""

    def __init__(self, values: Mapping[str, Any], path: Path) -> None:
        self._values, self._path = values, path

    def check(self, name: str, value: Any, fits: Callable[[Any], bool], expected: str) -> Any:
        if not fits(value):
            raise CheckpointError(f"{self._path}: {name} is {brief(value)}; expected {expected}")
        return value

    def flag(self, name: str) -> bool:
        value = self._values.get(name) or False
        return self.check(name, value, lambda v: isinstance(v, bool), "true or false")

    def text(self, name: str) -> str | None:
        value = self._values.get(name) or None
        return self.check(
            name,
            value,
            lambda v: v is None or (isinstance(v, str) and v.isprintable()),
            "printable text or null",
        )

    def patterns(self, name: str, fits: Callable[[Any], bool], expected: str) -> Patterns:
        values = self._values.get(name) or {}
        self.check(
            name,
            values,
            lambda v: (
                isinstance(v, dict) and len(v) <= _MAX_PATTERNS and all(map(fits, v.values()))
            ),
            f"an object of at most {_MAX_PATTERNS:,} module names with {expected}",
        )
        compiled = []
        for pattern, value in values.items():
            expression = _compiled(pattern, before=r"(?:.*\.)?(?:", after=")$")
            if expression is None:
                raise CheckpointError(
                    f"{self._path}: {name} has the pattern {brief(pattern)}, which is not a "
                    f"regular expression or too complex a one; {MERGE}"
                )
            compiled.append((expression, value))
        return compiled

    def names(self, name: str) -> tuple[str, ...] | str | None:
        value = self._values.get(name)
        texts = isinstance(value, list) and all(isinstance(v, str) for v in value)
        self.check(name, value, lambda v: texts or isinstance(v, str | None), "names, or a pattern")
        return tuple(value) if isinstance(value, list) else value

    def indices(self, name: str) -> tuple[int, ...] | None:
        value = self._values.get(name)
        value = [value] if _is_index(value) else value
        self.check(name, value, lambda v: v is None or _are_indices(v), "numbers of layers")
        return tuple(value) if value else None

    def token_indices(self) -> Mapping[str, tuple[int, ...]]:
        name = "trainable_token_indices"
        value = self._values.get(name) or {}
        value = {"embed_tokens": value} if isinstance(value, list) else value
        self.check(
            name,
            value,
            lambda v: isinstance(v, dict) and all(map(_are_indices, v.values())),
            "token ids, or lists of them by module",
        )
        return {module.rpartition(".")[2]: tuple(ids) for module, ids in value.items()}


_KNOWN = {
    *_IGNORED, *_REFUSED, "peft_type", "task_type", "init_lora_weights", "use_dora",
    "base_model_name_or_path", "revision", "r", "lora_alpha", "rank_pattern", "alpha_pattern",
    "use_rslora", "ensure_weight_tying", "target_modules", "exclude_modules",
    "layers_to_transform", "trainable_token_indices", "modules_to_save",
}  # fmt: skip


def _is_rank(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value < 2**31


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < 2**31  # False for NaN


def _is_index(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31


def _are_indices(values: object) -> bool:
    return isinstance(values, list) and all(map(_is_index, values))


def _ends_with(module: str, names: Collection[str]) -> bool:
    return any(module == name or module.endswith(f".{name}") for name in names)


def _compiled(pattern: str, before: str = "", after: str = "") -> re.Pattern[str] | None:
    """The pattern between two others, unless it is invalid or could take very long to match."""
    repeats = sum(pattern.count(c) for c in "*+{")
    if len(pattern) > _MAX_PATTERN or repeats > _MAX_REPEATS or _SLOW.search(pattern):
        return None
    try:
        re.compile(pattern)  # it may be invalid alone and valid between the others
        return re.compile(before + pattern + after)
    except (re.error, RecursionError, OverflowError):
        return None
