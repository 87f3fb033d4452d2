"""Quantized folders: written, read as values and packed, measured, and refused when damaged."""

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from gemmule.checkpoints import huge_pages, quality
from gemmule.checkpoints.checkpoint import of_model
from gemmule.checkpoints.convert import convert
from gemmule.checkpoints.describe import describe
from gemmule.checkpoints.load import load_model, load_to_run, open_checkpoint
from gemmule.checkpoints.packed import quantize
from gemmule.checkpoints.packed.model import QuantizedGemma
from gemmule.checkpoints.packed.quantize import (
    choose_head,
    model_bits,
    q4_0_bits,
    quantize_checkpoint,
)
from gemmule.checkpoints.packed.reader import QuantizedModel, is_quantized, load_quantized
from gemmule.checkpoints.packed.writer import save_quantized
from gemmule.checkpoints.quality import compare, read_quantized, read_streamed
from gemmule.errors import CheckpointError, ConfigError, OutputError, UserError
from gemmule.infer.runners.native_runner import NativeRunner
from gemmule.model import tokenizer_stamp
from gemmule.model.config import preset
from gemmule.model.gemma import Gemma
from gemmule.model.tokenizer import Tokenizer
from gemmule.model.tokenizer_files import read_declared_tokens
from gemmule.quant import native
from gemmule.speed.drive import Driver
from models import TOKENS, random_model

KINDS = [
    ("int4", "int4"),
    ("int4", "int6"),
    ("int4", "int8"),
    ("int4", "bf16"),
    ("int6", "int6"),
    ("int8", "int8"),
    ("int8", "f32"),
]
Q_PROJ = "model.layers.0.self_attn.q_proj"


def packed(
    tokenizer: Tokenizer, kind: str = "int4", head: str | None = "int8", **more: Any
) -> QuantizedModel:
    return quantize_checkpoint(of_model(random_model(), tokenizer), kind, head, **more)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    out = tmp_path_factory.mktemp("quantized") / "model"
    save_quantized(packed(tokenizer), out)
    return out


@pytest.fixture
def broken(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "broken"))


def values(model: QuantizedModel) -> Gemma:
    """The same model in floats."""
    gemma = Gemma(model.config)
    weights = {name: matrix.dequantize() for name, matrix in model.matrices.items()}
    gemma.load_state_dict({**weights, **model.norms})
    return gemma


