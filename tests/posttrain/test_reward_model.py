"""Reward models: the head, the loss, runs, files that transformers reads, and use as a reward."""

import math
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from gemmule import files
from gemmule.checkpoints.hf.writer import save_model
from gemmule.checkpoints.load import load_model
from gemmule.errors import CheckpointError, ConfigError, Interrupted
from gemmule.evals.memorization.callback import memorization_probe
from gemmule.model.tokenizer import Tokenizer
from gemmule.posttrain.answer_source import AnswerSource, packed
from gemmule.posttrain.chat_data import ChatData
from gemmule.posttrain.rendering import Rendered
from gemmule.posttrain.reward_model.model import RewardModel, load_reward_model
from gemmule.posttrain.reward_model.objective import RewardModeling, bradley_terry
from gemmule.posttrain.reward_model.rules import compared_with_rules, refusal, shorter
from gemmule.posttrain.segments import Segments
from gemmule.runs.metrics import read_metrics
from gemmule.runtime.config import RuntimeConfig
from gemmule.train.config import (
    MemorizationConfig,
    OptimizerConfig,
    RunConfig,
    load_run_config,
)
from gemmule.train.optimizers import build_optimizers
from gemmule.train.run import run_training
from gemmule.train.step import accumulate
from judged_answers import CONTEXT, pair_folder, parent
from models import GROUPED, random_model, tiny_config

pytestmark = pytest.mark.usefixtures("no_meter")
VOCAB = 300
CONFIG = tiny_config(GROUPED, vocab_size=VOCAB)
RUNTIME = RuntimeConfig(device="cpu", dtype="float32", compile=False, threads=1)
MARGINS = [0.0, 0.5, 1.0, 0.25]


def conversation(length: int) -> Rendered:
    ids = torch.randint(4, VOCAB, (length,), generator=torch.Generator().manual_seed(length))
    return Rendered(tuple(ids.tolist()), (False,) * (length - 2) + (True, True))


ANSWERS = [conversation(5 + 7 * n) for n in range(8)]


def reward_model() -> RewardModel:
    head = torch.randn(1, CONFIG.hidden_size, generator=torch.Generator().manual_seed(9)) * 0.1
    return RewardModel.on(random_model(CONFIG, seed=3, std={"norm": 0.1, "": 0.2}), head)


def test_the_loss_is_the_papers() -> None:
    r, s, margin, c = 1.3, 0.4, 0.5, 0.01
    expected = math.log1p(math.exp(-(r - s - margin))) + c * (r + s) ** 2
    values = [torch.tensor([x], dtype=torch.float64) for x in (r, s, margin)]
    assert bradley_terry(*values, c).item() == pytest.approx(expected, rel=1e-12)


def test_a_new_head_has_no_opinion() -> None:
    model = RewardModel.on(random_model(CONFIG, seed=3))
    assert model.scores(Segments.of(packed(ANSWERS))).tolist() == [0.0] * 8
    drawn = RewardModel(CONFIG)
    assert drawn.scores(Segments.of(packed(ANSWERS))).tolist() == [0.0] * 8


def test_the_score_is_read_at_the_last_token() -> None:
    """Not before it, and not on padding after it."""
    model = reward_model()
    for answer in ANSWERS:
        x_TD = model.hidden_states(torch.tensor([answer.ids]))[0]
        expected = x_TD @ model.score.weight[0]
        (score,) = model.scores(Segments.of(packed([answer])))
        assert score.item() == pytest.approx(expected[-1].item(), rel=1e-4, abs=1e-5)


def test_a_score_has_the_same_bits_in_every_batch() -> None:
    model = reward_model()
    alone = [model.scores(Segments.of(packed([answer])))[0] for answer in ANSWERS]
    for order in ([7, 0, 3, 5], list(range(8)), [2, 2, 6]):
        batch = packed([ANSWERS[i] for i in order])
        assert model.scores(Segments.of(batch)).tolist() == [alone[i].item() for i in order]


