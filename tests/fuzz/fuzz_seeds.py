"""The sound inputs that damage begins with: tiny models in every form there is a reader for."""

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from mutate import pack
from mutate_gguf import Gguf, Key, parse
from mutate_proto import packed, varint
from safetensors.torch import save, save_file
from torch import nn

from gemmule.checkpoints.checkpoint import of_model
from gemmule.checkpoints.gemma_pytorch import writer as ckpt_writer
from gemmule.checkpoints.gguf import writer as gguf_writer
from gemmule.checkpoints.gguf.header import ENCODINGS
from gemmule.checkpoints.hf.config import to_hf
from gemmule.checkpoints.hf.writer import save_model
from gemmule.checkpoints.tensor_layout import FileLayout, write
from gemmule.model.config import GemmaConfig
from gemmule.model.gemma import Gemma
from gemmule.model.tokenizer import Tokenizer
from gemmule.train.muon import Muon
from gemmule.train.state import SafetensorsStates
from models import SMALLEST, random_model, tiny_config

Weights = dict[str, torch.Tensor]

_CONFIG = tiny_config(SMALLEST, vocab_size=512, query_pre_attn_scalar=4)
# ggml's blocks hold 32 numbers of a row, its k-quants 256.
_BLOCKS = _CONFIG.model_copy(update={"hidden_size": 32, "intermediate_size": 32})
_WIDE = _CONFIG.model_copy(
    update={"hidden_size": 256, "intermediate_size": 32, "num_attention_heads": 1, "head_dim": 2}
)
_PEFT, _EMBEDDING = "base_model.model.", "model.embed_tokens.weight"
_ADAPTER = json.dumps(
    {
        "peft_type": "LORA",
        "base_model_name_or_path": "org/base",
        "r": 2,
        "lora_alpha": 3,
        "target_modules": ["q_proj", "up_proj"],
        "rank_pattern": {},
        "alpha_pattern": {r"layers\.0\.mlp\.up_proj": 5},
    }
).encode()


def _model(config: GemmaConfig) -> Gemma:
    return random_model(config, std={"": 0.3})


