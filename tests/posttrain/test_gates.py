"""Promotion gates: intervals, what is measured, and candidates that must be refused."""

import dataclasses
import math
import random
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from stopping_models import stopping_model
from torch.nn import functional as F
from typer.testing import CliRunner

from gemmule import cli, files, stats
from gemmule.checkpoints.hf.writer import save_model
from gemmule.data.dataset import Dataset
from gemmule.errors import CheckpointError, ConfigError, DataError
from gemmule.model.gemma import Gemma
from gemmule.model.tokenizer import Tokenizer
from gemmule.posttrain.chat_data import (
    ChatData,
    ChatOptions,
    write_prompts,
)
from gemmule.posttrain.conversations import Message, Prompt
from gemmule.posttrain.gates import measure, rules
from gemmule.posttrain.gates.gate import GateConfig, describe, gate
from gemmule.posttrain.gates.rules import Answers, interval
from gemmule.posttrain.rewards.by_name import FunctionReward, open_reward
from gemmule.posttrain.rollouts import Group, Rollout, RolloutPrompt
from gemmule.runs.lineage import start_of
from gemmule.runs.schema_evals import Gates, PromotionCheck
from gemmule.train.config import RunConfig
from gemmule.train.evaluate import evaluate
from gemmule.train.run import run_training

Settings = Callable[..., dict[str, Any]]
VOCABULARY = 512
LOOSE = GateConfig.parse(
    {
        "prompts": 20,
        "samples": 2,
        "max_new_tokens": 8,
        "base_tokens": 480,
        "seq_len": 8,
        "limits": {"kl": 1e3, "length_ratio": 100.0, "stop_rate": 0.0, "base_loss_rise": 1e3},
    }
)


def user(text: str) -> tuple[Message, ...]:
    return (Message("user", text),)