def step(size: int) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    model, objective = reward_model(), RewardModeling(MARGINS, 0.01)
    pairs = [tuple(ANSWERS[i : i + 2]) for i in range(0, 8, 2)]
    source = AnswerSource(pairs, size, seed=0)
    batches = [source.next() for _ in range(4 // size)]
    means = accumulate(model, objective, batches, objective.denominator(batches), RUNTIME)
    return means, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def test_loss_and_gradients_are_those_of_a_plain_float64_model() -> None:
    means, grads = step(2)
    exact = reward_model().double()
    scores = []
    for answer in ANSWERS:
        x_TD = exact.hidden_states(torch.tensor([answer.ids]))[0]
        scores.append(x_TD[-1] @ exact.score.weight[0])
    losses = []
    for n, margin in enumerate(MARGINS):
        chosen, rejected = scores[2 * n], scores[2 * n + 1]
        fit = torch.log1p(torch.exp(-(chosen - rejected - margin)))
        losses.append(fit + 0.01 * (chosen + rejected) ** 2)
    loss = torch.stack(losses).mean()
    loss.backward()
    assert means["loss"] == pytest.approx(loss.item(), rel=1e-5)
    for name, p in exact.named_parameters():
        assert p.grad is not None
        assert (grads[name].double() - p.grad).norm() <= 2e-4 * p.grad.norm(), name


def test_micro_batches_give_one_gradient() -> None:
    results = [step(size) for size in (1, 2, 4)]
    for means, grads in results[1:]:
        assert means == pytest.approx(results[0][0], rel=1e-9)
        for name, grad in grads.items():
            torch.testing.assert_close(grad, results[0][1][name], rtol=1e-4, atol=1e-6)


def test_a_head_of_one_row_is_not_a_matrix_for_muon() -> None:
    model = reward_model()
    muon, adamw = build_optimizers(model, OptimizerConfig())
    assert not any(p is model.score.weight for g in muon.param_groups for p in g["params"])
    assert any(p is model.score.weight for g in adamw.param_groups for p in g["params"])


@pytest.fixture(scope="module")
def inputs(pieces: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    folder = tmp_path_factory.mktemp("reward")
    return {
        "pairs": pair_folder(pieces, folder / "pairs").dataset.path,
        "parent": parent(pieces, folder / "parent"),
    }


def settings(inputs: Mapping[str, Path], **objective: Any) -> RunConfig:
    return RunConfig.parse(
        {
            "steps": 30,
            "log_every": 1,
            "data": {
                "path": str(inputs["pairs"]),
                "seq_len": CONTEXT,
                "batch_size": 8,
                "micro_batch_size": 4,
            },
            "model": {"init": str(inputs["parent"])},
            "optimizer": {"learning_rate": 0.002, "embedding_learning_rate": 0.01},
            "schedule": {"warmup": 0, "decay": 0},
            "objective": {"kind": "reward", **objective},
            "evaluation": {"every": 10},
            "checkpoint": {"every": 10},
            "runtime": {"compile": False, "dtype": "float32", "threads": 1},
        }
    )


@pytest.fixture(scope="module")
def run(inputs: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("reward") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gemmule.runs.carbon.start_tracker", lambda *_: 1 / 0)
        run_training(settings(inputs), out)
    return out


def test_it_learns_what_people_chose(run: Path) -> None:
    lines = [m for m in read_metrics(run) if "loss" in m]
    assert lines[0]["rewards/margins"] == 0
    result = files.read_json(run / "result.json")
    assert result["accuracy"]["low"] > 0.5
    assert set(result["rules"]) == {"shorter", "refusal"}
    assert result["rules"]["shorter"]["difference"]["low"] > -0.3
    manifest = files.read_json(run / "manifest.json")
    assert manifest["objective"] == {"name": "reward modeling", "center": 0.01, "margins": True}


def test_without_margins_the_first_loss_is_log_2(
    inputs: Mapping[str, Path], tmp_path: Path
) -> None:
    config = settings(inputs, margins=False).model_copy(update={"steps": 1})
    run_training(config, tmp_path / "run")
    (line,) = [m for m in read_metrics(tmp_path / "run") if "loss" in m]
    assert line["loss"] == math.log(2)


def test_a_stopped_run_ends_in_the_same_bytes(
    inputs: Mapping[str, Path], run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, calls = RewardModel.scores, []

    def interrupted(*args: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 31:
            signal.raise_signal(signal.SIGTERM)
        return plain(*args, **options)

    out = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(RewardModel, "scores", interrupted)
        run_training(settings(inputs), out)
    run_training(load_run_config(out / "config.toml"), out, resume=True)
    name = "model/model.safetensors"
    assert (out / name).read_bytes() == (run / name).read_bytes()


def test_an_adapter_is_merged_so_that_the_head_is_kept(
    inputs: Mapping[str, Path], tmp_path: Path
) -> None:
    values = settings(inputs).model_dump(exclude_none=True)
    values["optimizer"] = {"name": "adamw", "learning_rate": 0.01}
    config = RunConfig.parse({**values, "adapter": {"rank": 4}})
    result = run_training(config, tmp_path / "run")
    assert result["accuracy"]["low"] > 0.5
    model, _ = load_reward_model(tmp_path / "run")
    assert model.score.weight.norm() > 0


def heldout(inputs: Mapping[str, Path]) -> list[Rendered]:
    pairs = ChatData.open(inputs["pairs"]).pairs("heldout")
    return [answer for pair in pairs for answer in (pair.chosen, pair.rejected)]


def test_transformers_reads_the_run_and_gives_the_same_scores(
    inputs: Mapping[str, Path], run: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(
        run / "model", attn_implementation="eager"
    ).eval()
    ours, _ = load_reward_model(run)
    answers = heldout(inputs)
    with torch.no_grad():
        scores = ours.scores(Segments.of(packed(answers)))
        for answer, score in zip(answers, scores, strict=True):
            logits = theirs(torch.tensor([answer.ids])).logits
            assert logits.shape == (1, 1)
            assert logits.item() == pytest.approx(score.item(), rel=1e-3, abs=1e-4)


def test_what_transformers_writes_is_read(
    run: Path, inputs: Mapping[str, Path], tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(run / "model")
    theirs.save_pretrained(tmp_path / "theirs")
    _, tokenizer = load_reward_model(run)
    tokenizer.save(tmp_path / "theirs")
    again, _ = load_reward_model(tmp_path / "theirs")
    ours, _ = load_reward_model(run)
    segments = Segments.of(packed(heldout(inputs)))
    with torch.no_grad():
        assert torch.equal(again.scores(segments), ours.scores(segments))


def test_the_two_kinds_of_model_are_not_confused(
    run: Path, inputs: Mapping[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="sequence classifier or reward model"):
        load_model(run)
    with pytest.raises(CheckpointError, match=r"is not that of a reward model.*Gemma2ForCausalLM"):
        load_reward_model(inputs["parent"])
    with pytest.raises(CheckpointError, match="nothing at"):
        load_reward_model(tmp_path / "none")


def test_a_saved_reward_model_is_read_back(pieces: Tokenizer, tmp_path: Path) -> None:
    shape = tiny_config(GROUPED, vocab_size=pieces.vocab_size)
    head = torch.randn(1, shape.hidden_size, generator=torch.Generator().manual_seed(1))
    model = RewardModel.on(random_model(shape, seed=5), head)
    save_model(model, pieces, tmp_path / "model")
    again, tokenizer = load_reward_model(tmp_path / "model")
    assert tokenizer.fingerprint == pieces.fingerprint
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)


def test_it_needs_a_model_to_start_from(inputs: Mapping[str, Path], tmp_path: Path) -> None:
    config = settings(inputs)
    config = config.model_copy(update={"model": config.model.model_copy(update={"init": None})})
    with pytest.raises(ConfigError, match=r"set model\.init"):
        run_training(config, tmp_path / "run")


def test_memorization_cannot_be_measured(inputs: Mapping[str, Path], tmp_path: Path) -> None:
    """With a probe given too: a reward model continues no text."""
    config = settings(inputs)
    evaluation = config.evaluation.model_copy(update={"memorization": MemorizationConfig()})
    config = config.model_copy(update={"evaluation": evaluation})
    with pytest.raises(ConfigError, match=r"evaluation\.memorization: a reward model scores text"):
        run_training(config, tmp_path / "run", make_probes=[memorization_probe])
    assert not (tmp_path / "run").exists()


def test_rules() -> None:
    assert [shorter("a", "bb"), shorter("bb", "a"), shorter("aa", "bb")] == [1, 0, 0.5]
    assert refusal("I'm sorry, no.", "Sure, here it is") == 1
    assert refusal("Sure", "I can't do that") == 0
    assert refusal("Sure", "Of course") == 0.5
    assert refusal("I cannot help.", "Sorry.") == 0.5


def test_rules_are_compared_pair_by_pair(pieces: Tokenizer) -> None:
    def answer(text: str) -> Rendered:
        ids = pieces.encode(text)
        return Rendered((2, *ids), (False, *[True] * len(ids)))

    answers = [answer(t) for t in ("sea", "the old sea", "the old wind", "red", "sea", "sea")]
    rules = compared_with_rules([True, True, False], answers, pieces)
    assert rules["shorter"]["accuracy"]["value"] == pytest.approx(0.5)
    assert rules["shorter"]["decided"]["value"] == pytest.approx(2 / 3)
    assert rules["shorter"]["difference"]["value"] == pytest.approx(1 / 6)
    assert rules["refusal"]["decided"]["value"] == 0
