"""Training states: exact, whole or absent, and never more than asked for."""

import errno
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from gemmule.errors import CheckpointError, OutputError
from gemmule.train import state
from gemmule.train.muon import Muon
from gemmule.train.state import SafetensorsStates

Pair = tuple[nn.Module, list[torch.optim.Optimizer]]


def build(seed: int, width: int = 6) -> Pair:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, width), nn.Linear(width, 5))
    matrices = [p for p in model.parameters() if p.ndim == 2]
    rest = [p for p in model.parameters() if p.ndim == 1]
    return model, [
        Muon(matrices, lr=0.1, momentum=0.9, weight_decay=0.1),
        torch.optim.AdamW(rest, lr=0.1, fused=True),
    ]


def work(model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], steps: int) -> None:
    for _ in range(steps):
        (model(torch.ones(3, 5)) - 2.0).square().sum().backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()


def save(folder: Path, pair: Pair, step: int = 3, keep: int = 2, **values: Any) -> Path:
    states = SafetensorsStates(folder, keep)
    states.save(step, *pair, values)
    return states.path(step)


def load(path: Path, pair: Pair) -> dict[str, Any]:
    states = SafetensorsStates(path.parent, 1)
    return states.load(int(path.name.removeprefix("step-")), *pair)


def test_goes_on_bit_for_bit(tmp_path: Path) -> None:
    one = build(0)
    work(*one, 3)
    path = save(tmp_path, one, tokens=12, loader={"epoch": 1})
    other = build(1)
    work(*other, 1)  # states of another shape of history must not shine through
    assert load(path, other) == {"tokens": 12, "loader": {"epoch": 1}}
    work(*one, 3)
    work(*other, 3)
    for a, b in zip(one[0].parameters(), other[0].parameters(), strict=True):
        assert torch.equal(a, b)


def test_further_tensors_are_restored_in_place(tmp_path: Path) -> None:
    pair, states = build(0), SafetensorsStates(tmp_path, 1)
    anchor = {"anchor.weight": torch.arange(6.0), "anchor.bias": torch.ones(2)}
    states.save(3, *pair, {}, anchor)
    own = {"anchor.weight": torch.zeros(6), "anchor.bias": torch.zeros(2)}
    before = dict(own)
    states.load(3, *pair, own)
    assert all(own[name] is before[name] and own[name].equal(anchor[name]) for name in anchor)
    for wrong in ({}, {**own, "more": torch.ones(1)}, {**own, "anchor.bias": torch.ones(3)}):
        with pytest.raises(CheckpointError, match="does not fit this run's model"):
            states.load(3, *pair, wrong)


def test_optimizer_states_are_keyed_by_parameter_name(tmp_path: Path) -> None:
    one = build(0)
    work(*one, 2)
    path = save(tmp_path, one)
    keys = {key for key in load_file(path / "state.safetensors") if key.startswith("optimizer.")}
    biases = {f"optimizer.{i}.bias.{s}" for i in (0, 1) for s in ("step", "exp_avg", "exp_avg_sq")}
    assert keys == biases | {f"optimizer.{i}.weight.momentum_buffer" for i in (0, 1)}
    # Optimizers that divide the parameters up in another way take the same states.
    model, _ = build(1)
    matrices, vectors = ([p for p in model.parameters() if p.ndim == n] for n in (2, 1))
    reordered = (model, [
        torch.optim.AdamW(vectors[::-1], lr=0.1, fused=True),
        Muon(matrices[1:], lr=0.1, momentum=0.9, weight_decay=0.1),
        Muon(matrices[:1], lr=0.1, momentum=0.9, weight_decay=0.1),
    ])  # fmt: skip
    load(path, reordered)
    work(*one, 2)
    work(*reordered, 2)
    for a, b in zip(one[0].parameters(), model.parameters(), strict=True):
        assert torch.equal(a, b)


def first_format(path: Path) -> None:
    """Rewrites a state as version 0.1.0 wrote it: keyed by the numbers of optimizer and parameter.

    Muon came first, with both weights, then AdamW with both biases.
    """
    tensors = load_file(path / "state.safetensors")
    for i in (0, 1):
        for kind, name in ((0, "weight"), (1, "bias")):
            for key in [k for k in tensors if k.startswith(f"optimizer.{i}.{name}.")]:
                slot = key.rpartition(".")[2]
                tensors[f"optimizer.{kind}.{i}.{slot}"] = tensors.pop(key)
    save_file(tensors, path / "state.safetensors")
    state = json.loads((path / "state.json").read_text())
    assert state.pop("format") == 2
    (path / "state.json").write_text(json.dumps(state))


