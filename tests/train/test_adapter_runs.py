"""Runs that train an adapter: what is trained, saved and resumed, and the model it makes."""

import copy
import dataclasses
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from gemmule import files
from gemmule.checkpoints.load import load_model, open_checkpoint
from gemmule.data.dataset import Dataset
from gemmule.errors import ConfigError, Interrupted
from gemmule.infer.language_model import LanguageModel
from gemmule.model.gemma import Gemma
from gemmule.model.tokenizer import Tokenizer
from gemmule.train.adapters.attach import Adapter, flops_saved_per_token, merge
from gemmule.train.adapters.layers import AdaptedLinear
from gemmule.train.adapters.settings import TARGETS, AdapterSettings
from gemmule.train.config import RunConfig, load_run_config
from gemmule.train.evaluate import evaluate
from gemmule.train.objectives.next_token import NextToken
from gemmule.train.optimizers import build_optimizers
from gemmule.train.recipes import build_recipe
from gemmule.train.run import run_training
from models import GROUPED, fan_in, random_model, tiny_config

Settings = Callable[..., dict[str, Any]]
pytestmark = pytest.mark.usefixtures("no_meter")

TURNS = (106, 107)
ADAMW = {"name": "adamw", "learning_rate": 0.02}
CONFIG = tiny_config(GROUPED, vocab_size=512)
TOKENS = torch.randint(0, 512, (2, 20), generator=torch.Generator().manual_seed(1))
TOKENS[0, 5:7] = torch.tensor(TURNS)


def adapted(model: Gemma, *, seed: int = 0, **settings: Any) -> Gemma:
    """The model with an adapter whose trained weights are random; by default nothing is zero."""
    adapter = Adapter(AdapterSettings(**{"rank": 4, **settings}), "base", TURNS)
    adapter.attach(model, seed)
    return model


def disturb(model: Gemma, seed: int = 1) -> Gemma:
    """Moves all trained weights away from their first values."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(torch.randn(p.shape, generator=generator) * 0.1)
    return model


def base() -> Gemma:
    return random_model(CONFIG, std={"norm": 0.2, "embed": 0.5, "": fan_in})


def merged(model: Gemma) -> Gemma:
    """A plain model with the merged weights."""
    plain = copy.deepcopy(model)
    merge(plain)
    assert plain.state_dict().keys() == Gemma(model.config).state_dict().keys()
    return plain.requires_grad_(True)


# --- the modules --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_an_untrained_adapter_changes_no_bit(kind: str) -> None:
    with torch.no_grad():
        expected, logits = base()(TOKENS), adapted(base(), kind=kind)(TOKENS)
    assert torch.equal(logits, expected)


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_merged_logits_are_the_adapters(kind: str) -> None:
    model = disturb(adapted(base(), kind=kind))
    with torch.no_grad():
        logits, before = model(TOKENS), base()(TOKENS)
        assert (logits - before).abs().max() > 0.5
        assert (merged(model)(TOKENS) - logits).abs().max() < 2e-5


def test_only_the_adapter_is_trained() -> None:
    model = adapted(base(), targets=["q_proj", "down_proj"], kind="dora")
    trained = {n.rpartition(".")[2] for n, p in model.named_parameters() if p.requires_grad}
    assert trained == {"lora_A", "lora_B", "magnitude", "rows"}
    groups = build_optimizers(model, RunConfig.parse(SETTINGS).optimizer)[0].param_groups
    optimized = {p for group in groups for p in group["params"]}
    assert optimized == {p for p in model.parameters() if p.requires_grad}
    # 2 of 7 matrices in 4 layers; magnitudes and rows have the embedding's rate and no decay.
    assert [len(group["params"]) for group in groups] == [9, 16]
    assert groups[0]["weight_decay"] == 0


SETTINGS = {"steps": 1, "data": {"path": "x"}, "optimizer": ADAMW}


def close(values: torch.Tensor | None, expected: torch.Tensor) -> None:
    assert values is not None
    assert (values - expected).abs().max() < 2e-4 * expected.abs().max()


def test_gradients_are_those_of_the_merged_weights() -> None:
    """Chain rule: dL/dB = s dL/dW A^T and dL/dA = s B^T dL/dW, and rows get the head's part too."""
    model = disturb(adapted(base()))
    plain = merged(model)
    for net in (model, plain):
        x = net.hidden_states(TOKENS[:, :-1])
        net.head.cross_entropy(x.flatten(0, 1), TOKENS[:, 1:].flatten()).backward()
    for name, module in model.named_modules():
        if isinstance(module, AdaptedLinear):
            whole = plain.get_parameter(f"{name}.weight").grad
            assert whole is not None
            grad_b, grad_a = module.lora_B.grad, module.lora_A.grad
            close(grad_b, module.scale * whole @ module.lora_A.T)
            close(grad_a, module.scale * module.lora_B.T @ whole)
    embedding = plain.embed_tokens.weight.grad
    assert embedding is not None
    close(model.get_parameter("embed_tokens.rows").grad, embedding[[*TURNS]])


