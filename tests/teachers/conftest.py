"""Small random models of transformers, with the data's tokenizer in the folder."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from gemmule.model.tokenizer import Tokenizer

SHAPE = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 128,
}  # fmt: skip
KINDS = {
    "llama": {},
    "mistral": {"sliding_window": 5},
    "gemma2": {"sliding_window": 5, "query_pre_attn_scalar": 16},
    "gemma3_text": {
        "sliding_window": 5, "query_pre_attn_scalar": 16, "rms_norm_eps": 1e-5,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
    },
    "mamba": {"state_size": 4},
}  # fmt: skip


def save_model(kind: str, folder: Path, vocab_size: int, **changes: object) -> Path:
    import transformers

    config_class = transformers.CONFIG_MAPPING[kind]
    settings = {**SHAPE, **KINDS.get(kind, {}), **changes}
    config = config_class(
        vocab_size=vocab_size, pad_token_id=0, bos_token_id=2, eos_token_id=1, **settings
    )
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for p in model.parameters():  # large enough for caps, windows and positions to be felt
            p.add_(torch.randn_like(p) * 0.3)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def foreign(tmp_path_factory: pytest.TempPathFactory, pieces: Tokenizer) -> Callable[..., Path]:
    """foreign(kind, …): a folder with a model of that kind and the data's tokenizer."""
    made: dict[str, Path] = {}

    def make(kind: str, rows: int = 528, tokenizer: Tokenizer = pieces, **changes: object) -> Path:
        key = f"{kind} {rows} {tokenizer.fingerprint} {changes}"
        if key not in made:
            folder = tmp_path_factory.mktemp(kind)
            tokenizer.save(folder)
            (folder / "tokenizer.model").unlink()  # as most have only a tokenizer.json
            made[key] = save_model(kind, folder, rows, **changes)
        return made[key]

    return make
