"""Runs of kind "rl": reward rises, runs resume bit for bit, settings are checked."""

import dataclasses
import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from typer.testing import CliRunner

from gemmule import files
from gemmule.cli.app import app
from gemmule.errors import ConfigError, DataError, Interrupted, TrainingError
from gemmule.losses.head import Head
from gemmule.model.tokenizer import Tokenizer
from gemmule.posttrain.chat_data import (
    ChatData,
    ChatOptions,
    write_conversations,
    write_prompts,
)
from gemmule.posttrain.conversations import Conversation, Message, Prompt
from gemmule.posttrain.objectives.policy_gradient import PolicyGradient
from gemmule.posttrain.recipes.rl import RlConfig
from gemmule.posttrain.rollout_prompts import prompts_of
from gemmule.runs.metrics import read_metrics
from gemmule.train.config import RunConfig, load_run_config
from gemmule.train.run import run_training
from models import TINY
from words import WORDS

Settings = Callable[..., dict[str, Any]]
pytestmark = pytest.mark.usefixtures("no_meter")
REWARD = """
def shares_s(answer, record):
    return answer.count("s") / max(len(answer), 1)

def infinite(answer, record):
    return float("inf")
"""
METHODS: Mapping[str, dict[str, Any]] = {
    "rloo": {"method": "rloo", "samples": 4, "beta": 0.01, "anchor_rate": 0.1},
    "grpo": {"method": "grpo", "samples": 4, "scale_rewards": True, "loss_type": "dapo"},
    "jbond": {"method": "jbond", "anchor_rate": 0.1},
}


