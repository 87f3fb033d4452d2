"""What llama.cpp makes of our GGUF files: the same logits and the same ids.

llama.cpp looks the MLP's GELU up in a table of float16 numbers. With that rounding done here too,
fp32 logits of four layers agree to 1e-3; what is left for other kinds of files comes from rounding
activations to what the weights are stored in, as llama.cpp's matrix products do.
"""

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize
from torch import Tensor
from torch.nn import functional as F

from gemmule.checkpoints import tensor_layout
from gemmule.checkpoints.checkpoint import of_model
from gemmule.checkpoints.gguf.blocks import quantize
from gemmule.checkpoints.gguf.reader import open_gguf
from gemmule.checkpoints.gguf.writer import layouts
from gemmule.model import gemma
from gemmule.model.gemma import Gemma
from gemmule.model.tokenizer import Tokenizer
from models import DISTINCT, fan_in, random_model, tiny_config

pytestmark = pytest.mark.llama

CONFIG = tiny_config(
    DISTINCT, hidden_size=128, intermediate_size=192, num_hidden_layers=4, head_dim=64,
    query_pre_attn_scalar=64, sliding_window=8, max_position_embeddings=256,
    attn_logit_softcapping=4.0,
)  # fmt: skip
IDS = [2, *torch.randint(3, 512, (39,), generator=torch.Generator().manual_seed(1)).tolist()]
UP = "layers.1.mlp.up_proj.weight"
OF_27B = {"num_hidden_layers": 46, "hidden_size": 96, "query_pre_attn_scalar": 24}


@pytest.fixture
def export(tmp_path: Path, pieces: Tokenizer) -> Callable[..., tuple[Gemma, Path]]:
    """export(kind, **changes): a random model and its file."""

    def make(kind: str, **changes: Any) -> tuple[Gemma, Path]:
        config = CONFIG.model_copy(update=changes)
        model = random_model(config, std={"norm": 0.3, "embed": 1.0, "": fan_in})
        files, _ = layouts(of_model(model, pieces), kind)
        tensor_layout.write(files, tmp_path)
        return model, tmp_path / "model.gguf"

    return make


@pytest.fixture
def table_gelu(monkeypatch: pytest.MonkeyPatch) -> None:
    def gelu(x: Tensor) -> Tensor:
        looked_up = F.gelu(x.half().float(), approximate="tanh").half().float()
        return torch.where(x >= 10, x, torch.where(x <= -10, 0.0, looked_up))

    monkeypatch.setattr(gemma, "gelu_tanh", gelu)


def open_llama(path: Path, **more: Any) -> Any:
    llama_cpp = pytest.importorskip("llama_cpp")
    return llama_cpp.Llama(
        str(path), n_ctx=256, n_batch=256, n_ubatch=256, n_threads=1, n_threads_batch=1,
        logits_all=True, flash_attn=False, type_k=llama_cpp.GGML_TYPE_F32,
        type_v=llama_cpp.GGML_TYPE_F32, verbose=False, **more,
    )  # fmt: skip


def their_logits(path: Path) -> Tensor:
    llama = open_llama(path)
    llama.eval(IDS)
    return torch.from_numpy(np.array(llama.scores[: len(IDS)]))


@torch.no_grad()
def our_logits(model: Gemma) -> Tensor:
    return model(torch.tensor([IDS]))[0]


def difference(a: Tensor, b: Tensor) -> float:
    return (a - b).abs().max().item()


@pytest.mark.usefixtures("table_gelu")
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"head_dim": 32, "query_pre_attn_scalar": 32},
        {"query_pre_attn_scalar": 37},
        {"num_key_value_heads": 4},
        OF_27B,
        {**OF_27B, "query_pre_attn_scalar": 64},
    ],
    ids=["plain", "head_dim", "scalar", "kv_heads", "27b", "27b-scalar"],
)
def test_fp32_logits(export: Any, changes: dict[str, Any], capsys: Any) -> None:
    model, path = export("F32", **changes)
    theirs = their_logits(path)
    with open_gguf(path) as checkpoint:
        read = our_logits(checkpoint.load())
    with capsys.disabled():
        print(f"\n  F32 {changes}: {difference(our_logits(model), theirs):.2g}")
    bound = 1e-2 if model.config.num_hidden_layers == 46 else 2e-3  # rounding adds up
    assert theirs.abs().max() > 10
    assert difference(our_logits(model), theirs) < bound
    assert difference(read, theirs) < bound


@pytest.mark.usefixtures("table_gelu")
@pytest.mark.parametrize(
    ("kind", "bound"), [("F16", 0.05), ("BF16", 0.5), ("Q8_0", 0.6), ("Q4_0", 0.6)]
)
def test_logits_of_other_kinds(export: Any, kind: str, bound: float, capsys: Any) -> None:
    model, path = export(kind)
    theirs = their_logits(path)
    with open_gguf(path) as checkpoint:
        read = our_logits(checkpoint.load("float32"))
    with capsys.disabled():
        print(
            f"\n  {kind}: as read {difference(read, theirs):.2g}, before quantizing "
            f"{difference(our_logits(model), theirs):.2g}"
        )
    assert difference(read, theirs) < bound


