"""JAX parameter trees: every layout reads back bit for bit, and hostile files say what they are."""

import json
import textwrap
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gemmule.checkpoints.checkpoint import Checkpoint, weights_fingerprint
from gemmule.checkpoints.hf.config import to_hf
from gemmule.checkpoints.jax import reader
from gemmule.checkpoints.jax.reader import open_npz, open_orbax
from gemmule.checkpoints.load import open_checkpoint
from gemmule.errors import CheckpointError, MissingExtraError, TokenizerError
from gemmule.model.config import PRESETS, GemmaConfig
from gemmule.model.gemma import Gemma
from gemmule.model.tokenizer import train_tokenizer
from models import DISTINCT, DISTINCT_CONFIG, random_model, tiny_config

Arrays = dict[str, np.ndarray[Any, Any]]
ONE_LAYER = tiny_config(
    DISTINCT, vocab_size=8, hidden_size=8, intermediate_size=12, num_hidden_layers=1,
    num_attention_heads=2, num_key_value_heads=1, head_dim=4,
)  # fmt: skip
NORMS = {
    "pre_attention_norm": "input_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "pre_ffw_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}


def tree(model: Gemma, wide_first: bool = False, rows: int | None = None) -> Arrays:
    """The model's weights as Google's JAX code names and lays them out, by flat paths.

    Args:
        model: a model in float32 or float16.
        wide_first: gating_einsum as in 9B and 27B, [2, F, D].
        rows: number of rows of the embedding; those past the vocabulary hold ones.
    """
    c, w = model.config, {name: p.numpy() for name, p in model.state_dict().items()}
    D, H = c.hidden_size, c.head_dim

    def by_head(x: Any) -> Any:
        return x.reshape(-1, H, D).transpose(0, 2, 1)

    embedding = np.ones((rows or c.vocab_size, D), w["norm.weight"].dtype)
    embedding[: c.vocab_size] = w["embed_tokens.weight"]
    arrays = {
        "transformer/embedder/input_embedding": embedding,
        "transformer/final_norm/scale": w["norm.weight"],
    }
    for i in range(c.num_hidden_layers):
        ours, theirs = f"layers.{i}.", f"transformer/layer_{i}/"
        q, k, v = (by_head(w[f"{ours}self_attn.{n}_proj.weight"]) for n in "qkv")
        o = w[ours + "self_attn.o_proj.weight"].T.reshape(-1, H, D)
        gating = np.stack([w[f"{ours}mlp.{n}_proj.weight"] for n in ("gate", "up")])
        arrays |= {
            theirs + "attn/q_einsum/w": q,
            theirs + "attn/kv_einsum/w": np.stack([k, v]),
            theirs + "attn/attn_vec_einsum/w": o,
            theirs + "mlp/gating_einsum/w": gating if wide_first else gating.transpose(0, 2, 1),
            theirs + "mlp/linear/w": w[ours + "mlp.down_proj.weight"].T,
        }
        for their_norm, norm in NORMS.items():
            arrays[f"{theirs}{their_norm}/scale"] = w[f"{ours}{norm}.weight"]
    return {name: np.ascontiguousarray(x) for name, x in arrays.items()}


def save(folder: Path, arrays: Arrays, config: GemmaConfig | None = DISTINCT_CONFIG) -> Path:
    folder.mkdir(exist_ok=True)
    if config:
        (folder / "config.json").write_text(json.dumps(to_hf(config, "float32")))
    np.savez(folder / "model.npz", **arrays)  # type: ignore[arg-type]
    return folder / "model.npz"


def same(checkpoint: Checkpoint, model: Gemma) -> bool:
    with checkpoint:
        loaded = checkpoint.load()
    return weights_fingerprint(loaded) == weights_fingerprint(model)


# --- layouts ------------------------------------------------------------------------------------

NAMES = {
    "flat": lambda name: name,
    "without prefix": lambda name: name.removeprefix("transformer/"),
    "dotted": lambda name: name.replace("/", "."),
    "a trainer's": lambda name: name.replace("transformer", "params"),
    "mlp without w": lambda name: name.removesuffix("/w") if "mlp" in name else name,
    "key paths": lambda name: "".join(f"['{part}']" for part in name.split("/")),
    "semi-flat": lambda name: "&".join(name.rsplit("/", 1)),
}


