"""On-policy distillation: what it trains on, its gradients, and runs that are stopped."""

import dataclasses
import itertools
import json
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from stopping_models import stopping_model
from torch import Tensor
from typer.testing import CliRunner

from gemmule import cli, files
from gemmule.checkpoints.hf.writer import save_model
from gemmule.data.batch import Batch
from gemmule.errors import CheckpointError, ConfigError, DataError, Interrupted, TrainingError
from gemmule.losses.divergences import Divergence, Kind
from gemmule.losses.labels import IGNORED
from gemmule.model.gemma import Gemma
from gemmule.model.spm_train import END_OF_TURN_ID
from gemmule.model.tokenizer import Tokenizer
from gemmule.posttrain.answer_rows import (
    SAMPLED_LOGPROBS,
    batches_of_rollouts,
    rows_of,
    rows_of_rollouts,
)
from gemmule.posttrain.chat_data import ChatData, write_conversations, write_prompts
from gemmule.posttrain.conversations import Conversation, Message, Prompt
from gemmule.posttrain.mixed_source import MixedSource
from gemmule.posttrain.objectives.on_policy_distillation import OnPolicyDistillation
from gemmule.posttrain.recipes import opd
from gemmule.posttrain.rendering import render_conversation
from gemmule.posttrain.rollouts import Rollout
from gemmule.runs.metrics import read_metrics
from gemmule.runtime.config import RuntimeConfig
from gemmule.teachers.gemma import GemmaTeacher
from gemmule.train.config import RunConfig, load_run_config
from gemmule.train.run import run_training
from gemmule.train.step import accumulate

Settings = Callable[..., dict[str, Any]]
pytestmark = pytest.mark.usefixtures("no_meter")

VOCABULARY = 512
DIVERGENCES: list[Divergence] = [
    Divergence("forward_kl"), Divergence("reverse_kl"), Divergence("jsd", beta=0.3),
    Divergence("skew_kl"), Divergence("skew_reverse_kl"),
]  # fmt: skip


def rollout(seed: int, prompt: int, answer: int, *, finished: bool = True) -> Rollout:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(110, VOCABULARY, (prompt + answer,), generator=generator).tolist()
    end = [END_OF_TURN_ID] if finished else []
    answers = (*ids[prompt : prompt + answer - len(end)], *end)
    return Rollout(tuple(ids[:prompt]), answers, (0.0,) * answer, "", finished)


ROLLOUTS = [rollout(i, 3 + i % 4, 1 + 2 * i % 7, finished=i % 3 > 0) for i in range(8)]


@pytest.fixture(scope="module")
def student() -> Gemma:
    return stopping_model(VOCABULARY, 3)


@pytest.fixture(scope="module")
def teacher() -> GemmaTeacher:
    return GemmaTeacher("teacher", stopping_model(VOCABULARY, 4))


def objective(teacher: GemmaTeacher, kind: Kind = "reverse_kl", **changes: Any) -> Any:
    return OnPolicyDistillation(teacher, Divergence(kind), max_logp_difference=1e9, **changes)


def test_the_answer_is_trained_with_its_stop_token_and_nothing_else() -> None:
    batch = rows_of_rollouts(ROLLOUTS)
    assert len({len(r) for r in ROLLOUTS}) > 2  # so that there is padding
    for row, rollout in enumerate(ROLLOUTS):
        labels = batch.labels_BT[row]
        assert tuple(labels[labels != IGNORED].tolist()) == rollout.answer
        start = len(rollout.prompt) - 1
        assert (labels[:start] == IGNORED).all()
        assert (labels[start : start + len(rollout.answer)] != IGNORED).all()
        ids = (rollout.prompt + rollout.answer)[:-1]
        real = batch.doc_ids_BT[row] == 1
        assert tuple(batch.tokens_BT[row][real].tolist()) == ids
        assert (batch.labels_BT[row][~real] == IGNORED).all()
    stops = batch.labels_BT == END_OF_TURN_ID
    assert stops.sum() == sum(r.finished for r in ROLLOUTS)


