"""From a checkpoint that transformers wrote through each format and back: how much is left."""

from pathlib import Path

import pytest
import torch
import transformers

from gemmule.checkpoints.checkpoint import weights_fingerprint
from gemmule.checkpoints.convert import FORMATS, convert
from gemmule.checkpoints.load import load_model
from gemmule.model.tokenizer import Tokenizer
from parity_figures import Figures

CASES = [(to, dtype) for to, dtypes in FORMATS.items() for dtype in dtypes]
# RMS error over RMS value; what a format's rounding must cost on normally distributed weights.
ERRORS = {"Q8_0": 0.006, "Q4_0": 0.1, "float16": 4e-4, "F16": 4e-4}
NORMS_IN_GGUF = 6e-8  # 1 is added and taken off in fp32


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory, pieces: Tokenizer) -> dict[str, Path]:
    """The same model as transformers saves it, in fp32 and, rounded, in bf16."""
    torch.manual_seed(0)
    config = transformers.Gemma2Config(
        vocab_size=512, hidden_size=64, intermediate_size=96, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, head_dim=32, query_pre_attn_scalar=32,
        sliding_window=9, max_position_embeddings=256, initializer_range=0.3,
    )  # fmt: skip
    model = transformers.Gemma2ForCausalLM(config)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "norm" in name:
                p.normal_(0, 0.3)
    folders = {}
    for dtype in ("float32", "bfloat16"):
        folders[dtype] = tmp_path_factory.mktemp("theirs") / dtype
        model.to(getattr(torch, dtype)).save_pretrained(folders[dtype])
        pieces.save(folders[dtype])
    return folders


@pytest.mark.parametrize(("to", "dtype"), CASES)
@pytest.mark.parametrize("source", ["float32", "bfloat16"])
def test_there_and_back(
    sources: dict[str, Path],
    tmp_path: Path,
    figures: Figures,
    source: str,
    to: str,
    dtype: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gemmule.checkpoints.peers.find_spec", lambda _: None)  # only our own eyes
    weights = convert(sources[source], tmp_path / "there", to, dtype)["verified"]["weights"]
    convert(tmp_path / "there", tmp_path / "back", "hf", source, verify=False)
    ours, tokenizer = load_model(tmp_path / "back")
    original, expected_tokenizer = load_model(sources[source])
    assert tokenizer.fingerprint == expected_tokenizer.fingerprint
    assert ours.config == original.config
    wide = dtype.lower() in {"float32", "f32"} or source == "bfloat16" == dtype.replace(
        "BF16", source
    )
    group = f"round trip {source} -> {to} {dtype}"
    if wide and to != "gguf":
        assert weights["equal"]
        assert weights_fingerprint(ours) == weights_fingerprint(original)
        figures.note(f"{group}, bits", 0.0, 0.0)
        return
    there = load_model(tmp_path / "there", dtype="float32")[0].state_dict()
    largest = 0.0
    for name, p in original.state_dict().items():
        difference = (there[name] - p.float()).abs().max().item()
        if wide:  # GGUF keeps matrices as they are
            assert difference <= (NORMS_IN_GGUF if "norm" in name else 0.0), name
        largest = max(largest, difference)
    assert weights["largest_difference"] == pytest.approx(largest)
    if wide:
        figures.note(f"{group}, norms", largest, NORMS_IN_GGUF)
    else:
        allowed = ERRORS.get(dtype, 3e-3)  # of bf16
        figures.note(f"{group}, relative", weights["relative_error"], allowed)
        assert 0 < weights["relative_error"] <= allowed
