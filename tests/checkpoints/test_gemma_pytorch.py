"""gemma_pytorch's files: read and written bit for bit, and nothing in them is ever run."""

import json
import pickle
import re
import shutil
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gemmule.checkpoints import tensor_layout
from gemmule.checkpoints.checkpoint import HEAD, of_model, weights_fingerprint
from gemmule.checkpoints.gemma_pytorch.reader import open_torch
from gemmule.checkpoints.gemma_pytorch.writer import layouts
from gemmule.checkpoints.hf.config import to_hf
from gemmule.checkpoints.hf.reader import open_hf
from gemmule.checkpoints.load import open_checkpoint
from gemmule.checkpoints.stored_tensor import FLOATS
from gemmule.checkpoints.tensor_layout import write
from gemmule.errors import CheckpointError, TokenizerError
from gemmule.model.config import GemmaConfig, preset
from gemmule.model.gemma import Gemma
from gemmule.model.tokenizer import Tokenizer
from models import DISTINCT, DISTINCT_CONFIG, TOKENS, random_model, tiny_config

ONE_LAYER = tiny_config(
    DISTINCT, vocab_size=8, hidden_size=8, intermediate_size=12, num_hidden_layers=1,
    num_attention_heads=2, num_key_value_heads=1, head_dim=4,
)  # fmt: skip
Weights = dict[str, Tensor]


def state_dict(model: Gemma) -> Weights:
    """The model's weights as gemma_pytorch's GemmaForCausalLM names them."""
    weights: Weights = {"freqs_cis": torch.zeros(4, 4, dtype=torch.complex64)}
    for name, p in model.state_dict().items():
        if name.endswith("q_proj.weight"):
            parts = [model.state_dict()[name.replace("q_proj", f"{x}_proj")] for x in "qkv"]
            weights["model." + name.replace("q_proj", "qkv_proj")] = torch.cat(parts)
        elif not name.endswith(("k_proj.weight", "v_proj.weight")):
            weights["model." + name] = p
    weights["embedder.weight"] = weights.pop("model.embed_tokens.weight")
    return weights


def save(folder: Path, value: object, config: GemmaConfig | None = DISTINCT_CONFIG) -> Path:
    folder.mkdir(exist_ok=True)
    if config:
        (folder / "config.json").write_text(json.dumps(to_hf(config, "float32")))
    torch.save(value, folder / "model.ckpt")
    return folder / "model.ckpt"


def load(path: Path, dtype: torch.dtype | None = None) -> Gemma:
    with open_torch(path) as checkpoint:
        return checkpoint.load(dtype)


def equal(loaded: Gemma, model: Gemma) -> bool:
    return weights_fingerprint(loaded) == weights_fingerprint(model)


