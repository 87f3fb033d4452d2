"""GGUF: what is written comes back, what others write is read, and what is broken says so."""

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from hypothesis import given, settings
from hypothesis import strategies as st

import models
from gemmule.checkpoints import stored_tensor, tensor_layout
from gemmule.checkpoints.checkpoint import Checkpoint, of_model
from gemmule.checkpoints.gguf.blocks import dequantize, quantize
from gemmule.checkpoints.gguf.header import ENCODINGS, parse_header
from gemmule.checkpoints.gguf.names import from_gguf, is_norm, query_scalar, to_gguf
from gemmule.checkpoints.gguf.reader import open_gguf
from gemmule.checkpoints.gguf.writer import FILE_TYPES, layouts
from gemmule.checkpoints.load import open_checkpoint
from gemmule.errors import (
    CheckpointError,
    ConfigError,
    MissingExtraError,
    TokenizerError,
)
from gemmule.model.config import GemmaConfig
from gemmule.model.gemma import Gemma
from gemmule.model.hf_tokenizer import CHAT_TEMPLATE
from gemmule.model.spm_model import CONTROL, NORMAL, UNUSED, USER_DEFINED, Piece
from gemmule.model.tokenizer import Tokenizer

# ggml's blocks hold 32 numbers of a row.
CONFIG = models.tiny_config(
    models.DISTINCT, hidden_size=64, intermediate_size=96, head_dim=32, query_pre_attn_scalar=32
)
PLAIN = ("F32", "F16", "BF16")
BLOCKS = ("Q8_0", "Q4_0")
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def random_model(config: GemmaConfig = CONFIG) -> Gemma:
    return models.random_model(config)


def export(model: Gemma, tokenizer: Tokenizer, path: Path, kind: str = "F32") -> Path:
    files, notes = layouts(of_model(model, tokenizer), kind, path.name)
    assert notes == []
    tensor_layout.write(files, path.parent)
    return path


def everything(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    return {
        name: torch.cat([rows.clone() for rows in tensor.chunks()])
        for name, tensor in checkpoint.tensors.items()
    }


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory, pieces: Tokenizer) -> Path:
    """A sound F32 file."""
    return export(random_model(), pieces, tmp_path_factory.mktemp("gguf") / "whole.gguf")


# --- round trips --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", PLAIN)
def test_plain_matrices_come_back_bit_for_bit(
    tmp_path: Path, pieces: Tokenizer, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored_tensor, "CHUNK_BYTES", 3000)  # many chunks, the last one shorter
    model = random_model()
    with open_checkpoint(export(model, pieces, tmp_path / "m.gguf", kind)) as checkpoint:
        assert checkpoint.format == "gguf"
        assert checkpoint.dtype == DTYPES[kind]
        tensors = everything(checkpoint)
        for name, p in model.named_parameters():
            if is_norm(name):
                assert tensors[name].dtype == torch.float32
                assert (tensors[name] - p).abs().max() <= 6e-8 * max(1, (1 + p.abs().max()).item())
            else:
                assert torch.equal(tensors[name], p.to(DTYPES[kind])), name


def test_bfloat16_norms_come_back_bit_for_bit(tmp_path: Path, pieces: Tokenizer) -> None:
    model = random_model().bfloat16()
    with open_gguf(export(model, pieces, tmp_path / "m.gguf", "BF16")) as checkpoint:
        loaded = checkpoint.load()
    for name, p in model.named_parameters():
        assert loaded.get_parameter(name).dtype == torch.bfloat16
        assert torch.equal(loaded.get_parameter(name), p), name


