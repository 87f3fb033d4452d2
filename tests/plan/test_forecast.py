"""Whole plans: with a calibration made up, so that every figure follows, and a real one."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from gemmule import cli
from gemmule.errors import CheckpointError, ConfigError, DataError, TokenizerError
from gemmule.model.config import PRESETS, GemmaConfig, preset
from gemmule.model.gemma import Gemma
from gemmule.model.tokenizer import Tokenizer
from gemmule.plan import calibrate, forecast
from gemmule.plan.calibrate import Calibration, CalibrationRequest
from gemmule.plan.forecast import make_plan
from gemmule.plan.memory import HEAP_GROWTH
from gemmule.plan.settings import PlanRequest
from gemmule.plan.tables import show

STEP = {
    "step_seconds": 2.0, "compile_seconds": 30.0, "overhead_seconds": 5.0, "save_seconds": 1.0,
    "evaluation_seconds_per_token": 1e-3, "watts": 36.0, "grid_gco2e_per_kwh": 500.0,
    "how": {"cpu": "made up"}, "peak_bytes": 800_000_000, "steps": 3,
}  # fmt: skip
START = {
    "seconds": 10.0, "threads": 1, "dtype": "float32", "compiled": [False, False],
    "peak_bytes": 300_000_000,
}  # fmt: skip
TEACHER = {
    "load_seconds": 4.0, "forward_seconds_per_token": 1e-3, "record_seconds_per_token": 2e-3,
    "nats_per_token": None, "bytes_per_token": None, "tokens": 4096, "peak_bytes": 400_000_000,
}  # fmt: skip
Plan = Callable[..., dict[str, Any]]


@pytest.fixture
def plan(monkeypatch: pytest.MonkeyPatch) -> Plan:
    """plan(**settings): with figures that the test chose instead of a minute's measuring."""

    def made_up(
        asked: CalibrationRequest, gflops: float, seconds: float, say: Any, **measured: Any
    ) -> Calibration:
        return Calibration(
            START, dict(TEACHER), dict(STEP), {**STEP, "step_seconds": 3.0}, asked.rows,
            asked.student, 100.0, 1.0,
        )  # fmt: skip

    monkeypatch.setattr(forecast, "calibrate", made_up)
    monkeypatch.setattr("gemmule.runtime.device.matmul_gflops", lambda: 100.0)

    def make(**settings: Any) -> dict[str, Any]:
        values = {"teacher": "3m", "student": "1m", "vocab_size": 4096, **settings}
        return make_plan(PlanRequest.parse({k: v for k, v in values.items() if v is not None}))

    return make


def test_hours_are_steps_and_all_that_is_around_them(plan: Plan) -> None:
    forecast = plan(steps=1000, settings=("checkpoint.minutes=1000",))
    routes = forecast["routes"]
    # Start 10, compiling 30, 5 for meter and files, 1000 steps of 2, saved after 500 and 1000.
    assert routes["scratch"]["seconds"] == 10 + 30 + 5 + 2000 + 2 * 1
    assert routes["online"]["seconds"] == 10 + 4 + 30 + 5 + 3000 + 2 * 1
    assert routes["record"]["seconds"] == pytest.approx(10 + 4 + 5 + 1000 * 2048 * 2e-3)
    assert routes["stored"]["seconds"] == pytest.approx(10 + 30 + 5 + 2040 + 2 * 1)
    assert routes["scratch"]["energy_wh"] == pytest.approx(36 * 2047 / 3600, abs=1e-3)
    assert routes["scratch"]["gco2e"] == pytest.approx(0.5 * 36 * 2047 / 3600, abs=1e-3)
    assert forecast["energy_how"] == {"cpu": "made up"}


def test_evaluation_belongs_to_the_hours(plan: Plan, prepared: Path) -> None:
    sizes = json.loads((prepared / "manifest.json").read_text())["splits"]
    settings = ("data.seq_len=24", "evaluation.every=4", "evaluation.tokens=100")
    forecast = plan(vocab_size=None, data=prepared, steps=10, settings=settings)
    without = plan(steps=10, settings=settings)
    evaluated = 3 * 100 + sizes["heldout"]["tokens"]
    extra = forecast["routes"]["scratch"]["seconds"] - without["routes"]["scratch"]["seconds"]
    assert extra == pytest.approx(evaluated * 1e-3, abs=0.02)  # seconds are rounded
    assert any("no corpus yet" in note for note in without["notes"])


