"""Bugs in how a transformers model is set up."""

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers

from gemmule.doctor.examine import run_doctor
from gemmule.errors import CheckpointError, ConfigError, MissingExtraError

Change = Callable[[Any], None]


def failures(folder: str, **options: Any) -> dict[str, str]:
    report = run_doctor(folder, backend="transformers", **options)
    return {row.check: row.meaning for row in report.rows if row.result == "FAIL"}


@pytest.fixture
def change(monkeypatch: pytest.MonkeyPatch) -> Callable[[Change], None]:
    """change(f): f sees each model that transformers loads, before the doctor does."""

    def plant(function: Change) -> None:
        original = transformers.AutoModelForCausalLM.from_pretrained

        def from_pretrained(*arguments: Any, **options: Any) -> Any:
            model = original(*arguments, **options)
            function(model)
            return model

        monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", from_pretrained)

    return plant


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_sdpa_ignores_the_cap(folder: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As older releases passed Gemma 2 to sdpa; this one refuses, so that it is rebuilt here."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

    def without_cap(*arguments: Any, softcap: float | None = None, **more: Any) -> Any:
        return sdpa_attention_forward(*arguments, **more)

    name = "uncapped"
    for registry, function in (
        (transformers.AttentionInterface, without_cap),
        (transformers.AttentionMaskInterface, sdpa_mask),
    ):
        monkeypatch.setitem(registry._global_mapping, name, function)
    failed = failures(folder, attention=name, dtype=dtype)
    assert list(failed) == ["attention soft cap"], failed
    assert "attention cap is missing" in failed["attention soft cap"]
    assert "never sdpa" in failed["attention soft cap"]


def test_refused_attention_is_a_clear_message(folder: str) -> None:
    with pytest.raises(ConfigError, match=r"refuses attn_implementation='sdpa'.*use eager"):
        run_doctor(folder, backend="transformers", attention="sdpa")


def test_erf_gelu_in_the_config(folder: str, change: Callable[[Change], None]) -> None:
    def plant(model: Any) -> None:
        model.config.hidden_activation = "gelu"

    change(plant)
    assert list(failures(folder)) == ["tanh GELU"]


def test_exchanged_layer_types(folder: str, change: Callable[[Change], None]) -> None:
    def plant(model: Any) -> None:
        model.config.layer_types = model.config.layer_types[::-1]

    change(plant)
    assert list(failures(folder)) == ["local and global layers"]


def test_untied_head(folder: str, change: Callable[[Change], None]) -> None:
    def plant(model: Any) -> None:
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight + 0.1)

    change(plant)
    failed = failures(folder)
    assert list(failed) == ["tied head"], failed
    assert "lm_head differs from embed_tokens" in failed["tied head"]


def test_a_wrong_weight_is_found_and_not_explained(
    folder: str, change: Callable[[Change], None]
) -> None:
    def plant(model: Any) -> None:
        with torch.no_grad():
            model.model.layers[2].mlp.up_proj.weight[0] *= 2

    change(plant)
    failed = failures(folder)
    assert list(failed) == ["nothing else differs"], failed
    assert "your weights" in failed["nothing else differs"]


def test_missing_package(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtraError, match=r"gemmule\[teachers\]"):
        run_doctor(folder, backend="transformers")


def test_another_architecture(folder: str, change: Callable[[Change], None]) -> None:
    def plant(model: Any) -> None:
        model.config.model_type = "gemma3"

    change(plant)
    with pytest.raises(CheckpointError, match="a gemma3 model, not a gemma2 one"):
        run_doctor(folder, backend="transformers")
