"""HF layout: what is saved loads equally in transformers and here, and what is broken says so."""

import errno
import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from gemmule.checkpoints.checkpoint import weights_fingerprint
from gemmule.checkpoints.hf.config import from_hf, to_hf
from gemmule.checkpoints.hf.reader import open_hf
from gemmule.checkpoints.hf.writer import save_model
from gemmule.errors import CheckpointError, ConfigError, OutputError
from gemmule.model.config import PRESETS, GemmaConfig, preset
from gemmule.model.gemma import Gemma
from gemmule.model.tokenizer import Tokenizer
from models import DISTINCT_CONFIG, TOKENS, random_model


def load(folder: Path, dtype: torch.dtype | str | None = None, device: str = "cpu") -> Gemma:
    with open_hf(folder) as checkpoint:
        return checkpoint.load(dtype, device)


@pytest.fixture
def broken(saved: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(saved, tmp_path / "model"))


def their_logits(folder: Path) -> torch.Tensor:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    assert isinstance(model, transformers.Gemma2ForCausalLM)
    with torch.no_grad():
        return model(TOKENS).logits


def our_logits(model: Gemma) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS)


# --- round trips --------------------------------------------------------------------------------


def test_transformers_loads_what_we_save(saved: Path) -> None:
    ours, theirs = our_logits(random_model()), their_logits(saved)
    assert ours.abs().max() > 10  # the final cap is felt
    assert (ours - theirs).abs().max() <= 3e-5


def test_transformers_reads_config_with_the_same_meaning(saved: Path) -> None:
    theirs = transformers.AutoConfig.from_pretrained(saved)
    assert type(theirs) is transformers.Gemma2Config
    for name in ("hidden_size", "head_dim", "query_pre_attn_scalar", "sliding_window"):
        assert getattr(theirs, name) == getattr(DISTINCT_CONFIG, name)
    assert theirs.rope_parameters is not None
    assert theirs.rope_parameters["rope_theta"] == DISTINCT_CONFIG.rope_theta
    assert theirs.layer_types == ["sliding_attention", "full_attention", "sliding_attention"]
    assert (theirs.pad_token_id, theirs.eos_token_id, theirs.bos_token_id) == (0, 1, 2)
    assert theirs.dtype == torch.float32
    generation = transformers.GenerationConfig.from_pretrained(saved)
    assert generation.eos_token_id == [1, 107]


def test_the_saved_tokenizer_loads_in_transformers(saved: Path, tokenizer: Tokenizer) -> None:
    theirs = transformers.AutoTokenizer.from_pretrained(saved)
    assert theirs("def wrap(text):").input_ids == tokenizer.encode("def wrap(text):", bos=True)


@pytest.mark.parametrize("shard_size", ["1GB", "20KB"])
def test_what_transformers_saves_loads_here(tmp_path: Path, shard_size: str) -> None:
    config = transformers.Gemma2Config(
        **{k: v for k, v in to_hf(DISTINCT_CONFIG, "float32").items() if "dtype" not in k},
    )
    config.initializer_range = 1.0
    torch.manual_seed(0)
    theirs = transformers.Gemma2ForCausalLM(config)
    theirs.save_pretrained(tmp_path, max_shard_size=shard_size)
    assert (tmp_path / "model.safetensors").exists() == (shard_size == "1GB")
    model = load(tmp_path)
    assert model.config == DISTINCT_CONFIG
    assert (our_logits(model) - their_logits(tmp_path)).abs().max() <= 3e-5


def test_round_trip_is_bit_identical_aligned_and_independent(saved: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(saved, tmp_path / "model"))
    loaded, original = load(copy), random_model()
    with (copy / "model.safetensors").open("r+b") as f:  # scribble over the file in place
        f.seek(-5000, 2)
        f.write(b"\0" * 5000)
    assert loaded.config == DISTINCT_CONFIG
    assert weights_fingerprint(loaded) == weights_fingerprint(original)
    for name, p in loaded.named_parameters():
        assert torch.equal(p, original.get_parameter(name)), name
        assert p.data_ptr() % 64 == 0
        assert p.requires_grad
        assert p.is_contiguous()


def test_training_continues_bit_identically(saved: Path) -> None:
    results = []
    for model in (load(saved), random_model()):
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        for _ in range(2):
            loss = torch.nn.functional.cross_entropy(model(TOKENS[:, :-1]).mT, TOKENS[:, 1:])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        results.append(weights_fingerprint(model))
    assert results[0] == results[1]


def test_fingerprint_sees_values_dtype_and_names() -> None:
    base = weights_fingerprint(random_model())
    other = random_model()
    with torch.no_grad():
        other.norm.weight[0] = torch.nextafter(other.norm.weight[0], torch.tensor(9.0))
    bfloat16 = weights_fingerprint(random_model().bfloat16())
    assert len({base, weights_fingerprint(other), bfloat16}) == 3