def test_answers_from_data_are_trained_as_their_mask_says(pieces: Tokenizer) -> None:
    messages = [Message("user", "the sea"), Message("assistant", "a ship")]
    rendered = [
        render_conversation(messages, pieces),
        render_conversation(
            [*messages, Message("user", "wind"), Message("assistant", "red")], pieces
        ),
    ]
    batch = rows_of(rendered)
    for row, one in enumerate(rendered):
        labels = batch.labels_BT[row]
        trained = [i for i, t in zip(one.ids, one.trained, strict=True) if t]
        assert labels[labels != IGNORED].tolist() == trained
        assert trained[-2:] == [END_OF_TURN_ID, pieces.eos_id]


def test_student_and_teacher_read_the_same_ids(
    student: Gemma, teacher: GemmaTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the loss is biased (tinker-cookbook#796, trl PR 5725)."""
    seen: list[tuple[Tensor, Tensor]] = []
    plain = Gemma.hidden_states

    def spy(self: Gemma, tokens_BT: Tensor, **rest: Any) -> Tensor:
        seen.append((tokens_BT, rest["doc_ids_BT"]))
        return plain(self, tokens_BT, **rest)

    monkeypatch.setattr(Gemma, "hidden_states", spy)
    objective(teacher).loss(student, rows_of_rollouts(ROLLOUTS))
    (theirs, their_ids), (ours, our_ids) = seen
    assert theirs.equal(ours)
    assert their_ids.equal(our_ids)


def plain_divergence(divergence: Divergence, s: Tensor, t: Tensor) -> Tensor:
    """Divergence of log-probabilities [A, V], summed, straight from its definition."""
    log_p, log_q = s.log_softmax(-1), t.log_softmax(-1)
    p, q = log_p.exp(), log_q.exp()

    def kl(a: Tensor, b: Tensor) -> Tensor:
        return (a * (a.log() - b.log())).sum()

    beta, skew = divergence.beta, divergence.skew
    m = beta * q + (1 - beta) * p
    return {
        "forward_kl": lambda: kl(q, p),
        "reverse_kl": lambda: kl(p, q),
        "jsd": lambda: beta * kl(q, m) + (1 - beta) * kl(p, m),
        "skew_kl": lambda: kl(q, skew * q + (1 - skew) * p),
        "skew_reverse_kl": lambda: kl(p, skew * p + (1 - skew) * q),
    }[divergence.kind]()


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("divergence", DIVERGENCES, ids=lambda d: d.kind)
def test_gradients_are_those_of_float64_autograd(
    student: Gemma, teacher: GemmaTeacher, divergence: Divergence, temperature: float
) -> None:
    """At each temperature: GKD's divergence forgets it in trl PR 6006."""
    loss = OnPolicyDistillation(teacher, divergence, temperature, 1e9)
    batch = rows_of_rollouts(ROLLOUTS)
    student.zero_grad()
    ours, sums = loss.loss(student, batch)
    ours.backward()
    exact, exact_teacher = (_double(model) for model in (student, teacher.model))
    total, nll = torch.zeros((), dtype=torch.float64), 0.0
    for rollout in ROLLOUTS:  # one by one, without padding
        ids = torch.tensor([rollout.prompt + rollout.answer])
        places = slice(len(rollout.prompt) - 1, -1)
        with torch.no_grad():
            taught = exact_teacher(ids)[0, places]
        logits = exact(ids)[0, places]
        total = total + temperature**2 * plain_divergence(
            divergence, logits / temperature, taught / temperature
        )
        answer = torch.tensor(rollout.answer)[:, None]
        nll -= logits.log_softmax(-1).gather(1, answer).sum().item()
    total.backward()
    assert ours.item() == pytest.approx(total.item(), rel=1e-5)
    assert sums["entropy"].item() == pytest.approx(nll, rel=1e-5)
    for (name, a), b in zip(student.named_parameters(), exact.parameters(), strict=True):
        assert a.grad is not None
        assert b.grad is not None
        error = (a.grad - b.grad).abs().max() / b.grad.abs().max()
        assert error < 1e-4, name


def _double(model: Gemma) -> Gemma:
    copy = Gemma(model.config).double()
    copy.load_state_dict(model.state_dict())
    return copy


def test_micro_batches_of_all_sizes_give_one_gradient(
    student: Gemma, teacher: GemmaTeacher
) -> None:
    """The divisor is the number of answer tokens of the whole step (trl#4719, PR 6024)."""
    gradients, losses = [], []
    for rows in (1, 2, 4, 8):
        student.zero_grad()
        loss, batches = objective(teacher), batches_of_rollouts(ROLLOUTS, rows)
        denominator = loss.denominator(batches)
        assert denominator == sum(len(r.answer) for r in ROLLOUTS)
        runtime = RuntimeConfig(device="cpu", dtype="float32", compile=False)
        losses.append(accumulate(student, loss, batches, denominator, runtime)["loss"])
        gradients.append({n: p.grad.clone() for n, p in student.named_parameters()})
    assert losses == pytest.approx([losses[0]] * 4, rel=1e-6)
    for other in gradients[1:]:
        for name, gradient in gradients[0].items():
            assert (other[name] - gradient).abs().max() < 1e-4 * gradient.abs().max(), name


def test_an_equal_teacher_teaches_nothing(student: Gemma) -> None:
    copy = Gemma(student.config)
    copy.load_state_dict(student.state_dict())
    for divergence in DIVERGENCES:
        loss = OnPolicyDistillation(GemmaTeacher("copy", copy), divergence, 1.0, 1e9)
        value, _ = loss.loss(student, rows_of_rollouts(ROLLOUTS))
        assert abs(value.item()) < 1e-4


def test_a_sampler_that_differs_stops_the_run(student: Gemma, teacher: GemmaTeacher) -> None:
    batch = rows_of_rollouts(ROLLOUTS)
    labels = batch.labels_BT.clamp(min=0)
    with torch.no_grad():
        log_p = student(batch.tokens_BT, doc_ids_BT=batch.doc_ids_BT).log_softmax(-1)
    sampled = log_p.gather(2, labels[..., None])[..., 0]
    loss = OnPolicyDistillation(teacher, Divergence("reverse_kl"), 1.0, 0.05)
    loss.loss(student, dataclasses.replace(batch, extras={SAMPLED_LOGPROBS: sampled}))
    metrics = loss.check.after_step()
    assert 0 <= metrics["sampling/logp_difference/max"] < 1e-4
    assert loss.check.after_step() == {}
    place = tuple((batch.labels_BT != IGNORED).nonzero()[5].tolist())
    for wrong in (0.1, torch.nan):
        sampled[place] += wrong
        with pytest.raises(TrainingError, match="sampler and trainer disagree"):
            loss.loss(student, dataclasses.replace(batch, extras={SAMPLED_LOGPROBS: sampled}))


class _OwnBatches:
    """A source in place of rollouts."""

    drawn = 0

    def next(self) -> Batch:
        self.drawn += 1
        return rows_of_rollouts(ROLLOUTS[:2])

    def state(self) -> dict[str, int]:
        return {"drawn": self.drawn}

    def load_state(self, state: Any) -> None:
        self.drawn = state["drawn"]


def mixed(pieces: Tokenizer, fraction: float) -> MixedSource:
    rendered = [
        render_conversation(
            [Message("user", f"sea {i}"), Message("assistant", f"ship {i}")], pieces
        )
        for i in range(7)
    ]
    own = _OwnBatches()
    return MixedSource(own, rendered, fraction, micro_batch=2, micro_batches=2, seed=5)


def is_own(batch: Batch) -> bool:
    return SAMPLED_LOGPROBS in batch.extras


def test_lambda_is_the_fraction_of_steps_on_own_answers(pieces: Tokenizer) -> None:
    source = mixed(pieces, 0.3)
    steps = [[is_own(source.next()) for _ in range(2)] for _ in range(600)]
    assert all(first == second for first, second in steps)  # a step is of one kind
    assert sum(first for first, _ in steps) / 600 == pytest.approx(0.3, abs=0.05)
    assert [first for first, _ in steps] == [source.is_own(step) for step in range(600)]
    for fraction in (0.0, 1.0):
        source = mixed(pieces, fraction)
        assert {is_own(source.next()) for _ in range(50)} == {bool(fraction)}


def test_the_mixture_continues_where_it_was(pieces: Tokenizer) -> None:
    source, again = mixed(pieces, 0.5), mixed(pieces, 0.5)
    for _ in range(6):
        source.next()
    state = source.state()
    again.load_state(state)
    for _ in range(20):
        ours, theirs = source.next(), again.next()
        assert ours.tokens_BT.equal(theirs.tokens_BT)
        assert is_own(ours) == is_own(theirs)
    for wrong in ({}, {**state, "batches": 3}, {**state, "rollouts": 3}):
        with pytest.raises(DataError, match="is not a position between two steps"):
            again.load_state(wrong)


@pytest.fixture(scope="module")
def models(pieces: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("models")
    for name, seed in (("student", 3), ("teacher", 4)):
        save_model(stopping_model(VOCABULARY, seed), pieces, folder / name)
    return {name: str(folder / name) for name in ("student", "teacher")}


@pytest.fixture(scope="module")
def prompts(pieces: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    items = [Prompt((Message("user", f"{a} {b}"),)) for a, b in itertools.product(WORDS, WORDS)]
    return write_prompts(items, pieces, tmp_path_factory.mktemp("prompts") / "data").dataset.path


@pytest.fixture(scope="module")
def conversations(pieces: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    items = [
        Conversation((Message("user", f"{a} {b}"), Message("assistant", f"{b} {a}")))
        for a, b in itertools.product(WORDS, WORDS)
    ]
    out = tmp_path_factory.mktemp("conversations") / "data"
    return write_conversations(items, pieces, out).dataset.path


WORDS = ["sea", "ship", "wind", "sail", "red", "old", "captain", "harbour"]


def settings(tiny: Settings, models: dict[str, str], data: Path, **objective: Any) -> RunConfig:
    values = tiny(
        steps=6,
        data={"path": str(data), "seq_len": 48, "batch_size": 8, "micro_batch_size": 4},
        objective={
            "kind": "opd", "teacher": models["teacher"], "max_new_tokens": 12, **objective,
        },
        evaluation={"every": 3, "tokens": 60, "heldout_tokens": 60},
        checkpoint={"every": 2},
    )  # fmt: skip
    values["objective"]["kind"] = "opd"
    return RunConfig.parse({**values, "model": {"init": models["student"]}})


def weights(run: Path) -> bytes:
    return (run / "model/model.safetensors").read_bytes()


def metrics(run: Path, ignore: Sequence[str] = ("seconds", "tokens_per_second")) -> list[Any]:
    return [{k: v for k, v in m.items() if k not in ignore} for m in read_metrics(run)]


def test_a_run_comes_nearer_to_its_teacher(
    tiny: Settings, models: dict[str, str], prompts: Path, tmp_path: Path
) -> None:
    config = settings(tiny, models, prompts)
    auto = config.runtime.model_copy(update={"dtype": "auto"})
    config = config.model_copy(update={"runtime": auto})
    result = run_training(config, tmp_path / "run")
    lines = [m for m in read_metrics(tmp_path / "run") if "learning_rate" in m]
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert all(0 <= m["sampling/logp_difference/max"] < 1e-3 for m in lines)
    assert all(1 <= m["completions/mean_length"] <= 12 for m in lines)
    assert all(0 <= m["completions/clipped_ratio"] <= 1 for m in lines)
    validation = [m for m in read_metrics(tmp_path / "run") if m.get("split") == "validation"]
    assert [m["step"] for m in validation] == [3, 6]
    assert result["split"] == "heldout"
    assert result["loss"] > 0
    manifest = files.read_json(tmp_path / "run/manifest.json")
    assert manifest["kind"] == "opd"
    assert [p["path"] for p in manifest["parents"]] == [models["student"], models["teacher"]]
    assert manifest["objective"]["loss"] == "reverse_kl"
    assert load_run_config(tmp_path / "run/config.toml").runtime.dtype == "float32"


def test_an_adapter_is_sampled_from_as_it_is_trained(
    tiny: Settings, models: dict[str, str], prompts: Path, tmp_path: Path
) -> None:
    """At this learning rate the weights without the adapter differ by far more than rounding."""
    values = settings(tiny, models, prompts).model_dump(mode="json", exclude_none=True)
    values |= {
        "optimizer": {"name": "adamw", "learning_rate": 0.02},
        "adapter": {"rank": 2, "alpha": 4.0},
    }
    run_training(RunConfig.parse(values), tmp_path / "run")
    lines = [m for m in read_metrics(tmp_path / "run") if "learning_rate" in m]
    assert len({m["loss"] for m in lines}) == len(lines) == 6
    assert all(0 <= m["sampling/logp_difference/max"] < 1e-3 for m in lines)


@pytest.mark.parametrize("lmbda", [1.0, 0.5])
def test_a_stopped_run_ends_in_the_same_bytes(
    tiny: Settings,
    models: dict[str, str],
    conversations: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    lmbda: float,
) -> None:
    config = settings(tiny, models, conversations, lmbda=lmbda, loss="jsd", samples=2)
    run_training(config, tmp_path / "whole")
    plain, calls = OnPolicyDistillation.loss, itertools.count(1)

    def loss(self: OnPolicyDistillation, model: Gemma, batch: Batch) -> Any:
        if torch.is_grad_enabled() and next(calls) == 6:  # the second micro-batch of step 3
            signal.raise_signal(signal.SIGTERM)
        return plain(self, model, batch)

    out = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(Interrupted, match="after step 3 of 6"):
        patch.setattr(OnPolicyDistillation, "loss", loss)
        run_training(config, out)
    run_training(load_run_config(out / "config.toml"), out, resume=True)
    assert weights(out) == weights(tmp_path / "whole")
    assert metrics(out) == metrics(tmp_path / "whole")


@pytest.mark.parametrize("kind", ["opd", "distill"])
@pytest.mark.parametrize(
    ("objective", "message"),
    [
        ({"loss": "reverse_kl", "beta": 0.3}, "beta is a parameter of jsd, and loss is reverse_kl"),
        ({"loss": "skew_kl", "beta": 0.3}, "beta is a parameter of jsd, and loss is skew_kl"),
        ({"loss": "jsd", "skew": 0.3}, "skew is a parameter of skew_kl and skew_reverse_kl, and"),
    ],
    ids=str,
)
def test_parameters_of_other_divergences_are_refused(
    kind: str, objective: dict[str, Any], message: str
) -> None:
    values = {"steps": 1, "data": {"path": "data"}}
    with pytest.raises(ConfigError, match=message):
        RunConfig.parse({**values, "objective": {"kind": kind, "teacher": "t", **objective}})
    used = (
        {"loss": "skew_reverse_kl", "skew": 0.3}
        if "skew" in message
        else {"loss": "jsd", "beta": 0.3}
    )
    RunConfig.parse({**values, "objective": {"kind": kind, "teacher": "t", **used}})


def test_mistakes_are_explained(
    tiny: Settings, models: dict[str, str], prompts: Path, pieces: Tokenizer, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with pytest.raises(DataError, match="lmbda below 1 needs answers to learn from"):
        run_training(settings(tiny, models, prompts, lmbda=0.5), out)
    with pytest.raises(DataError, match=r"none of the .* prompts of the train split has at most 2"):
        run_training(settings(tiny, models, prompts, max_new_tokens=46), out)
    with pytest.raises(ConfigError, match=r"batch_size = 8 answers .* objective.samples = 3"):
        run_training(settings(tiny, models, prompts, samples=3), out)
    values = settings(tiny, models, prompts).model_dump(mode="json", exclude_none=True)
    with pytest.raises(ConfigError, match=r"starts from a trained model: set model\.init"):
        run_training(RunConfig.parse({**values, "model": {"preset": "1m"}}), out)
    half = {**values, "runtime": {**values["runtime"], "dtype": "bfloat16"}}
    with pytest.raises(ConfigError, match="the trainer must have the same probabilities"):
        run_training(RunConfig.parse(half), out)
    save_model(stopping_model(VOCABULARY + 8, 4), pieces, tmp_path / "wide")
    wide = {**models, "teacher": str(tmp_path / "wide")}
    with pytest.raises(ConfigError, match="has 520 rows in its vocabulary and the student 512"):
        run_training(settings(tiny, wide, prompts), out)
    assert not out.exists()


def test_what_does_not_fit_is_counted(
    tiny: Settings,
    models: dict[str, str],
    conversations: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    chat = ChatData.open(conversations)
    lengths = sorted(len(c.rendered) for c in chat.conversations("train"))
    config = settings(tiny, models, conversations, lmbda=0.5, max_new_tokens=1)
    fitting = lengths[len(lengths) // 2]  # with the last token, which is a label only
    config = config.model_copy(
        update={"data": config.data.model_copy(update={"seq_len": fitting - 1}), "steps": 1}
    )
    result = run_training(config, tmp_path / "run")
    assert result["conversation_too_long"] == sum(n > fitting for n in lengths) > 0
    assert set(result["prompt_too_long"]) == {"train", "validation", "heldout"}
    printed = "".join(capsys.readouterr()).replace("\n", " ")
    assert f"left out: {result['conversation_too_long']} of {len(lengths)} conversations" in printed


def test_a_changed_teacher_is_noticed_when_a_run_is_resumed(
    tiny: Settings, models: dict[str, str], prompts: Path, pieces: Tokenizer, tmp_path: Path
) -> None:
    out, own = tmp_path / "run", {**models, "teacher": str(tmp_path / "teacher")}
    save_model(stopping_model(VOCABULARY, 4), pieces, tmp_path / "teacher")
    run_training(settings(tiny, own, prompts), out)
    (out / "result.json").unlink()
    save_model(stopping_model(VOCABULARY, 5), pieces, tmp_path / "teacher")
    with pytest.raises(CheckpointError, match=r"teacher has other weights than when .* started"):
        run_training(load_run_config(out / "config.toml"), out, resume=True)


@pytest.mark.parametrize("in_file", [False, True])
@pytest.mark.parametrize("lmbda", [1.0, 0.5])
def test_the_command_makes_the_data_and_trains(
    models: dict[str, str], tmp_path: Path, lmbda: float, in_file: bool
) -> None:
    file, out = tmp_path / "prompts.jsonl", tmp_path / "run"
    lines = [{"prompt": f"{a} {b}", "completion": f"{b} {a}"} for a in WORDS for b in WORDS]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    changes = ["steps=1", "data.seq_len=48", "data.batch_size=4", "objective.max_new_tokens=12"]
    if not in_file:
        changes.append(f"objective.lmbda={lmbda}")
    config = tmp_path / "opd.toml"
    config.write_text(f"[objective]\nlmbda = {lmbda}\n" if in_file else "")
    chosen = [word for change in changes for word in ("--set", change)]
    command = ["align", str(config), "--method", "opd", "--model", models["student"],
               "--file", str(file), "--teacher", models["teacher"], "--out", str(out), "--json",
               *chosen]  # fmt: skip
    done = CliRunner().invoke(cli.app, command)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["loss"] > 0
    saved = load_run_config(out / "config.toml").objective
    assert isinstance(saved, opd.OpdConfig)
    assert (saved.teacher, saved.lmbda) == (models["teacher"], lmbda)