def test_equal_compute_counts_the_teacher(plan: Plan) -> None:
    forecast = plan(tokens=2_048_000)
    student, teacher = (
        preset(n, vocab_size=4096).forward_flops_per_token(256) for n in ("1m", "3m")
    )
    routes = forecast["routes"]
    assert routes["online"]["flops"] == pytest.approx(2_048_000 * (3 * student + teacher))
    assert routes["scratch_equal_online"]["flops"] == pytest.approx(routes["online"]["flops"])
    longer = 2_048_000 * (1 + teacher / (3 * student))
    assert routes["scratch_equal_online"]["tokens"] == pytest.approx(longer, abs=1)
    shared = plan(tokens=2_048_000, students=4)["routes"]["scratch_equal_stored"]
    assert shared["tokens"] == pytest.approx(2_048_000 * (1 + teacher / (3 * student) / 4), abs=1)
    trained = forecast["scaling"]["equal_compute_with_teacher"]["scratch_tokens"]
    teacher_tokens = 20 * preset("3m", vocab_size=4096).non_embedding_parameters
    assert trained == pytest.approx(longer + teacher_tokens * teacher / student, abs=1)


def test_a_corpus_is_recorded_once_however_often_it_is_read(plan: Plan, prepared: Path) -> None:
    tokens = json.loads((prepared / "manifest.json").read_text())["splits"]["train"]["tokens"]
    settings = ("data.seq_len=24",)
    forecast = plan(vocab_size=None, data=prepared, tokens=10 * tokens, settings=settings)
    assert forecast["routes"]["record"]["tokens"] == forecast["disk"]["tokens"] == tokens
    assert any("passes over the corpus" in note for note in forecast["notes"])


def test_memory_is_the_measured_peak_at_the_measured_shape(plan: Plan) -> None:
    memory = plan(steps=10)["memory"]
    assert memory["scratch"]["peak_bytes"] == HEAP_GROWTH * STEP["peak_bytes"]
    largest, limit = memory["scratch"]["largest_micro_batch"], memory["limit_bytes"]
    bigger = plan(steps=10, settings=(f"data.batch_size={largest}",))["memory"]
    assert (
        bigger["scratch"]["largest_micro_batch"] > largest
    )  # as much was measured at a larger one
    assert 8 < largest < limit / 100_000


def test_without_runs_the_plan_says_what_that_is_worth(plan: Plan) -> None:
    law = plan(steps=10)["scaling"]
    assert "published law alone" in law["basis"]
    assert "do not rely on it" in law["verdict"]
    assert law["runs"] == []
    assert law["teacher_loss"]["how"].startswith("predicted for")


def test_what_was_not_reached_is_composed(monkeypatch: pytest.MonkeyPatch, plan: Plan) -> None:
    def only(scratch: dict[str, Any] | None, teacher: dict[str, Any] | None) -> dict[str, Any]:
        def made_up(asked: CalibrationRequest, *_: Any) -> Calibration:
            rows = asked.rows
            return Calibration(START, teacher, scratch, None, rows, asked.student, 100.0, 1.0)

        monkeypatch.setattr(forecast, "calibrate", made_up)
        return plan(steps=1000)

    student, teacher = (
        preset(n, vocab_size=4096).forward_flops_per_token(256) for n in ("1m", "3m")
    )
    routes = only(dict(STEP), dict(TEACHER))["routes"]
    assert routes["online"]["steady_seconds"] == pytest.approx(1000 * (2.0 + 2048 * 1e-3))
    routes = only(dict(STEP), None)["routes"]
    taught = 2.0 * (1 + teacher / (3 * student))
    assert routes["online"]["steady_seconds"] == pytest.approx(1000 * taught, abs=0.01)
    guessed = only(None, None)
    step = 3 * 2048 * student / 50e9  # half of 100 GFLOP/s
    assert guessed["routes"]["scratch"]["steady_seconds"] == pytest.approx(1000 * step, abs=0.01)
    assert guessed["routes"]["scratch"]["energy_wh"] is None
    assert guessed["memory"]["scratch"]["peak_bytes"] > START["peak_bytes"]


