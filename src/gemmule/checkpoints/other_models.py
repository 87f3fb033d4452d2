"""Names the models that are not Gemma 2, and says what can run them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gemmule.errors import brief

GEMMA2 = "gemma2"


@dataclass(frozen=True)
class OtherModel:
    """A model that cannot be loaded.

    Attributes:
        name: its name, as in a sentence.
        programs: what runs it.
        teacher: whether a distillation can use it as a teacher, through transformers.
    """

    name: str
    programs: str
    teacher: bool = False

    def refusal(self, source: str) -> str:
        """The message that refuses it; `source` names the file."""
        teacher = (
            "; `gemmule distill` can use it as a teacher, through transformers"
            if self.teacher
            else ""
        )
        return (
            f"{source} describes {self.name}; only Gemma 2 can be loaded. {self.programs} can run "
            f"it{teacher}"
        )


_BOTH = "transformers and llama.cpp"
_HF = "transformers"
# By model_type of transformers' config.json.
_GEMMAS: Mapping[str, OtherModel] = {
    "gemma": OtherModel("Gemma 1 or CodeGemma (model_type 'gemma')", _BOTH, True),
    "gemma3": OtherModel("Gemma 3 with images, or MedGemma (model_type 'gemma3')", _BOTH, True),
    "gemma3_text": OtherModel("Gemma 3 (model_type 'gemma3_text')", _BOTH, True),
    "gemma3n": OtherModel("Gemma 3n (model_type 'gemma3n')", _BOTH, True),
    "gemma3n_text": OtherModel("Gemma 3n (model_type 'gemma3n_text')", _BOTH, True),
    "gemma4": OtherModel("Gemma 4 (model_type 'gemma4')", _BOTH, True),
    "gemma4_text": OtherModel("Gemma 4 (model_type 'gemma4_text')", _BOTH, True),
    "recurrent_gemma": OtherModel("RecurrentGemma (model_type 'recurrent_gemma')", _HF, True),
    "vaultgemma": OtherModel("VaultGemma (model_type 'vaultgemma')", _HF, True),
    "t5gemma": OtherModel("T5Gemma, an encoder and decoder (model_type 't5gemma')", _HF),
    "t5gemma2": OtherModel("T5Gemma 2, an encoder and decoder (model_type 't5gemma2')", _HF),
    "shieldgemma2": OtherModel("ShieldGemma 2, a classifier of images ('shieldgemma2')", _HF),
    "embedding_gemma2": OtherModel("EmbeddingGemma 2 (model_type 'embedding_gemma2')", _HF),
    "diffusion_gemma": OtherModel("DiffusionGemma (model_type 'diffusion_gemma')", _HF),
}
_EMBEDDING = OtherModel("EmbeddingGemma, which embeds texts (model_type 'gemma3_text')", _BOTH)
# By llama.cpp's general.architecture; others are named by it alone.
_GGUF: Mapping[str, str] = {
    "gemma": "Gemma 1 or CodeGemma",
    "gemma3": "Gemma 3 or MedGemma",
    "gemma3n": "Gemma 3n",
    "gemma4": "Gemma 4",
    "gemma-embedding": "EmbeddingGemma",
    "t5": "T5",
    "clip": "an image encoder (mmproj)",
}


def model_type_of(values: Mapping[str, Any]) -> str | None:
    """The model_type in the content of a config.json; where it is left out, by its class."""
    kind = values.get("model_type")
    if isinstance(kind, str) and kind:
        return kind
    classes = values.get("architectures")
    if isinstance(classes, list) and any(str(name).startswith("Gemma2For") for name in classes):
        return GEMMA2
    return None


def other_model(values: Mapping[str, Any]) -> OtherModel:
    """Names the model that the content of a config.json describes, which is not a Gemma 2."""
    kind = model_type_of(values)
    inner = values.get("text_config")
    inner_kind = inner.get("model_type") if isinstance(inner, Mapping) else None
    if kind == "paligemma":
        version = {"gemma": "PaliGemma 1", GEMMA2: "PaliGemma 2"}.get(str(inner_kind), "PaliGemma")
        return OtherModel(f"{version}, which takes images (model_type 'paligemma')", _HF)
    if kind == "gemma3_text" and values.get("use_bidirectional_attention"):
        return _EMBEDDING
    if kind is not None and kind in _GEMMAS:
        return _GEMMAS[kind]
    if inner_kind == GEMMA2:
        return OtherModel(f"a model of type {brief(kind)} around a Gemma 2", _HF)
    classes = values.get("architectures")
    shown = f" ({', '.join(map(str, classes))[:80]})" if isinstance(classes, list) else ""
    if kind is None:
        return OtherModel(f"no known model: it has no model_type{shown}", "the program it is from")
    return OtherModel(f"a model of type {brief(kind)}{shown}", _HF, teacher=True)


def other_gguf(architecture: str) -> OtherModel:
    """Names the model of a GGUF file whose general.architecture is not gemma2."""
    name = _GGUF.get(architecture, "a model of another architecture")
    teacher = architecture == "gemma3"
    return OtherModel(f"{name} (general.architecture {brief(architecture)})", "llama.cpp", teacher)
