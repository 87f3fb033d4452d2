"""What a run saves is an adapter to peft: the same logits, gradients and merged weights."""

from pathlib import Path
from typing import Any

import pytest
import torch

from gemmule.checkpoints.hf.writer import save_model
from gemmule.checkpoints.load import load_model
from gemmule.model.gemma import Gemma
from gemmule.model.tokenizer import Tokenizer
from gemmule.train.adapters.attach import Adapter
from gemmule.train.adapters.settings import AdapterSettings
from models import GROUPED, fan_in, random_model, tiny_config

peft = pytest.importorskip("peft", reason="peft is in the extra dev")
peft_adapters = pytest.importorskip("peft_adapters")

TURNS = (106, 107)
TOKENS = torch.randint(0, 512, (2, 20), generator=torch.Generator().manual_seed(1))
TOKENS[0, 5:7] = torch.tensor(TURNS)
CASES: dict[str, dict[str, Any]] = {
    "LoRA": {},
    "DoRA": {"kind": "dora"},
    "two matrices": {"targets": ["k_proj", "up_proj"], "alpha": 3.0},
    "no tokens": {"tokens": []},
}


@pytest.fixture(scope="module")
def folder(pieces: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "model"
    model = random_model(
        tiny_config(GROUPED, vocab_size=512), std={"norm": 0.2, "embed": 0.5, "": fan_in}
    )
    save_model(model, pieces, folder)
    return folder


@pytest.fixture(params=CASES)
def trained(
    request: Any, folder: Path, pieces: Tokenizer, tmp_path: Path
) -> tuple[Gemma, Any, Path]:
    """The adapted model with random weights, the same in peft, and the adapter's folder."""
    settings = AdapterSettings(**{"rank": 4, **CASES[request.param]})
    adapter = Adapter(settings, str(folder), TURNS if settings.tokens else ())
    model = load_model(folder)[0]
    adapter.attach(model, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(torch.randn(p.shape, generator=generator) * 0.1)
    adapter.save(model, pieces, tmp_path / "adapter")
    with peft_adapters.quiet():
        theirs = peft.PeftModel.from_pretrained(
            peft_adapters.base_model(folder), tmp_path / "adapter", is_trainable=True
        )
    return model, theirs, tmp_path / "adapter"


def difference(ours: torch.Tensor | None, theirs: torch.Tensor | None) -> float:
    """Largest difference relative to the largest entry."""
    assert ours is not None
    assert theirs is not None
    return float(((ours - theirs).abs().max() / theirs.abs().max()).detach())


def test_peft_computes_the_same_logits_and_gradients(trained: tuple[Gemma, Any, Path]) -> None:
    model, theirs, _ = trained
    inputs, labels = TOKENS[:, :-1], TOKENS[:, 1:].flatten()
    x_BTD = model.hidden_states(inputs)
    logits = theirs(inputs).logits
    assert difference(model.logits(x_BTD), logits) < 1e-5
    model.head.cross_entropy(x_BTD.flatten(0, 1), labels).backward()
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels, reduction="sum").backward()
    gradients = {
        name.removeprefix("base_model.model.model."): p.grad
        for name, p in theirs.named_parameters()
        if p.requires_grad
    }
    assert len(gradients) == sum(p.requires_grad for p in model.parameters())
    for name, grad in gradients.items():
        ours = (
            name.replace(".default.weight", "")
            .replace(".lora_magnitude_vector", ".magnitude")
            .replace(".token_adapter.trainable_tokens_delta.default", ".rows")
        )
        assert difference(model.get_parameter(ours).grad, grad) < 1e-4, name


def test_peft_merges_to_the_weights_that_open_here(trained: tuple[Gemma, Any, Path]) -> None:
    _, theirs, adapter = trained
    with peft_adapters.quiet():
        merged = theirs.merge_and_unload().state_dict()
    opened = load_model(adapter)[0].state_dict()
    for name, weight in opened.items():
        assert (weight - merged[f"model.{name}"]).abs().max() < 1e-6, name


def test_peft_writes_back_what_it_read(trained: tuple[Gemma, Any, Path], tmp_path: Path) -> None:
    """Every tensor was recognized, and none is missing."""
    from safetensors.torch import load_file

    _, theirs, adapter = trained
    with peft_adapters.quiet():
        theirs.save_pretrained(tmp_path / "again", save_embedding_layers=False)
    again = load_file(tmp_path / "again/adapter_model.safetensors")
    saved = load_file(adapter / "adapter_model.safetensors")
    assert again.keys() == saved.keys()
    assert all(torch.equal(again[name], saved[name]) for name in saved)
