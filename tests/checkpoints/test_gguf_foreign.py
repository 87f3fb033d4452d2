"""GGUF files as other programs write them, and those that cannot be read."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter

from gemmule.checkpoints import stored_tensor
from gemmule.checkpoints.checkpoint import Checkpoint
from gemmule.checkpoints.gguf.header import ENCODINGS
from gemmule.checkpoints.gguf.names import is_norm, to_gguf
from gemmule.checkpoints.gguf.reader import open_gguf
from gemmule.errors import CheckpointError, TokenizerError
from gemmule.model.gemma import Gemma
from gemmule.model.spm_model import CONTROL
from gemmule.model.tokenizer import Tokenizer
from models import DISTINCT, tiny_config

CONFIG = tiny_config(
    DISTINCT, vocab_size=512, hidden_size=256, intermediate_size=256, num_hidden_layers=1,
    num_attention_heads=2, num_key_value_heads=1, head_dim=128, query_pre_attn_scalar=128,
)  # fmt: skip
PLAIN = ("F32", "F16", "BF16")
# Where a block keeps float16 numbers, which random bytes would make NaN now and then.
HALVES = {
    "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,), "Q2_K": (80, 82),
    "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "TQ1_0": (52,),
    "TQ2_0": (64,), "IQ1_M": (), "MXFP4": (),
}  # fmt: skip


def everything(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    return {
        name: torch.cat([rows.clone() for rows in tensor.chunks()])
        for name, tensor in checkpoint.tensors.items()
    }


def random_blocks(kind: str, rows: int, columns: int, rng: np.random.Generator) -> Any:
    block, nbytes = gguf.GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    data = rng.integers(0, 256, (rows * columns // block, nbytes), dtype=np.uint8)
    if kind == "IQ1_M":  # a float16 in the highest bits of the last four numbers
        data[:, 49::2] &= 0x3F
    if kind == "MXFP4":  # an exponent
        data[:, 0] = rng.integers(100, 130, len(data))
    for at in HALVES.get(kind, (0,)):
        numbers = rng.normal(0, 0.02, len(data)).astype(np.float16)
        data[:, at : at + 2] = numbers[:, None].view(np.uint8)
    return data.reshape(rows, -1)


def converted(
    path: Path,
    pieces: Tokenizer,
    kind: str = "F32",
    change: Callable[[GGUFWriter], None] = lambda _: None,
    tokens: bool = True,
) -> dict[str, Any]:
    """A file with the keys that llama.cpp's own converter writes; returns the raw matrices."""
    writer, rng, raw = GGUFWriter(path, "gemma2"), np.random.default_rng(0), {}
    writer.add_context_length(CONFIG.max_position_embeddings)
    writer.add_embedding_length(CONFIG.hidden_size)
    writer.add_block_count(1)
    writer.add_feed_forward_length(CONFIG.intermediate_size)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(CONFIG.rms_norm_eps)
    writer.add_key_length(128)
    writer.add_value_length(128)
    writer.add_rope_freq_base(CONFIG.rope_theta)
    writer.add_attn_logit_softcapping(20.0)
    writer.add_final_logit_softcapping(15.0)
    writer.add_sliding_window(CONFIG.sliding_window)
    if tokens:
        entries = pieces.pieces
        # Added tokens get this score; the converter makes the first 108 ids control tokens.
        writer.add_tokenizer_model("llama")
        writer.add_token_list(
            [p.text.replace("▁", " ") if p.kind == 4 else p.text for p in entries]
        )
        writer.add_token_scores([-1000.0 if i < 217 else p.score for i, p in enumerate(entries)])
        writer.add_token_types([CONTROL if i < 108 else p.kind for i, p in enumerate(entries)])
    for name, p in Gemma(CONFIG).named_parameters():
        numbers = p.detach().numpy()
        if is_norm(name):
            writer.add_tensor(to_gguf(name), numbers + 1)
        elif kind in PLAIN:
            raw[name] = gguf.quants.quantize(numbers, GGMLQuantizationType[kind])
            writer.add_tensor(to_gguf(name), raw[name], raw_dtype=GGMLQuantizationType[kind])
        else:
            raw[name] = random_blocks(kind, *numbers.shape, rng)
            writer.add_tensor(to_gguf(name), raw[name], raw_dtype=GGMLQuantizationType[kind])
    change(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return raw


@pytest.mark.parametrize("kind", [e.name for e in ENCODINGS.values()])
def test_every_encoding_is_read_as_the_library_reads_it(
    tmp_path: Path, pieces: Tokenizer, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored_tensor, "CHUNK_BYTES", 50_000)  # 48 rows of 256 in fp32
    raw = converted(tmp_path / "m.gguf", pieces, kind)
    with open_gguf(tmp_path / "m.gguf") as checkpoint:
        assert checkpoint.config == CONFIG
        assert checkpoint.tokenizer.fingerprint == pieces.fingerprint
        tensors, loaded = everything(checkpoint), checkpoint.load("float32")
    for name, data in raw.items():
        wanted = torch.from_numpy(gguf.quants.dequantize(data, GGMLQuantizationType[kind]))
        assert torch.equal(tensors[name].float(), wanted), name
        assert torch.equal(loaded.get_parameter(name), wanted), name
        assert wanted.std() > 0.01


def test_quantized_models_load_as_float32(tmp_path: Path, pieces: Tokenizer) -> None:
    converted(tmp_path / "m.gguf", pieces, "Q4_K")
    with open_gguf(tmp_path / "m.gguf") as checkpoint:
        assert {p.dtype for p in checkpoint.load().parameters()} == {torch.float32}


def test_a_broken_scale_is_found_when_loading(tmp_path: Path, pieces: Tokenizer) -> None:
    def spoil(writer: GGUFWriter) -> None:
        tensor = writer.tensors[0]["blk.0.ffn_up.weight"].tensor
        assert tensor is not None
        tensor[5, 0:2] = np.array([np.inf], np.float16).view(np.uint8)

    converted(tmp_path / "m.gguf", pieces, "Q4_K", spoil)
    with (
        open_gguf(tmp_path / "m.gguf") as checkpoint,
        pytest.raises(CheckpointError, match=r"m\.gguf: blk\.0\.ffn_up\.weight holds NaN or Inf"),
    ):
        checkpoint.load()


def test_defaults_are_llama_cpp_s(tmp_path: Path, pieces: Tokenizer) -> None:
    def strip(writer: GGUFWriter) -> None:
        for key in list(writer.kv_data[0]):
            if "softcapping" in key or "freq_base" in key or "sliding_window" in key:
                del writer.kv_data[0][key]

    converted(tmp_path / "m.gguf", pieces, change=strip)
    with open_gguf(tmp_path / "m.gguf") as checkpoint:
        config = checkpoint.config
    assert (config.attn_logit_softcapping, config.final_logit_softcapping) == (50.0, 30.0)
    assert (config.rope_theta, config.sliding_window) == (10000.0, 4096)


def test_a_tied_copy_of_the_head_is_accepted_another_is_not(
    tmp_path: Path, pieces: Tokenizer
) -> None:
    def add_head(writer: GGUFWriter, more: float = 0.0) -> None:
        tensor = writer.tensors[0]["token_embd.weight"].tensor
        assert tensor is not None
        writer.add_tensor("output.weight", tensor + np.float32(more))

    converted(tmp_path / "m.gguf", pieces, change=add_head)
    with open_gguf(tmp_path / "m.gguf") as opened:
        opened.load()
    converted(tmp_path / "n.gguf", pieces, change=lambda w: add_head(w, 1.0))
    with (
        open_gguf(tmp_path / "n.gguf") as checkpoint,
        pytest.raises(CheckpointError, match="differs from the embedding"),
    ):
        checkpoint.load()


def test_the_tokenizer_s_file_beside_stands_in(tmp_path: Path, pieces: Tokenizer) -> None:
    converted(tmp_path / "m.gguf", pieces, tokens=False)
    with open_gguf(tmp_path / "m.gguf") as checkpoint:
        with pytest.raises(TokenizerError, match="no tokenizer in"):
            _ = checkpoint.tokenizer
        pieces.save(tmp_path)
        assert checkpoint.tokenizer.fingerprint == pieces.fingerprint


def drop(*keys: str) -> Callable[[GGUFWriter], None]:
    def change(writer: GGUFWriter) -> None:
        for key in keys:
            del writer.kv_data[0][key]

    return change


def put(key: str, value: Any, kind: Any = None) -> Callable[[GGUFWriter], None]:
    def change(writer: GGUFWriter) -> None:
        writer.kv_data[0].pop(key, None)
        writer.add_key_value(key, value, kind or gguf.GGUFValueType.get_type(value))

    return change


U32, F32 = gguf.GGUFValueType.UINT32, gguf.GGUFValueType.FLOAT32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            put("general.architecture", "llama"),
            ".general.architecture 'llama'.; only Gemma 2 can be",
        ),
        (put("general.architecture", 3), "general.architecture '3'.; only Gemma 2"),
        (drop("general.architecture"), "general.architecture 'missing'"),
        (put("split.count", 3), "is one of 3 parts of a model, and its name does not"),
        (drop("gemma2.block_count"), "lacks the key gemma2.block_count"),
        (put("gemma2.block_count", [1, 2]), "gemma2.block_count is an array; expected one integer"),
        (put("gemma2.block_count", 1.0), "gemma2.block_count is 1.0; expected one integer"),
        (put("gemma2.block_count", True), "gemma2.block_count is True; expected one integer"),
        (put("gemma2.block_count", 2**31, U32), "says 2147483648 layers, the weights hold 1"),
        (put("gemma2.attention.head_count", 0, U32), "num_attention_heads = 0"),
        (put("gemma2.feed_forward_length", "wide"), "'wide'; expected one integer"),
        (put("gemma2.feed_forward_length", 2**32 - 1, U32), "shapes differ|impossible model"),
        (put("gemma2.attn_logit_softcapping", 0.0), "attn_logit_softcapping = 0.0"),
        (put("gemma2.final_logit_softcapping", float("nan")), "final_logit_softcapping = nan"),
        (put("gemma2.attention.layer_norm_rms_epsilon", float("inf")), "rms_norm_eps = inf"),
        (put("gemma2.rope.scaling.type", "yarn"), "rope.scaling.type is 'yarn', which is not"),
        (put("gemma2.rope.scaling.factor", 8.0), "rope.scaling.factor is 8.0"),
        (put("gemma2.rope.dimension_count", 64), "rope.dimension_count is 64"),
        (put("gemma2.rope.freq_base_swa", 1e6), "rope.freq_base_swa is 1000000.0"),
        (put("gemma2.attention.value_length", 64), "attention.value_length is 64"),
        (put("gemma2.attention.sliding_window_pattern", [True]), "pattern is an array"),
        (put("gemma2.expert_count", 8), "expert_count is 8"),
    ],
)
def test_metadata_that_cannot_be_honored(
    tmp_path: Path, pieces: Tokenizer, change: Any, message: str
) -> None:
    converted(tmp_path / "m.gguf", pieces, change=change)
    with (
        pytest.raises(CheckpointError, match=message),
        open_gguf(tmp_path / "m.gguf") as checkpoint,
    ):
        checkpoint.load()


