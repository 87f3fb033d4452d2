"""Ranks share out a recording: the shards of one process, however they were stopped and resumed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gemmule import files
from gemmule.checkpoints.hf.writer import save_model
from gemmule.errors import OutputError
from gemmule.model.tokenizer import Tokenizer
from gemmule.runs.carbon import Energy, total
from gemmule.runtime.world import World
from gemmule.teachers import record as recording
from gemmule.teachers.logit_store import Store
from gemmule.teachers.record import record
from gemmule.teachers.record_config import RecordConfig
from models import random_model, tiny_config
from ranks import Ended, run_ranks

SCRIPT = Path(__file__).parent / "rank_recording.py"
SEQ_LEN = 8
pytestmark = pytest.mark.usefixtures("no_meter")
Settings = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def settings(
    prepared: Path, pieces: Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> Settings:
    teacher = tmp_path_factory.mktemp("teacher")
    save_model(random_model(tiny_config(vocab_size=pieces.vocab_size)), pieces, teacher)

    def made(**changes: Any) -> dict[str, Any]:
        values = {
            "teacher": str(teacher), "data": str(prepared), "seq_len": SEQ_LEN, "batch_size": 32,
            "targets": {"draws": 12}, "dtype": "float32", "compile": False, "threads": 1,
            "device": "cpu", "tokens": SEQ_LEN * (4 * 128 + 10),
        }  # fmt: skip
        return {**values, **changes}

    return made


@pytest.fixture(scope="module")
def alone(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("alone") / "store"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gemmule.runs.carbon.start_tracker", lambda *_: 1 / 0)
        record(RecordConfig.parse(settings()), out)
    return out


def in_ranks(recordings: list[dict[str, Any]], folder: Path, size: int) -> list[Ended]:
    (folder / "recordings.json").write_text(json.dumps(recordings))
    return run_ranks([str(SCRIPT), str(folder / "recordings.json")], size)


def content(store: Path) -> dict[str, bytes]:
    """All files but those that say when and at what cost."""
    paths = (path for path in store.rglob("*") if path.is_file())
    found = {str(path.relative_to(store)): path.read_bytes() for path in paths}
    manifest = json.loads(found.pop("manifest.json"))
    manifest.pop("created")
    shards = {name: data for name, data in found.items() if not name.startswith("sessions/")}
    return {**shards, "manifest.json": json.dumps(manifest).encode()}


def sequences(folder: Path) -> list[bytes]:
    store = Store.open(folder)
    store.check_complete()
    return [s.read(i).tobytes() for s in store.shards for i in range(s.first, s.stop)]


def test_two_ranks(settings: Settings, alone: Path, tmp_path: Path) -> None:
    names = ["fresh", "stopped", "stopped", "grown", "grown", "parts", "parts", "killed"]
    changes: list[dict[str, Any]] = [
        {"together": True}, {"together": True, "stop_at": 3}, {}, {"tokens": SEQ_LEN * 40}, {},
        {"part": "1/2"}, {"part": "2/2"}, {"together": True, "kill_at": 2},
    ]  # fmt: skip
    moments = ("together", "stop_at", "kill_at")
    recordings = [
        {
            "out": str(tmp_path / name),
            "settings": settings(**{k: v for k, v in change.items() if k not in moments}),
            **{k: v for k, v in change.items() if k in moments},
        }
        for name, change in zip(names, changes, strict=True)
    ]
    first, second = in_ranks(recordings, tmp_path, 2)
    assert (first.code, second.code) == (1, -9), (first.err, second.err)
    results = [json.loads(line) for line in first.out.splitlines()]
    others = [json.loads(line) for line in second.out.splitlines()]
    assert results == others
    fresh, stopped, resumed, part, grown, half, whole = results

    assert content(tmp_path / "fresh") == content(alone)
    tokens = len(sequences(alone)) * SEQ_LEN
    assert fresh["tokens"] == resumed["tokens"] == grown["tokens"] == whole["tokens"] == tokens
    sessions = Store.open(tmp_path / "fresh").sessions()
    assert {s["rank"]: s["carbon"] is None for s in sessions} == {0: False, 1: True}
    assert all(s["tokens"] > 0 for s in sessions)
    assert sum(s["tokens"] for s in sessions) == tokens
    assert fresh["energy_wh"] == next(s for s in sessions if s["rank"] == 0)["carbon"]["energy_wh"]
    assert fresh["energy_wh"] > 0

    # The second rank alone was asked; both have saved what they had.
    saved = Store.open(tmp_path / "stopped").sessions()[:2]
    assert stopped.startswith("Interrupted: stopped; ")
    assert f" {sum(s['tokens'] for s in saved):,} more tokens are saved in " in stopped
    assert sequences(tmp_path / "stopped") == sequences(alone)

    assert part["tokens"] == SEQ_LEN * 40  # less than there are ranks for
    assert content(tmp_path / "grown").keys() != content(alone).keys()
    assert sequences(tmp_path / "grown") == sequences(alone)
    assert half["missing_tokens"] > 0
    assert content(tmp_path / "parts") == content(alone)

    # The first rank goes on alone, and says who did not come.
    message = "gemmule: rank 1 of 2 is gone: it was killed, or its machine is gone."
    assert first.err.count(message) == 1, first.err
    missing = Store.open(tmp_path / "killed").gaps()
    assert sum(stop - start for start, stop in missing) == 128
    record(RecordConfig.parse(settings()), tmp_path / "killed")
    assert content(tmp_path / "killed") == content(alone)


@pytest.mark.slow
def test_three_ranks_go_on_with_what_one_and_two_have_left(
    settings: Settings, alone: Path, tmp_path: Path
) -> None:
    out = {"out": str(tmp_path / "three")}
    for size, stop_at in ((2, 3), (3, 2), (3, None)):
        given = {**out, "settings": settings(shard_minutes=1e-9), "stop_at": stop_at}
        ended = in_ranks([given], tmp_path, size)
        assert [rank.code for rank in ended] == [0] * size, ended
    assert sequences(tmp_path / "three") == sequences(alone)
    (ended, *_) = in_ranks([{"out": str(tmp_path / "new"), "settings": settings()}], tmp_path, 3)
    assert ended.code == 0, ended.err
    assert content(tmp_path / "new") == content(alone)


def test_a_rank_that_would_record_something_else(
    settings: Settings, alone: Path, tmp_path: Path
) -> None:
    class Second(World):
        rank, size, local_rank, local_size = 1, 2, 1, 2

        def agree(self, answer: bool) -> bool:
            return True  # the first rank has found a store

    with pytest.raises(OutputError, match=r"something else than the first .*seed: 0 there, 4 now"):
        record(RecordConfig.parse(settings(seed=4)), alone, Second())
    with pytest.raises(OutputError, match="storage that they share"):
        recording._check_claimed(tmp_path, {})
    assert not (alone / ".lock").exists()


def test_the_energy_of_sessions_without_a_meter() -> None:
    """Whichever comes first."""
    none = Energy(
        energy_wh=None, gco2e=None, seconds=0, grid_gco2e_per_kwh=None, country=None, how={},
        tool=None, sessions=0,
    )  # fmt: skip
    some = Energy(**{**dict(none), "energy_wh": 2.0, "gco2e": 1.0, "sessions": 1})
    for sessions in ([none, some], [some, none]):
        both = total(sessions)
        assert both is not None
        assert both.energy_wh == 2.0


def test_a_session_of_another_rank_has_no_energy(alone: Path) -> None:
    folder = alone / "sessions"
    before = Store.open(alone).recording()
    session = files.read_json(next(folder.iterdir()))
    files.write_json(folder / "00.json", {**session, "carbon": None, "seconds": 3.0})
    after = Store.open(alone).recording()
    (folder / "00.json").unlink()
    assert after["energy_wh"] == before["energy_wh"]
    assert after["seconds"] == pytest.approx(before["seconds"] + 3.0)
