"""Each known bug is planted in our engine, and the doctor names it and blames nothing else."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from gemmule.doctor.examine import run_doctor
from gemmule.doctor.report import DoctorReport
from gemmule.doctor.text_checks import published_row
from gemmule.infer.core.scheduler import Scheduler
from gemmule.infer.language_model import LanguageModel
from gemmule.infer.runners.protocol import ScheduledChunk
from gemmule.infer.runners.torch_runner import TorchRunner
from gemmule.losses.soft_cap import soft_cap
from gemmule.model import attention as attention_module
from gemmule.model import block_attention, gemma
from gemmule.model.config import GemmaConfig, preset
from gemmule.model.gemma import Attention, Block, Gemma, RMSNorm
from gemmule.model.kv_cache import KVCache, PagedKV
from gemmule.model.tokenizer import Tokenizer

Patch = pytest.MonkeyPatch
PLANTS: dict[str, tuple[Callable[[Patch], None], str, str]] = {}


def plant(check: str, says: str) -> Callable[[Callable[[Patch], None]], Callable[[Patch], None]]:
    """Registers a bug, the check that must fail, and what it must say."""

    def register(function: Callable[[Patch], None]) -> Callable[[Patch], None]:
        PLANTS[function.__name__] = (function, check, says)
        return function

    return register


def attention(patch: Patch, change: Callable[..., Any], paths: tuple[str, ...] = ()) -> None:
    """Wraps attention: change(original, *arguments) is called instead."""
    for name in paths or ("attend", "attend_sequence"):
        owner = attention_module if name == "attend" else block_attention
        original = getattr(owner, name)
        patch.setattr(owner, name, lambda *a, original=original: change(original, *a))


def config_of(patch: Patch, owner: Any, **changes: Any) -> None:
    """Lets a constructor see another config than the model was given."""
    original = owner.__init__

    def init(self: Any, config: GemmaConfig, *rest: Any, **more: Any) -> None:
        new = {k: v(config) if callable(v) else v for k, v in changes.items()}
        original(self, config.model_copy(update=new), *rest, **more)

    patch.setattr(owner, "__init__", init)


def window_of(patch: Patch, wider: int) -> None:
    """Lets attention, cache and scheduler see another window than the model has."""
    for owner in (Attention, PagedKV):
        config_of(patch, owner, sliding_window=lambda c: c.sliding_window + wider)
    original = Scheduler.__init__
    patch.setattr(
        Scheduler,
        "__init__",
        lambda self, pages, window, *rest: original(self, pages, window + wider, *rest),
    )


@plant("attention soft cap", "attention cap is missing")
def no_attention_cap(patch: Patch) -> None:
    attention(patch, lambda original, *a: original(*a[:-1], None))


@plant("attention soft cap", "attention cap comes after the mask")
def cap_after_mask(patch: Patch) -> None:
    def plain(q: Any, k: Any, v: Any, qi: Any, ki: Any, qs: Any, ks: Any, *rest: Any) -> Any:
        window, scale, cap = rest
        N = q.shape[2]
        k, v = (x.repeat_interleave(N // x.shape[2], dim=2) for x in (k, v))
        scores = torch.einsum("btnh,bsnh->bnts", q, k) * scale
        distance = qi[:, None] - ki[None, :]
        allowed = (distance >= 0) & (distance < (window or 10**9))
        if qs is not None:
            allowed = (allowed & (qs[:, :, None] == ks[:, None, :]))[:, None]
        scores = cap * torch.tanh(scores.masked_fill(~allowed, -1e9) / cap)
        # Padding is hidden as it should be, so that only the cap's place is wrong.
        if qs is not None:
            scores = scores.masked_fill((qs[:, :, None] != ks[:, None, :])[:, None], -torch.inf)
        weights = scores.softmax(-1).nan_to_num()
        return torch.einsum("bnts,bsnh->btnh", weights, v)

    def whole(q: Any, k: Any, v: Any, segment: Any, *rest: Any) -> Any:
        index = torch.arange(q.shape[1])
        return plain(q, k, v, index, index, segment, segment, *rest)

    patch.setattr(block_attention, "attend_sequence", whole)


@plant("final soft cap", "final cap is missing")
def no_final_cap(patch: Patch) -> None:
    patch.setattr(Gemma, "logits", lambda self, x: F.linear(x, self.embed_tokens.weight))


@plant("caps not swapped", "two caps are swapped")
def swapped_caps(patch: Patch) -> None:
    config_of(patch, Attention, attn_logit_softcapping=lambda c: c.final_logit_softcapping)

    def logits(self: Gemma, x: torch.Tensor) -> torch.Tensor:
        raw = F.linear(x, self.embed_tokens.weight)
        return soft_cap(raw, self.config.attn_logit_softcapping)

    patch.setattr(Gemma, "logits", logits)


@plant("sliding window", "sliding window is ignored")
def no_window(patch: Patch) -> None:
    patch.setattr(GemmaConfig, "is_local", lambda self, layer: False)


@plant("sliding window", "one key too wide")
def wide_window(patch: Patch) -> None:
    window_of(patch, 1)


@plant("sliding window", "one key too narrow")
def narrow_window(patch: Patch) -> None:
    window_of(patch, -1)


@plant("local and global layers", "local and global layers are exchanged")
def exchanged_layers(patch: Patch) -> None:
    patch.setattr(GemmaConfig, "is_local", lambda self, layer: layer % 2 == 1)


@plant("query scale", "1/sqrt(head_dim)")
def scale_of_head_dim(patch: Patch) -> None:
    patch.setattr(GemmaConfig, "attention_scale", property(lambda self: self.head_dim**-0.5))


@plant("query scale", "1/sqrt(hidden_size / heads)")
def scale_of_width(patch: Patch) -> None:
    scale = property(lambda self: (self.hidden_size / self.num_attention_heads) ** -0.5)
    patch.setattr(GemmaConfig, "attention_scale", scale)


@plant("tanh GELU", "exact (erf)")
def erf_gelu(patch: Patch) -> None:
    patch.setattr(gemma, "gelu_tanh", F.gelu)


@plant("norms (1 + w)", "w instead of 1 + w")
def plain_norms(patch: Patch) -> None:
    def forward(self: RMSNorm, x: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, x.shape[-1:], self.weight, self.eps)

    patch.setattr(RMSNorm, "forward", forward)


@plant("norms (1 + w)", "norms after attention and MLP are missing")
def no_post_norms(patch: Patch) -> None:
    def forward(self: Block, x: torch.Tensor, *rest: Any) -> torch.Tensor:
        h = x + self.self_attn(self.input_layernorm(x), *rest)
        return h + self.mlp(self.pre_feedforward_layernorm(h))

    patch.setattr(Block, "forward", forward)


@plant("rotary pairs", "neighbors")
def neighbouring_pairs(patch: Patch) -> None:
    def rotate(x: torch.Tensor, rope: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        cos, sin = rope
        a, b = x[..., ::2], x[..., 1::2]
        return torch.stack((a * cos - b * sin, b * cos + a * sin), -1).flatten(-2).type_as(x)

    patch.setattr(gemma, "rotate", rotate)


@plant("rotary positions", "rounded to bfloat16")
def bf16_positions(patch: Patch) -> None:
    original = gemma.rope_tables
    patch.setattr(gemma, "rope_tables", lambda p, *a: original(p.to(torch.bfloat16), *a))


@plant("rotary positions", "rounded to float16")
def fp16_positions(patch: Patch) -> None:
    original = gemma.rope_tables
    patch.setattr(gemma, "rope_tables", lambda p, *a: original(p.to(torch.float16), *a))


@plant("query and kv heads", "n % K")
def heads_in_turn(patch: Patch) -> None:
    def change(original: Any, q: torch.Tensor, k: torch.Tensor, *rest: Any) -> torch.Tensor:
        B, T, N, H = q.shape
        K = k.shape[2]
        turned = q.view(B, T, N // K, K, H).transpose(2, 3).reshape(B, T, N, H)
        out = original(turned, k, *rest)
        return out.view(B, T, K, N // K, H).transpose(2, 3).reshape(B, T, N, H)

    attention(patch, change)


@plant("embedding scale", "embeddings are not scaled")
def unscaled_embeddings(patch: Patch) -> None:
    original = Gemma.__init__

    def init(self: Gemma, config: GemmaConfig) -> None:
        original(self, config)
        scale = config.hidden_size**0.5
        self.embed_tokens.register_forward_hook(lambda m, i, out: out / scale)

    patch.setattr(Gemma, "__init__", init)


@plant("tied head", "does not follow the embedding")
def untied_head(patch: Patch) -> None:
    def logits(self: Gemma, x: torch.Tensor) -> torch.Tensor:
        if not hasattr(self, "untied"):
            g = torch.Generator().manual_seed(0)
            self.untied = torch.randn(self.embed_tokens.weight.shape, generator=g)
        return soft_cap(F.linear(x, self.untied), self.config.final_logit_softcapping)

    patch.setattr(Gemma, "logits", logits)


@plant("left padding", "padding changes the logits")
def visible_padding(patch: Patch) -> None:
    attention(patch, lambda f, q, k, v, s, *a: f(q, k, v, None, *a), ("attend_sequence",))


@plant("right padding", "padding changes the logits")
def padding_mask_replaces_the_causal_one(patch: Patch) -> None:
    def change(original: Any, q: Any, k: Any, v: Any, segment: Any, *rest: Any) -> Any:
        if segment is None or segment[:, -1].all():
            return original(q, k, v, segment, *rest)
        index = torch.arange(q.shape[1])
        return attention_module.attend(q, k, v, index + 1, index, segment, segment, *rest)

    attention(patch, change, ("attend_sequence",))


@plant("batch invariance", "depend on the other rows of the batch")
def batch_dependence(patch: Patch) -> None:
    original = Gemma.logits
    patch.setattr(Gemma, "logits", lambda self, x: original(self, x) * (1 + 1e-3 * (len(x) - 1)))


@plant("prefill = decode", "decoding through the cache gives other logits")
def positions_start_over(patch: Patch) -> None:
    original = Gemma.hidden_states

    def hidden_states(self: Gemma, tokens: torch.Tensor, **more: Any) -> torch.Tensor:
        if more.get("cache") is not None:
            more["positions_BT"] = torch.arange(tokens.shape[1])[None]
        return original(self, tokens, **more)

    patch.setattr(Gemma, "hidden_states", hidden_states)


@plant("prefill = decode", "With a cache, the attention cap is missing")
def no_cap_with_a_cache(patch: Patch) -> None:
    attention(patch, lambda original, *a: original(*a[:-1], None), ("attend",))


@plant("cache past the window", "once the window is full")
def page_dropped_too_early(patch: Patch) -> None:
    """The oldest page of the window is not read."""
    original = KVCache._first_page

    def first_page(self: KVCache, start: int) -> int:
        return min(original(self, start) + 1, start // self._kv.page_size)

    patch.setattr(KVCache, "_first_page", first_page)


@plant("cache past the window", "once the window is full")
def positions_counted_from_the_first_page_read(patch: Patch) -> None:
    """Right until pages have left the window."""
    original = KVCache._extend

    def extend(self: KVCache, layer: int, k: torch.Tensor, v: torch.Tensor) -> Any:
        keys, values, index = original(self, layer, k, v)
        return keys, values, index - index[0]

    patch.setattr(KVCache, "_extend", extend)


@plant("batched generation", "not the most likely")
def pages_given_twice(patch: Patch) -> None:
    """Rows of a batch write over one another's keys."""
    original = TorchRunner.run_chunk

    def run(self: TorchRunner, chunk: ScheduledChunk) -> Any:
        pages = [[page % 6 for page in kind] for kind in (chunk.global_pages, chunk.local_pages)]
        return original(
            self, dataclasses.replace(chunk, global_pages=pages[0], local_pages=pages[1])
        )

    patch.setattr(TorchRunner, "run_chunk", run)


