"""Memorisation followed during training: logged, and without a trace in the weights."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gemmule.errors import ConfigError, Interrupted
from gemmule.evals.memorization import callback
from gemmule.evals.memorization.callback import memorization_probe
from gemmule.runs.metrics import read_metrics
from gemmule.train import loop
from gemmule.train.config import RunConfig
from gemmule.train.run import run_training

Configs = Callable[..., dict[str, Any]]
pytestmark = pytest.mark.usefixtures("no_meter")
FOLLOWED = {"every": 5, "probes": 12, "prompt_tokens": 10, "continuation_tokens": 10}


def weights(run: Path) -> bytes:
    return (run / "model/model.safetensors").read_bytes()


def lines(run: Path) -> list[dict[str, Any]]:
    return [m for m in read_metrics(run) if m.get("probe") == "memorization"]


def train(settings: dict[str, Any], out: Path, **more: Any) -> None:
    run_training(RunConfig.parse(settings), out, make_probes=[memorization_probe], **more)


@pytest.fixture(scope="module")
def followed(tiny: Configs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("followed") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gemmule.runs.carbon.start_tracker", lambda *_: 1 / 0)
        train(tiny(evaluation={"memorization": FOLLOWED}), out)
    return out


def test_figures_are_logged(followed: Path) -> None:
    metrics = lines(followed)
    assert [m["step"] for m in metrics] == [5, 10, 12]
    read = [m["probes_read"] for m in metrics]
    assert read == sorted(read)
    assert read[-1] == 12  # drawn from what the run reads until its end
    for line in metrics:
        assert 0 <= line["exact"] <= line["approximate"] <= 1
        assert 0 <= line["control_exact"] <= line["control_approximate"] <= 1
        assert set(line) >= {"tokens", "seconds"}


@pytest.mark.skipif(not importlib.util.find_spec("tensorboard"), reason="reads with tensorboard")
def test_figures_are_in_tensorboard(followed: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(followed / "tensorboard"))
    events.Reload()
    steps = [e.step for e in events.Scalars("memorization/control_approximate")]
    assert steps == [5, 10, 12]


def test_training_ends_in_the_same_weights(tiny: Configs, followed: Path, tmp_path: Path) -> None:
    train(tiny(), tmp_path / "run")
    assert weights(tmp_path / "run") == weights(followed)
    assert lines(tmp_path / "run") == []
    ours, theirs = (
        [(m["step"], m["loss"]) for m in read_metrics(run) if "loss" in m]
        for run in (tmp_path / "run", followed)
    )
    assert ours == theirs


def test_a_resumed_run_logs_and_ends_the_same(
    tiny: Configs, followed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import signal

    plain = loop.clip_gradients
    calls = 0

    def clip(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 7:
            signal.raise_signal(signal.SIGINT)
        return plain(*args)

    monkeypatch.setattr(loop, "clip_gradients", clip)
    with pytest.raises(Interrupted):
        train(tiny(evaluation={"memorization": FOLLOWED}), tmp_path / "run")
    train(tiny(), tmp_path / "run", resume=True)
    assert weights(tmp_path / "run") == weights(followed)
    figures = ("step", "probes_read", "exact", "approximate", "control_exact")
    ours, theirs = (
        [[m[f] for f in figures] for m in lines(r)] for r in (tmp_path / "run", followed)
    )
    assert ours == theirs


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the compiler's own doing
def test_compiled_training_ends_in_the_same_weights(
    tiny: Configs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Measuring runs the compiled layers' plain form, and leaves theirs as it was."""
    import torch

    monkeypatch.setattr(
        "gemmule.runtime.torch_compile.compile_blocks",
        lambda model: [layer.compile(backend="eager", dynamic=False) for layer in model.layers],
    )
    torch._dynamo.reset()
    for name, more in (("plain", {}), ("followed", {"evaluation": {"memorization": FOLLOWED}})):
        train(tiny(runtime={"compile": True}, steps=6, **more), tmp_path / name)
        torch._dynamo.reset()
    assert weights(tmp_path / "plain") == weights(tmp_path / "followed")


def test_what_does_not_fit_is_refused_before_the_run_begins(tiny: Configs, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"50 tokens of prompt .* context of 64"):
        train(tiny(evaluation={"memorization": {"every": 5}}), tmp_path / "run")
    long = {**FOLLOWED, "prompt_tokens": 40, "continuation_tokens": 20}
    with pytest.raises(ConfigError, match=r"no passage of 60 tokens of one document"):
        train(tiny(evaluation={"memorization": long}, data={"corpus_tokens": 24}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_setting_nobody_serves_is_refused(tiny: Configs, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"make_probes=\[memorization_probe\]"):
        run_training(RunConfig.parse(tiny(evaluation={"memorization": FOLLOWED})), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert callback.NAME == "memorization"


def test_settings_by_override(prepared: Path) -> None:
    config = RunConfig.load(
        None, [f"data.path={prepared}", "steps=1", "evaluation.memorization.every=7"]
    )
    memorization = config.evaluation.memorization
    assert memorization is not None
    assert (memorization.every, memorization.probes) == (7, 200)
    with pytest.raises(ConfigError, match=r"memorization\.evry"):
        RunConfig.load(None, [f"data.path={prepared}", "steps=1", "evaluation.memorization.evry=7"])
