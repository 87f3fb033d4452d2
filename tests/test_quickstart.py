"""The whole quickstart with models of two tiny layers, stopped anywhere and resumed."""

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from gemmule import files, quickstart
from gemmule.checkpoints.convert import convert
from gemmule.errors import ConfigError, DataError, OutputError, TokenizerError
from gemmule.model.config import PRESETS, preset
from gemmule.quickstart import Budget, QuickstartConfig, run_quickstart
from gemmule.runs.ledger.activity import activity
from gemmule.runs.ledger.file import own_lines
from gemmule.runs.ledger.known import in_reach
from gemmule.runs.ledger.walk import cost_at
from gemmule.runs.metrics import read_metrics
from gemmule.runs.power.machine import MachineMeter, Source
from gemmule.runs.run_dir import RunDir
from gemmule.runtime import device, host, torch_compile
from gemmule.train import loop, run
from killed import Killed, after
from models import TINY

BENCH = Path(__file__).parents[1] / "bench/scarce_text.py"
STAGES = ("teacher", "scratch", "student", "scratch_equal_compute")
SCARCE = ("targets", "scratch-4", "scratch-8", "distilled-8")
FIGURES = {
    "nats_per_token", "perplexity", "bits_per_byte", "parameters", "train_tokens", "train_flops",
    "seconds", "energy_wh", "gco2e", "seed",
}  # fmt: skip


def tiny_shape(width: int) -> dict[str, Any]:
    return {
        **TINY, "hidden_size": width, "intermediate_size": 2 * width, "max_position_embeddings": 128
    }  # fmt: skip