def exported(folder: Path, model: Gemma, tokenizer: Tokenizer, **how: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (layout,) = layouts(of_model(model, tokenizer), **how)
    write([layout], folder)
    return folder / layout.name


# --- reading ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_single_file(tmp_path: Path, dtype: torch.dtype) -> None:
    model = random_model().to(dtype)
    path = save(tmp_path, {"model_state_dict": state_dict(model)})
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.format == "gemma_pytorch"
        assert checkpoint.files == (path,)
        assert checkpoint.config == DISTINCT_CONFIG
        assert checkpoint.dtype == dtype
        assert equal(checkpoint.load(dtype), model)


def test_forms_that_differ_only_in_spelling(tmp_path: Path) -> None:
    model = random_model()
    plain = {"model." + name: p for name, p in model.state_dict().items()}
    assert equal(load(save(tmp_path, plain)), model)  # q, k and v apart, not under a key
    parameters = {k: torch.nn.Parameter(p) for k, p in state_dict(model).items()}
    assert equal(load(save(tmp_path, {"model_state_dict": OrderedDict(parameters)})), model)
    one = torch.cat([p.flatten() for p in state_dict(model).values() if p.is_floating_point()])
    shared, at = {}, 0  # every tensor a part of one storage
    for name, p in state_dict(model).items():
        if p.is_floating_point():
            shared[name] = one[at : at + p.numel()].view(p.shape)
            at += p.numel()
    assert equal(load(save(tmp_path, {"model_state_dict": shared})), model)
    reordered = dict(reversed(state_dict(model).items()))
    assert equal(load(save(tmp_path, reordered)), model)
    module = OrderedDict(state_dict(model))
    module._metadata = model.state_dict()._metadata  # type: ignore[attr-defined]
    assert equal(load(save(tmp_path, {"model_state_dict": module})), model)
    tied = state_dict(model) | {HEAD: state_dict(model)["embedder.weight"]}
    assert equal(load(save(tmp_path, tied)), model)


def quantized(model: Gemma, scaler: torch.dtype) -> tuple[Weights, Gemma]:
    """An int8 state dict, and the model it means: each row's numbers times its scaler."""
    generator = torch.Generator().manual_seed(2)
    weights: Weights = {}
    meant: Weights = {}
    for name, p in state_dict(model).items():
        if p.ndim < 2 or not p.is_floating_point():
            weights[name] = meant[name] = p
            continue
        weights[name] = torch.randint(-128, 128, p.shape, generator=generator, dtype=torch.int8)
        scale = torch.rand(len(p), generator=generator).to(scaler) / 64
        weights[name + "_scaler"] = scale
        meant[name] = weights[name].float() * scale.float()[:, None]
    D, H = model.config.num_attention_heads * model.config.head_dim, model.config.head_dim
    for name in [name for name in meant if "qkv" in name]:
        parts = meant.pop(name).split([D, 2 * H, 2 * H])
        meant |= {name.replace("qkv", x): part for x, part in zip("qkv", parts, strict=True)}
    meant["model.embed_tokens.weight"] = meant.pop("embedder.weight")
    result = Gemma(model.config)
    result.load_state_dict(
        {k.removeprefix("model."): p for k, p in meant.items() if "freq" not in k}
    )
    return weights, result


@pytest.mark.parametrize("scaler", [torch.float32, torch.bfloat16])
def test_int8_weights_are_exactly_number_times_scaler(
    tmp_path: Path, scaler: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "gemmule.checkpoints.stored_tensor.CHUNK_BYTES", 1000
    )  # rows come in chunks
    weights, meant = quantized(random_model(), scaler)
    with open_torch(save(tmp_path, {"model_state_dict": weights})) as checkpoint:
        assert checkpoint.stored_as.keys() == {"I8", "F32"}
        assert equal(checkpoint.load(), meant)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model.layers.0.mlp.up_proj.weight_scaler": None}, "int8 without a weight_scaler"),
        ({"embedder.weight_scaler": torch.ones(519)}, r"float32 \[519\]; expected one float for"),
        ({"embedder.weight_scaler": torch.ones(520, dtype=torch.int8)}, r"is int8 \[520\]; exp"),
        ({"model.norm.weight_scaler": torch.ones(32)}, "float32 with a weight_scaler"),
        ({"embedder.weight_scaler": torch.full((520,), torch.nan)}, "embedder.weight holds NaN"),
        ({"model.other.weight_scaler": torch.ones(3)}, "unexpected other.weight_scaler"),
    ],
)
def test_wrong_scalers(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    weights, _ = quantized(random_model(), torch.float32)
    changed = {name: p for name, p in (weights | change).items() if p is not None}
    with pytest.raises(CheckpointError, match=message):
        load(save(tmp_path, {"model_state_dict": changed}))


# --- shards -------------------------------------------------------------------------------------


def sharded(folder: Path, weights: Weights) -> dict[str, str]:
    """Two plain state dicts and their index; returns its weight_map."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(to_hf(DISTINCT_CONFIG, "float32")))
    names = list(weights)
    where = {name: "a.bin" if i < 9 else "b.bin" for i, name in enumerate(names)}
    for file in ("a.bin", "b.bin"):
        torch.save({name: weights[name] for name in names if where[name] == file}, folder / file)
    write_index(folder, where)
    return where


def write_index(folder: Path, where: object) -> None:
    index = {"metadata": {}, "weight_map": where}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("int8", [False, True])
def test_shards(tmp_path: Path, int8: bool) -> None:
    model = random_model()
    weights, meant = quantized(model, torch.float32) if int8 else (state_dict(model), model)
    sharded(tmp_path, weights)  # some weights and their scalers lie in different shards
    with open_checkpoint(tmp_path) as checkpoint:
        assert [file.name for file in checkpoint.files] == ["a.bin", "b.bin"]
        assert equal(checkpoint.load(), meant)


NORM = "model.norm.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({NORM: "../b.bin"}, r"'\.\./b\.bin' is not a file name in this folder"),
        ({NORM: "/etc/passwd"}, "'/etc/passwd' is not a file name"),
        ({NORM: "0.bin"}, r"1 of 3 shards are missing: 0\.bin; download"),
        ({NORM: "a.bin"}, r"model\.norm\.weight belongs in another file"),
        ({"model.extra": "a.bin"}, r"the shards lack model\.extra"),
        ({NORM: 3}, "3 is not a file name"),
        (None, "weight_map is missing or not an object"),
    ],
)
def test_broken_index(tmp_path: Path, change: Any, message: str) -> None:
    where = sharded(tmp_path, state_dict(random_model()))
    write_index(tmp_path, where | change if change else None)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(tmp_path)


def test_a_missing_and_a_cut_shard(tmp_path: Path) -> None:
    sharded(tmp_path, state_dict(random_model()))
    data = (tmp_path / "b.bin").read_bytes()
    (tmp_path / "b.bin").write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match=r"b\.bin is not a readable zip archive, or was cut"):
        open_checkpoint(tmp_path)
    (tmp_path / "b.bin").unlink()
    with pytest.raises(CheckpointError, match=r"1 of 2 shards are missing: b\.bin"):
        open_checkpoint(tmp_path)


# --- config and tokenizer -----------------------------------------------------------------------


def test_where_the_config_comes_from(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = exported(tmp_path, random_model(), tokenizer)
    with open_torch(path) as inside:
        assert inside.config == DISTINCT_CONFIG
    beside = DISTINCT_CONFIG.model_copy(update={"sliding_window": 7})
    (tmp_path / "config.json").write_text(json.dumps(to_hf(beside, "float32")))
    with open_torch(path) as outside:
        assert outside.config == beside
    for other in ({}, {"config": 3}, {"config": {"lr": 1e-3}}):  # someone else's "config"
        path = save(
            tmp_path / "bare", {"model_state_dict": state_dict(random_model())} | other, None
        )
        with pytest.raises(CheckpointError, match=r"hidden_size 32.*do not match any published"):
            open_torch(path)


def test_a_published_size_needs_no_config(tmp_path: Path) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    path = tmp_path / "model.ckpt"
    with torch.device("meta"):
        shapes = {name: p.shape for name, p in state_dict(Gemma(preset("2b"))).items()}
    with FakeTensorMode():
        weights = {name: torch.empty(shape, dtype=torch.bfloat16) for name, shape in shapes.items()}
    with torch.serialization.skip_data(materialize_fake_tensors=True):
        torch.save({"model_state_dict": weights}, path)  # 5 GB of holes
    with open_torch(path) as checkpoint:
        assert checkpoint.config == preset("2b")
        assert sum(t.nbytes for t in checkpoint.weights()) == 2 * preset("2b").parameters


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"head_dim": 8}, "has 128 rows; a config with 4 query heads, 2 kv heads and head_dim 8"),
        ({"vocab_size": 512}, r"embed_tokens\.weight \[520, 32\] instead of \[512, 32\]"),
        ({"num_hidden_layers": 2}, "says 2 layers, the weights hold 3"),
    ],
)
def test_a_config_of_another_model(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    path = save(tmp_path, state_dict(random_model()), DISTINCT_CONFIG.model_copy(update=config))
    with pytest.raises(CheckpointError, match=message):
        load(path)


def test_the_tokenizer_lies_beside(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = exported(tmp_path, random_model(), tokenizer)
    with open_torch(path) as checkpoint:
        with pytest.raises(
            TokenizerError, match=r"put the model's tokenizer\.json or tokenizer\.model there"
        ):
            _ = checkpoint.tokenizer
        tokenizer.save(tmp_path)
        assert checkpoint.tokenizer.fingerprint == tokenizer.fingerprint


# --- writing ------------------------------------------------------------------------------------


@pytest.mark.parametrize("mmap", [False, True])
def test_torch_loads_what_we_write(tmp_path: Path, tokenizer: Tokenizer, mmap: bool) -> None:
    model = random_model()
    path = exported(tmp_path, model, tokenizer, name="small.ckpt")
    theirs = torch.load(path, weights_only=True, mmap=mmap)
    expected = state_dict(model)
    del expected["freqs_cis"]
    assert theirs["model_state_dict"].keys() == expected.keys()
    for name, p in theirs["model_state_dict"].items():
        assert torch.equal(p, expected[name]), name
        assert p.data_ptr() % 64 == 0
    assert theirs["config"] == to_hf(DISTINCT_CONFIG, "float32")
    assert equal(load(path), model)


@pytest.mark.parametrize("form", ["BF16", "F16", "F64"])
def test_written_in_another_dtype(tmp_path: Path, tokenizer: Tokenizer, form: str) -> None:
    dtype = FLOATS[form]
    path = exported(tmp_path, random_model(), tokenizer, dtype=dtype)
    with open_torch(path) as checkpoint:
        assert checkpoint.stored_as == {form: DISTINCT_CONFIG.parameters}
        assert equal(checkpoint.load(dtype), random_model().to(dtype))


def test_hf_to_ckpt_to_model_is_bit_equal(saved: Path, tmp_path: Path) -> None:
    with open_hf(saved) as source:
        write(layouts(source), tmp_path)
    loaded = load(tmp_path / "model.ckpt")
    with torch.no_grad():
        assert torch.equal(loaded(TOKENS), random_model()(TOKENS))
    assert equal(loaded, random_model())


def test_a_write_cut_off_anywhere_goes_on(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensor_layout, "SYNC_BYTES", 10_000)
    monkeypatch.setattr("gemmule.checkpoints.stored_tensor.CHUNK_BYTES", 1000)
    unbroken = exported(tmp_path / "whole", random_model(), tokenizer).read_bytes()
    for limit in (1, 70_000, 100_000, 190_000):
        folder = tmp_path / str(limit)
        folder.mkdir()
        written = 0

        def stop(count: int, limit: int = limit) -> None:
            nonlocal written
            written += count
            if written >= limit:
                raise KeyboardInterrupt

        note = folder / "note.json"
        with pytest.raises(KeyboardInterrupt):
            write(layouts(of_model(random_model(), tokenizer)), folder, stop, note)
        assert note.exists() == (limit > 1)  # the embedding alone has 66,560 bytes
        calls: list[int] = []
        write(layouts(of_model(random_model(), tokenizer)), folder, calls.append, note)
        assert (folder / "model.ckpt").read_bytes() == unbroken
        assert (66_560 in calls) == (limit > 1)  # in one step: it was not written again


def test_laying_out_27b_takes_no_memory() -> None:
    resource = pytest.importorskip("resource")
    with torch.device("meta"):
        model = Gemma(preset("27b")).to(torch.bfloat16)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (layout,) = layouts(of_model(model, None))  # type: ignore[arg-type]
    assert layout.size > 54 * 10**9
    assert sum(len(part) for _, part in layout.parts) < 10**6
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 * 1024


# --- hostile and broken -------------------------------------------------------------------------


class Trap:
    """Pickles to a call of `function`."""

    def __init__(self, function: Callable[..., Any], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


@pytest.mark.parametrize("place", ["a weight", "next to it", "the whole"])
def test_code_in_the_pickle_is_named_and_not_run(tmp_path: Path, place: str) -> None:
    import os

    sprung = tmp_path / "sprung"
    trap = Trap(os.system, f"touch {sprung}")
    value: object = {"model_state_dict": state_dict(random_model()), "x": trap}
    if place == "a weight":
        value = {"model_state_dict": state_dict(random_model()) | {NORM: trap}}
    elif place == "the whole":
        value = trap
    path = save(tmp_path, value)
    with pytest.raises(
        CheckpointError, match=r"holds code.*posix\.system.*none of it was executed"
    ):
        open_torch(path)
    assert not sprung.exists()
    pickle.loads(pickle.dumps(trap))  # the trap itself works
    assert sprung.exists()


@pytest.mark.parametrize(
    ("trap", "name"),
    [
        (Trap(bytearray, 2**40), "__builtin__.bytearray"),  # torch's reader would make it
        (Trap(eval, "1"), "__builtin__.eval"),
        (Trap(set, [1]), "__builtin__.set"),
        (Trap(torch.load, "x"), "torch.serialization.load"),
        (torch.ones(3).to_sparse(), "torch._utils._rebuild_sparse_tensor"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_whatever_else_a_pickle_may_name(tmp_path: Path, trap: object, name: str) -> None:
    path = save(tmp_path, {"model_state_dict": state_dict(random_model()), "x": trap})
    with pytest.raises(CheckpointError, match=f"asks for .*{re.escape(name)}"):
        open_torch(path)


def test_other_pickle_protocols_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path, {})
    for protocol in (4, 5):
        torch.save(state_dict(random_model()), path, pickle_protocol=protocol)
        with pytest.raises(CheckpointError, match=rf"protocol {protocol}.*default pickle protocol"):
            open_torch(path)


NEST = b"\x80\x02})" + b"\x85" * 90_000


@pytest.mark.parametrize(
    ("pickled", "message"),
    [
        # Each would crash torch's own reader, or keep it busy for ever.
        (NEST + b"K\1s.", "values under keys that are not names"),
        (
            b"\x80\x02}" + b"K\1\x85q\0" + b"h\0h\0\x86q\0" * 60 + b"K\1s.",
            "keys that are not nam",
        ),
        (b"\x80\x02ccollections\nOrderedDict\n]\x85R.", "a call with other arguments"),
        (b"\x80\x02ccollections\nOrderedDict\n)R]b.", "an object with a state"),
        (b"\x80\x02}\x8a\x10" + bytes(15) + b"\1K\1s.", "a number of absurd size"),
        (b"\x80\x02(" + b"K\1" * 17 + b"t.", "a tuple of absurd length"),
        (b"\x80\x02X\1\0\0\0aQ.", "a reference to something outside"),
        (b"\x80\x02}]K\1a" + b"K\1s.", "values under keys that are not names"),
        (b"\x80\x02}X\1\0\0\0a}(us.", "'a' is of type dict"),  # nothing set in it
        (b"\x80\x02}X\1\0\0\0a](es.", "'a' is of type list"),
        (b"\x80\x02}X\1\0\0\0a)(uK\1s.", "values under keys that are not names"),
        (b"\x80\x02}K\1a.", "values appended to something other than a list"),
        (b"\x80\x02K\1)R.", "a call with other arguments"),
        (b"\x80\x02(K\1.", "cannot be read as weights|not hold a state dict"),
        (b"\x80\x02\x85.", "cannot be read as weights|damaged"),
    ],
)
def test_pickles_that_abuse_the_machine(ckpt: Path, pickled: bytes, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        open_torch(rewritten(ckpt, replaced("/data.pkl", pickled)))


def view(offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> Trap:
    """A tensor claimed of a storage of 32 floats."""
    storage = torch.zeros(32)._typed_storage()
    hooks: OrderedDict[str, object] = OrderedDict()
    return Trap(torch._utils._rebuild_tensor_v2, storage, offset, size, stride, False, hooks)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (NORM, None, r"lack norm\.weight"),
        (NORM, torch.ones(31), r"norm\.weight \[31\] instead of \[32\]"),
        (NORM, torch.ones(32, 1), r"norm\.weight \[32, 1\] instead of \[32\]"),
        (NORM, torch.full((32,), torch.nan), "model.norm.weight holds NaN or Inf"),
        (NORM, torch.full((32,), torch.inf), "model.norm.weight holds NaN or Inf"),
        (NORM, [1.0] * 32, "'model.norm.weight' is of type list; expected tensors by name"),
        (NORM, 1.0, "is of type float"),
        (3, torch.ones(3), "3 is of type Tensor"),
        (NORM, torch.ones(32, dtype=torch.complex64), "stored as complex64; supported are int8"),
        (NORM, torch.ones(32, dtype=torch.int32), "stored as int32"),
        (NORM, torch.ones(32, dtype=torch.int8), "int8 without a weight_scaler"),
        (NORM, torch.ones(64)[::2], "is not a contiguous matrix or vector in its storage"),
        (NORM, torch.ones(1).expand(32), "is not a contiguous matrix or vector in its storage"),
        (NORM, torch.tensor(1.0), "is not a contiguous matrix or vector"),
        (NORM, torch.ones(1, 4, 8), "is not a contiguous matrix or vector"),
        (NORM, torch.ones(0), "is not a contiguous matrix or vector"),
        (NORM, torch.ones(32, device="meta"), "asks for torch._utils._rebuild_meta_tensor"),
        (NORM, view(0, (32,), (0,)), "is not a contiguous matrix or vector"),
        (
            NORM,
            view(1, (32,), (1,)),
            "is not a contiguous matrix or vector|cannot be read as weights",
        ),
        (
            NORM,
            view(0, (10**9,), (1,)),
            "is not a contiguous matrix or vector|cannot be read as weights",
        ),
        (
            NORM,
            view(2**62, (32,), (1,)),
            "is not a contiguous matrix or vector|cannot be read as weights",
        ),
        (
            NORM,
            view(-8, (32,), (1,)),
            "is not a contiguous matrix or vector|cannot be read as weights",
        ),
        (
            NORM,
            view(0, (-1,), (1,)),
            "is not a contiguous matrix or vector|cannot be read as weights",
        ),
        (
            NORM,
            view(0, (2**40, 2**40), (2**40, 1)),
            "is not a contiguous|cannot be read as weights",
        ),
        ("model.extra.weight", torch.ones(3), r"unexpected extra\.weight"),
        (
            "model.layers.0.self_attn.q_proj.weight",
            torch.ones(64, 32),
            "q_proj.weight is stored twi",
        ),
        ("lm_head.weight", torch.ones(520, 32), "only a tied head can be loaded"),
    ],
)
def test_wrong_tensors(tmp_path: Path, name: Any, value: Any, message: str) -> None:
    weights: dict[Any, Any] = dict(state_dict(random_model()))
    weights.pop(name, None)
    if value is not None:
        weights[name] = value
    path = save(tmp_path, {"model_state_dict": weights})
    with pytest.raises(CheckpointError, match=message):
        load(path)


@pytest.mark.parametrize(
    "value", [[1, 2], "text", {}, {"model_state_dict": {}}, {"model_state_dict": [1]}, None, 7]
)
def test_no_state_dict(tmp_path: Path, value: object) -> None:
    with pytest.raises(CheckpointError, match="does not hold a state dict"):
        open_torch(save(tmp_path, value))


def test_an_impossible_config_inside(tmp_path: Path) -> None:
    page: list[Any] = []
    for _ in range(60):  # printing it would never end
        page = [page, page]
    weights = state_dict(random_model())
    for change in ({"rope_scaling": page}, {"rope_parameters": {"rope_type": page}}):
        value = {"model_state_dict": weights, "config": to_hf(DISTINCT_CONFIG, "float32") | change}
        with pytest.raises(CheckpointError, match="the config in it has an invalid 'rope_"):
            open_torch(save(tmp_path, value, None))
    value = {"model_state_dict": weights, "config": {"model_type": "llama"}}
    with pytest.raises(
        CheckpointError, match=r"the config in it describes a model of type 'llama'"
    ):
        open_torch(save(tmp_path, value, None))


def rewritten(path: Path, change: Callable[[str, bytes], bytes | None], how: int = 0) -> Path:
    """The archive with its members changed, left out (None) or compressed."""
    with zipfile.ZipFile(path) as old:
        members = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w", how) as new:
        for name, data in members.items():
            changed = change(name, data)
            if changed is not None:
                new.writestr(name, changed)
    return path


def replaced(wanted: str, content: bytes | None) -> Callable[[str, bytes], bytes | None]:
    return lambda name, data: content if name.endswith(wanted) else data


@pytest.fixture
def ckpt(tmp_path: Path) -> Path:
    return save(tmp_path, {"model_state_dict": state_dict(random_model())})


def test_an_archive_rewritten_by_another_zip_program_still_loads(ckpt: Path) -> None:
    """Unaligned, and in another order than torch's."""
    assert equal(load(rewritten(ckpt, lambda _, data: data)), random_model())


@pytest.mark.parametrize(
    ("change", "how", "message"),
    [
        (
            lambda _, data: data,
            zipfile.ZIP_DEFLATED,
            "compressed in a way that the format does not",
        ),
        (lambda _, data: data, zipfile.ZIP_LZMA, "compressed in a way that the format does not"),
        (
            replaced("/data/3", bytes(7)),
            0,
            "is not a contiguous matrix or vector in its storage of 7",
        ),
        (replaced("/data/3", None), 0, "cannot be read as weights"),
        (replaced("/data.pkl", None), 0, "torch.save did not write"),
        (replaced("/data.pkl", b""), 0, "its pickle is damaged"),
        (replaced("/data.pkl", b"\x80\x02."), 0, "cannot be read as weights"),
        (replaced("/data.pkl", b"\x80\x02]." * 10**6), 0, "'model/data.pkl' has 4000000 bytes"),
        (replaced("/data.pkl", b"(" * 10**5), 0, "its pickle is damaged"),
        (replaced("/data.pkl", b"\x80\x02h\x07."), 0, "a reference to nothing"),
        (replaced("/data.pkl", b"\x80\x02X\xff\xff\xff\x7f."), 0, "its pickle is damaged"),
        (replaced("/data.pkl", b"\x80\x02cos\nsystem\n."), 0, "asks for os.system"),
        (replaced("/data.pkl", b"\x80\x02(ios\nsystem\n."), 0, "has INST of os.system"),
        (replaced("/byteorder", b"big"), 0, "another byte order"),
        (replaced("/byteorder", bytes(2**21)), 0, "the description of a model has at most 1048576"),
    ],
)
def test_hostile_archives(ckpt: Path, change: Any, how: int, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load(rewritten(ckpt, change, how))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_second_pickle(ckpt: Path) -> None:
    for name in ("model/data.pkl", "model/DATA.PKL", "other/data.pkl"):
        copy = Path(shutil.copy(ckpt, ckpt.with_name("copy.ckpt")))
        with zipfile.ZipFile(copy, "a") as archive:
            archive.writestr(name, b"cos\nsystem\n.")
        with pytest.raises(CheckpointError, match=r"two members have the same name|did not write"):
            open_torch(copy)


def test_members_that_share_bytes(ckpt: Path) -> None:
    """A hundred names of one large storage claim far more than the file has."""
    rewritten(ckpt, lambda _, data: data)
    data = bytearray(ckpt.read_bytes())
    with zipfile.ZipFile(ckpt) as archive:
        start = archive.start_dir
    end = data.rindex(b"PK\5\6")
    directory = data[start:end]
    names = [f"model/data/{i:03}".encode() for i in range(900, 999)]
    entry = directory[directory.index(b"model/data/0") - 46 :]
    entry = entry[: 46 + sum(int.from_bytes(entry[i : i + 2], "little") for i in (28, 30, 32))]
    more = b""
    for name in names:
        rest = entry[46 + int.from_bytes(entry[28:30], "little") :]
        more += entry[:28] + len(name).to_bytes(2, "little") + entry[30:46] + name + rest
    count = int.from_bytes(data[end + 10 : end + 12], "little") + len(names)
    tail = data[end:]
    tail[8:12] = count.to_bytes(2, "little") * 2
    tail[12:16] = len(directory + more).to_bytes(4, "little")
    tail[16:20] = start.to_bytes(4, "little")
    ckpt.write_bytes(data[:start] + directory + more + tail)
    with pytest.raises(CheckpointError, match="crafted to exhaust memory"):
        open_torch(ckpt)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_legacy_files_are_refused_with_a_way_out(tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    torch.save({"x": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    for content in (path.read_bytes(), b"BM", b"model/0000" + bytes(512)):
        path.write_bytes(content)
        with pytest.raises(
            CheckpointError, match=r"not the zip archive.*write it again with torch"
        ):
            open_torch(path)
    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"cannot be read, or was cut short"):
        open_torch(path)
    with pytest.raises(CheckpointError, match=r"no gone\.ckpt in"):
        open_torch(tmp_path / "gone.ckpt")


def test_cut_anywhere(ckpt: Path) -> None:
    whole = ckpt.read_bytes()
    for at in range(0, len(whole), len(whole) // 60):
        ckpt.write_bytes(whole[:at])
        with pytest.raises(CheckpointError):
            load(ckpt)


def test_damaged_files_never_raise_anything_else(tmp_path: Path, tokenizer: Tokenizer) -> None:
    model = random_model(ONE_LAYER)
    (layout,) = layouts(of_model(model, tokenizer))
    path = exported(tmp_path, model, tokenizer)
    whole = path.read_bytes()
    described = [at + i for at, part in layout.parts for i in range(len(part))]
    assert equal(load(path), model)

    @settings(max_examples=200, deadline=None)
    @given(st.data())
    def damage_it(data: st.DataObject) -> None:
        damaged = bytearray(whole)
        where = st.one_of(st.sampled_from(described), st.integers(0, len(whole) - 1))
        for at in data.draw(st.lists(where, min_size=1, max_size=4)):
            damaged[at] = data.draw(st.integers(0, 255))
        path.write_bytes(damaged)
        with suppress(CheckpointError):
            load(path)

    damage_it()