def test_a_run_in_half_precision_keeps_what_loses_nothing() -> None:
    model = base()
    exact = model.layers[0].get_submodule("mlp").get_submodule("up_proj")
    exact.weight.data = exact.weight.data.bfloat16().float()
    Adapter(AdapterSettings(rank=4), "base", TURNS).attach(model, 0, half=True)
    kept = [n for n, p in model.named_parameters() if p.dtype == torch.bfloat16]
    assert kept == ["layers.0.mlp.up_proj.frozen"]
    assert model(TOKENS).dtype == torch.float32


def test_a_language_model_notices_a_step_of_the_adapter(pieces: Tokenizer) -> None:
    model = adapted(base()).eval()
    lm = LanguageModel(model, pieces)
    before = lm.score("the sea captain said")
    disturb(model)
    after = lm.score("the sea captain said")
    assert max(abs(a - b) for a, b in zip(before, after, strict=True)) > 0.01
    expected = LanguageModel(merged(model).eval(), pieces).score("the sea captain said")
    assert after == pytest.approx(expected, abs=1e-4)


def test_frozen_matrices_cost_no_gradient() -> None:
    plain, model = base(), adapted(base())
    assert flops_saved_per_token(plain) == 0
    low_rank = sum(p.numel() for n, p in model.named_parameters() if "lora" in n)
    matrices = sum(p.numel() for n, p in plain.layers.named_parameters() if "proj" in n)
    assert flops_saved_per_token(model) == 2 * matrices - 6 * low_rank  # the rows keep the head's


# --- runs ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def start(tiny: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short pretraining run to start from."""
    out = tmp_path_factory.mktemp("adapters") / "start"
    run_training(RunConfig.parse(tiny(steps=3)), out)
    return out


@pytest.fixture(scope="module", params=["lora", "dora"])
def unbroken(request: Any, tiny: Settings, start: Path) -> Path:
    out = start.parent / request.param
    run_training(config(tiny, start, kind=request.param), out)
    return out


def config(tiny: Settings, start: Path, **adapter: Any) -> RunConfig:
    settings = {"rank": 4, **adapter}
    return RunConfig.parse(tiny(model={"init": str(start)}, optimizer=ADAMW, adapter=settings))