@pytest.mark.usefixtures("table_gelu")
@pytest.mark.parametrize(
    "wrong",
    [
        {"sliding_window": 9},
        {"sliding_window": 7},
        {"num_hidden_layers": 46, "hidden_size": 96},
        {"query_pre_attn_scalar": 60},
        {"attn_logit_softcapping": 5.0},
        {"final_logit_softcapping": 16.0},
        {"rope_theta": 10000.0},
        {"rms_norm_eps": 1e-3},
    ],
)
def test_each_fact_of_the_config_is_felt(export: Any, wrong: dict[str, Any]) -> None:
    """So that the agreement above means something."""
    right = OF_27B if "num_hidden_layers" in wrong else {}
    model, path = export("F32", **right)
    other = Gemma(CONFIG.model_copy(update=wrong))
    other.load_state_dict(model.state_dict())
    assert difference(our_logits(other), their_logits(path)) > 2e-2


@pytest.mark.usefixtures("table_gelu")
@pytest.mark.parametrize("name", ["Q4_K_M", "Q6_K", "Q8_0", "Q4_0"])
def test_what_llama_cpp_quantizes_is_read(export: Any, name: str, capsys: Any) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    wide = {"hidden_size": 256, "intermediate_size": 512}  # K blocks hold 256 numbers
    model, path = export("F32", **wide)
    theirs = path.with_name("theirs.gguf")
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{name}"), 1
    failed = llama_cpp.llama_model_quantize(str(path).encode(), str(theirs).encode(), params)
    assert not failed
    with open_gguf(theirs) as checkpoint:
        assert checkpoint.config == model.config
        read, forms = our_logits(checkpoint.load()), checkpoint.stored_as
        matrix = torch.cat([c.clone() for c in checkpoint.tensors[UP].chunks()])
    apart = difference(read, their_logits(theirs))
    with capsys.disabled():
        print(f"\n  quantized by llama.cpp as {name} ({', '.join(forms)}): {apart:.2g}")
    assert name.removesuffix("_M") in forms
    assert apart < 1
    if name in {"Q8_0", "Q4_0"}:
        blocks = quantize(model.get_parameter(UP).detach(), name).numpy()
        again = dequantize(blocks, GGMLQuantizationType[name])
        assert torch.equal(torch.from_numpy(again).view(matrix.shape), matrix)


@pytest.fixture
def llama(export: Any) -> Iterator[Any]:
    yield open_llama(export("F32")[1])


TEXTS = [
    "", "the sea captain", "  two  spaces   three ", "a\nb\n\nc\n\n\n" + "\n" * 40, "x" + " " * 70,
    "<b>bold</b> <table><tr><td>1</td></tr></table>", "é ü 漢字 😀 \t\ttabs", "12345 3.14", "a\0b",
    "<start_of_turn>user\nhi<end_of_turn>\n", "<eos><pad><unk><mask>", "[PAD513] [PAD 514]",
    "<unused5>", "\r\n x", "def f(x):\n    return  x\n", "<0x41>", "the<h1> sea</h1>",
]  # fmt: skip
PARTS = [
    "a", "the", "sea", " ", "  ", "\n", "\n\n", "<b>", "</b>", "<", "b", ">", "é", "漢", "1", "23",
    "\t", "captain", "'s", "<start_of_turn>", "<bos>", "</h1>", "\r",
]  # fmt: skip


@pytest.mark.parametrize("special", [False, True])
def test_ids_are_equal(llama: Any, pieces: Tokenizer, special: bool) -> None:
    pick = random.Random(0)
    texts = [*TEXTS, *("".join(pick.choices(PARTS, k=n % 25)) for n in range(1000))]
    for text in texts:
        theirs = llama.tokenize(text.encode(), add_bos=False, special=special)
        assert theirs == pieces.encode(text, control=special), text


def test_known_differences_of_ids(llama: Any, pieces: Tokenizer) -> None:
    """As gguf_tokenizer.py lists them; when llama.cpp mends one, this says so."""
    for text in ("a</s>", "a\u2581b"):
        theirs = llama.tokenize(text.encode(), add_bos=False, special=False)
        assert theirs != pieces.encode(text)
        assert llama.detokenize(theirs).decode() == text.replace("\u2581", " ")
    assert [i for i in range(520) if ends(llama, i)] == [1, 107, pieces.encode("</s>")[0]]


def ends(llama: Any, i: int) -> bool:
    """Whether llama.cpp stops at a token."""
    from llama_cpp import llama_cpp

    return bool(llama_cpp.llama_vocab_is_eog(llama_cpp.llama_model_get_vocab(llama.model), i))


def test_special_tokens_and_template(llama: Any, pieces: Tokenizer) -> None:
    assert (llama.token_bos(), llama.token_eos()) == (2, 1)
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter

    assert ends(llama, pieces.end_of_turn_id)
    assert llama.tokenize(b"the") == pieces.encode("the", bos=True)  # it adds <bos> itself
    messages = [
        {"role": "user", "content": "the sea\n"},
        {"role": "assistant", "content": "captain"},
        {"role": "user", "content": "old  red"},
    ]
    formatter = Jinja2ChatFormatter(llama.metadata["tokenizer.chat_template"], "<eos>", "<bos>")
    prompt = formatter(messages=messages).prompt
    ids = llama.tokenize(prompt.encode(), add_bos=False, special=True)
    assert ids == pieces.render_chat(messages)