@pytest.fixture(scope="module")
def data(pieces: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> ChatData:
    prompts = [Prompt(user(f"sail {n}?"), f"p#{n}", {"answer": str(n)}) for n in range(70)]
    out = tmp_path_factory.mktemp("prompts") / "data"
    return write_prompts(prompts, pieces, out, ChatOptions(heldout=0.5))


@pytest.fixture(scope="module")
def models(pieces: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("models")
    for seed in (3, 4):
        save_model(stopping_model(pieces.vocab_size, seed), pieces, folder / f"m{seed}")
    return [folder / "m3", folder / "m4"]


def answers(pick: random.Random, n: int, gain: float) -> Answers:
    return Answers(
        [[pick.gauss(gain, 1) for _ in range(3)] for _ in range(n)],
        [[pick.randint(3, 30) for _ in range(3)] for _ in range(n)],
        [[pick.random() < 0.9 for _ in range(3)] for _ in range(n)],
    )


def test_the_rewards_interval_is_that_of_a_plain_computation() -> None:
    pick = random.Random(1)
    ours, theirs = answers(pick, 80, 0.4), answers(pick, 80, 0.0)
    check = rules.reward_check(ours, theirs, 0.0)
    assert ours.rewards and theirs.rewards and check.estimate
    gains = [statistics.mean(a) - statistics.mean(b)
             for a, b in zip(ours.rewards, theirs.rewards, strict=True)]  # fmt: skip
    center, half = statistics.mean(gains), 1.959964 * statistics.stdev(gains) / math.sqrt(80)
    found = check.estimate
    assert (found.value, found.low, found.high) == pytest.approx(
        (center, center - half, center + half), rel=1e-6
    )
    assert check.passed == (center - half > 0)
    assert check.passed
    assert not rules.reward_check(ours, theirs, center).passed  # not certain to be above it
    assert not rules.reward_check(theirs, ours, 0.0).passed


def test_pairing_cancels_what_the_prompts_share() -> None:
    """The same small gain on prompts of very different difficulty."""
    pick = random.Random(2)
    hard = [pick.gauss(0, 10) for _ in range(60)]
    theirs = Answers([[h] for h in hard], [], [])
    ours = Answers([[h + 0.1 + pick.gauss(0, 0.05)] for h in hard], [], [])
    assert rules.reward_check(ours, theirs, 0.0).passed
    shuffled = Answers([[h] for h in sorted(hard)], [], [])
    assert not rules.reward_check(ours, shuffled, 0.0).passed


def test_right_or_wrong_answers_have_newcombes_interval() -> None:
    ours, theirs = [True] * 30 + [False] * 10, [True] * 26 + [False] * 14
    check = rules.reward_check(
        Answers([[float(x)] for x in ours], [], []),
        Answers([[float(x)] for x in theirs], [], []),
        0,
    )
    assert check.estimate == interval(stats.paired_proportions(ours, theirs))
    # All the same: a plain interval would have no width.
    same = rules.reward_check(Answers([[1.0]] * 40, [], []), Answers([[1.0]] * 40, [], []), -0.01)
    assert not same.passed


def test_harms_must_be_excluded_not_only_unproven() -> None:
    pick = random.Random(3)
    before = [pick.gauss(3, 0.5) for _ in range(200)]
    rise = [0.02 + pick.gauss(0, 0.1) for _ in before]
    after = [a + b for a, b in zip(before, rise, strict=True)]
    assert rules.base_loss_check(after, before, 0.05).passed
    assert not rules.base_loss_check(after[:20], before[:20], 0.05).passed  # too few to know
    assert not rules.base_loss_check([x + 0.06 for x in before], before, 0.05).passed


def test_length_and_ends() -> None:
    parent = Answers(None, [[10, 10], [20, 20]] * 20, [[True, True]] * 40)
    longer = dataclasses.replace(parent, lengths=[[16, 16], [32, 32]] * 20)
    assert rules.length_check(parent, parent, 1.5).passed
    assert not rules.length_check(longer, parent, 1.5).passed
    assert rules.length_check(longer, parent, 2.0).passed
    cut = dataclasses.replace(parent, finished=[[True, True]] * 39 + [[True, False]])
    check = rules.stop_check(cut, parent, 0.99)
    assert not check.passed
    assert check.estimate == interval(stats.proportion(79, 80))
    assert rules.stop_check(parent, parent, 0.99).passed


def test_the_interval_of_a_ratio_has_its_coverage() -> None:
    """Tokens of prompts with long answers weigh more; 95% of intervals hold the true ratio."""
    pick = random.Random(4)
    hits = 0
    for _ in range(400):
        counts = [pick.randint(5, 50) for _ in range(60)]
        sums = [c * (0.3 + pick.gauss(0, 0.1)) for c in counts]
        found = rules.ratio(sums, counts)
        hits += found.low <= 0.3 <= found.high
    assert 0.91 < hits / 400 < 0.98
    assert rules.ratio([2.0, 4.0], [4, 8]) == stats.Estimate(0.5, 0.5, 0.5, 2)


def rollout(prompt: tuple[int, ...], ids: tuple[int, ...], *, text: str = "") -> Rollout:
    return Rollout(prompt, ids, (0.0,) * len(ids), text, finished=True)


@torch.no_grad()
def test_the_divergence_is_exact_over_the_vocabulary() -> None:
    ours, theirs = (stopping_model(VOCABULARY, seed) for seed in (3, 4))
    prompt = RolloutPrompt((2, 300, 301), {})
    group = Group(prompt, (rollout(prompt.ids, (5, 9, 107)), rollout(prompt.ids, (200, 107))), 0)
    expected = 0.0
    for r in group.rollouts:
        tokens = torch.tensor([r.prompt + r.answer])
        p, q = (F.log_softmax(m(tokens)[0].double(), -1) for m in (ours, theirs))
        expected += float((p.exp() * (p - q)).sum(-1)[len(r.prompt) - 1 : -1].sum())
    (found,) = measure.divergences(ours, theirs, [group])
    assert found == pytest.approx(expected, rel=1e-4)
    assert measure.divergences(ours, ours, [group]) == pytest.approx([0.0], abs=1e-5)


def test_windows_add_up_to_the_held_out_loss(prepared: Path, pieces: Tokenizer) -> None:
    model: Gemma = stopping_model(pieces.vocab_size, 3)
    split = Dataset.open(prepared).split("heldout")
    losses = measure.window_losses(model, split, seq_len=24, max_tokens=480)
    whole = evaluate(model, split, pieces, seq_len=24, max_tokens=480)
    assert len(losses) == 8
    assert statistics.mean(losses) == pytest.approx(whole["nats_per_token"], rel=0.02)


def test_a_verifier_with_a_hole_is_refused_by_the_reward_that_has_none() -> None:
    """A policy that lists all numbers satisfies "contains the answer", and never answers."""

    def contains(text: str, record: Any) -> float:
        return float(str(record["answer"]) in text)

    hole, strict = FunctionReward("contains", contains), open_reward("exact")
    prompts = [RolloutPrompt((2, 300 + n), {"answer": str(n % 10)}) for n in range(60)]
    honest = [str(n % 10 if n % 3 else 11) for n in range(60)]  # right in two of three
    hacked = [" ".join(map(str, range(10)))] * 60

    def measured(texts: list[str], reward: Any) -> Answers:
        groups = [
            Group(p, (rollout(p.ids, (9,) * len(text), text=text),), 0)
            for p, text in zip(prompts, texts, strict=True)
        ]
        return measure.describe_answers(groups, reward, 0.0)

    proxy = rules.reward_check(measured(hacked, hole), measured(honest, hole), 0.0)
    assert proxy.passed
    assert proxy.candidate == 1.0
    true = rules.reward_check(measured(hacked, strict), measured(honest, strict), 0.0)
    assert not true.passed
    assert true.estimate and true.estimate.high < 0
    assert not rules.length_check(measured(hacked, hole), measured(honest, hole), 1.5).passed


def test_an_answer_that_was_cut_is_not_rewarded() -> None:
    prompt = RolloutPrompt((2, 3), {"answer": "7"})
    cut = dataclasses.replace(rollout(prompt.ids, (9,), text="7"), finished=False)
    group = Group(prompt, (rollout(prompt.ids, (9,), text="7"), cut), 0)
    assert measure.describe_answers([group], open_reward("exact"), -1.0).rewards == [[1.0, -1.0]]


def test_a_whole_gate(models: list[Path], data: ChatData, prepared: Path) -> None:
    reward = FunctionReward("short", lambda text, _: -float(len(text)))
    base = Dataset.open(prepared)
    more = [
        PromotionCheck(
            name="safety: toxicity", rule="is not worse", passed=True, outcome="0.0 points worse"
        )
    ]
    result = gate(models[1], models[0], data, config=LOOSE, reward=reward, base=base, more=more)
    assert [check.name for check in result.checks] == [
        "reward", "base loss", "KL", "length", "stop rate", "safety: toxicity",
    ]  # fmt: skip
    assert result.not_checked == []
    assert all(check.passed for check in result.checks[1:])
    assert result.passed == result.checks[0].passed
    assert len(describe(result)) == 6
    again = gate(models[1], models[0], data, config=LOOSE, reward=reward, base=base, more=more)
    assert again.checks == result.checks  # the same numbers every time
    same = gate(models[0], models[0], data, config=LOOSE, reward=reward)
    by_name = {check.name: check for check in same.checks}
    assert not same.passed  # no gain
    assert by_name["reward"].estimate and by_name["reward"].estimate.value == 0
    assert by_name["KL"].estimate and abs(by_name["KL"].estimate.value) < 1e-5
    assert same.not_checked == ["base loss", "safety"]


def test_what_cannot_be_compared(
    models: list[Path],
    data: ChatData,
    prepared: Path,
    pieces: Tokenizer,
    other_pieces: Tokenizer,
    tmp_path: Path,
) -> None:
    save_model(stopping_model(512, 3), other_pieces, tmp_path / "other")
    with pytest.raises(CheckpointError, match="another tokenizer"):
        gate(tmp_path / "other", models[0], data, config=LOOSE)
    with pytest.raises(DataError, match="made with another tokenizer"):
        gate(tmp_path / "other", tmp_path / "other", data, config=LOOSE)
    wide = LOOSE.model_copy(update={"seq_len": 64})
    with pytest.raises(DataError, match="windows of 64 tokens, and a gate needs 20"):
        gate(models[1], models[0], data, config=wide, base=Dataset.open(prepared))
    few = write_prompts([Prompt(user(f"s {n}")) for n in range(9)], pieces, tmp_path / "few")
    with pytest.raises(ConfigError, match="and a gate needs 20"):
        gate(models[1], models[0], few, config=LOOSE)


def test_the_command(models: list[Path], data: ChatData, tmp_path: Path) -> None:
    out = tmp_path / "gates.json"
    options = ["--data", data.dataset.path, "--parent", models[0], "--out", out]
    settings = ["prompts=20", "samples=2", "max_new_tokens=8"]
    limits = ["limits.kl=100", "limits.length_ratio=100", "limits.stop_rate=0"]
    sets = [part for s in (*settings, *limits) for part in ("--set", s)]
    done = CliRunner().invoke(cli.app, ["gate", *map(str, [models[1], *options]), *sets])
    assert done.exit_code == 0, done.output
    assert Gates.read(out).passed
    refused = ["--reward", "exact", "--set", "limits.reward_gain=0.5"]
    done = CliRunner().invoke(cli.app, ["gate", *map(str, [models[1], *options]), *sets, *refused])
    assert done.exit_code == 3
    assert not Gates.read(out).passed
    assert Gates.read(out).reward == {"name": "exact"}
    for arguments, message in (
        (["gate", models[1]], "does not say what it was made from"),
        (["gate", models[1], *options[:4]], "give --out"),
        (["gate", models[1], *options, "--reward", "exact=much"], "'much' is not a number"),
        (["gate", models[1], *options, "--safety-margin", "-1"], "must be 0 or more"),
    ):
        done = CliRunner().invoke(cli.app, [str(a) for a in arguments])
        assert message in str(done.exception), done.output


@pytest.mark.usefixtures("no_meter")
def test_what_a_run_started_from(tiny: Settings, tmp_path: Path) -> None:
    run_training(RunConfig.parse(tiny(steps=1)), tmp_path / "base")
    init = {"init": str(tmp_path / "base")}
    run_training(RunConfig.parse(tiny(steps=1, model=init)), tmp_path / "tuned")
    assert start_of(tmp_path / "base") is None
    assert start_of(tmp_path / "tuned") == str(tmp_path / "base")
    assert start_of(tmp_path / "nothing") is None
    (tmp_path / "tuned/config.toml").write_text("model = [")
    with pytest.raises(CheckpointError, match="not readable TOML"):
        start_of(tmp_path / "tuned")
    assert files.read_json(tmp_path / "tuned/manifest.json")["parent"]["path"] == init["init"]