class Maker:
    """Makes the seeds of each target, in a folder of its own."""

    def __init__(self, work: Path, tokenizer: Tokenizer) -> None:
        self.work, self.tokenizer = work, tokenizer
        self.model = _model(_CONFIG)
        self.names = {f"model.{k}": v.detach() for k, v in self.model.state_dict().items()}
        save_model(self.model, tokenizer, work / "hf")
        self.config_json = (work / "hf/config.json").read_bytes()
        self.tokenizer_model = (work / "hf/tokenizer.model").read_bytes()
        self.weights = (work / "hf/model.safetensors").read_bytes()

    def safetensors(self) -> list[bytes]:
        half = {name: tensor.bfloat16() for name, tensor in self.names.items()}
        tied = self.names | {"lm_head.weight": self.names["model.embed_tokens.weight"].clone()}
        wrapped = {f"_orig_mod.module.{name}": tensor for name, tensor in self.names.items()}
        wrapped["module.rotary_emb.inv_freq"] = torch.ones(2)
        files = [self.weights, save(half), save(tied, {"format": "pt"}), save(wrapped)]
        return [pack([data]) for data in [*files, save(self._fp8())]]

    def _fp8(self) -> Weights:
        """Matrices in fp8, with one scale, one for each row, or none."""
        stored = dict(self.names)
        for i, name in enumerate(self.names):
            if stored[name].ndim == 2:
                stored[name] = stored[name].to(torch.float8_e4m3fn)
                rows = (None, 1, len(stored[name]))[i % 3]
                if rows:
                    stored[f"{name}_scale"] = torch.full((rows,), 0.5)
        return stored

    def safetensors_sharded(self, index: str, shards: Sequence[str]) -> list[bytes]:
        parts = self._halves()
        for part, name in zip(parts, shards, strict=True):
            save_file(part, self.work / name)
        return [self._sharded(shards, parts, [(self.work / name).read_bytes() for name in shards])]

    def indexes(self, shards: Sequence[str]) -> list[bytes]:
        """Indexes of two shards; the second names a tied head, which they do not hold."""
        parts = self._halves()
        head = [parts[0] | {"lm_head.weight": torch.empty(0)}, parts[1]]
        return [self._sharded(shards, parts, []), self._sharded(shards, head, [])]

    def halves(self, shards: Sequence[str], saved: Callable[[Weights], bytes]) -> dict[str, bytes]:
        """The two shards."""
        return {name: saved(part) for name, part in zip(shards, self._halves(), strict=True)}

    def _halves(self) -> list[Weights]:
        names = list(self.names)
        return [{name: self.names[name] for name in part} for part in (names[:5], names[5:])]

    @staticmethod
    def _sharded(shards: Sequence[str], parts: list[Weights], data: list[bytes]) -> bytes:
        where = {n: shard for part, shard in zip(parts, shards, strict=True) for n in part}
        text = json.dumps({"metadata": {"total_size": 1}, "weight_map": where}).encode()
        return pack([text, *data])

    def configs(self) -> list[bytes]:
        small = {k: v for k, v in to_hf(_CONFIG, "float32").items() if k != "layer_types"}
        small["rope_parameters"] = {"rope_theta": 10000.0, "rope_type": "default"}
        return [pack([self.config_json]), pack([json.dumps(small).encode()])]

    # --- adapters, of the model that `weights` holds ---

    def adapters(self) -> list[bytes]:
        tied = self._change("embed_tokens", "lm_head")
        whole = {
            f"{_PEFT}{name}": 2 * self.names[name] for name in ("model.norm.weight", _EMBEDDING)
        }
        whole[f"{_PEFT}lm_head.weight"] = 2 * self.names[_EMBEDDING]
        rows = {f"{_PEFT}model.embed_tokens.token_adapter.trainable_tokens_delta": torch.ones(2, 8)}
        every = [name.split(".")[-2] for name in self.names if name.endswith("_proj.weight")]
        return [
            _adapter(self._change(*every), target_modules=every),
            _adapter(self._change("q_proj", "up_proj", dora=True), use_dora=True, use_rslora=True),
            _adapter(tied, target_modules=["embed_tokens"], ensure_weight_tying=True),
            _adapter(self._change("embed_tokens", dora=True), use_dora=True, target_modules=None),
            _adapter(whole | self._change("q_proj"), modules_to_save=["norm", "embed_tokens"]),
            _adapter(rows | self._change("q_proj"), trainable_token_indices=[106, 500]),
        ]

    def adapter_bin(self) -> tuple[bytes, list[bytes]]:
        """The config, and files of torch.save."""
        weights = self._change("q_proj", "up_proj")
        half = {name: tensor.bfloat16() for name, tensor in weights.items()}
        return _ADAPTER, [pack([torch_saved(weights)]), pack([torch_saved(half)])]

    def _change(self, *modules: str, dora: bool = False) -> Weights:
        """The factors of an adapter of rank 2 for the modules with these names."""
        rng, weights = torch.Generator().manual_seed(0), Weights()
        for name, weight in self.names.items():
            module = f"{_PEFT}{name.removesuffix('.weight')}"
            if module.rpartition(".")[2] not in modules:
                continue
            rows, columns = weight.shape
            embeds = name == _EMBEDDING
            a = torch.randn(2, rows if embeds else columns, generator=rng)
            b = torch.randn(columns if embeds else rows, 2, generator=rng)
            form = "{}.lora_embedding_{}" if embeds else "{}.lora_{}.weight"
            weights |= {form.format(module, "A"): a, form.format(module, "B"): b}
            if dora:
                weights[f"{module}.lora_magnitude_vector"] = b.norm(dim=1)
            if "lm_head" in modules:  # the head's change is the embedding's
                weights[f"{_PEFT}lm_head.lora_A.weight"] = b.T.contiguous()
                weights[f"{_PEFT}lm_head.lora_B.weight"] = a.T.contiguous()
        return weights

    # --- gemma_pytorch ---

    def ckpt(self) -> list[bytes]:
        (layout,) = ckpt_writer.layouts(of_model(self.model, self.tokenizer))
        fused = self._fused(self.names)
        return [
            pack([self._written(layout), None]),
            pack([torch_saved({"model_state_dict": fused}), self.config_json]),
            pack([torch_saved(_int8(fused)), self.config_json]),
        ]

    def ckpt_sharded(self, index: str, shards: Sequence[str]) -> list[bytes]:
        fused = self._fused(self.names)
        names = list(fused)
        parts = [{n: fused[n] for n in part} for part in (names[:4], names[4:])]
        return [self._sharded(shards, parts, [torch_saved(part) for part in parts])]

    @staticmethod
    def _fused(names: Weights) -> Weights:
        """The weights under gemma_pytorch's names."""
        tensors = {n: t for n, t in names.items() if "embed" not in n and "self_attn." not in n}
        layer = "model.layers.0.self_attn."
        tensors["embedder.weight"] = names["model.embed_tokens.weight"]
        tensors[f"{layer}o_proj.weight"] = names[f"{layer}o_proj.weight"]
        tensors[f"{layer}qkv_proj.weight"] = torch.cat(
            [names[f"{layer}{part}_proj.weight"] for part in "qkv"]
        )
        return tensors

    def _written(self, layout: FileLayout) -> bytes:
        write([layout], self.work)
        return (self.work / layout.name).read_bytes()

    # --- JAX ---

    def npz(self) -> list[bytes]:
        arrays = self._tree()
        flat = {f"transformer/{name}": array for name, array in arrays.items()}
        stacked = {
            name.replace("layer_0", "params/stacked_layers/attention_type_0"): array[None]
            if "layer_0" in name
            else array
            for name, array in arrays.items()
        }
        bfloat16 = {
            name: torch.from_numpy(array).bfloat16().view(torch.int16).numpy().view("V2")
            for name, array in arrays.items()
        }
        columns = {name: np.asfortranarray(array) for name, array in arrays.items()}
        return [
            pack([_npz(arrays)]),
            pack([_npz(flat, packed=True)]),
            pack([_npz(stacked)]),
            pack([_npz(bfloat16)]),
            pack([_npz(columns, packed=True)]),
        ]

    @staticmethod
    def _tree() -> dict[str, np.ndarray]:
        D, F, H = _CONFIG.hidden_size, _CONFIG.intermediate_size, _CONFIG.head_dim
        N, K = _CONFIG.num_attention_heads, _CONFIG.num_key_value_heads
        norms = ("pre_attention_norm", "post_attention_norm", "pre_ffw_norm", "post_ffw_norm")
        shapes = {
            "embedder/input_embedding": (_CONFIG.vocab_size, D),
            "final_norm/scale": (D,),
            "layer_0/attn/q_einsum/w": (N, D, H),
            "layer_0/attn/kv_einsum/w": (2, K, D, H),
            "layer_0/attn/attn_vec_einsum/w": (N, H, D),
            "layer_0/mlp/gating_einsum": (2, D, F),
            "layer_0/mlp/linear": (F, D),
            **{f"layer_0/{norm}/scale": (D,) for norm in norms},
        }
        rng = np.random.default_rng(0)
        return {n: rng.standard_normal(shape, dtype=np.float32) for n, shape in shapes.items()}

    # --- GGUF ---

    def gguf(self) -> list[bytes]:
        kinds = {"F32": _CONFIG, "F16": _CONFIG, "BF16": _CONFIG, "Q8_0": _BLOCKS, "Q4_0": _BLOCKS}
        files = []
        for kind, config in kinds.items():
            checkpoint = of_model(_model(config), self.tokenizer)
            (layout,), _ = gguf_writer.layouts(checkpoint, kind)
            files.append(self._written(layout))
        wide = of_model(_model(_WIDE), self.tokenizer)
        (layout,), _ = gguf_writer.layouts(wide, "F16")
        for turn in range(4):
            files.append(_requantized(parse(self._written(layout)), turn))
        return [pack([data]) for data in files]

    def gguf_split(self) -> list[bytes]:
        """A model in two parts, as llama-gguf-split makes them."""
        checkpoint = of_model(self.model, self.tokenizer)
        (layout,), _ = gguf_writer.layouts(checkpoint, "F32")
        whole = parse(self._written(layout))
        half = len(whole.tensors) // 2
        data = []
        for number, tensors in enumerate((whole.tensors[:half], whole.tensors[half:])):
            numbers = (("no", 2, number), ("count", 2, 2), ("tensors.count", 5, len(whole.tensors)))
            keys = [
                Key(f"split.{name}".encode(), kind, value.to_bytes(2 if kind == 2 else 4, "little"))
                for name, kind, value in numbers
            ]
            first, end = tensors[0].offset, (whole.tensors[half].offset, None)[number]
            own = [replace(tensor, offset=tensor.offset - first) for tensor in tensors]
            part = Gguf([*whole.keys, *keys] if number == 0 else keys, own, whole.data[first:end])
            data.append(part.packed())
        return [pack(data)]

    def any_file(self) -> list[bytes]:
        """One file of each kind that is told by its content."""
        (layout,), _ = gguf_writer.layouts(of_model(self.model, self.tokenizer), "F32")
        files = [self._written(layout), self.weights, torch_saved(self.names)]
        return [pack([data]) for data in files] + self.npz()

    # --- training states ---

    def training_state(self) -> list[bytes]:
        model, optimizers = small_training()
        model(torch.ones(1, 3)).sum().backward()
        for optimizer in optimizers:
            optimizer.step()
        states = SafetensorsStates(self.work / "states", 1)
        states.save(3, model, optimizers, {"tokens": 5})
        path = states.path(3)
        return [pack([(path / n).read_bytes() for n in ("state.safetensors", "state.json")])]

    # --- tokenizers ---

    def tokenizers(self) -> list[bytes]:
        # A second one: more pieces, and a long one among them.
        piece = packed([(1, 2, "\u2581the\u2581sea".encode()), (2, 5, b"\0\0\0\xc2")])
        symbol = packed([(1, 2, b"<sea>"), (3, 0, varint(4))])
        more = self.tokenizer_model + packed([(1, 2, piece), (1, 2, symbol)])
        return [pack([self.tokenizer_model]), pack([more])]

    def tokenizer_jsons(self) -> list[bytes]:
        """As we save them; as transformers 4 does, with added tokens; with a renamed symbol."""
        folder = self.work / "tokenizer_json"
        self.tokenizer.save(folder)
        config = {"eos_token": "<|im_end|>", "chat_template": "{{ messages[0].content }}"}
        stops = json.dumps({"eos_token_id": [self.tokenizer.vocab_size + 1, 1]}).encode()
        plain = json.loads((folder / "tokenizer.json").read_text())
        tuned = json.loads((folder / "tokenizer.json").read_text())
        tuned["model"]["merges"] = [" ".join(pair) for pair in tuned["model"]["merges"]]
        flags = {"single_word": True, "lstrip": True, "rstrip": True, "normalized": True}
        for n, token in enumerate(("<|im_start|>", "<|im_end|>", "<tool>", "captain")):
            entry = {**flags, "special": n < 2} if n > 2 else {"special": n < 2}
            entry |= {"id": self.tokenizer.vocab_size + n, "content": token}
            tuned["added_tokens"].append(dict.fromkeys(flags, False) | entry)
        renamed = json.loads(json.dumps(plain).replace("<unused0>", "<think>"))
        return [
            pack([json.dumps(plain).encode(), b"{}", b"{}"]),
            pack([json.dumps(tuned).encode(), json.dumps(config).encode(), stops]),
            pack([json.dumps(renamed).encode(), b"{}", b'{"eos_token_id": 7}']),
        ]