def test_no_rope_scaling_may_be_spelled_out(tmp_path: Path, pieces: Tokenizer) -> None:
    def change(writer: GGUFWriter) -> None:
        writer.add_rope_scaling_type(gguf.RopeScalingType.NONE)
        writer.add_rope_scaling_factor(1.0)

    converted(tmp_path / "m.gguf", pieces, change=change)
    with open_gguf(tmp_path / "m.gguf") as checkpoint:
        assert checkpoint.config == CONFIG


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("tokenizer.ggml.model", "gpt2"), "is 'gpt2'; Gemma's is 'llama'"),
        (put("tokenizer.ggml.tokens", ["a", "b"]), "scores is missing or not 2 numbers"),
        (put("tokenizer.ggml.tokens", "a"), "tokens is missing or not an array of strings"),
        (put("tokenizer.ggml.tokens", [b"\xff"] * 512), "a token is not UTF-8"),
        (put("tokenizer.ggml.tokens", ["a"] * 513), "has 513 tokens and 512 embedding rows"),
        (put("tokenizer.ggml.tokens", ["a"] * 512), "not a Gemma tokenizer: id 0 is 'a'"),
        (drop("tokenizer.ggml.scores"), "scores is missing"),
        (drop("tokenizer.ggml.token_type"), "token_type is missing"),
        (put("tokenizer.ggml.token_type", [77] * 512), "impossible piece|not a Gemma|not marked"),
        (put("tokenizer.ggml.token_type", [0.5] * 512), "impossible piece"),
        (put("tokenizer.ggml.scores", [float("nan")] * 512), "a score that is not a finite"),
    ],
)
def test_tokenizers_that_cannot_be_read(
    tmp_path: Path, pieces: Tokenizer, change: Any, message: str
) -> None:
    converted(tmp_path / "m.gguf", pieces, change=change)
    with (
        open_gguf(tmp_path / "m.gguf") as checkpoint,
        pytest.raises(TokenizerError, match=message),
    ):
        _ = checkpoint.tokenizer


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("blk.0.ffn_up.weight", None, "lack layers.0.mlp.up_proj.weight"),
        ("token_embd.weight", None, "lacks token_embd.weight, the embedding"),
        ("rope_freqs.weight", np.ones(4, np.float32), "hold unexpected 'rope_freqs.weight'"),
        ("norm.weight", np.ones(4, np.float32), "hold unexpected 'norm.weight'"),
        ("blk.7.ffn_up.weight", np.ones(4, np.float32), "says 1 layers, the weights hold 2"),
        ("blk.0.ffn_up.weight", np.ones((256, 128), np.float32), r"\[256, 128\] instead of"),
        ("blk.0.attn_q.weight", np.ones((8, 8), np.int8), "stored as I8; supported are F32, F16"),
    ],
)
def test_wrong_tensors(
    tmp_path: Path, pieces: Tokenizer, name: str, value: Any, message: str
) -> None:
    def change(writer: GGUFWriter) -> None:
        writer.tensors[0].pop(name, None)
        if value is not None:
            writer.add_tensor(name, value)

    converted(tmp_path / "m.gguf", pieces, change=change)
    with (
        pytest.raises(CheckpointError, match=message),
        open_gguf(tmp_path / "m.gguf") as checkpoint,
    ):
        checkpoint.load()