def test_large_models_are_cut_for_measuring() -> None:
    sizes = {"student": preset("2b"), "teacher": preset("9b")}
    train = {"data": {"batch_size": 8, "seq_len": 256}}
    asked = CalibrationRequest(**sizes, teacher_path=None, data=None, train=train, flops={})
    cuts = calibrate._cuts(asked, 200.0, 24e9)
    assert not cuts.whole
    assert [c.num_hidden_layers for c in (*cuts.student, *cuts.teacher)] == [1, 2, 1, 2]
    assert len(cuts.notes) == 2
    one = {"step_seconds": 3.0, "peak_bytes": 1}
    measured = {"scratch-0": one, "scratch-1": {"step_seconds": 5.0, "peak_bytes": 2}}
    small = cuts.student[0]
    scaled = calibrate._scaled(measured, "scratch", cuts.student, asked.student, 2.0)
    assert scaled is not None
    wider = asked.student.intermediate_size / small.intermediate_size
    assert wider == 1  # two layers of 2b fit: what follows needs no other factor
    words = asked.student.vocab_size / small.vocab_size
    assert scaled["step_seconds"] == pytest.approx(2.0 * (1.0 * words + 2.0 * 26))
    only_one = calibrate._scaled({"scratch-0": one}, "scratch", cuts.student, asked.student, 1.0)
    assert only_one is not None
    assert only_one["step_seconds"] == pytest.approx(3.0 * 26)