def small_training() -> tuple[nn.Module, list[torch.optim.Optimizer]]:
    """A model and an optimiser of each kind, as a training has them."""
    model = nn.Linear(3, 2)
    return model, [
        Muon([model.weight], lr=0.1, momentum=0.9, weight_decay=0.1),
        torch.optim.AdamW([model.bias], lr=0.1, fused=True),
    ]


def _adapter(weights: Weights, **settings: object) -> bytes:
    """An adapter's config and weights."""
    return pack([json.dumps(json.loads(_ADAPTER) | settings).encode(), save(weights)])


def torch_saved(value: object) -> bytes:
    out = io.BytesIO()
    torch.save(value, out)
    return out.getvalue()


def _int8(weights: Weights) -> Weights:
    """gemma_pytorch's int8 form: matrices with a scaler for each row."""
    tensors: Weights = {}
    for name, tensor in weights.items():
        if tensor.ndim == 1:
            tensors[name] = tensor
            continue
        scaler = tensor.abs().amax(1) / 127
        tensors[name] = (tensor / scaler[:, None]).round().to(torch.int8)
        tensors[f"{name}_scaler"] = scaler
    return tensors


def _npz(arrays: dict[str, np.ndarray], packed: bool = False) -> bytes:
    out = io.BytesIO()
    (np.savez_compressed if packed else np.savez)(out, **arrays)  # type: ignore[arg-type]
    return out.getvalue()


def _requantized(file: Gguf, turn: int) -> bytes:
    """The same tensors in every kind of block, filled with numbers whose scales are finite."""
    by_block: dict[int, list[int]] = {}
    for code, encoding in ENCODINGS.items():
        by_block.setdefault(encoding.block, []).append(code)
    rng = np.random.default_rng(turn)
    data = b""
    for i, tensor in enumerate(file.tensors):
        if tensor.kind != 0:  # norms stay F32
            width = tensor.dims[0]
            block = next(b for b in (256, 32, 1) if width % b == 0)
            tensor.kind = by_block[block][(i + turn * 3) % len(by_block[block])]
        encoding = ENCODINGS[tensor.kind]
        size = int(np.prod(tensor.dims)) // encoding.block * encoding.nbytes
        tensor.offset = len(data)
        # No byte above 0x6f: whatever is read as a float16 or float32 is finite.
        filler = rng.integers(0, 0x60, size, dtype=np.uint8)
        if tensor.kind in {0, 30}:
            filler %= 0x3F
        data += filler.tobytes() + bytes(-size % 32)
    file.data = data
    return file.packed()