@pytest.mark.parametrize("spelling", NAMES)
@pytest.mark.parametrize("wide_first", [False, True])
def test_every_spelling_and_gating_layout(tmp_path: Path, spelling: str, wide_first: bool) -> None:
    model = random_model()
    arrays = {NAMES[spelling](name): x for name, x in tree(model, wide_first).items()}
    with open_checkpoint(save(tmp_path, arrays)) as checkpoint:
        assert checkpoint.format == "npz"
        assert checkpoint.config == DISTINCT_CONFIG
        assert checkpoint.stored_as == {"F32": DISTINCT_CONFIG.parameters}
        assert same(checkpoint, model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_every_dtype_compressed(tmp_path: Path, dtype: torch.dtype) -> None:
    model = random_model().to(torch.float16 if dtype == torch.bfloat16 else dtype)
    arrays = tree(model)
    if dtype == torch.bfloat16:  # as numpy keeps what ml_dtypes makes
        model = model.to(dtype)
        arrays = {
            name: torch.from_numpy(x).to(dtype).view(torch.int16).numpy().view("V2")
            for name, x in arrays.items()
        }
    path = save(tmp_path, {})
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]
    with open_npz(path) as checkpoint:
        loaded = checkpoint.load(dtype)
    assert weights_fingerprint(loaded) == weights_fingerprint(model)


def test_columns_first(tmp_path: Path) -> None:
    model = random_model()
    arrays = {name: np.asfortranarray(x) for name, x in tree(model).items()}
    assert same(open_npz(save(tmp_path, arrays)), model)


def test_stacked_layers(tmp_path: Path) -> None:
    """Layers 0, 2, ... under attention_type_0; 1, 3, ... under attention_type_1."""
    config = DISTINCT_CONFIG.model_copy(update={"num_hidden_layers": 4})
    model, stacked = random_model(config), {}
    arrays = tree(model)
    for name, x in arrays.items():
        if "layer_" not in name:
            stacked[name] = x
        elif (kind := int(name[len("transformer/layer_")])) < 2:
            rest = name.split("/", 2)[2]
            pair = [x, arrays[f"transformer/layer_{kind + 2}/{rest}"]]
            stacked[f"transformer/stacked_layers/attention_type_{kind}/{rest}"] = np.stack(pair)
    assert same(open_npz(save(tmp_path, stacked, config)), model)


def test_heads_with_keys_of_their_own(tmp_path: Path) -> None:
    config = DISTINCT_CONFIG.model_copy(update={"num_key_value_heads": 4})
    model = random_model(config)
    arrays = tree(model)
    for i in range(3):
        q = arrays.pop(f"transformer/layer_{i}/attn/q_einsum/w")
        kv = arrays.pop(f"transformer/layer_{i}/attn/kv_einsum/w")
        arrays[f"transformer/layer_{i}/attn/qkv_einsum/w"] = np.concatenate([q[None], kv])
    assert same(open_npz(save(tmp_path, arrays, config)), model)


def test_a_large_array_comes_in_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gemmule.checkpoints.stored_tensor.CHUNK_BYTES", 1000)
    model = random_model()
    checkpoint = open_npz(save(tmp_path, tree(model)))
    rows = [len(x) for x in checkpoint.tensors["embed_tokens.weight"].chunks()]
    assert rows == [7] * 74 + [2]
    assert same(checkpoint, model)


# --- config, padding, tokenizer -----------------------------------------------------------------


def test_rows_that_pad_the_embedding_are_dropped(tmp_path: Path) -> None:
    model = random_model()
    padded = open_npz(save(tmp_path, tree(model, rows=640)))
    assert padded.config.vocab_size == 520
    assert "the last 120 of the embedding's 640 rows" in padded.notes[0]
    assert same(padded, model)
    full = DISTINCT_CONFIG.model_copy(update={"vocab_size": 640})
    whole = open_npz(save(tmp_path, tree(model, rows=640), full))
    assert whole.config == full
    assert not whole.notes
    whole.stack.close()