def test_small_models_are_measured_whole() -> None:
    small = preset("1m", vocab_size=4096)
    asked = CalibrationRequest(
        small, small, None, None, {"data": {"batch_size": 8, "seq_len": 256}}, {}
    )
    cuts = calibrate._cuts(asked, 200.0, 24e9)
    assert cuts.whole
    assert cuts.notes == []
    assert cuts.rows == 8


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"teacher": "4m"}, ConfigError, "teacher '4m' is neither a preset nor a folder; did you"),
        ({"student": "runs/none"}, CheckpointError, "no folder runs/none for the student"),
        ({"vocab_size": None}, ConfigError, "3m has no vocabulary of its own: give --data, or"),
        ({"tokens": 0}, ConfigError, "tokens = 0: input should be greater than 0"),
        ({"tokens": 1, "steps": 1}, ConfigError, "either tokens or steps"),
        ({"data": "none"}, ConfigError, "vocab_size is for plans without data"),
        ({"data": "runs/none", "vocab_size": None}, DataError, "no data folder at runs/none"),
        ({"runs": ["runs/none"]}, CheckpointError, "no folder runs/none: --runs takes"),
        ({"settings": ["batchsize=3"]}, ConfigError, "did you mean 'data.batch_size'"),
        ({"settings": ["steps=3"]}, ConfigError, "'steps=3': steps is not a setting of a plan"),
        ({"settings": ["data.seq_len=4096"]}, ConfigError, "longer than the context of 3m, 1024"),
        (
            {"settings": ["runtime.country=ZZZ"]},
            ConfigError,
            "no electricity data for country 'ZZZ'",
        ),
        ({"calibration_seconds": -1}, ConfigError, "calibration_seconds = -1"),
    ],
    ids=str,
)
def test_a_mistake_is_one_clear_error(
    plan: Plan, settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        plan(**settings)


@pytest.fixture
def saved(tmp_path: Path, pieces: Tokenizer) -> Path:
    from gemmule.checkpoints.hf.writer import save_model

    torch.manual_seed(0)
    save_model(Gemma(preset("1m", vocab_size=512)), pieces, tmp_path / "model")
    return tmp_path / "model"


def test_a_teacher_of_another_tokenizer_is_refused(
    plan: Plan, saved: Path, other_pieces: Tokenizer, text_folder: Path, tmp_path: Path
) -> None:
    from gemmule.data.prepare import prepare

    other = prepare(text_folder, other_pieces, tmp_path / "other").path
    with pytest.raises(TokenizerError, match=r"the teacher, .*model, has another tokenizer"):
        plan(teacher=str(saved), data=other, vocab_size=None)
    with pytest.raises(ConfigError, match="a vocabulary of 4,096 and the student of 512"):
        plan(student=str(saved))


def test_a_real_plan_from_the_command_line(
    saved: Path, prepared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "plan", "--teacher", str(saved), "--student", "1m", "--data", str(prepared), "--steps",
        "5", "--batch-size", "2", "--seq-len", "24", "--set", "runtime.compile=false",
        "--set", "runtime.dtype=float32", "--set", "runtime.threads=1",
        "--calibration-seconds", "900", "--json",
    ]  # fmt: skip
    done = CliRunner().invoke(cli.app, arguments)
    assert done.exit_code == 0, done.output
    forecast = json.loads(done.stdout)
    assert forecast.keys() == {
        "teacher", "student", "run", "machine", "calibration", "memory", "disk", "routes",
        "energy_how", "scaling", "budget", "scarce_text", "processes", "notes",
    }  # fmt: skip
    assert forecast["run"]["tokens"] == 240
    for part in ("teacher", "scratch", "distill"):
        assert forecast["calibration"][part] is not None
    for online in ("scratch", "online"):
        # A tiny model is libraries and little else.
        assert 150e6 < forecast["memory"][online]["peak_bytes"] < 1.5e9
        assert forecast["memory"][online]["largest_micro_batch"] > 2
    assert forecast["disk"]["how"].startswith("measured on")
    assert 2 < forecast["disk"]["targets"]["sampled-50"]["bytes_per_token"] < 60
    assert forecast["disk"]["targets"]["whole fp16 logits"]["bytes_per_token"] == 1024
    assert all(r["seconds"] > r["steady_seconds"] > 0 for r in forecast["routes"].values())
    assert forecast["scaling"]["teacher_loss"]["how"].startswith("measured on")
    assert 0 <= forecast["scaling"]["equal_compute_online"]["probability"] <= 1
    show(forecast)
    printed = capsys.readouterr().err
    assert "recording the teacher once" in printed
    assert "at equal compute" in printed


def test_every_preset_can_be_named() -> None:
    from gemmule.plan.models import find

    for name in PRESETS:
        shape: GemmaConfig = find("teacher", name, 512).config
        assert shape.vocab_size == 512
    assert find("teacher", "2b", None).config.vocab_size == 256000


def test_a_budget_is_spent_and_not_exceeded(plan: Plan) -> None:
    forecast = plan(teacher="30m", students=4, max_wh=200.0)
    rows = forecast["budget"]["rows"]
    ways = {(row["student"], row["way"]) for row in rows}
    assert {("1m", "scratch"), ("1m", "online"), ("1m", "stored"), ("10m", "scratch")} <= ways
    assert ("100m", "scratch") not in ways  # larger than the teacher
    tokens = {(row["student"], row["way"]): row["tokens"] for row in rows}
    run = plan(teacher="30m", tokens=tokens["1m", "scratch"])["routes"]["scratch"]
    more = plan(teacher="30m", tokens=tokens["1m", "scratch"] + 2048)["routes"]["scratch"]
    assert run["energy_wh"] <= 200.0 < more["energy_wh"]
    assert tokens["1m", "scratch"] > tokens["1m", "online"]
    assert tokens["1m", "scratch"] > tokens["3m", "scratch"] > tokens["10m", "scratch"]
    assert sum(row["best"] for row in rows) == pytest.approx(1.0, abs=0.01)
    medians = [row["loss"]["median"] for row in rows]
    assert medians == sorted(medians)
    by_carbon = plan(teacher="30m", students=4, max_gco2e=100.0)["budget"]["rows"]
    assert {(r["student"], r["way"]): r["tokens"] for r in by_carbon} == tokens  # 500 g per kWh


def test_a_budget_that_buys_nothing_is_one_clear_error(plan: Plan) -> None:
    with pytest.raises(ConfigError, match="spent before the first step"):
        plan(max_wh=0.1)


def test_a_budget_without_a_student_that_fits(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forecast.memory, "usable", lambda: 1000)
    with pytest.raises(ConfigError, match="no student fits in this machine's memory"):
        plan(max_wh=1e6)


def test_a_budget_needs_a_meter(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STEP, "watts", None)
    with pytest.raises(ConfigError, match="a budget needs the power of this machine"):
        plan(max_wh=10.0)


def test_several_processes_are_printed(
    plan: Plan, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("gemmule.plan.processes.exchange_seconds", lambda *_: 0.5)
    monkeypatch.setattr("gemmule.runtime.host.usable_cores", lambda: 1)
    result = plan(nproc=2)
    assert result["processes"]["together_seconds"] == 2.5  # two seconds alone, on one thread
    show(result)
    printed = capsys.readouterr().err
    assert "a step of 2 processes takes 1.25 times as long as that of one" in printed
    with pytest.raises(ConfigError, match="3 ranks cannot share a batch equally"):
        plan(nproc=3)
    assert plan()["processes"] is None


def test_a_budget_is_printed(plan: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    show(plan(max_wh=50.0))
    printed = capsys.readouterr().err
    assert "for 50 Wh" in printed
    assert "P(best)" in printed