@pytest.mark.parametrize(
    ("stored", "asked", "got"),
    [
        (torch.bfloat16, None, torch.bfloat16),
        (torch.float16, None, torch.float32),
        (torch.bfloat16, "float32", torch.float32),
        (torch.float32, torch.bfloat16, torch.bfloat16),
        (torch.float64, None, torch.float64),
    ],
)
def test_dtypes(
    tmp_path: Path,
    tokenizer: Tokenizer,
    stored: torch.dtype,
    asked: torch.dtype | str | None,
    got: torch.dtype,
) -> None:
    save_model(random_model(), tokenizer, tmp_path / "m", dtype=stored)
    model = load(tmp_path / "m", dtype=asked)
    assert {p.dtype for p in model.parameters()} == {got}
    assert json.loads((tmp_path / "m/config.json").read_text())["dtype"] == str(stored)[6:]
    assert torch.equal(model.norm.weight, random_model().norm.weight.to(stored).to(got))


def test_wrong_dtype_and_device_are_settings_errors(saved: Path) -> None:
    with pytest.raises(ConfigError, match="dtype 'int4' is not one of float64, float32"):
        load(saved, dtype="int4")
    with pytest.raises(ConfigError, match="device 'gpu' cannot be used here"):
        load(saved, device="gpu")


def test_a_tied_copy_of_the_head_is_accepted_another_is_not(broken: Path) -> None:
    weights = load_file(broken / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, broken / "model.safetensors")
    load(broken)
    weights["lm_head.weight"][0, 0] += 1
    save_file(weights, broken / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"lm_head\.weight differs from the embedding"):
        load(broken)


# --- configs ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_the_translation(name: str) -> None:
    config = preset(name, vocab_size=1000)
    back = from_hf(json.loads(json.dumps(to_hf(config, "float32"))))
    scalar = config.query_pre_attn_scalar or config.head_dim
    assert back == config.model_copy(update={"query_pre_attn_scalar": scalar})


def test_uncapped_models_survive_the_translation() -> None:
    update = {"attn_logit_softcapping": None, "final_logit_softcapping": None}
    config = DISTINCT_CONFIG.model_copy(update=update)
    assert from_hf(to_hf(config, "float32")) == config


def test_fields_left_out_mean_what_transformers_makes_of_them() -> None:
    config, theirs = from_hf({"model_type": "gemma2"}), transformers.Gemma2Config()
    for name in GemmaConfig.model_fields:
        if name != "rope_theta":
            assert getattr(config, name) == getattr(theirs, name), name
    assert config.rope_theta == 10000.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "llama"}, "a model of type 'llama'"),
        ({"hidden_activation": "gelu"}, "hidden_activation is 'gelu', which is not supported"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"attention_dropout": 0.1}, "attention_dropout is 0.1"),
        (
            {"tie_word_embeddings": False},
            "tie_word_embeddings is false, and the weights hold no lm_head.weight",
        ),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling is"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_parameters.rope_type is 'yarn'"),
        ({"rope_parameters": 3}, "rope_parameters is 3"),
        (
            {"quantization_config": {"bits": 4}},
            "the weights are quantized (the unknown method None, 4 bits)",
        ),
        ({"layer_types": ["full_attention"] * 3}, "alternates 'sliding_attention'"),
        ({"num_hidden_layers": 10**12}, "layer_types is"),
        ({"sliding_window": None}, "sliding_window must be numbers"),
        ({"hidden_size": -1}, "hidden_size = -1: input should be greater than 0"),
        ({"head_dim": "wide"}, "head_dim = 'wide'"),
        ({"num_key_value_heads": 3}, "not a multiple"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps = nan"),
    ],
)
def test_configs_we_cannot_honour(broken: Path, change: dict[str, object], message: str) -> None:
    path = broken / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError) as e:
        load(broken)
    assert message in str(e.value)
    assert str(path) in str(e.value)


@pytest.mark.parametrize("content", ["", "{", "[1]", "\udcff", "[" * 100_000])
def test_config_that_is_no_json_object(broken: Path, content: str) -> None:
    (broken / "config.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(CheckpointError, match=r"config\.json (is not readable|holds a list)"):
        load(broken)


def test_folder_without_config_or_weights(tmp_path: Path, broken: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no config\.json and no weights in "):
        load(tmp_path / "nowhere")
    (broken / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"no weights in .*expected model\.safetensors or"):
        load(broken)


# --- weights ------------------------------------------------------------------------------------

Q = "model.layers.1.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (Q, None, "lack layers.1.self_attn.q_proj.weight"),
        ("model.extra", torch.ones(2), "hold unexpected extra"),
        (Q, torch.ones(64, 31), "q_proj.weight [64, 31] instead of [64, 32]"),
        (Q, torch.full((64, 32), float("inf")), f"{Q} holds NaN or Inf"),
        (Q, torch.full((64, 32), float("nan")), f"{Q} holds NaN or Inf"),
        (Q, torch.ones(64, 32, dtype=torch.int8), f"{Q} is stored as I8"),
        ("model.layers.7.mlp.up_proj.weight", torch.ones(2), "says 3 layers, the weights hold 4"),
    ],
)
def test_wrong_tensors(broken: Path, name: str, value: torch.Tensor | None, message: str) -> None:
    weights = load_file(broken / "model.safetensors")
    weights.pop(name, None)
    if value is not None:
        weights[name] = value
    save_file(weights, broken / "model.safetensors")
    with pytest.raises(CheckpointError) as e:
        load(broken)
    assert message in str(e.value)