@pytest.mark.parametrize(("pieces", "kept"), [(530, 530), (512, 640)])
def test_the_tokenizer_tells_which_rows_pad(tmp_path: Path, pieces: int, kept: int) -> None:
    """512 pieces would have filled whole blocks of 128: then 640 rows are not a padded 512."""
    tokenizer = train_tokenizer([Path(textwrap.__file__).read_text()], pieces)
    tokenizer.save(tmp_path)
    full = DISTINCT_CONFIG.model_copy(update={"vocab_size": 640})
    with open_npz(save(tmp_path, tree(random_model(), rows=640), full)) as checkpoint:
        assert checkpoint.config == full.model_copy(update={"vocab_size": kept})
        assert checkpoint.load().embed_tokens.weight.shape == (kept, 32)
        assert checkpoint.tokenizer.fingerprint == tokenizer.fingerprint


def test_a_published_size_needs_no_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fields = {k: v for k, v in DISTINCT_CONFIG.model_dump().items() if k != "rope_theta"}
    monkeypatch.setitem(PRESETS, "2b", fields)
    monkeypatch.setattr(reader, "JAX_ROWS", 640)
    model = random_model()
    checkpoint = open_npz(save(tmp_path, tree(model, rows=640), config=None))
    assert checkpoint.config == DISTINCT_CONFIG.model_copy(update={"rope_theta": 10000.0})
    assert same(checkpoint, model)
    with pytest.raises(TokenizerError, match=r"no tokenizer in"):
        _ = checkpoint.tokenizer
    monkeypatch.setitem(PRESETS, "2b", fields | {"head_dim": 32})
    with pytest.raises(
        CheckpointError, match=r"head_dim 16.*do not match any published Gemma 2.*config\.json"
    ):
        open_npz(tmp_path / "model.npz")


def test_a_config_of_another_model(tmp_path: Path) -> None:
    path = save(tmp_path, tree(random_model()), DISTINCT_CONFIG.model_copy(update={"head_dim": 8}))
    with pytest.raises(CheckpointError, match=r"q_einsum/w \[4, 32, 16\] instead of \[4, 32, 8\]"):
        open_npz(path)


def test_equal_sizes_leave_the_gating_layout_open(tmp_path: Path) -> None:
    config = DISTINCT_CONFIG.model_copy(update={"intermediate_size": 32})
    path = save(tmp_path, tree(random_model(config)), config)
    with pytest.raises(CheckpointError, match="can be either of two layouts"):
        open_npz(path)


# --- hostile and broken -------------------------------------------------------------------------


def npy(header: bytes, data: bytes = b"", version: tuple[int, int] = (1, 0)) -> bytes:
    length = len(header).to_bytes(2 if version[0] == 1 else 4, "little")
    return b"\x93NUMPY" + bytes(version) + length + header + data


def described(shape: str, dtype: str = "'<f4'") -> bytes:
    return f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}}}\n".encode()


def test_objects_are_never_unpickled(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "sprung",)

    path = save(tmp_path, tree(random_model()) | {"x": np.array([Trap()], dtype=object)})
    with pytest.raises(CheckpointError, match=r"x is stored as \|O; supported are"):
        open_npz(path)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("member", "message"),
    [
        (npy(described("(1000000, 1000000)")), r"claims \[1000000, 1000000\] of float32"),
        (npy(described("(4,)"), bytes(12)), r"claims \[4\] of float32, which is not the 12 bytes"),
        (npy(described("(4,)"), bytes(20)), r"which is not the 20 bytes"),
        (npy(described("(-1, 4)"), bytes(16)), r"impossible shape"),
        (npy(described("(2, 0)")), r"impossible shape"),
        (npy(described("(True, 1)"), bytes(4)), r"x "),
        (npy(described("(3,)", "'>f4'"), bytes(12)), r"x is stored as >f4"),
        (npy(described("(3,)", "'<c8'"), bytes(24)), r"x is stored as <c8"),
        (npy(described("(3,)", "[('a', '<f4')]"), bytes(12)), r"x is stored as \|V4"),
        (npy(b"(" * 5000), r"x is not a \.npy file"),
        (npy(b" " * 12000 + described("(3,)"), bytes(12)), r"x is not a \.npy file"),
        (b"\x93NUMPY\2\0\xff\xff\xff\xff" + bytes(100), r"x is not a \.npy file"),
        (npy(described("(3,)"), bytes(12), (3, 0)), r"x is not a \.npy file"),
        (b"", r"x is not a \.npy file"),
        (b"PK", r"x is not a \.npy file"),
    ],
)
def test_members_that_lie(tmp_path: Path, member: bytes, message: str) -> None:
    path = save(tmp_path, tree(random_model()))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("x.npy", member)
    with pytest.raises(CheckpointError, match=message):
        open_npz(path)