def test_a_state_of_the_first_format_is_read(tmp_path: Path) -> None:
    one, other = build(0), build(1)
    work(*one, 3)
    path = save(tmp_path, one, tokens=12)
    first_format(path)
    assert load(path, other) == {"tokens": 12}
    work(*one, 2)
    work(*other, 2)
    for a, b in zip(one[0].parameters(), other[0].parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_parameter_without_a_gradient_has_no_state(tmp_path: Path) -> None:
    one, other = build(0), build(1)
    for model, _ in (one, other):
        model[1].weight.requires_grad_(False)
    work(*one, 1)
    frozen = other[0][1].weight.clone()
    load(save(tmp_path, one), other)
    muon = other[1][0]
    assert len(muon.state_dict()["state"]) == 1
    assert torch.equal(other[0][1].weight, frozen)  # not the state's business
    assert torch.equal(other[0][0].weight, one[0][0].weight)


def test_a_state_of_a_frozen_parameter_is_refused(tmp_path: Path) -> None:
    one, other = build(0), build(1)
    work(*one, 1)
    other[0][1].weight.requires_grad_(False)
    with pytest.raises(CheckpointError, match=r"1\.weight, which is not trained"):
        load(save(tmp_path, one), other)


def test_before_the_first_step(tmp_path: Path) -> None:
    one, other = build(0), build(1)
    load(save(tmp_path, one, 0), other)
    for pair in (one, other):
        work(*pair, 2)
    for a, b in zip(one[0].parameters(), other[0].parameters(), strict=True):
        assert torch.equal(a, b)


def test_keeps_the_newest(tmp_path: Path) -> None:
    pair = build(0)
    for step in (8, 9, 10, 11):
        save(tmp_path, pair, step)
    assert SafetensorsStates(tmp_path, 2).steps() == [10, 11]
    (tmp_path / ".step-12.99.tmp").mkdir()
    SafetensorsStates(tmp_path, 1).clean()
    assert [p.name for p in tmp_path.iterdir()] == ["step-11"]


def test_other_names_are_no_states(tmp_path: Path) -> None:
    for name in ("step-3.bak", ".step-4.99.tmp", "step-", "astep-5"):
        (tmp_path / name).mkdir()
    assert SafetensorsStates(tmp_path, 1).steps() == []
    assert SafetensorsStates(tmp_path / "missing", 1).steps() == []


@pytest.mark.parametrize("file", ["state.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "noise"])
def test_damage_is_named(file: str, damage: str, tmp_path: Path) -> None:
    pair = build(0)
    work(*pair, 1)
    path = save(tmp_path, pair)
    content = (path / file).read_bytes()
    if damage == "missing":
        (path / file).unlink()
    else:
        kept = {"empty": b"", "cut": content[: len(content) // 2], "noise": b"\xff" * 100}
        (path / file).write_bytes(kept[damage])
    with pytest.raises(CheckpointError, match=r"cannot read the training state .*step-3.*delete"):
        load(path, build(0))


@pytest.mark.parametrize(
    "text",
    [
        "{}", "[]", '"scalars"', '{"scalars": 3}', '{"scalars": {"x": 1}}', "[" * 100_000,
        '{"scalars": {"optimizer.9.0.step": 1}}', '{"scalars": {"optimizer.a.0.step": 1}}',
        '{"step": 4, "format": 2, "scalars": {}}', '{"scalars": {"optimizer.-1.0.step": 1}}',
        '{"step": ' + "9" * 5000 + "}",
    ],
    ids=range(11),
)  # fmt: skip
def test_a_state_of_another_form_is_named(text: str, tmp_path: Path) -> None:
    pair = build(0)
    work(*pair, 1)
    path = save(tmp_path, pair)
    (path / "state.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"cannot read the training state .*step-3.*delete"):
        load(path, build(0))


def test_an_optimizer_state_of_another_shape_is_named(tmp_path: Path) -> None:
    pair = build(0)
    work(*pair, 1)
    path = save(tmp_path, pair)
    tensors = load_file(path / "state.safetensors")
    tensors["optimizer.0.bias.exp_avg"] = torch.zeros(7)
    save_file(tensors, path / "state.safetensors")
    with pytest.raises(CheckpointError, match=r"exp_avg of shape \[7\] for 0.bias of \[6\]"):
        load(path, build(0))


@pytest.mark.parametrize("lost", ["optimizer.0.bias.exp_avg", "optimizer.0.bias.step"])
def test_an_optimizer_state_with_a_hole_is_named(tmp_path: Path, lost: str) -> None:
    pair = build(0)
    work(*pair, 1)
    path = save(tmp_path, pair)
    tensors = load_file(path / "state.safetensors")
    del tensors[lost]
    save_file(tensors, path / "state.safetensors")
    with pytest.raises(CheckpointError, match=r"it holds \[.*\] of 0.bias where \['exp_a"):
        load(path, build(0))


def test_another_model_is_named(tmp_path: Path) -> None:
    pair = build(0)
    work(*pair, 1)
    path = save(tmp_path, pair)
    with pytest.raises(CheckpointError, match="does not fit this run's model"):
        load(path, build(0, width=7))


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EROFS, "the file system is read-only"),
        (errno.EACCES, "permission denied"),
    ],
)
def test_what_the_disk_refuses_leaves_the_last_state(
    number: int, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = build(0)
    save(tmp_path, pair, 1, keep=1)

    def refuse(tensors: object, path: Path) -> None:
        path.write_bytes(b"half")
        message = f"Error while serializing: I/O error: refused (os error {number})"
        raise state.SafetensorError(message)

    monkeypatch.setattr(state, "save_file", refuse)
    with pytest.raises(OutputError, match=reason):
        save(tmp_path, pair, 2, keep=1)
    assert [p.name for p in tmp_path.iterdir()] == ["step-1"]
    load(tmp_path / "step-1", build(1))