def test_values_that_do_not_fit_the_dtype(broken: Path) -> None:
    weights = load_file(broken / "model.safetensors")
    weights[Q][0, 0] = 1e6
    save_file(weights, broken / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"q_proj\.weight does not fit in torch\.float16"):
        load(broken, dtype="float16")


def test_an_impossible_size_is_refused_before_memory_is_taken(broken: Path) -> None:
    path = broken / "config.json"
    config = json.loads(path.read_text())
    for size in (10**12, 10**7):
        path.write_text(json.dumps(config | {"hidden_size": size, "intermediate_size": size}))
        with pytest.raises(CheckpointError, match=r"impossible model|shapes differ"):
            load(broken)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_damaged_files_never_raise_anything_else(saved: Path, data: st.DataObject) -> None:
    whole = (saved / "model.safetensors").read_bytes()
    header = int.from_bytes(whole[:8], "little") + 8
    damage = bytearray(whole)
    if data.draw(st.booleans(), label="truncate"):
        del damage[data.draw(st.integers(0, len(whole) - 1)) :]
    else:
        for at in data.draw(st.lists(st.integers(0, header - 1), min_size=1, max_size=4)):
            damage[at] = data.draw(st.integers(0, 255))
    folder = saved.parent / "damaged"
    folder.mkdir(exist_ok=True)
    shutil.copy(saved / "config.json", folder)
    (folder / "model.safetensors").write_bytes(damage)
    try:
        load(folder)
    except CheckpointError:
        return
    assert len(damage) == len(whole)  # a cut file never loads


def shard(folder: Path, where: str = "a.safetensors") -> dict[str, str]:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    first = dict(list(weights.items())[:10])
    rest = dict(list(weights.items())[10:])
    save_file(first, folder / "a.safetensors")
    save_file(rest, folder / "b.safetensors")
    return {**dict.fromkeys(first, where), **dict.fromkeys(rest, "b.safetensors")}


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("a.safetensors", ""),
        ("../a.safetensors", "'../a.safetensors' is not a file name in this folder"),
        ("/etc/passwd", "'/etc/passwd' is not a file name in this folder"),
        ("c.safetensors", "1 of 2 shards are missing: c.safetensors; download"),
        ("b.safetensors", "the shards lack"),
    ],
)
def test_sharded_index(broken: Path, where: str, message: str) -> None:
    index = {"metadata": {}, "weight_map": shard(broken, where)}
    (broken / "model.safetensors.index.json").write_text(json.dumps(index))
    if not message:
        loaded = load(broken)
        assert weights_fingerprint(loaded) == weights_fingerprint(random_model())
        return
    with pytest.raises(CheckpointError) as e:
        load(broken)
    assert message in str(e.value)


# --- writing ------------------------------------------------------------------------------------


def test_a_failed_save_leaves_the_old_model(
    broken: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Tokenizer, "save", full)
    with pytest.raises(OutputError, match="the disk is full"):
        save_model(random_model(seed=5), tokenizer, broken)
    monkeypatch.undo()
    loaded = load(broken)
    assert weights_fingerprint(loaded) == weights_fingerprint(random_model())
    assert [p.name for p in broken.parent.iterdir()] == ["model"]
    save_model(random_model(seed=5), tokenizer, broken)
    loaded = load(broken)
    assert weights_fingerprint(loaded) == weights_fingerprint(random_model(seed=5))


def test_a_disk_filled_by_the_weights_is_one_clear_error(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    resource = pytest.importorskip("resource")
    import signal

    old_limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    old_handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, old_limit[1]))
    try:
        with pytest.raises(OutputError, match="larger than this file system or limit allows"):
            save_model(random_model(), tokenizer, tmp_path / "m")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old_limit)
        signal.signal(signal.SIGXFSZ, old_handler)
    assert list(tmp_path.iterdir()) == []


def test_all_files_are_equally_readable(saved: Path) -> None:
    assert len({p.stat().st_mode for p in saved.iterdir()}) == 1