def test_zip_bombs(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(to_hf(DISTINCT_CONFIG, "float32")))
    path = tmp_path / "model.npz"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("transformer/final_norm/scale.npy", "w") as f,
    ):
        f.write(npy(described(f"({50 * 2**20},)")))
        for _ in range(200):
            f.write(bytes(2**20))
    assert path.stat().st_size < 2**20
    with pytest.raises(CheckpointError, match="crafted to exhaust memory"):
        open_npz(path)


def test_a_directory_of_absurd_length(tmp_path: Path) -> None:
    path = save(tmp_path, tree(random_model()))
    data = bytearray(path.read_bytes())
    end = data.rindex(b"PK\5\6")
    data[end + 12 : end + 16] = (2**31).to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"not a readable zip archive.*download it again"):
        open_npz(path)


@pytest.mark.parametrize(
    ("patch", "message"),
    [
        ({6: 1, 8: 1}, "encrypted"),  # flags, in the local header and in the directory
        ({8: 12, 10: 12}, "compressed in a way"),
        ({22: 77, 24: 77}, "two sizes"),
    ],
)
def test_odd_members(tmp_path: Path, patch: dict[int, int], message: str) -> None:
    path = save(tmp_path, tree(random_model()))
    data = bytearray(path.read_bytes())
    (local, value), (central, _) = patch.items()
    data[local] = data[data.index(b"PK\1\2") + central] = value
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=message):
        open_npz(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    "name", ["transformer/final_norm/scale.npy", "Transformer/FINAL_norm/scale.npy"]
)
def test_two_members_of_one_name(tmp_path: Path, name: str) -> None:
    path = save(tmp_path, tree(random_model()))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, npy(described("(32,)"), bytes(128)))
    with pytest.raises(CheckpointError, match="two members have the same name"):
        open_npz(path)


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("transformer/final_norm/scale", None, r"lack norm\.weight"),
        ("transformer/layer_2/mlp/linear/w", None, r"lack layers\.2\.mlp\.down_proj"),
        ("transformer/layer_7/mlp/linear/w", np.ones((48, 32), "f4"), "the weights hold 4"),
        ("transformer/final_norm/scale", np.full(32, np.nan, "f4"), "scale holds NaN or Inf"),
        ("final_norm/scale", np.ones(32, "f4"), "final_norm is stored twice"),
        ("transformer/extra/w", np.ones(32, "f4"), "extra/w is not part of a Gemma 2"),
        ("transformer/layer_0/extra", np.ones(32, "f4"), "extra is not part of a Gemma 2"),
        ("transformer/layer_00/mlp/linear", np.ones((48, 32), "f4"), "not part of a Gemma 2"),
        ("transformer/final_norm/scale", np.ones((2, 32), "f4"), r"\[2, 32\] instead of \[32\]"),
        ("transformer/final_norm/scale", np.ones(32, "i4"), "scale is stored as <i4"),
        (
            "stacked_layers/attention_type_0/mlp/linear",
            np.ones((5000, 2), "f4"),
            "not a stack of at most 1000 layers",
        ),
    ],
)
def test_wrong_arrays(tmp_path: Path, name: str, array: Any, message: str) -> None:
    arrays = tree(random_model())
    arrays.pop(name, None)
    if array is not None:
        arrays[name] = array
    path = save(tmp_path, arrays)
    with pytest.raises(CheckpointError, match=message), open_npz(path) as checkpoint:
        checkpoint.load()


def test_another_models_tree(tmp_path: Path) -> None:
    path = save(tmp_path, {"blocks/0/w": np.ones((3, 3), "f4")}, config=None)
    with pytest.raises(CheckpointError, match=r"not a Gemma 2 parameter tree: it holds blocks/0;"):
        open_npz(path)