@pytest.fixture(scope="module")
def base(pieces: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that answers with a few words and then ends its answer."""
    folder, pick = tmp_path_factory.mktemp("base"), random.Random(1)
    conversations = [
        Conversation(
            (
                Message("user", f"say {word} {i}"),
                Message("assistant", " ".join(pick.choices(WORDS, k=pick.randint(1, 3)))),
            )
        )
        for i in range(40)
        for word in ("the sea", "a ship", "captain")
    ]
    data = write_conversations(conversations, pieces, folder / "sft").dataset
    config = {
        "steps": 40,
        "data": {"path": str(data.path), "seq_len": 48, "batch_size": 16},
        "model": dict(TINY),
        "objective": {"kind": "sft"},
        "optimizer": {"name": "adamw"},
        "runtime": {"compile": False, "threads": 1, "dtype": "float32"},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gemmule.runs.carbon.start_tracker", lambda *_: 1 / 0)
        run_training(RunConfig.parse(config), folder / "run")
    (folder / "rewards.py").write_text(REWARD)
    return folder


@pytest.fixture(scope="module")
def settings(base: Path, pieces: Tokenizer) -> Settings:
    prompts = [
        Prompt((Message("user", f"say {word} {i}"),), record={"answer": word})
        for i, word in enumerate(["the sea", "a ship", "captain"] * 8)
    ]
    options = ChatOptions(validation=0.2, heldout=0.2)
    data = write_prompts(prompts, pieces, base / "data", options).dataset

    def values(method: str = "rloo", **changes: Any) -> dict[str, Any]:
        groups: dict[str, Any] = {
            "steps": 6,
            "log_every": 1,
            "data": {
                "path": str(data.path), "seq_len": 48, "batch_size": 8, "micro_batch_size": 4,
            },
            "model": {"init": str(base / "run")},
            "objective": {
                "kind": "rl",
                "rewards": {f"{base / 'rewards.py'}:shares_s": 1.0},
                "max_new_tokens": 12,
                **METHODS[method],
            },
            "optimizer": {"name": "adamw", "learning_rate": 0.01, "embedding_learning_rate": 0.01},
            "evaluation": {"every": 5},
            "checkpoint": {"every": 2},
            "runtime": {"compile": False, "threads": 1},
        }  # fmt: skip
        for name, value in changes.items():
            merged = isinstance(value, dict)
            groups[name] = {**groups.get(name, {}), **value} if merged else value
        return groups

    return values


def weights(run: Path) -> bytes:
    return (run / "model/model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def unbroken(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A finished run of each method."""
    runs: dict[str, Path] = {}

    def run(method: str) -> Path:
        if method not in runs:
            runs[method] = tmp_path_factory.mktemp("runs") / method
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("gemmule.runs.carbon.start_tracker", lambda *_: 1 / 0)
                run_training(RunConfig.parse(settings(method)), runs[method])
        return runs[method]

    return run


@pytest.mark.parametrize("method", METHODS)
def test_a_run_logs_what_its_rollouts_were(unbroken: Callable[[str], Path], method: str) -> None:
    run = unbroken(method)
    lines = [m for m in read_metrics(run) if "loss" in m]
    assert [m["step"] for m in lines] == [1, 2, 3, 4, 5, 6]
    for line in lines:
        assert 0 <= line["reward"] <= 1
        assert 1 <= line["completions/mean_length"] <= 12
        assert 0 <= line["completions/clipped_ratio"] <= 1
        assert 0 < line["sampling/logp_difference/max"] < 1e-3
        assert ("kl" in line) == (method != "grpo")
        assert ("frac_reward_zero_std" in line) == (method != "jbond")
    validation = [m for m in read_metrics(run) if m.get("split") == "validation"]
    assert [m["step"] for m in validation] == [5, 6]
    result = files.read_json(run / "result.json")
    assert result["split"] == "heldout"
    assert 0 <= result["reward"] <= 1
    manifest = files.read_json(run / "manifest.json")
    assert manifest["kind"] == "rl"
    assert manifest["rewards"]["name"].endswith("rewards.py:shares_s")


def test_the_exact_divergence_is_logged_as_kl_too(settings: Settings, tmp_path: Path) -> None:
    values = settings(steps=2, objective={"kl": "exact", "beta": 0.05})
    run_training(RunConfig.parse(values), tmp_path / "run")
    lines = [m for m in read_metrics(tmp_path / "run") if "loss" in m]
    assert lines[0]["kl"] == pytest.approx(0, abs=1e-5)  # the anchor is the start
    assert lines[1]["kl"] > 0
    assert not any("exact_kl" in line for line in lines)


def test_prompts_without_room_are_counted_in_the_result(
    settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ChatData.open(Path(settings()["data"]["path"]))
    lengths = [len(prompt.ids) for prompt in prompts_of(data, "train")]
    room = max(lengths) - 1
    values = settings(steps=1, data={"seq_len": room + 12})
    result = run_training(RunConfig.parse(values), tmp_path / "run")
    assert result["prompt_too_long"]["train"] == sum(n > room for n in lengths) > 0
    assert "".join(capsys.readouterr()).count("left out:") == 1
    manifest = files.read_json(tmp_path / "run/manifest.json")
    assert manifest["prompts"]["train"] == sum(n <= room for n in lengths)


def test_a_changed_reward_is_noticed_when_a_run_is_resumed(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, out = tmp_path / "rewards.py", tmp_path / "run"
    file.write_text(REWARD)
    values = settings()
    values["objective"]["rewards"] = {f"{file}:shares_s": 1.0, "exact": 0.5}
    plain = PolicyGradient.loss

    def stopping(self: Any, *args: Any) -> Any:
        signal.raise_signal(signal.SIGTERM)
        return plain(self, *args)

    with monkeypatch.context() as patch, pytest.raises(Interrupted, match="after step 1 of 6"):
        patch.setattr(PolicyGradient, "loss", stopping)
        run_training(RunConfig.parse(values), out)
    file.write_text(REWARD.replace('"s"', '"e"'))
    with pytest.raises(DataError, match=r"started with another reward .*has changed.*: bring that"):
        run_training(load_run_config(out / "config.toml"), out, resume=True)
    file.write_text(REWARD)
    run_training(load_run_config(out / "config.toml"), out, resume=True)
    assert (out / "result.json").is_file()


KILLED = """
import json, os, signal, sys
from pathlib import Path
from gemmule.posttrain.objectives import policy_gradient
from gemmule.train.config import RunConfig
from gemmule.train.run import run_training
loss, calls = policy_gradient.PolicyGradient.loss, [0]
def killing(self, model, batch):
    calls[0] += 1
    if calls[0] == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
    return loss(self, model, batch)
policy_gradient.PolicyGradient.loss = killing
run_training(RunConfig.parse(json.loads(sys.argv[1])), Path(sys.argv[2]))
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no SIGKILL here")
@pytest.mark.parametrize("method", METHODS)
def test_a_killed_run_ends_in_the_same_bytes(
    settings: Settings, unbroken: Callable[[str], Path], tmp_path: Path, method: str
) -> None:
    """Killed in the second micro-batch of step 4; the state of step 2 is the last one."""
    out = tmp_path / "run"
    command = [sys.executable, "-c", KILLED, json.dumps(settings(method)), str(out), "8"]
    killed = subprocess.run(command, env=dict(os.environ), timeout=120, check=False)
    assert killed.returncode == -signal.SIGKILL
    state = load_file(out / "checkpoints/step-2/state.safetensors")
    moving = any(key.startswith("further.anchor.") for key in state)
    assert moving == (method != "grpo")
    run_training(RunConfig.parse(settings(method)), out, resume=True)
    assert weights(out) == weights(unbroken(method))
    timed = {"seconds", "tokens_per_second", "wall"}
    ours, theirs = (
        [{k: v for k, v in m.items() if k not in timed} for m in read_metrics(run)]
        for run in (out, unbroken(method))
    )
    assert ours == theirs


@pytest.mark.parametrize("method", ["rloo", "jbond"])
def test_an_adapter_is_sampled_merged_and_resumed(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    config = RunConfig.parse(settings(method, adapter={"rank": 4}))
    run_training(config, tmp_path / "run")
    lines = [m for m in read_metrics(tmp_path / "run") if "loss" in m]
    assert all(0 < m["sampling/logp_difference/max"] < 1e-3 for m in lines)
    assert "further.anchor.layers.0.mlp.up_proj.weight" in load_file(
        tmp_path / "run/checkpoints/step-6/state.safetensors"
    )
    loss, calls = PolicyGradient.loss, itertools.count(1)

    def stopping(self: Any, *args: Any) -> Any:
        if next(calls) == 6:  # in step 3
            signal.raise_signal(signal.SIGTERM)
        return loss(self, *args)

    with monkeypatch.context() as patch, pytest.raises(Interrupted, match="after step 3 of 6"):
        patch.setattr(PolicyGradient, "loss", stopping)
        run_training(config, tmp_path / "stopped")
    run_training(config, tmp_path / "stopped", resume=True)
    name = "model/adapter_model.safetensors"
    assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "run" / name).read_bytes()


@pytest.mark.parametrize("method", METHODS)
def test_reward_rises(settings: Settings, tmp_path: Path, method: str) -> None:
    config = settings(
        method,
        steps=30,
        data={"batch_size": 32, "micro_batch_size": 32},
        optimizer={"name": "adamw", "learning_rate": 0.005, "embedding_learning_rate": 0.005},
        evaluation={"every": 30},
        checkpoint={"every": 100},
    )
    run_training(RunConfig.parse(config), tmp_path / "run")
    rewards = [m["reward"] for m in read_metrics(tmp_path / "run") if "loss" in m]
    assert sum(rewards[-5:]) > 2 * sum(rewards[:5])


def test_a_trainer_with_another_distribution_stops_the_run(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lost soft cap of the head, as an example, in the trainer alone."""
    plain = Head.log_likelihoods

    def without_cap(self: Head, *args: Any, **kwargs: Any) -> Any:
        return plain(dataclasses.replace(self, cap=1.0), *args, **kwargs)

    monkeypatch.setattr(Head, "log_likelihoods", without_cap)
    with pytest.raises(TrainingError, match="sampler and trainer disagree"):
        run_training(RunConfig.parse(settings()), tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": {"samples": 3}}, "8 answers are not a multiple of the 3 answers"),
        ({"model": {"init": None}}, r"starts from a trained model: set model\.init"),
        ({"runtime": {"dtype": "bfloat16"}}, "must have the same probabilities"),
        ({"objective": {"rewards": {"nothing": 1.0}}}, "there is no reward 'nothing'"),
        ({"data": {"seq_len": 16}}, "prompts of the train split has at most 4 tokens"),
    ],
    ids=str,
)
def test_what_cannot_be_run_is_refused(
    settings: Settings, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises((ConfigError, DataError), match=message):
        run_training(RunConfig.parse(settings(**changes)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        ({"method": "rloo", "scale_rewards": True}, "scale_rewards is a setting of grpo"),
        ({"method": "jbond", "samples": 4}, "samples is a setting of rloo and grpo"),
        ({"method": "grpo", "backward_weight": 0.3}, "backward_weight is a setting of jbond"),
        ({"method": "jbond", "kl": "exact"}, "is for rloo and grpo"),
        ({"method": "grpo", "kl": "exact"}, "kl is about .* beta is 0: set beta"),
        ({"beta": 0.0, "anchor_rate": 0.1}, "anchor_rate is about the divergence"),
        ({"rewards": {}}, "there is no reward: set rewards"),
    ],
    ids=str,
)
def test_settings_are_checked(settings: Settings, objective: dict[str, Any], message: str) -> None:
    values = {"kind": "rl", "rewards": {"number": 1.0}, **objective}
    with pytest.raises(ConfigError, match=message):
        RunConfig.parse({**settings(), "objective": values})


def test_an_infinite_reward_is_an_error(settings: Settings, base: Path, tmp_path: Path) -> None:
    values = settings()
    values["objective"]["rewards"] = {f"{base / 'rewards.py'}:infinite": 1.0}
    with pytest.raises((DataError, ConfigError), match="inf"):
        run_training(RunConfig.parse(values), tmp_path / "run")


def align(*arguments: object) -> str:
    """What `gemmule align` prints."""
    done = CliRunner().invoke(app, ["align", *map(str, arguments)])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    lines = [{"messages": [{"role": "user", "content": f"say captain {i}"}]} for i in range(40)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_align_makes_the_data_and_trains(base: Path, prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    changes = ("steps=1", "data.seq_len=48", "data.batch_size=8", "objective.max_new_tokens=12")
    chosen = [word for change in changes for word in ("--set", change)]
    reward = f"{base / 'rewards.py'}:shares_s=0.5"
    printed = align(
        "--json",
        "--method", "grpo", "--model", base / "run", "--file", prompts, "--reward", reward,
        "--set", "objective.samples=4", *chosen, "--out", out,
    )  # fmt: skip
    assert 0 <= json.loads(printed)["reward"] <= 0.5
    saved = load_run_config(out / "config.toml").objective
    assert isinstance(saved, RlConfig)
    assert saved.method == "grpo"
    assert saved.rewards == {reward.removesuffix("=0.5"): 0.5}
    assert (out / "data/manifest.json").is_file()
    assert align("--resume", "--json", "--out", out) == printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "which method\\?"),
        (["--method", "rlo"], "there is no method 'rlo'; did you mean 'rloo'"),
        (["--method", "dpo", "--reward", "number"], "is for rloo, grpo and jbond, not dpo"),
        (["--method", "rloo", "--teacher", "x"], "--teacher is for opd, not rloo"),
        (["--method", "dpo", "--labeled"], "--labeled is for kto, not dpo"),
        (["--method", "rloo", "--reward", "number=much"], "'much' is not a number"),
        (["--method", "rloo", "--reward", "number=nan"], "'nan' is not a number"),
        (["--method", "rloo", "--reward", "exact", "--reward", "exact=2"], "exact is named twice"),
        (["--method", "rloo"], "there is no reward"),
        (["--resume", "--method", "rloo"], "give only --out"),
    ],
    ids=str,
)
def test_align_refuses_options_of_other_methods(
    base: Path, prompts: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    given = [] if "--resume" in options else ["--model", base / "run", "--file", prompts]
    with pytest.raises(ConfigError, match=message):
        align(*options, *given, "--set", "steps=1", "--out", tmp_path / "run")


def test_every_setting_is_documented() -> None:
    guide = (Path(__file__).parents[2] / "docs/post-training.md").read_text(encoding="utf-8")
    section = guide[guide.index("of kind `rl`;") :]
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \|", section[: section.index("What to look at")], re.M)
    fields = RlConfig.model_fields
    defaults = {
        name: "none" if field.default_factory or field.default is None else str(field.default)
        for name, field in fields.items()
    }
    assert dict(rows) == defaults