def test_a_run_saves_the_adapter_and_opens_as_the_merged_model(unbroken: Path, start: Path) -> None:
    names = {p.name for p in (unbroken / "model").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= names
    assert "model.safetensors" not in names
    with open_checkpoint(unbroken) as checkpoint:
        assert (checkpoint.format, checkpoint.notes) == ("adapter", ())
        about = checkpoint.adapter
    assert about is not None
    assert about["merged_into"] == str(start / "model")
    manifest = files.read_json(unbroken / "manifest.json")
    assert manifest["adapter"]["trained_parameters"] == about["parameters"]
    assert manifest["adapter"]["token_ids"] == [*TURNS]
    before, after = load_model(start)[0], load_model(unbroken)[0]
    changed = {
        name.rpartition(".")[0]
        for name, weight in after.state_dict().items()
        if not torch.equal(weight, before.state_dict()[name])
    }
    adapted_modules = {name for name, _ in before.named_modules() if name.endswith(TARGETS)}
    # This text has no turns; the head still learns that they are not next.
    assert changed == {*adapted_modules, "embed_tokens"}


def test_the_saved_model_has_the_loss_that_the_run_measured(unbroken: Path) -> None:
    """Merged on disk, and by its own modules when it was evaluated: the same model."""
    settings, result = (
        load_run_config(unbroken / "config.toml"),
        files.read_json(unbroken / "result.json"),
    )
    dataset = Dataset.open(settings.data.path)
    model, tokenizer = load_model(unbroken)
    split = dataset.split("heldout")
    again = evaluate(model, split, tokenizer, seq_len=24, batch_size=2, max_tokens=480)
    assert again["nats_per_token"] == pytest.approx(result["nats_per_token"], abs=1e-5)


def test_a_state_holds_the_adapter_alone(unbroken: Path) -> None:
    tensors = load_file(unbroken / "checkpoints/step-12/state.safetensors")
    kinds = {name.rpartition(".")[2] for name in tensors if name.startswith("model.")}
    assert {"lora_A", "lora_B", "rows"} <= kinds <= {"lora_A", "lora_B", "rows", "magnitude"}
    weights = {name.removeprefix("model.") for name in tensors if name.startswith("model.")}
    moments = {n.split(".", 1)[1].rpartition(".")[0] for n in tensors if n.startswith("opt")}
    assert moments == weights


def test_it_resumes_bit_for_bit(
    tiny: Settings, start: Path, unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, calls = NextToken.loss, []

    def loss(self: Any, *args: Any) -> Any:
        calls.append(1)
        if len(calls) == 10:  # the second micro-batch of step 5
            signal.raise_signal(signal.SIGTERM)
        return plain(self, *args)

    out = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(Interrupted, match="after step 5 of 12"):
        patch.setattr(NextToken, "loss", loss)
        run_training(config(tiny, start, kind=unbroken.name), out)
    run_training(load_run_config(out / "config.toml"), out, resume=True)
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (out / "model" / name).read_bytes() == (unbroken / "model" / name).read_bytes()


def test_a_recipe_that_saves_by_itself_gets_the_merged_model(
    tiny: Settings, start: Path, unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = []

    def with_save(*args: Any) -> Any:
        recipe = build_recipe(*args)
        return dataclasses.replace(recipe, save=lambda model, *_: saved.append(model))

    monkeypatch.setattr("gemmule.train.run.build_recipe", with_save)
    run_training(config(tiny, start, kind=unbroken.name), tmp_path / "run")
    weights, expected = saved[0].state_dict(), load_model(unbroken)[0].state_dict()
    assert weights.keys() == expected.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(weight, expected[name], rtol=0, atol=1e-6)


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"adapter": {"targets": ["q_proj", "lm_head"]}}, "lm_head cannot be adapted: Gemma 2's"),
        ({"adapter": {"targets": ["q_proj", "q_proj"]}}, "targets names something twice"),
        ({"adapter": {"targets": []}}, "at least 1 item"),
        ({"adapter": {"rank": 0}}, "adapter.rank"),
        ({"adapter": {"tokens": ["<turn>"]}}, "'<turn>', which is .* tokens"),
        ({"adapter": {}, "optimizer": {"name": "muon"}}, "set optimizer.name = 'adamw'"),
        ({"adapter": {}, "model": {}}, "no model to adapt: set model.init"),
    ],
)
def test_settings_that_cannot_be_used(
    tiny: Settings, start: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    values = tiny(**{"model": {"init": str(start)}, "optimizer": ADAMW, **changes})
    with pytest.raises(ConfigError, match=message):
        run_training(RunConfig.parse(values), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_adapter_of_an_adapter_is_refused(
    tiny: Settings, unbroken: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"merge it first .*gemmule convert .* --to hf"):
        run_training(config(tiny, unbroken), tmp_path / "run")


def test_full_training_starts_from_an_adapter(
    tiny: Settings, unbroken: Path, tmp_path: Path
) -> None:
    run_training(RunConfig.parse(tiny(model={"init": str(unbroken)}, steps=1)), tmp_path / "run")
    assert (tmp_path / "run/model/model.safetensors").is_file()