@pytest.mark.parametrize(("kind", "head"), KINDS)
def test_what_is_written_is_read(
    kind: str, head: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    model = packed(tokenizer, kind, head)
    save_quantized(model, tmp_path / "m")
    again = load_quantized(tmp_path / "m")
    assert (again.config, again.format, again.head) == (model.config, kind, head)
    assert again.tokenizer.fingerprint == tokenizer.fingerprint
    assert again.matrices.keys() == model.matrices.keys()
    for name, matrix in model.matrices.items():
        assert torch.equal(again.matrices[name].data, matrix.data)
        assert again.matrices[name].data.data_ptr() % 64 == 0 or head in ("bf16", "f32")
        if matrix.scales is not None:
            assert torch.equal(again.matrices[name].scales, matrix.scales)  # type: ignore[arg-type]
    assert all(torch.equal(again.norms[name], norm) for name, norm in model.norms.items())
    assert again.nbytes == model.nbytes
    size = (tmp_path / "m/model.safetensors").stat().st_size
    assert model.nbytes < size < model.nbytes + 10_000


def test_names_and_dtypes_are_hugging_face_s(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    assert tensors[f"{Q_PROJ}.qweight"].dtype == torch.uint8
    assert tensors["model.embed_tokens.scales"].dtype == torch.float32
    assert tensors["model.layers.2.input_layernorm.weight"].dtype == torch.float32
    assert f"{Q_PROJ}.scales" not in tensors
    settings = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert settings.items() >= {"quant_method": "gemmule", "format": "int4", "head": "int8"}.items()


@pytest.mark.parametrize(("kind", "head"), KINDS)
def test_every_command_reads_it_as_its_values(
    kind: str, head: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    model = packed(tokenizer, kind, head)
    save_quantized(model, tmp_path / "m")
    loaded, _ = load_model(tmp_path / "m")
    expected = values(model)
    for name, weight in loaded.state_dict().items():
        assert torch.equal(weight.float(), expected.state_dict()[name]), name
    with torch.no_grad():
        assert torch.equal(loaded.float()(TOKENS), expected(TOKENS))


def test_info_and_convert(folder: Path, tmp_path: Path) -> None:
    description = describe(folder)
    assert description["format"] == "quantized"
    assert description["quantized"]["head"] == "int8"
    assert description["quantized"]["bits_per_weight"] == pytest.approx(
        load_quantized(folder).bits_per_weight
    )
    assert set(description["stored_as"]) == {"int4", "int8", "F32"}
    report = convert(folder, tmp_path / "floats", "hf")
    assert report["verified"]["weights"]["equal"]
    assert not is_quantized(tmp_path / "floats")


def test_rows_at_once_make_no_difference(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_checkpoint(folder) as checkpoint:
        name = "embed_tokens.weight"
        whole = torch.cat(list(checkpoint.tensors[name].chunks()))
        monkeypatch.setattr("gemmule.checkpoints.stored_tensor.CHUNK_BYTES", 5000)
        parts = list(checkpoint.tensors[name].chunks())
    assert len(parts) > 10
    assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize(("kind", "head"), KINDS)
def test_forward_pass(kind: str, head: str, tokenizer: Tokenizer) -> None:
    model = packed(tokenizer, kind, head)
    with torch.no_grad():
        logits, expected = QuantizedGemma(model, plain=True)(TOKENS), values(model)(TOKENS)
    # These weights are far larger than a trained model's, and so is what rounding does.
    assert (logits - expected).norm() < 0.1 * expected.norm()


def test_calibrated_is_nearer_than_plain(tokenizer: Tokenizer) -> None:
    draw = torch.Generator().manual_seed(5)
    seen, held_out = torch.randint(3, 512, (2, 24, 32), generator=draw)
    model = random_model()
    with torch.no_grad():  # inputs of very different sizes, as trained models have them
        model.embed_tokens.weight *= torch.linspace(-2, 2, 32).exp()
    source = of_model(model, tokenizer)
    parent = read_streamed(source, held_out)
    kl = {}
    for name, calibration in (("plain", None), ("calibrated", seen)):
        small = quantize_checkpoint(source, "int4", "int8", calibration)
        kl[name] = compare(parent, read_quantized(small, held_out), held_out)["kl_nats"]
    assert kl["calibrated"] < 0.8 * kl["plain"]


def test_more_bits_are_nearer(tokenizer: Tokenizer) -> None:
    source = of_model(random_model(), tokenizer)
    parent = read_streamed(source, TOKENS)
    reports = [
        compare(parent, read_quantized(packed(tokenizer, *kind), TOKENS), TOKENS)
        for kind in (("int8", "int8"), ("int6", "int6"), ("int4", "int4"))
    ]
    assert reports[0]["kl_nats"] < reports[1]["kl_nats"] < 0.2 * reports[2]["kl_nats"]
    assert (
        reports[0]["top1_agreement"] >= reports[1]["top1_agreement"] >= reports[2]["top1_agreement"]
    )
    assert reports[0]["parent_perplexity"] == reports[2]["parent_perplexity"]


def test_a_model_is_at_no_distance_from_itself(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, tokens = of_model(random_model(), tokenizer), TOKENS.clone()
    tokens[0, 7] = tokenizer.bos_id
    whole = compare(read_streamed(source, tokens), read_streamed(source, tokens), tokens)
    assert whole["kl_nats"] == pytest.approx(0, abs=1e-6)
    assert (whole["top1_agreement"], whole["tokens"]) == (1.0, 37)  # 2 x 19, less the new document
    with torch.no_grad():
        logits = random_model()(tokens, doc_ids_BT=quality.documents(tokens))
    nats = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), reduction="none"
    )
    nats = nats[tokens[:, 1:].flatten() != tokenizer.bos_id].mean()
    assert whole["perplexity"] == pytest.approx(float(nats.exp()), rel=1e-4)
    monkeypatch.setattr(quality, "_LOGITS", 3000)
    monkeypatch.setattr(quality, "_TOKENS", 20)
    parts = compare(read_streamed(source, tokens), read_streamed(source, tokens), tokens)
    # fp32 sums in another order; the perplexity of random weights is 4e5.
    assert parts == pytest.approx(whole, rel=1e-6, abs=1e-6)


def test_the_head_is_chosen_by_size() -> None:
    for name, expected in {"2b": "int6", "9b": "int8", "27b": "int8"}.items():
        config = preset(name)
        assert choose_head(config, "int4") == expected
        assert choose_head(config, "int6") == "int6"
        assert choose_head(config, "int8") == "int8"
        assert model_bits(config, "int4", choose_head(config, "int4")) <= q4_0_bits(config)
    config = preset("2b")
    assert model_bits(config, "int4", "int6") == pytest.approx(4.61, abs=0.01)
    assert model_bits(config, "int4", "int8") > q4_0_bits(config) > 4.96
    assert q4_0_bits(preset("9b")) == pytest.approx(4.70, abs=0.01)


def test_bits_are_counted_beforehand(tokenizer: Tokenizer) -> None:
    for kind, head in KINDS:
        model = packed(tokenizer, kind, head)
        assert model.bits_per_weight == pytest.approx(model_bits(model.config, kind, head))


def test_unknown_formats(tokenizer: Tokenizer) -> None:
    with pytest.raises(ConfigError, match="did you mean 'int4'"):
        packed(tokenizer, "int44")
    with pytest.raises(ConfigError, match="int3"):
        packed(tokenizer, "int8", "int3")


def test_a_full_disk_leaves_nothing(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gemmule.checkpoints.tensor_layout._write_file", full)
    with pytest.raises(OutputError, match="disk is full"):
        save_quantized(packed(tokenizer), tmp_path / "m")
    assert not list(tmp_path.iterdir())


def test_progress_counts_every_weight(tokenizer: Tokenizer) -> None:
    seen: list[tuple[int, int, str]] = []
    packed(tokenizer, calibration_BT=TOKENS, progress=lambda *step: seen.append(step))
    assert seen == sorted(seen)
    norms = sum(w.numel() for n, w in random_model().state_dict().items() if "norm" in n)
    assert seen[-1][0] == seen[-1][1] - norms


def test_a_floating_model_is_no_quantized_one(saved: Path) -> None:
    with pytest.raises(
        CheckpointError, match="not a quantized model: make one with gemmule quantize"
    ):
        load_quantized(saved)


def test_loading_to_run(folder: Path, saved: Path) -> None:
    model, tokenizer = load_to_run(folder)
    assert isinstance(model, QuantizedGemma)
    assert tokenizer.vocab_size == 512
    floats, _ = load_to_run(folder, dtype="float32")
    assert type(floats) is Gemma
    assert type(load_to_run(saved)[0]) is Gemma
    fresh, _ = load_to_run(saved, quantize="int8")
    assert isinstance(fresh, QuantizedGemma)
    with pytest.raises(ConfigError, match="already quantized, as int4"):
        load_to_run(folder, quantize="int4")
    with pytest.raises(ConfigError, match="leave out dtype and device"):
        load_to_run(saved, dtype="float32", quantize="int4")
    with pytest.raises(ConfigError, match="int5"):
        load_to_run(saved, quantize="int5")


CONFIGS: list[tuple[dict[str, Any], str]] = [
    ({"version": 2}, "version 2"),
    ({"format": "int3"}, "format is 'int3'"),
    ({"head": None}, "head None"),
    ({"head": ["int8"]}, "head"),
    ({"format": "int8"}, "expected|no tensor"),
    ({"head": "bf16"}, "embed_tokens.qweight is not a tensor of this model"),
    ({"quant_method": "gptq"}, "are quantized .GPTQ"),
]


@pytest.mark.parametrize(("change", "message"), CONFIGS, ids=lambda c: str(c)[:30])
def test_configs_that_do_not_fit(broken: Path, change: dict[str, Any], message: str) -> None:
    config = json.loads((broken / "config.json").read_text())
    config["quantization_config"].update(change)
    (broken / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message):
        load_model(broken)
    with pytest.raises(CheckpointError):
        load_quantized(broken)


def test_another_shape_in_the_config(broken: Path) -> None:
    config = json.loads((broken / "config.json").read_text())
    config["intermediate_size"] = 480
    (broken / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        CheckpointError, match=r"down_proj.qweight is U8 \[2, 608\]; expected U8 \[2"
    ):
        load_quantized(broken)
    config["intermediate_size"], config["num_hidden_layers"] = 48, 10**8
    config.pop("layer_types")
    (broken / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="says 100000000 layers, the weights hold 3"):
        load_quantized(broken)


TENSORS: list[tuple[str, Any, str]] = [
    (f"{Q_PROJ}.qweight", None, "lack layers.0.self_attn.q_proj.weight"),
    (f"{Q_PROJ}.qweight", torch.zeros(4, 3), "is F32"),
    (f"{Q_PROJ}.qweight", torch.zeros(3, 7, dtype=torch.uint8), "expected U8"),
    (f"{Q_PROJ}.weight", torch.zeros(64, 32), "is not a tensor of this model"),
    ("model.embed_tokens.scales", None, "has no scales"),
    ("model.embed_tokens.scales", torch.zeros(528).half(), "expected F32"),
    ("model.embed_tokens.scales", torch.full((528,), torch.nan), "NaN"),
    ("model.norm.weight", torch.full((32,), torch.inf), "NaN or Inf"),
    ("model.norm.weight", torch.zeros(31), "shapes differ"),
    ("model.norm.weight", torch.zeros(32, dtype=torch.uint8), "stored as U8"),
    ("model.layers.7.mlp.up_proj.qweight", torch.zeros(1, 1, dtype=torch.uint8), "expected U8"),
    ("model.bonus.qweight", torch.zeros(1, 1, dtype=torch.uint8), "is not a tensor of this model"),
]


@pytest.mark.parametrize(("name", "value", "message"), TENSORS)
def test_tensors_that_do_not_fit(broken: Path, name: str, value: Any, message: str) -> None:
    tensors = load_file(broken / "model.safetensors")
    tensors.pop(name, None)
    if value is not None:
        tensors[name] = value
    save_file(tensors, broken / "model.safetensors")
    with pytest.raises(CheckpointError, match=message):
        load_quantized(broken)
    with pytest.raises(CheckpointError):
        load_model(broken)


def test_scales_of_int6_must_be_numbers(tokenizer: Tokenizer, tmp_path: Path) -> None:
    save_quantized(packed(tokenizer, "int6", "int6"), tmp_path / "m")
    tensors = load_file(tmp_path / "m/model.safetensors")
    tensors["model.embed_tokens.qweight"][3, -32:-30] = 255
    save_file(tensors, tmp_path / "m/model.safetensors")
    with pytest.raises(CheckpointError, match=r"embed_tokens.weight has scales that are NaN"):
        load_quantized(tmp_path / "m")
    with pytest.raises(CheckpointError, match="NaN or Inf"):
        load_model(tmp_path / "m")


def test_scales_of_int4_must_be_numbers(broken: Path) -> None:
    tensors = load_file(broken / "model.safetensors")
    tensors[f"{Q_PROJ}.qweight"][1, -2:] = 255
    save_file(tensors, broken / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"q_proj.weight has scales that are NaN"):
        load_quantized(broken)
    with pytest.raises(CheckpointError, match="NaN or Inf"):
        load_model(broken)


def test_a_folder_is_stamped(folder: Path, tokenizer: Tokenizer) -> None:
    stamped = tokenizer_stamp.read(folder, read_declared_tokens(folder))
    assert stamped is not None
    assert Tokenizer(stamped[0]).fingerprint == tokenizer.fingerprint


@pytest.mark.skipif(not native.available(), reason="needs the kernels")
def test_huge_pages_begin_with_the_first_step(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huge_pages, "_helps", lambda: True)
    monkeypatch.setattr(huge_pages, "_is_huge", lambda *_: False)
    monkeypatch.setattr(huge_pages, "HUGE", 2**12)  # the model has less than a huge page
    moved = []
    replace = huge_pages._replace
    monkeypatch.setattr(huge_pages, "_replace", lambda *a: moved.append(a) or replace(*a))
    model = load_quantized(folder)
    assert model.huge_pages is not None
    before = {name: matrix.dequantize() for name, matrix in model.matrices.items()}
    driver = Driver(NativeRunner(QuantizedGemma(model)), cache_tokens=512)
    assert not moved
    driver.prefill(8)
    model.huge_pages.wait()
    (where,) = moved
    data = model.matrices["layers.0.self_attn.q_proj.weight"].data
    assert where[0] <= data.data_ptr() + data.nbytes < where[0] + where[1] + 2**12
    for name, matrix in model.matrices.items():
        assert torch.equal(matrix.dequantize(), before[name])


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_damaged_files_never_raise_anything_else(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    damaged = tmp_path_factory.mktemp("damaged")
    shutil.copytree(folder, damaged, dirs_exist_ok=True)
    name = data.draw(st.sampled_from(["model.safetensors", "config.json"]))
    content = bytearray((damaged / name).read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        end = min(len(content), 9000)  # the header, and what follows it
        for at in data.draw(st.lists(st.integers(0, end - 1), min_size=1, max_size=4)):
            content[at] = data.draw(st.integers(0, 255))
    (damaged / name).write_bytes(content)
    for read in (load_quantized, load_model):
        with contextlib.suppress(UserError):
            read(damaged)  # type: ignore[operator]
    shutil.rmtree(damaged)


def test_work_is_in_parts(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = packed(tokenizer, calibration_BT=TOKENS)
    monkeypatch.setattr(quantize, "_TOKENS", 20)
    parts = packed(tokenizer, calibration_BT=TOKENS)
    logits, expected = (QuantizedGemma(m, plain=True)(TOKENS) for m in (parts, whole))
    assert (logits - expected).norm() < 0.05 * expected.norm()