@plant("one <bos>", "a text gets 2")
def two_bos(patch: Patch) -> None:
    original = Tokenizer.encode
    patch.setattr(
        Tokenizer, "encode",
        lambda self, text, bos=False, control=False: [2] * bos + original(self, text, bos, control),
    )  # fmt: skip


@plant("one <bos>", "a chat gets 2")
def two_bos_in_a_chat(patch: Patch) -> None:
    original = Tokenizer.render_chat
    patch.setattr(Tokenizer, "render_chat", lambda self, *a: [2, *original(self, *a)])


@plant("one <bos>", "a text gets 0")
def no_bos(patch: Patch) -> None:
    original = Tokenizer.encode
    patch.setattr(
        Tokenizer, "encode",
        lambda self, text, bos=False, control=False: original(self, text, False, control),
    )  # fmt: skip


@plant("tokenizer ids", "2 newlines are [108, 108]")
def newlines_one_by_one(patch: Patch) -> None:
    original = Tokenizer._encode_bytes
    plain = lambda self, data: [  # noqa: E731
        i for line in data.splitlines(keepends=True) for i in original(self, line)
    ]
    patch.setattr(Tokenizer, "_encode_bytes", plain)


@plant("markers in user text", "opens a turn")
def forged_turns(patch: Patch) -> None:
    original = Tokenizer.encode
    patch.setattr(
        Tokenizer, "encode",
        lambda self, text, bos=False, control=False: original(self, text, bos, True),
    )  # fmt: skip