@pytest.mark.parametrize("kind", BLOCKS)
def test_quantized_matrices_are_what_the_library_makes_of_them(
    tmp_path: Path, pieces: Tokenizer, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored_tensor, "CHUNK_BYTES", 3000)
    model, code = random_model(), GGMLQuantizationType[kind]
    with open_gguf(export(model, pieces, tmp_path / "m.gguf", kind)) as checkpoint:
        assert set(checkpoint.stored_as) == {kind, "F32"}
        tensors = everything(checkpoint)
    for name, p in model.named_parameters():
        if not is_norm(name):
            there = gguf.quants.quantize(p.detach().numpy(), code)
            back = torch.from_numpy(gguf.quants.dequantize(there, code))
            assert torch.equal(tensors[name], back), name
            assert (back - p).abs().max() > 0


def awkward_rows() -> dict[str, torch.Tensor]:
    halves = torch.arange(-254, 255) / 2
    below, above = halves.nextafter(torch.zeros(())), halves.nextafter(halves * 9)
    values = torch.cat((halves, below, above)).clamp(-127, 127)
    values = values[: len(values) // 31 * 31].view(-1, 31)
    largest = torch.full((len(values), 1), 127.0)  # so that the scale is 1
    random = torch.randn(300, 32, generator=torch.Generator().manual_seed(2))
    ties = random.bfloat16().float()
    ties[:, 5], ties[:, 9] = ties.abs().amax(1), -ties.abs().amax(1)
    ties[::2] *= -1
    return {
        "halves": torch.cat((largest, values), 1),
        "other scales": torch.cat((largest, values), 1) * 0.3,
        "ties": ties,
        "zeros": torch.zeros(3, 32),
        "negative zeros": -torch.zeros(3, 32),
        "small": random * 1e-6,
        "tiny": random * 1e-30,
        "large": random * 1e5,
    }


@pytest.mark.parametrize("kind", BLOCKS)
@pytest.mark.parametrize("case", awkward_rows())
def test_blocks_equal_the_library_s_byte_for_byte(kind: str, case: str) -> None:
    rows = awkward_rows()[case]
    theirs = gguf.quants.quantize(rows.numpy(), GGMLQuantizationType[kind])
    assert quantize(rows, kind).numpy().tobytes() == theirs.tobytes()


def test_many_blocks_equal_the_library_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gemmule.checkpoints.gguf.blocks._AT_ONCE", 3 * 32)
    rows = torch.randn(7, 96, generator=torch.Generator().manual_seed(3))
    for kind in BLOCKS:
        theirs = gguf.quants.quantize(rows.numpy(), GGMLQuantizationType[kind])
        assert quantize(rows, kind).numpy().tobytes() == theirs.tobytes()


@pytest.mark.parametrize("kind", BLOCKS)
def test_any_blocks_are_read_as_the_library_does(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random bytes, so that scales are of any size, infinite and NaN too."""
    monkeypatch.setattr("gemmule.checkpoints.gguf.blocks._AT_ONCE", 100 * 32)
    nbytes = gguf.GGML_QUANT_SIZES[GGMLQuantizationType[kind]][1]
    blocks = torch.randint(0, 256, (70_000, nbytes), generator=torch.Generator().manual_seed(4))
    blocks = blocks.to(torch.uint8)
    with np.errstate(all="ignore"):
        theirs = gguf.quants.dequantize(blocks.numpy(), GGMLQuantizationType[kind])
    got = dequantize(blocks, kind).numpy()
    assert np.isnan(theirs).any()
    np.testing.assert_array_equal(got, theirs)


def test_config_and_tokenizer_come_back(whole: Path, pieces: Tokenizer) -> None:
    with open_checkpoint(whole) as checkpoint:
        assert checkpoint.config == CONFIG
        tokenizer = checkpoint.tokenizer
    assert tokenizer.fingerprint == pieces.fingerprint
    assert tokenizer.vocab_size == 512  # the embedding's 8 other rows have no pieces
    for text in ("the sea  captain\n\n said <b>é\u2581</b> 42", "<start_of_turn>", ""):
        assert tokenizer.encode(text, bos=True) == pieces.encode(text, bos=True)


def test_the_folder_of_a_file_is_enough(whole: Path) -> None:
    with open_checkpoint(whole.parent) as checkpoint:
        assert checkpoint.path == whole


def test_what_was_read_can_be_written_again(tmp_path: Path, whole: Path, pieces: Tokenizer) -> None:
    with open_gguf(whole) as checkpoint:
        again = export(checkpoint.load(), checkpoint.tokenizer, tmp_path / "again.gguf")
    assert again.read_bytes() == whole.read_bytes()


def field(reader: Any, key: str) -> Any:
    return reader.fields[key].contents()


def test_the_library_reads_what_llama_cpp_needs(whole: Path) -> None:
    reader = gguf.GGUFReader(whole)
    expected = {
        "general.architecture": "gemma2",
        "general.file_type": 0,
        "general.quantization_version": 2,
        "gemma2.context_length": 64,
        "gemma2.embedding_length": 64,
        "gemma2.block_count": 3,
        "gemma2.feed_forward_length": 96,
        "gemma2.attention.head_count": 4,
        "gemma2.attention.head_count_kv": 2,
        "gemma2.attention.key_length": 32,
        "gemma2.attention.value_length": 32,
        "gemma2.attention.sliding_window": 6,
        "gemma2.attention.layer_norm_rms_epsilon": np.float32(1e-5),
        "gemma2.rope.freq_base": 5000.0,
        "gemma2.rope.dimension_count": 32,
        "gemma2.attn_logit_softcapping": 20.0,
        "gemma2.final_logit_softcapping": 15.0,
        "gemma2.vocab_size": 520,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.unknown_token_id": 3,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.eot_token_id": 107,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.ggml.add_space_prefix": False,
        "tokenizer.chat_template": CHAT_TEMPLATE,
    }
    assert {key: field(reader, key) for key in expected} == expected
    tokens = field(reader, "tokenizer.ggml.tokens")
    assert (len(tokens), tokens[-1], tokens[139], tokens[109]) == (520, "[PAD519]", "  ", "\n\n")
    assert [field(reader, "tokenizer.ggml.token_type")[i] for i in (0, 3, 107, 108, 519)] == [
        CONTROL, 2, CONTROL, USER_DEFINED, UNUSED,
    ]  # fmt: skip
    by_name = {tensor.name: tensor for tensor in reader.tensors}
    up = random_model().layers[1].mlp.up_proj.weight
    assert np.array_equal(by_name["blk.1.ffn_up.weight"].data, up.detach().numpy())


def test_names_are_the_library_s() -> None:
    theirs = {
        f"{gguf.TENSOR_NAMES[t].format(bid=1)}.weight"
        for t in gguf.MODEL_TENSORS[gguf.MODEL_ARCH.GEMMA2]
    }
    ours = {to_gguf(n) for n, _ in random_model().named_parameters() if "layers.1." in n}
    ours |= {to_gguf("embed_tokens.weight"), to_gguf("norm.weight")}
    assert ours == theirs
    assert {to_gguf(from_gguf(name)) for name in theirs} == theirs
    assert from_gguf("norm.weight") == "'norm.weight'"  # ours, and so none of theirs
    assert from_gguf("blk.01.ffn_up.weight") == "'blk.01.ffn_up.weight'"


def test_encodings_are_the_library_s() -> None:
    for code, encoding in ENCODINGS.items():
        assert GGMLQuantizationType[encoding.name] == code
        assert gguf.GGML_QUANT_SIZES[GGMLQuantizationType(code)] == (
            encoding.block, encoding.nbytes,
        )  # fmt: skip
    for kind, number in FILE_TYPES.items():
        prefix = "ALL" if kind == "F32" else "MOSTLY"
        assert gguf.LlamaFileType[f"{prefix}_{kind}"] == number


def test_symbols_behind_the_fixed_ones_come_back(tmp_path: Path, pieces: Tokenizer) -> None:
    entries = pieces.pieces
    entries[500] = Piece("<unused99>", 0.0, USER_DEFINED)
    entries[501] = Piece("▁▁x", 0.0, USER_DEFINED)
    entries[502] = Piece("<x>", 0.0, CONTROL)
    entries[503] = Piece("[PAD503]", -9.0, UNUSED)  # not at the end, and so a piece
    more = Tokenizer.from_pieces(entries, "test")
    with open_gguf(export(random_model(), more, tmp_path / "m.gguf")) as checkpoint:
        assert checkpoint.tokenizer.fingerprint == more.fingerprint
    assert entries[504].kind == NORMAL


# --- exports with notes, and those that cannot be -----------------------------------------------


def test_runs_of_spaces_that_merges_build_come_back(tmp_path: Path, pieces: Tokenizer) -> None:
    """As Gemma's tokenizer.json has them; its tokenizer.model matches them as a whole."""
    changed = pieces.pieces
    for n, i in enumerate(range(139, 169)):
        changed[i] = changed[i]._replace(kind=NORMAL, score=30.0 - n)
    tokenizer = Tokenizer.from_pieces(changed, "a tokenizer.json")
    with open_gguf(export(random_model(), tokenizer, tmp_path / "m.gguf")) as checkpoint:
        assert checkpoint.tokenizer.fingerprint == tokenizer.fingerprint


def test_another_query_scale_goes_into_the_projection(tmp_path: Path, pieces: Tokenizer) -> None:
    model = random_model(CONFIG.model_copy(update={"query_pre_attn_scalar": 18}))
    files, notes = layouts(of_model(model, pieces), "F32")
    assert len(notes) == 1
    assert "attn_q is multiplied by 1.33333" in notes[0]
    tensor_layout.write(files, tmp_path)
    tokens = torch.randint(0, 512, (1, 20), generator=torch.Generator().manual_seed(1))
    with open_gguf(tmp_path / "model.gguf") as checkpoint, torch.no_grad():
        assert checkpoint.config.query_pre_attn_scalar == 32
        assert (checkpoint.load()(tokens) - model(tokens)).abs().max() < 2e-4


@pytest.mark.parametrize(("layers", "scalar"), [(26, 32), (42, 32), (46, 16)])
def test_the_scale_that_llama_cpp_fixes(layers: int, scalar: int) -> None:
    assert query_scalar(layers, 64, 4, 32) == scalar


def test_the_27b_s_scale_needs_no_change() -> None:
    assert query_scalar(46, 4608, 32, 128) == 144


def test_rows_that_blocks_do_not_divide(tmp_path: Path, pieces: Tokenizer) -> None:
    model = random_model(CONFIG.model_copy(update={"intermediate_size": 80}))
    files, notes = layouts(of_model(model, pieces), "Q8_0")
    assert notes == [
        "3 matrices are stored as F16, since their rows are not multiples of 32; the first is "
        "blk.0.ffn_down.weight"
    ]
    tensor_layout.write(files, tmp_path)
    with open_gguf(tmp_path / "model.gguf") as checkpoint:
        assert checkpoint.tensors["layers.0.mlp.down_proj.weight"].stored_as == "F16"
        checkpoint.load()


@pytest.mark.parametrize("field", ["attn_logit_softcapping", "final_logit_softcapping"])
def test_a_model_without_caps_is_refused(pieces: Tokenizer, field: str) -> None:
    model = random_model(CONFIG.model_copy(update={field: None}))
    with pytest.raises(CheckpointError, match=f"no {field}, and llama.cpp always caps"):
        layouts(of_model(model, pieces), "F32")


def test_an_unknown_kind_is_a_settings_error(pieces: Tokenizer) -> None:
    with pytest.raises(ConfigError, match="'Q5_K' is not one of F32, F16, BF16, Q8_0, Q4_0"):
        layouts(of_model(random_model(), pieces), "Q5_K")


def test_more_pieces_than_rows(pieces: Tokenizer) -> None:
    model = random_model(CONFIG.model_copy(update={"vocab_size": 500}))
    with pytest.raises(TokenizerError, match="512 pieces and the embedding only 500 rows"):
        layouts(of_model(model, pieces), "F32")


@pytest.mark.parametrize(("kind", "value"), [("F16", 1e5), ("Q8_0", 1e9), ("Q4_0", 1e9)])
def test_values_too_large_for_a_kind(
    tmp_path: Path, pieces: Tokenizer, kind: str, value: float
) -> None:
    model = random_model()
    with torch.no_grad():
        model.layers[0].mlp.up_proj.weight[3, 3] = value
    files, _ = layouts(of_model(model, pieces), kind)
    with pytest.raises(CheckpointError, match=rf"up_proj.weight has values too large for {kind}"):
        tensor_layout.write(files, tmp_path)


def test_a_tokenizer_gguf_cannot_keep_is_noted(pieces: Tokenizer) -> None:
    changed = pieces.pieces
    changed[200] = changed[200]._replace(score=-3.0)
    other = Tokenizer.from_pieces(changed, "test")
    _, notes = layouts(of_model(random_model(), other), "F32")
    assert ["fixed symbols have other scores" in note for note in notes] == [True]


def test_the_missing_package_is_named(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MissingExtraError, match=r'reading .* pip install "gemmule\[gguf\]"'):
        open_gguf(whole)


@pytest.mark.parametrize("kind", ["BF16", "Q4_0"])
def test_a_killed_export_goes_on_to_the_same_bytes(
    tmp_path: Path, pieces: Tokenizer, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensor_layout, "SYNC_BYTES", 20_000)
    model = random_model()
    unbroken = export(model, pieces, tmp_path / "m.gguf", kind).read_bytes()
    for die_at in (0, 7, 20):
        folder = tmp_path / str(die_at)
        folder.mkdir()
        note = folder / "note.json"
        (layout,), _ = layouts(of_model(model, pieces), kind, "m.gguf")
        broken = list(layout.places)
        broken[die_at] = replace(broken[die_at], data=dies)
        with pytest.raises(KeyboardInterrupt):
            tensor_layout.write([replace(layout, places=broken)], folder, note=note)
        made: list[int] = []
        counted = [
            replace(place, data=partial(count, made, i, place.data))
            for i, place in enumerate(layout.places)
        ]
        tensor_layout.write([replace(layout, places=counted)], folder, note=note)
        assert (folder / "m.gguf").read_bytes() == unbroken
        assert made == list(range(made[0], len(layout.places)))
        assert (made[0] > 0) == (die_at > 0)  # what was synced is not made again


def dies() -> Iterator[bytes]:
    yield b"half"
    raise KeyboardInterrupt


def count(made: list[int], i: int, data: Callable[[], Any]) -> Any:
    made.append(i)
    return data()


# --- damage --------------------------------------------------------------------------------------


def test_a_file_cut_anywhere_is_refused(whole: Path) -> None:
    data = memoryview(whole.read_bytes())
    end = parse_header(data, "whole").nbytes
    cuts = [*range(0, end, 7), *range(end, len(data), 50_021), len(data) - 1]
    assert len(cuts) > 1000
    for cut in cuts:
        with pytest.raises(CheckpointError):
            parse_header(data[:cut], "cut")


def test_an_empty_file_and_a_missing_one(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").touch()
    for name in ("m.gguf", "n.gguf"):
        with pytest.raises(CheckpointError, match=name):
            open_gguf(tmp_path / name)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_damaged_headers_never_raise_anything_else(whole: Path, data: st.DataObject) -> None:
    damage = bytearray(whole.read_bytes())
    end = parse_header(memoryview(bytes(damage)), "whole").nbytes
    for at in data.draw(st.lists(st.integers(0, end - 1), min_size=1, max_size=6)):
        damage[at] = data.draw(st.integers(0, 255))
    path = whole.parent / "damaged" / "m.gguf"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(damage)
    start = time.process_time()
    try:
        with open_gguf(path) as checkpoint:
            assert checkpoint.tokenizer.vocab_size <= checkpoint.config.vocab_size
            checkpoint.load()
    except (CheckpointError, TokenizerError):
        pass
    assert time.process_time() - start < 5