def shrink(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(PRESETS, "big", tiny_shape(48))
    patch.setitem(PRESETS, "small", tiny_shape(32))
    patch.setattr(quickstart, "SEQ_LEN", 24)
    patch.setattr(quickstart, "BATCH_SIZE", 4)
    patch.setattr(host, "usable_cores", lambda: 1)
    patch.setattr(device, "fastest_dtype", lambda device: "float32")
    patch.setattr(torch_compile, "can_compile", lambda: True)
    patch.setattr("gemmule.runs.carbon.start_tracker", lambda *_: 1 / 0)

    def plan(config: QuickstartConfig, out: Path) -> Budget:
        plan = Budget(
            teacher="big", student="small", teacher_steps=12, student_steps=6,
            scarce_tokens=200, matmul_gflops=1.0, speed=1.0,
        )  # fmt: skip
        files.write_json(out / "plan.json", plan.model_dump())
        return plan

    patch.setattr(quickstart, "_plan", plan)


COUNTED: list[float] = []  # what the meter of the whole command showed, reading by reading


def counting_meter() -> MachineMeter:
    """Ten watts by the clock; the first of them, that of the command, is noted."""
    noted = not COUNTED
    COUNTED.append(0.0)

    def joules() -> float:
        value = 10 * time.monotonic()
        if noted:
            COUNTED.append(value)
        return value

    return MachineMeter({"cpu": [Source(joules, "counter")]}, {"cpu": "by the clock"})


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    shrink(monkeypatch)


@pytest.fixture(scope="module")
def config(text_folder: Path) -> QuickstartConfig:
    return QuickstartConfig(minutes=1, data=text_folder, vocab_size=512, seed=3)


@pytest.fixture(scope="module")
def finished(config: QuickstartConfig, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    out = tmp_path_factory.mktemp("quickstart") / "out"
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch)
        patch.setattr("gemmule.runs.carbon.start_tracker", counting_meter)
        COUNTED.clear()
        with activity("quickstart", out):
            run_quickstart(config, out)
    yield out


def figures(comparison: Any) -> Any:
    """Without what differs from run to run."""
    if not isinstance(comparison, dict):
        return comparison
    dropped = ("seconds", "energy_wh", "gco2e")
    return {k: figures(v) for k, v in comparison.items() if k not in dropped}


def test_leaves_every_file(finished: Path) -> None:
    expected = {"config.toml", "plan.json", "tokenizer", "data", "comparison.json", "samples.json",
                "card", "ledger.jsonl", "scarce_text", *STAGES}  # fmt: skip
    assert {p.name for p in finished.iterdir()} == expected
    for stage in STAGES:
        assert (finished / stage / "model" / "model.safetensors").is_file()
        assert (finished / stage / "result.json").is_file()
    assert {"README.md", "index.html"} <= {p.name for p in (finished / "card").iterdir()}
    samples = files.read_json(finished / "samples.json")
    assert {frozenset(s) for s in samples} == {
        frozenset({"prompt", "scratch", "distilled", "teacher"})
    }


def test_the_ledger_adds_up_to_the_meter_of_the_command(finished: Path) -> None:
    scarce = [f"scarce_text/{name}" for name in SCARCE]
    places = [finished, *(finished / name for name in ("tokenizer", "data", *STAGES, *scarce))]
    lines = [line for place in places for line in own_lines(place)]
    assert [line.kind for line in lines] == [
        "quickstart", "tokenizer", "data", "train", "train", "distill", "train",
        "record", "train", "train", "distill",
    ]  # fmt: skip
    counted = [value for value in COUNTED if value]
    assert sum(line.total_joules for line in lines) == pytest.approx(counted[-1] - counted[0])
    assert all(line.total_joules > 0 for line in lines)
    assert sum(line.seconds for line in lines) == pytest.approx(
        (counted[-1] - counted[0]) / 10, abs=0.1
    )


def test_the_student_has_its_lineage_and_the_page_every_line(finished: Path) -> None:
    cost = cost_at(finished, in_reach(finished))
    assert cost is not None
    assert [stage.account.name for stage in cost.stages] == [
        "tokenizer", "data", "teacher", "student",
    ]  # fmt: skip
    # The teacher is also recorded for little text, and a student learns from that: by tokens.
    own, others = 6 * 4 * 24, 9 * 24 + 8 * 2 * 4 * 24
    assert [stage.share for stage in cost.stages] == pytest.approx([1, 1, own / (own + others), 1])
    assert {account.name for account in cost.others} == {
        finished.name, "scratch", "scratch_equal_compute", *SCARCE,
    }  # fmt: skip
    page = (finished / "card" / "index.html").read_text(encoding="utf-8")
    for stage in cost.stages:
        assert stage.account.making[0].id[:8] in page
    front = (finished / "card" / "README.md").read_text(encoding="utf-8").split("---")[1]
    grams = yaml.safe_load(front)["co2_eq_emissions"]
    assert grams["emissions"] > 0
    assert "teacher" in grams["source"]
    assert grams["training_type"] == "pre-training"


def test_comparison_has_the_agreed_keys(finished: Path) -> None:
    comparison = files.read_json(finished / "comparison.json")
    assert set(comparison) == {
        "equal_tokens", "equal_compute", "scarce_text", "heldout", "teacher", "seed",
    }  # fmt: skip
    for pair in ("equal_tokens", "equal_compute"):
        assert set(comparison[pair]) == {"scratch", "distilled"}
        assert all(set(model) >= FIGURES for model in comparison[pair].values())
    assert set(comparison["heldout"]) == {"name", "documents", "tokens", "bytes"}
    scratch, student = (comparison["equal_tokens"][k] for k in ("scratch", "distilled"))
    longer = comparison["equal_compute"]["scratch"]
    assert comparison["equal_compute"]["distilled"] == student
    assert scratch["train_tokens"] == student["train_tokens"] == 6 * 4 * 24
    assert scratch["parameters"] == student["parameters"] == longer["parameters"]
    # To the nearest step.
    assert longer["train_flops"] == pytest.approx(student["train_flops"], abs=0.5 * scratch[
        "train_flops"] / 6)  # fmt: skip
    assert longer["train_tokens"] > scratch["train_tokens"]
    # Nothing that was held out is trained or tuned on.
    splits = files.read_json(finished / "data" / "manifest.json")["splits"]
    assert comparison["heldout"]["tokens"] == splits["heldout"]["tokens"]


@pytest.mark.usefixtures("small")
def test_little_text_is_read_several_times(finished: Path) -> None:
    scarce = files.read_json(finished / "comparison.json")["scarce_text"]
    assert scarce["text"]["tokens"] == 9 * 24  # whole sequences
    for way, lengths in (("scratch", (4, 8)), ("distilled", (8,))):
        folders = [finished / "scarce_text" / f"{way}-{length}" for length in lengths]
        results = [files.read_json(folder / "result.json") for folder in folders]
        # Nine sequences are two batches of four: an epoch is evaluated after two steps.
        assert [r["train_tokens"] for r in results] == [n * 2 * 4 * 24 for n in lengths]
        best = min(results, key=lambda r: r["best"]["loss"])
        chosen = scarce[way]
        assert chosen["nats_per_token"] == best["nats_per_token"]
        assert chosen["epochs"] == best["best"]["step"] / 2
        assert len(scarce["tried"][way]) == len(lengths)
    targets = files.read_json(finished / "scarce_text" / "targets" / "manifest.json")
    assert targets["teacher"]["path"] == str(finished / "teacher")
    forward = preset("big", vocab_size=512).forward_flops_per_token(24)
    assert scarce["recording"]["flops"] == 9 * 24 * forward
    page = (finished / "card" / "README.md").read_text()
    assert "From little text, each at its best epoch" in page


@pytest.mark.usefixtures("small")
def test_the_benchmark_of_little_text(finished: Path, tmp_path: Path) -> None:
    """At toy size: means and differences over seeds, as `gemmule plan` reads them."""
    spec = importlib.util.spec_from_file_location("scarce_bench", BENCH)
    assert spec is not None
    assert spec.loader is not None
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    out = tmp_path / "measured.json"
    arguments = ["--quickstart", str(finished), "--out", str(tmp_path / "out"), "--json", str(out)]
    arguments += ["--tokens", "100", "--seeds", "2", "--student", "small", "--eager"]
    bench.main([*arguments, "--seq-len", "24", "--scratch-epochs", "1", "2",
                "--distilled-epochs", "2"])  # fmt: skip
    report = files.read_json(out)
    (row,) = report["rows"]
    tried = row["by_seed"]
    losses = {
        way: [min(m[way], key=lambda r: r["validation_loss"])["nats_per_token"] for m in tried]
        for way in ("scratch", "distilled")
    }
    gains = [a - b for a, b in zip(losses["scratch"], losses["distilled"], strict=True)]
    assert row["better_by"]["mean"] == pytest.approx(sum(gains) / 2)
    assert row["scratch"]["nats_per_token"] == pytest.approx(sum(losses["scratch"]) / 2)
    assert report["student"]["non_embedding_parameters"] < report["teacher"]["parameters"]


def test_students_share_weights_and_batches(finished: Path) -> None:
    first = {stage: read_metrics(finished / stage)[0] for stage in STAGES}
    assert first["scratch"]["loss"] == first["scratch_equal_compute"]["loss"]
    assert first["student"]["next_token_loss"] == pytest.approx(first["scratch"]["loss"], rel=1e-5)
    assert first["teacher"]["loss"] != first["scratch"]["loss"]
    seeds = {stage: files.read_json(finished / stage / "result.json")["seed"] for stage in STAGES}
    assert seeds["scratch"] == seeds["student"] == seeds["scratch_equal_compute"] == 3
    assert seeds["teacher"] != 3
    parent = files.read_json(finished / "student" / "manifest.json")["parent"]
    assert parent["path"] == str(finished / "teacher")


MOMENTS = [
    pytest.param(quickstart, "train_tokenizer", 1, id="tokenizer"),
    pytest.param(quickstart, "prepare", 1, id="data"),
    pytest.param(RunDir, "write_manifest", 1, id="teacher claimed but not begun"),
    pytest.param(run, "_save", 1, id="teacher's last step done"),
    pytest.param(loop, "clip_gradients", 15, id="scratch at step 3"),
    pytest.param(RunDir, "write_manifest", 3, id="student claimed but not begun"),
    pytest.param(run, "_save", 4, id="equal compute's last step done"),
    pytest.param(loop, "clip_gradients", 50, id="little text from scratch"),
    pytest.param(run, "_save", 7, id="little text's last step done"),
    pytest.param(quickstart, "_samples", 1, id="samples"),
    pytest.param(quickstart, "write_card", 1, id="card"),
]


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(("owner", "name", "count"), MOMENTS)
def test_resumed_it_ends_in_the_same_figures(
    owner: Any, name: str, count: int, config: QuickstartConfig, finished: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    out = tmp_path / "out"
    monkeypatch.setattr(quickstart, "write_card", lambda out: None)  # seconds of drawing
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, after(count, getattr(owner, name)))
        with pytest.raises(Killed):
            run_quickstart(config, out)
    before = {s: (out / s / "result.json") for s in STAGES}
    done = {s: p.stat().st_mtime_ns for s, p in before.items() if p.is_file()}
    run_quickstart(QuickstartConfig(), out, resume=True)
    assert {s: before[s].stat().st_mtime_ns for s in done} == done  # finished stages are left
    for file in ("comparison.json", "samples.json"):
        got, expected = (files.read_json(folder / file) for folder in (out, finished))
        assert figures(got) == figures(expected)
    for stage in STAGES:
        weights = "model/model.safetensors"
        assert (out / stage / weights).read_bytes() == (finished / stage / weights).read_bytes()


@pytest.mark.usefixtures("small")
def test_a_folder_with_the_field_saved_as_a_default_is_resumed(
    finished: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    (out / "comparison.json").unlink()
    shutil.rmtree(out / "data")
    with (out / "config.toml").open("a") as f:  # as every quickstart once saved it
        f.write('field = "text"\n')
    again = run_quickstart(QuickstartConfig(), out, resume=True)
    assert figures(again) == figures(files.read_json(finished / "comparison.json"))


@pytest.mark.usefixtures("small")
def test_resuming_with_other_settings_is_refused(finished: Path, tmp_path: Path) -> None:
    for changed in ({"seed": 4}, {"minutes": 2.0}, {"data": tmp_path}, {"vocab_size": 600}):
        with pytest.raises(ConfigError, match=r"--resume continues with the saved settings"):
            run_quickstart(QuickstartConfig.parse(changed), finished, resume=True)
    again = run_quickstart(QuickstartConfig(seed=3), finished, resume=True)
    assert figures(again) == figures(files.read_json(finished / "comparison.json"))


@pytest.mark.usefixtures("small")
def test_a_folder_in_use_is_refused(
    config: QuickstartConfig, finished: Path, tmp_path: Path
) -> None:
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*")}
    with pytest.raises(OutputError, match="choose another folder"):
        run_quickstart(config, finished)
    assert {p: p.stat().st_mtime_ns for p in finished.rglob("*")} == before
    (tmp_path / "mine").touch()
    with pytest.raises(OutputError, match="already in use"):
        run_quickstart(config, tmp_path)


@pytest.mark.usefixtures("small")
def test_text_that_cannot_be_used_leaves_the_folder_free(text_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (tmp_path / "empty").mkdir()
    wrong: list[tuple[dict[str, Any], type[Exception]]] = [
        ({"data": tmp_path / "empty"}, DataError),
        ({"data": text_folder, "vocab_size": 90_000}, TokenizerError),
    ]
    for settings, error in wrong:
        with pytest.raises(error):
            run_quickstart(QuickstartConfig.parse(settings), out)
        assert not out.exists()


@pytest.mark.parametrize("gflops", [20.0, 260.0, 5000.0])
def test_the_plan_follows_minutes_and_machine(
    gflops: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "matmul_gflops", lambda **_: gflops)
    monkeypatch.setattr(torch_compile, "can_compile", lambda: True)
    plans = {}
    for minutes in (0.01, 5.0, 10.0, 20.0, 60.0):
        out = tmp_path / str(minutes)
        plans[minutes] = quickstart._plan(QuickstartConfig(minutes=minutes), out)
        monkeypatch.setattr(device, "matmul_gflops", lambda **_: 1.0)
        # A resumed quickstart keeps to its plan, however busy the machine is now.
        again = quickstart._plan(QuickstartConfig(minutes=minutes), out)
        assert again == plans[minutes]
        monkeypatch.setattr(device, "matmul_gflops", lambda **_: gflops)
    assert plans[0.01].teacher_steps == plans[0.01].student_steps == 20
    assert plans[20.0].teacher_steps == pytest.approx(2 * plans[10.0].teacher_steps, abs=1)
    assert plans[60.0].teacher != plans[10.0].teacher
    monkeypatch.setattr(torch_compile, "can_compile", lambda: False)
    slower = quickstart._plan(QuickstartConfig(minutes=10.0), tmp_path / "eager")
    assert slower.teacher_steps == pytest.approx(plans[10.0].teacher_steps / 2, abs=1)


@pytest.mark.slow
def test_one_minute_on_the_standard_library(tmp_path: Path) -> None:
    """The real thing, killed once on its way."""
    out = tmp_path / "out"
    command = [sys.executable, "-m", "gemmule.cli", "quickstart", "--out", str(out)]
    with subprocess.Popen([*command, "--minutes", "1"]) as process:
        while not (out / "scratch" / "metrics.jsonl").is_file():
            assert process.poll() is None
            os.sched_yield()
        process.send_signal(signal.SIGKILL)
    assert not (out / "comparison.json").exists()
    subprocess.run([*command, "--resume"], check=True)
    comparison = files.read_json(out / "comparison.json")
    for model in (comparison["teacher"], *comparison["equal_tokens"].values()):
        assert 2 < model["nats_per_token"] < 7
    assert (out / "card" / "index.html").is_file()
    verified = convert(out / "student", tmp_path / "exported", "hf")["verified"]
    assert verified["weights"]["equal"]
    assert verified["reader"]["max_logit_difference"] <= 1e-4  # transformers, on the export
    assert verified["reader"]["texts_tokenized_alike"] == 200