@plant("nothing else differs", "no known bug")
def another_epsilon(patch: Patch) -> None:
    config_of(patch, Block, rms_norm_eps=0.1)


@pytest.fixture(autouse=True)
def reload(lm: LanguageModel, monkeypatch: Patch) -> None:
    """A model made after the bug was planted; its file need not be read again."""

    def load(path: str, dtype: str | None = None) -> LanguageModel:
        model = Gemma(lm.config)
        model.load_state_dict(lm.model.state_dict())
        return LanguageModel(model.to(getattr(torch, dtype or "float32")), lm.tokenizer)

    monkeypatch.setattr("gemmule.doctor.examine.load", load)


def failures(report: DoctorReport) -> dict[str, str]:
    return {row.check: row.meaning for row in report.rows if row.result == "FAIL"}


@pytest.mark.parametrize("name", PLANTS)
def test_planted_bug_is_named(name: str, folder: str, monkeypatch: Patch) -> None:
    bug, check, says = PLANTS[name]
    bug(monkeypatch)
    failed = failures(run_doctor(folder))
    assert list(failed) == [check], failed
    assert says in failed[check]


def test_two_bugs_at_once(folder: str, monkeypatch: Patch) -> None:
    no_attention_cap(monkeypatch)
    unscaled_embeddings(monkeypatch)
    assert set(failures(run_doctor(folder))) == {"attention soft cap", "embedding scale"}


