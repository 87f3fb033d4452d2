"""Activation checkpointing: the same gradients from less memory, in every combination."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from gemmule.data.batch import Batch
from gemmule.model.gemma import Gemma
from gemmule.runtime import torch_compile
from gemmule.train.activation_checkpointing import Mode, checkpoint_blocks
from gemmule.train.objectives.next_token import NextToken
from models import GROUPED, random_model, tiny_config

ROWS = torch.randint(0, 64, (2, 33), generator=torch.Generator().manual_seed(0))
BATCH = Batch(ROWS[:, :-1].contiguous(), ROWS[:, 1:].contiguous(), torch.ones(2, 32).long())


def model(mode: Mode) -> Gemma:
    built = random_model(tiny_config(GROUPED, vocab_size=64))
    checkpoint_blocks(built.layers, mode)
    return built


def gradients(built: Gemma) -> dict[str, Tensor]:
    loss, _ = NextToken().loss(built, BATCH)
    loss.backward()  # type: ignore[no-untyped-call]
    return {name: p.grad for name, p in built.named_parameters() if p.grad is not None}


def kept(built: Gemma) -> int:
    """Bytes that the forward pass keeps for the backward pass."""
    held: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        held[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        built.hidden_states(BATCH.tokens_BT)
    return sum(held.values())


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("mode", ["selective", "full"])
def test_the_gradients_are_the_same(mode: Mode, half: bool) -> None:
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        plain, ours = gradients(model("none")), gradients(model(mode))
    assert list(plain) == list(ours)  # names of parameters stay
    assert len(plain) == len(list(model("none").parameters()))
    assert all(torch.equal(plain[name], ours[name]) for name in plain)


def test_less_is_kept() -> None:
    assert kept(model("full")) < kept(model("none")) / 4


def test_a_copy_uses_its_own_weights() -> None:
    first = model("full")
    second = copy.deepcopy(first)
    with torch.no_grad():
        for p in second.layers.parameters():
            p.zero_()
        assert not torch.equal(first(ROWS), second(ROWS))
    checkpoint_blocks(second.layers, "none")
    assert {type(block).__name__ for block in second.layers} == {"Block"}


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # of the compiler, which torch hides
@pytest.mark.filterwarnings("ignore:.*should not be instantiated")
@pytest.mark.parametrize("mode", ["selective", "full"])
def test_compiled_blocks(mode: Mode) -> None:
    plain, ours = gradients(model("none")), model(mode)
    torch_compile.compile_blocks(ours.layers)
    compiled = gradients(ours)
    for name, gradient in plain.items():
        assert torch.allclose(gradient, compiled[name], rtol=1e-3, atol=1e-5), name


def test_a_run_ends_in_the_same_weights(
    tiny: Callable[..., dict[str, Any]], tmp_path: Any, no_meter: None
) -> None:
    from gemmule.train.config import RunConfig
    from gemmule.train.run import run_training

    for mode in ("none", "full"):
        config = RunConfig.parse(tiny(steps=3, runtime={"activation_checkpointing": mode}))
        run_training(config, tmp_path / mode)
    none, full = (
        (tmp_path / mode / "model" / "model.safetensors").read_bytes() for mode in ("none", "full")
    )
    assert none == full