@pytest.mark.parametrize("compressed", [False, True])
def test_damaged_files_never_raise_anything_else(tmp_path: Path, compressed: bool) -> None:
    path = save(tmp_path, {}, ONE_LAYER)
    write = np.savez_compressed if compressed else np.savez
    write(path, **tree(random_model(ONE_LAYER)))  # type: ignore[operator]
    whole = path.read_bytes()
    assert same(open_npz(path), random_model(ONE_LAYER))

    @settings(max_examples=200, deadline=None)
    @given(st.data())
    def damage_it(data: st.DataObject) -> None:
        damaged = bytearray(whole)
        if data.draw(st.booleans(), label="truncate"):
            del damaged[data.draw(st.integers(0, len(whole) - 1)) :]
        else:
            for at in data.draw(st.lists(st.integers(0, len(whole) - 1), min_size=1, max_size=4)):
                damaged[at] = data.draw(st.integers(0, 255))
        path.write_bytes(damaged)
        try:
            with open_npz(path) as checkpoint:
                checkpoint.load()
        except CheckpointError:
            return
        assert len(damaged) == len(whole)  # a cut file never loads

    damage_it()


def test_the_checksum_finds_a_flipped_bit(tmp_path: Path) -> None:
    path = save(tmp_path, tree(random_model()))
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="CRC-32"), open_npz(path) as checkpoint:
        checkpoint.load()


# --- orbax --------------------------------------------------------------------------------------


def nested(arrays: Arrays) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for name, x in arrays.items():
        *path, leaf = name.removeprefix("transformer/").split("/")
        inner = nested
        for key in path:
            inner = inner.setdefault(key, {})
        inner[leaf] = x
    return nested


def test_orbax_is_asked_for_where_it_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "orbax.checkpoint", None)
    (tmp_path / "_METADATA").write_text("{}")
    with pytest.raises(MissingExtraError, match=r'orbax-checkpoint: pip install "gemmule\[jax\]"'):
        open_checkpoint(tmp_path)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", ["nested", "flat", "a trainer's", "in an item"])
def test_orbax(tmp_path: Path, form: str) -> None:
    ocp = pytest.importorskip("orbax.checkpoint")
    model = random_model()
    arrays = tree(model, rows=640)
    value: Any = nested(arrays)
    folder = tmp_path / "model"
    if form == "flat":
        value = {}
        for name, x in arrays.items():
            path, leaf = name.rsplit("/", 1)
            value.setdefault(path, {})[leaf] = x
    elif form == "a trainer's":
        value = {"params": value, "opt_state": {"count": np.ones(3, "i4")}, "step": 7}
    if form == "in an item":
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as writer:
            writer.save(folder, ocp.args.Composite(default=ocp.args.PyTreeSave(value)))
    else:
        with ocp.PyTreeCheckpointer() as writer:
            writer.save(folder, value)
    (folder / "config.json").write_text(json.dumps(to_hf(DISTINCT_CONFIG, "float32")))
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.format == "orbax"
        assert checkpoint.config == DISTINCT_CONFIG
        assert same(checkpoint, model)


@pytest.mark.filterwarnings("ignore")
def test_orbax_bfloat16_and_damage(tmp_path: Path) -> None:
    ocp = pytest.importorskip("orbax.checkpoint")
    ml_dtypes = pytest.importorskip("ml_dtypes")
    model = random_model().to(torch.bfloat16)
    arrays = {k: x.astype(ml_dtypes.bfloat16) for k, x in tree(model.float()).items()}
    model = model.to(torch.bfloat16)
    folder = tmp_path / "model"
    with ocp.StandardCheckpointer() as writer:
        writer.save(folder, nested(arrays))
        writer.wait_until_finished()
    (folder / "config.json").write_text(json.dumps(to_hf(DISTINCT_CONFIG, "float32")))
    assert same(open_orbax(folder), model)
    for file in sorted(folder.rglob("*")):
        if file.is_file() and file.name != "config.json":
            content = file.read_bytes()
            file.write_bytes(content[: len(content) // 2])
            try:
                with open_orbax(folder) as checkpoint:
                    assert same(checkpoint, model)  # orbax did not need that file
            except CheckpointError:
                pass
            file.write_bytes(content)