def test_a_bug_in_bfloat16(folder: str, monkeypatch: Patch) -> None:
    """A port that rounds positions only when its activations are bf16."""
    original = gemma.rope_tables
    forward = Gemma.hidden_states

    def hidden_states(self: Gemma, tokens: torch.Tensor, **more: Any) -> torch.Tensor:
        dtype = self.embed_tokens.weight.dtype
        rounded = lambda p, *a: original(p.to(dtype), *a)  # noqa: E731
        monkeypatch.setattr(gemma, "rope_tables", rounded)
        return forward(self, tokens, **more)

    monkeypatch.setattr(Gemma, "hidden_states", hidden_states)
    assert not failures(run_doctor(folder))
    assert list(failures(run_doctor(folder, dtype="bfloat16"))) == ["rotary positions"]


def test_float16_overflows(folder: str) -> None:
    failed = failures(run_doctor(folder, dtype="float16"))
    assert list(failed) == ["finite logits"], failed
    assert "The maximum of float16 is 65504" in failed["finite logits"]


@pytest.mark.parametrize(
    ("name", "scalar", "right"), [("2b", 288, 256), ("9b", 224, 256), ("27b", 128, 144)]
)
def test_a_published_shape_has_its_query_scalar(name: str, scalar: int, right: int) -> None:
    assert published_row(preset(name)).result == "pass"
    row = published_row(preset(name, query_pre_attn_scalar=scalar))
    assert row.result == "FAIL"
    assert f"query_pre_attn_scalar is {scalar}, not {right}" in row.meaning
    assert published_row(preset(name, attn_logit_softcapping=30)).result == "FAIL"
