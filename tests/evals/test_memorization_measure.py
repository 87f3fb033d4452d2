"""Measuring: canaries found, unseen text not; stopped and gone on with; two models compared."""

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gemmule import files
from gemmule.data import personal_data
from gemmule.data.dataset import Dataset
from gemmule.data.prepare import prepare
from gemmule.errors import ConfigError, DataError, MissingExtraError
from gemmule.evals.memorization import extraction as measuring
from gemmule.evals.memorization.extraction import (
    RESULT,
    SAMPLES,
    UNFINISHED,
    Extractor,
    Outcome,
    read_samples,
)
from gemmule.evals.memorization.run_memorization import run_memorization
from gemmule.evals.memorization.settings import Settings
from gemmule.evals.training_data import NoTrainingData, open_training_data
from gemmule.model.tokenizer import Tokenizer

SHORT = Settings(probes=40, prompt_tokens=10, continuation_tokens=10)


@pytest.fixture(autouse=True)
def saved_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every sample is saved by itself, and the tokens of few passages are read at once."""
    monkeypatch.setattr(measuring, "_SAVE_SECONDS", 0.0)
    monkeypatch.setattr(measuring, "_PART", 16)


@pytest.fixture(scope="module")
def measured(by_heart: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished measurement."""
    out = tmp_path_factory.mktemp("measured")
    run_memorization(str(by_heart), SHORT, out=out)
    return out


def without_times(folder: Path) -> dict[str, Any]:
    return {k: v for k, v in files.read_json(folder / RESULT).items() if k != "seconds"}


def test_frequent_canaries_are_found_and_unseen_text_is_not(measured: Path) -> None:
    result = files.read_json(measured / RESULT)
    rare, frequent = result["canaries"]["groups"]
    assert (rare["repeats"], rare["probes"], rare["exact"]["value"]) == (1, 2, 0.0)
    assert (frequent["repeats"], frequent["probes"], frequent["exact"]["value"]) == (64, 2, 1.0)
    assert frequent["read_least"] > 100 > rare["read_most"]
    control = result["control"]
    assert (control["split"], control["probes"], control["why"]) == ("heldout", 40, None)
    assert control["exact"]["value"] == 0
    assert control["exact"]["high"] == pytest.approx(0.0876, abs=1e-4)
    assert control["approximate"]["value"] < 0.1
    # Wilson's interval, everywhere.
    assert result["train"]["exact"]["n"] == result["train"]["probes"] == 40
    assert 0 <= result["train"]["exact"]["low"] <= result["train"]["exact"]["value"]


def test_the_result_says_what_it_is_of(measured: Path, by_heart: Path, planted: Path) -> None:
    result = files.read_json(measured / RESULT)
    assert (result["format"], result["kind"]) == (1, "memorization")
    assert result["model"]["path"] == str(by_heart)
    data = Dataset.open(planted)
    assert result["data"]["fingerprint"] == data.fingerprint
    assert result["data"]["places"] >= result["data"]["places_read"] > 40
    assert result["measured"]["settings"]["most_edits"] == 1
    assert sum(s["probes"] for s in result["sources"]) == 40
    assert sum(g["probes"] for g in result["times_read"]) == 40
    assert set(result["personal_data"]["severities"]) == {"high", "medium", "low"}


def test_every_sample_is_kept_and_is_what_the_data_hold(measured: Path, planted: Path) -> None:
    samples = read_samples(measured)
    counts = {
        name: sum(s["set"] == name for s in samples) for name in ("train", "control", "canary")
    }
    assert counts == {"train": 40, "control": 40, "canary": 4}
    data = Dataset.open(planted)
    for sample in samples:
        split = data.split("heldout" if sample["set"] == "control" else "train")
        document = split.document(sample["document"])[1 + sample["position"] :]
        assert sample["prompt"] == document[:10].tolist()
        assert sample["gold"] == document[10:20].tolist()
        assert sample["exact"] == (sample["output"] == sample["gold"]) == (sample["edits"] == 0)
    planted_from = data.manifest["canaries"]["first_document"]
    assert all(s["document"] < planted_from for s in samples if s["set"] == "train")
    assert all(s["name"].endswith("#0") for s in samples if s["set"] == "train")


