"""Whole runs, in this process."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gemmule import files
from gemmule.data.dataset import Dataset
from gemmule.data.packed_text import PackedText
from gemmule.data.prepare import prepare
from gemmule.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    Interrupted,
    TokenizerError,
    TrainingError,
)
from gemmule.model.tokenizer import Tokenizer
from gemmule.runs.carbon import Energy
from gemmule.runs.metrics import read_metrics
from gemmule.train import loop, run
from gemmule.train.config import RunConfig
from gemmule.train.run import run_training
from gemmule.train.state import SafetensorsStates

Settings = Callable[..., dict[str, Any]]
pytestmark = pytest.mark.usefixtures("no_meter")


@pytest.fixture(scope="module")
def teacher(tiny: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "teacher"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gemmule.runs.carbon.start_tracker", lambda *_: 1 / 0)
        run_training(RunConfig.parse(tiny(steps=8, seed=5)), out)
    return out


def weights(run_folder: Path) -> bytes:
    return (run_folder / "model" / "model.safetensors").read_bytes()


def test_writes_every_file(teacher: Path, pieces: Tokenizer) -> None:
    expected = {
        "config.toml", "manifest.json", "metrics.jsonl", "carbon.json", "result.json",
        "checkpoints", "model", "tensorboard", "ledger.jsonl",
    }  # fmt: skip
    assert {p.name for p in teacher.iterdir()} == expected
    result = files.read_json(teacher / "result.json")
    assert set(result) == {
        "split", "nats_per_token", "perplexity", "bits_per_byte", "heldout_tokens", "parameters",
        "train_tokens", "train_flops", "seconds", "energy_wh", "gco2e", "seed",
    }  # fmt: skip
    assert result["train_tokens"] == 8 * 4 * 24
    assert result["energy_wh"] is None
    manifest = files.read_json(teacher / "manifest.json")
    assert manifest["kind"] == "train"
    assert manifest["parent"] is None
    assert manifest["tokenizer"] == pieces.fingerprint
    assert manifest["parameters"] == result["parameters"]
    assert Tokenizer.load(teacher / "model").fingerprint == pieces.fingerprint
    # What was resolved is what is saved, so that a resumed run repeats it anywhere.
    saved = RunConfig.load(teacher / "config.toml")
    runtime = saved.runtime
    assert (runtime.device, runtime.dtype, runtime.compile, runtime.threads) == (
        "cpu", "float32", False, 1,
    )  # fmt: skip


def test_learns(teacher: Path) -> None:
    losses = [m["loss"] for m in read_metrics(teacher) if "loss" in m]
    assert losses[-1] < losses[0] - 0.3


def test_the_seed_decides_everything(tiny: Settings, teacher: Path, tmp_path: Path) -> None:
    run_training(RunConfig.parse(tiny(steps=8, seed=5)), tmp_path / "same")
    assert weights(tmp_path / "same") == weights(teacher)
    run_training(RunConfig.parse(tiny(steps=8, seed=6)), tmp_path / "other")
    assert weights(tmp_path / "other") != weights(teacher)


def test_distilling_leaves_the_teacher_as_it_was(
    tiny: Settings, teacher: Path, tmp_path: Path
) -> None:
    before = weights(teacher)
    config = RunConfig.parse(tiny(steps=2, objective={"teacher": str(teacher)}))
    result = run_training(config, tmp_path / "student")
    assert weights(teacher) == before
    manifest = files.read_json(tmp_path / "student" / "manifest.json")
    assert manifest["kind"] == "distill"
    assert manifest["objective"] == {
        "name": "distillation", "loss": "cross_entropy", "temperature": 1.0, "alpha": 0.0,
    }  # fmt: skip
    parent = manifest["parent"]
    assert parent["path"] == str(teacher)
    # The teacher's forward passes are counted; it has the student's size here.
    plain = files.read_json(teacher / "result.json")["train_flops"] / 8
    assert result["train_flops"] / 2 == pytest.approx(plain * 4 / 3)


def test_flex_attention_is_for_gpus(tiny: Settings, tmp_path: Path) -> None:
    config = RunConfig.parse(tiny(steps=1, runtime={"device": "cpu", "attention": "flex"}))
    with pytest.raises(ConfigError, match="'flex': torch's FlexAttention computes no gradients"):
        run_training(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_init_starts_from_a_model(tiny: Settings, teacher: Path, tmp_path: Path) -> None:
    config = RunConfig.parse(tiny(steps=1, model={"init": str(teacher)}))
    run_training(config, tmp_path / "run")
    first = read_metrics(tmp_path / "run")[0]["loss"]
    last = [m["loss"] for m in read_metrics(teacher) if "loss" in m][-1]
    assert first == pytest.approx(last, abs=0.4)
    manifest = files.read_json(tmp_path / "run" / "manifest.json")
    assert manifest["parent"]["path"] == str(teacher)


@pytest.mark.parametrize("poison", ["loss", "gradient"])
def test_nan_stops_before_the_weights_move(
    poison: str, tiny: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    plain, steps = loop.accumulate, 0
    kept: list[torch.Tensor] = []

    def accumulate(model: Any, *rest: Any) -> dict[str, float]:
        nonlocal steps
        sums = plain(model, *rest)
        steps += 1
        if steps == 6:
            kept.extend([model.norm.weight, model.norm.weight.detach().clone()])
            if poison == "loss":
                return {**sums, "loss": float("inf")}
            model.norm.weight.grad[0] = float("nan")
        return sums

    monkeypatch.setattr(loop, "accumulate", accumulate)
    with pytest.raises(TrainingError, match=r"diverged at step 6: .* is step-4.*learning_rate"):
        run_training(RunConfig.parse(tiny()), out)
    assert torch.equal(*kept)
    assert SafetensorsStates(out / "checkpoints", 1).steps() == [4]
    assert not (out / "model").exists()
    assert [m["step"] for m in read_metrics(out) if "loss" in m] == [1, 2, 3, 4, 5]
    # Had it been a passing fault of the machine, the run goes on as if nothing had happened.
    monkeypatch.setattr(loop, "accumulate", plain)
    run_training(RunConfig.parse(tiny()), out, resume=True)
    run_training(RunConfig.parse(tiny()), tmp_path / "unbroken")
    assert weights(out) == weights(tmp_path / "unbroken")


class Meter:
    """Ten watt-hours a session."""

    def __init__(self, country: str | None = None, previous: Any = None) -> None:
        self.before = Energy.parse(previous, "carbon.json") if previous else None

    def __enter__(self) -> "Meter":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def reading(self) -> Energy:
        before = self.before
        wh, sessions = (before.energy_wh or 0, before.sessions) if before else (0, 0)
        return Energy(
            energy_wh=wh + 10, gco2e=wh / 2 + 5, seconds=1.0, grid_gco2e_per_kwh=500.0,
            country=None, how={}, tool="test", sessions=sessions + 1,
        )  # fmt: skip


def test_carbon_adds_up(tiny: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "EnergyMeter", Meter)
    plain = loop.clip_gradients
    calls = 0

    def clip(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls in (3, 6):
            signal.raise_signal(signal.SIGINT)
        return plain(*args)

    monkeypatch.setattr(loop, "clip_gradients", clip)
    out = tmp_path / "run"
    config = RunConfig.parse(tiny())
    for expected in (3, 6):
        with pytest.raises(Interrupted, match=f"stopped after step {expected} of 12.*--resume"):
            run_training(config, out, resume=expected == 6)
    result = run_training(config, out, resume=True)
    assert result["energy_wh"] == 30
    assert result["gco2e"] == 15
    assert files.read_json(out / "carbon.json")["sessions"] == 3
    # The log shows no seam.
    assert [m["step"] for m in read_metrics(out) if "loss" in m] == list(range(1, 13))


def test_another_tokenizer_of_the_same_size_is_refused(
    tiny: Settings, teacher: Path, text_folder: Path, other_pieces: Tokenizer, tmp_path: Path
) -> None:
    data = prepare(text_folder, other_pieces, tmp_path / "data").path
    assert other_pieces.vocab_size == 512
    settings = tiny(data={"path": str(data)})
    with pytest.raises(TokenizerError, match=r"the teacher, .*, has another tokenizer .*prepare"):
        run_training(
            RunConfig.parse(
                {**settings, "objective": {"kind": "distill", "teacher": str(teacher)}}
            ),
            tmp_path / "a",
        )
    with pytest.raises(TokenizerError, match=r"the model to start from, .* has another tokenizer"):
        run_training(RunConfig.parse({**settings, "model": {"init": str(teacher)}}), tmp_path / "b")
    assert not (tmp_path / "a").exists()
    assert not (tmp_path / "b").exists()


def test_resuming_with_other_data_is_refused(
    tiny: Settings, pieces: Tokenizer, text_folder: Path, prepared: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    data, out = tmp_path / "data", tmp_path / "run"
    data.symlink_to(prepared)
    monkeypatch.setattr(run, "_result", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run_training(RunConfig.parse(tiny(steps=1, data={"path": str(data)})), out)
    data.unlink()
    text = tmp_path / "text"
    text.mkdir()
    for i, p in enumerate(sorted(text_folder.iterdir())):
        (text / p.name).write_text(p.read_text() + f"sail {i}\n")
    prepare(text, pieces, data)
    with pytest.raises(DataError, match="was started with other data"):
        run_training(RunConfig.parse(tiny(steps=1, data={"path": str(data)})), out, resume=True)


def test_resuming_with_another_teacher_is_refused(
    tiny: Settings, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link, out = tmp_path / "teacher", tmp_path / "run"
    link.symlink_to(teacher)
    config = RunConfig.parse(tiny(steps=1, objective={"teacher": str(link)}))
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(run, "_result", lambda *_: 1 / 0)
        run_training(config, out)
    run_training(RunConfig.parse(tiny(steps=1)), tmp_path / "other")
    link.unlink()
    link.symlink_to(tmp_path / "other")
    with pytest.raises(CheckpointError, match="has other weights than when"):
        run_training(config, out, resume=True)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"data": {"seq_len": 65}}, ConfigError,
         r"seq_len = 65 is longer than the model's context of 64"),
        ({"data": {"seq_len": 90000}, "model": {"max_position_embeddings": 100000}}, DataError,
         r"seq_len 90000 is longer than the data: train has \d+ tokens"),
        ({"model": {"preset": "1n"}}, ConfigError, "unknown model preset '1n'; did you mean '1m'"),
        ({"model": {"preset": "2b", "vocab_size": 256_000},
          "data": {"batch_size": 10**7, "micro_batch_size": None}}, ConfigError,
         r"needs at least [\d,.]+ GiB of memory"),
        ({"model": {"hidden_size": 10**9}}, ConfigError, r"needs at least [\d,.]+ GiB of memory"),
        ({"data": {"batch_size": 10**12}}, ConfigError, r"needs at least [\d,.]+ GiB of memory"),
        ({"model": {"vocab_size": 500}}, ConfigError, "than the tokenizer's vocabulary of 512"),
        ({"runtime": {"country": "XX"}}, ConfigError, "not a country code"),
        ({"runtime": {"device": "cuda"}}, ConfigError, "no CUDA device"),
        ({"data": {"path": "nowhere"}}, DataError, "no data folder at nowhere"),
        ({"model": {"init": "nowhere/at/all"}}, CheckpointError, "nowhere"),
    ],
)  # fmt: skip
def test_bad_settings_leave_nothing_behind(
    changes: dict[str, Any], error: type[Exception], message: str, tiny: Settings, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(error, match=message):
        run_training(RunConfig.parse(tiny(**changes)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_spare_vocabulary_rows_must_agree(tiny: Settings, teacher: Path, tmp_path: Path) -> None:
    shape = {**tiny()["model"], "vocab_size": 520}
    config = RunConfig.parse(tiny(steps=1, model=shape, objective={"teacher": str(teacher)}))
    with pytest.raises(ConfigError, match=r"has 512 rows .* student 520: set model.vocab_size = 5"):
        run_training(config, tmp_path / "a")
    run_training(RunConfig.parse(tiny(steps=1, model=shape)), tmp_path / "b")
    run_training(
        RunConfig.parse(tiny(steps=1, model=shape, objective={"teacher": str(tmp_path / "b")})),
        tmp_path / "c",
    )


def test_students_share_weights_and_batches(
    tiny: Settings, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[torch.Tensor]] = []
    plain = PackedText.next

    def watched(loader: PackedText) -> Any:
        batch = plain(loader)
        seen[-1].append(batch.tokens_BT)
        return batch

    monkeypatch.setattr(PackedText, "next", watched)
    firsts = []
    for kind, objective in (("pretrain", {}), ("distill", {"teacher": str(teacher)})):
        seen.append([])
        settings = tiny(steps=3, objective={"kind": kind, **objective})
        run_training(RunConfig.parse(settings), tmp_path / kind)
        first = read_metrics(tmp_path / kind)[0]
        firsts.append(first.get("next_token_loss", first["loss"]))
    assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))
    assert firsts[0] == pytest.approx(firsts[1], rel=1e-6)


def test_the_loader_is_not_read_ahead(prepared: Path) -> None:
    """The position after n batches is what a checkpoint of step n holds."""
    split = Dataset.open(prepared).split("train")
    a, b = PackedText(split, 2, 24, 0), PackedText(split, 2, 24, 0)
    for _ in range(5):
        a.next()
    b.load_state(a.state())
    assert torch.equal(a.next().tokens_BT, b.next().tokens_BT)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning:torch", "ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # from the compiler itself
def test_compiled_runs_resume_bit_for_bit(
    tiny: Settings, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = RunConfig.parse(
        tiny(runtime={"compile": True}, data={"seq_len": 20}, objective={"teacher": str(teacher)})
    )
    run_training(config, tmp_path / "unbroken")
    plain = loop.clip_gradients
    calls = 0

    def clip(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 5:
            signal.raise_signal(signal.SIGTERM)
        return plain(*args)

    monkeypatch.setattr(loop, "clip_gradients", clip)
    with pytest.raises(Interrupted):
        run_training(config, tmp_path / "run")
    torch.compiler.reset()
    run_training(config, tmp_path / "run", resume=True)
    assert weights(tmp_path / "run") == weights(tmp_path / "unbroken")


def test_any_result_is_described() -> None:
    """Also that of a run without a language-model loss."""
    accuracy = {"value": 0.625, "low": 0.5, "high": 0.75, "n": 9}
    result = {"split": "heldout", "accuracy": accuracy, "margin": 1.5, "rules": {}, "seed": 3}
    assert run.describe(result) == "accuracy 0.625 [0.5, 0.75], margin 1.5"
    metrics = {"nats_per_token": 1.0, "perplexity": 2.72, "bits_per_byte": 0.5}
    described = run.describe({**metrics, "heldout_tokens": 1000})
    assert described.startswith("1.0000 nats/token, perplexity 2.72")