def test_a_finished_measurement_is_left_as_it_is(
    measured: Path, by_heart: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "m"
    shutil.copytree(measured, out)
    before = (out / RESULT).stat().st_mtime_ns
    tried = count_passages(monkeypatch)
    again = run_memorization(str(by_heart), SHORT, out=out)
    assert (tried, (out / RESULT).stat().st_mtime_ns) == ([], before)
    assert again == files.read_json(measured / RESULT)
    # With --fresh, or of other passages, it is measured.
    run_memorization(str(by_heart), SHORT, out=out, fresh=True)
    assert len(tried) == 84
    assert without_times(out) == without_times(measured)
    run_memorization(str(by_heart), dataclasses.replace(SHORT, seed=1), out=out)
    assert files.read_json(out / RESULT)["measured"]["settings"]["seed"] == 1


def count_passages(monkeypatch: pytest.MonkeyPatch, stop_after: int = 10**9) -> list[bytes]:
    """The tokens of the passages that are tried from now on."""
    tried: list[bytes] = []
    plain = Extractor.outcomes

    def counted(self: Extractor, tokens: Any) -> Any:
        for row, outcome in plain(self, tokens):
            if len(tried) == stop_after:
                raise KeyboardInterrupt
            tried.append(tokens[row].tobytes())
            yield row, outcome

    monkeypatch.setattr(Extractor, "outcomes", counted)
    return tried


def test_stopped_it_goes_on_and_tries_nothing_twice(
    measured: Path, by_heart: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        first = count_passages(patch, stop_after=50)
        with pytest.raises(KeyboardInterrupt):
            run_memorization(str(by_heart), SHORT, out=tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {UNFINISHED}
    # A kill while a line was written.
    with (tmp_path / UNFINISHED).open("a") as f:
        f.write('{"key": "control:14", "answer": {"seconds": 0.1, "sample": {"set"')
    with pytest.raises(ConfigError, match=r"unfinished measurement .*start again with --fresh"):
        run_memorization(str(by_heart), dataclasses.replace(SHORT, probes=41), out=tmp_path)
    # On a machine with other memory, say: what runs together decides nothing.
    monkeypatch.setattr(measuring, "affordable_pages", lambda _: 20)
    second = count_passages(monkeypatch)
    run_memorization(str(by_heart), SHORT, out=tmp_path)
    assert (len(first), len(second)) == (50, 34)
    assert set(first).isdisjoint(second)
    assert {p.name for p in tmp_path.iterdir()} == {RESULT, SAMPLES}
    assert (tmp_path / SAMPLES).read_bytes() == (measured / SAMPLES).read_bytes()
    assert without_times(tmp_path) == without_times(measured)


KILLED = """
import sys, time
from pathlib import Path
from gemmule.evals.memorization import extraction
from gemmule.evals.memorization.run_memorization import run_memorization
from gemmule.evals.memorization.settings import Settings
extraction._SAVE_SECONDS = 0.0
plain = extraction.Extractor.outcomes
def slow(*args):
    for result in plain(*args):
        time.sleep(0.02)
        yield result
extraction.Extractor.outcomes = slow
run, out = sys.argv[1:]
run_memorization(run, Settings(probes=40, prompt_tokens=10, continuation_tokens=10), out=Path(out))
"""


def test_killed_it_ends_in_the_same_result(measured: Path, by_heart: Path, tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(by_heart), str(tmp_path)])
    deadline = time.monotonic() + 60
    cache = tmp_path / UNFINISHED
    while not cache.exists() or cache.read_bytes().count(b"\n") < 4:
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / RESULT).exists()
    run_memorization(str(by_heart), SHORT, out=tmp_path)
    assert (tmp_path / SAMPLES).read_bytes() == (measured / SAMPLES).read_bytes()
    assert without_times(tmp_path) == without_times(measured)


def test_a_damaged_response_cache_is_named(by_heart: Path, tmp_path: Path) -> None:
    (tmp_path / UNFINISHED).write_text("{\n{}\n")
    with pytest.raises(ConfigError, match="start again with --fresh"):
        run_memorization(str(by_heart), SHORT, out=tmp_path)
    run_memorization(str(by_heart), SHORT, out=tmp_path, fresh=True)


def test_against_another_run_on_the_same_passages(
    by_heart: Path,
    planted: Path,
    tiny: Callable[..., dict[str, Any]],
    tmp_path: Path,
    no_meter: None,
) -> None:
    from gemmule.train.config import RunConfig
    from gemmule.train.run import run_training

    other = tmp_path / "other"
    run_training(RunConfig.parse(tiny(data={"path": str(planted)}, steps=30, seed=4)), other)
    out = tmp_path / "out"
    result = run_memorization(str(by_heart), SHORT, against=str(other), out=out)
    theirs = files.read_json(out / "against" / RESULT)
    assert result["against"]["train"] == theirs["train"]
    assert theirs["measured"]["passages"]["train"] == result["measured"]["passages"]["train"]
    # Only what both have read is drawn.
    readings = [open_training_data(run).reading for run in (by_heart, other)]
    assert [int((r.times > 0).sum()) for r in readings if r] != [
        len(r.times) for r in readings if r
    ]
    assert result["data"]["places_read"] == theirs["data"]["places_read"]
    difference = result["against"]["difference"]["exact"]
    expected = result["train"]["exact"]["value"] - theirs["train"]["exact"]["value"]
    assert difference["value"] == pytest.approx(expected)
    assert difference["low"] < difference["value"] < difference["high"]
    assert files.read_json(out / RESULT) == result


def test_a_quickstarts_folder_means_its_students(by_heart: Path, tmp_path: Path) -> None:
    for stage in ("student", "scratch"):
        shutil.copytree(by_heart, tmp_path / stage)
    result = run_memorization(str(tmp_path), SHORT)
    assert result["model"]["path"] == str(tmp_path / "student")
    assert result["against"]["model"]["path"] == str(tmp_path / "scratch")
    assert result["against"]["difference"]["exact"]["value"] == 0
    assert (tmp_path / "student/evals" / RESULT).is_file()
    assert (tmp_path / "scratch/evals" / RESULT).is_file()


def test_moved_data_are_found_or_asked_for(
    by_heart: Path, planted: Path, prepared: Path, tmp_path: Path
) -> None:
    run = tmp_path / "runs/moved"
    shutil.copytree(by_heart, run)
    settings = (run / "config.toml").read_text().replace(str(planted), str(tmp_path / "gone"))
    (run / "config.toml").write_text(settings)
    with pytest.raises(NoTrainingData, match=r"cannot be located \(nothing at .*gone\).*--data"):
        open_training_data(run)
    with pytest.raises(DataError, match=r"is not what .* was trained on: it holds"):
        open_training_data(run, prepared)
    assert open_training_data(run, planted).dataset.path == planted
    shutil.copytree(planted, run.parent / "data")
    assert open_training_data(run).dataset.path == run.parent / "data"
    reading = open_training_data(run).reading
    assert reading is not None
    assert reading.times.sum() == 200 * 8


def test_a_model_without_a_run_needs_its_data_named(
    by_heart: Path, prepared: Path, tmp_path: Path
) -> None:
    model = str(by_heart / "model")
    with pytest.raises(NoTrainingData, match=r"is not a run of gemmule's.*--data"):
        run_memorization(model, SHORT, out=tmp_path)
    result = run_memorization(model, SHORT, data=prepared, out=tmp_path)
    assert result["times_read"] == []
    assert result["canaries"] is None
    assert "named by hand" in result["notes"][0]


def test_what_does_not_fit_is_refused_before_anything_is_written(
    by_heart: Path,
    text_folder: Path,
    other_pieces: Tokenizer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "out"
    with pytest.raises(ConfigError, match=r"50 tokens of prompt and 50 of .* context of 64"):
        run_memorization(str(by_heart), Settings(), out=out)
    data = prepare(text_folder, other_pieces, tmp_path / "data").path
    with pytest.raises(DataError, match="made with another tokenizer"):
        run_memorization(str(by_heart / "model"), SHORT, data=data, out=out)
    monkeypatch.setattr(personal_data, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="python-stdnum"):
        run_memorization(str(by_heart), SHORT, out=out)
    assert not out.exists()


def test_fewer_passages_than_asked_for_is_said(by_heart: Path, tmp_path: Path) -> None:
    settings = Settings(probes=10**6, prompt_tokens=30, continuation_tokens=30)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring, "_PART", 4096)
        patch.setattr(measuring, "_SAVE_SECONDS", 1.0)
        patch.setattr(
            Extractor, "outcomes", lambda self, t: ((i, Outcome([], None)) for i in range(len(t)))
        )
        patch.setattr(personal_data, "scan", lambda *_: personal_data.Scan([], [], False))
        result = run_memorization(str(by_heart), settings, out=tmp_path)
    assert any("there are only" in note for note in result["notes"])
    assert any("canaries are shorter than 60 tokens" in note for note in result["notes"])
    assert result["canaries"]["groups"] == []


def test_samples_with_personal_data_spell_nothing_out(
    pieces: Tokenizer, by_heart: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "text"
    folder.mkdir()
    for n in range(30):
        (folder / f"{n}.txt").write_text(
            f"write to jane{n}@acme.com and pay 4111 1111 1111 1111. " * 4
        )
    data = prepare(folder, pieces, tmp_path / "data").path
    run_memorization(str(by_heart / "model"), SHORT, data=data, out=tmp_path / "out")
    samples = read_samples(tmp_path / "out")
    assert any(s["personal"] for s in samples)
    for sample in samples:
        if sample["personal"]:
            assert sample["prompt"] is sample["gold"] is sample["output"] is None
        for name in ("gold", "output"):
            if sample[name] is not None:
                assert personal_data.find(pieces.decode(sample["prompt"] + sample[name])) == []
    assert "jane" not in (tmp_path / "out" / SAMPLES).read_text()
    severities = files.read_json(tmp_path / "out" / RESULT)["personal_data"]["severities"]
    assert severities["medium"]["in_text"] > 0
    assert severities["high"]["of_probes"]["n"] == 40
