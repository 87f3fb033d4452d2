"""A run killed at any moment and resumed ends in the same bytes as one never stopped."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gemmule import files
from gemmule.model.tokenizer import Tokenizer
from gemmule.runs.layout import LEDGER
from gemmule.runs.ledger.file import own_lines
from gemmule.teachers.logit_store import Store

Settings = Callable[..., dict[str, Any]]
SERVER = Path(__file__).with_name("fork_server.py")
KILLED = -9
TIMES = {"seconds", "tokens_per_second", "created"}


class Children:
    """Runs in processes of their own; each call returns the exit code, negative for a signal."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process

    def ask(self, **request: Any) -> int:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return int(json.loads(self.process.stdout.readline())["code"])

    def train(self, settings: dict[str, Any], out: Path, resume: bool = False, **more: Any) -> int:
        return self.ask(settings=settings, out=str(out), resume=resume, **more)


@pytest.fixture(scope="module")
def children() -> Iterator[Children]:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    with subprocess.Popen(
        [sys.executable, str(SERVER)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=env,
    ) as process:
        yield Children(process)
        assert process.stdin is not None
        process.stdin.close()


@pytest.fixture(scope="module")
def settings(
    tiny: Settings, children: Children, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Any]]:
    """What is trained: by either optimiser, and by distillation."""
    folder = tmp_path_factory.mktemp("runs")
    teacher, store = folder / "teacher", folder / "store"
    assert children.train(tiny(steps=3, seed=9), teacher) == 0
    recorded = recording(tiny, teacher)
    assert children.ask(record=recorded, out=str(store)) == 0
    return {
        "record": recorded,
        "store": {"path": str(store)},
        "stored": tiny(checkpoint={"keep": 1}, objective={"targets": str(store), "alpha": 0.25}),
        "muon": tiny(checkpoint={"keep": 1}),
        "adamw": tiny(checkpoint={"keep": 1}, optimizer={"name": "adamw"}),
        "distill": tiny(
            checkpoint={"keep": 1},
            objective={"teacher": str(teacher), "alpha": 0.25, "temperature": 2.0},
        ),
    }


def recording(tiny: Settings, teacher: Path) -> dict[str, Any]:
    whole = tiny()
    values = {**whole["runtime"], "data": whole["data"]["path"]}
    values |= {name: whole["data"][name] for name in ("seq_len", "batch_size")}
    # Ten milliseconds: shards are cut where the machine happens to be, not at units alone.
    values["tokens"] = 24 * 64  # more than the runs see, little enough to be quick
    return {**values, "teacher": str(teacher), "shard_minutes": 0.01 / 60, "targets": {"draws": 9}}


@pytest.fixture(scope="module")
def unbroken(
    settings: dict[str, dict[str, Any]],
    children: Children,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Path]:
    """Each of them trained in one go."""
    folder = tmp_path_factory.mktemp("unbroken")
    trained = set(settings) - {"record", "store"}
    for name in trained:
        assert children.train(settings[name], folder / name) == 0
    return {name: folder / name for name in trained}


def without_times(values: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in values.items() if k not in TIMES}


def metrics(run: Path) -> list[dict[str, Any]]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [without_times(json.loads(line)) for line in lines]


def assert_same_run(got: Path, expected: Path) -> None:
    name = "model/model.safetensors"
    assert (got / name).read_bytes() == (expected / name).read_bytes()
    assert metrics(got) == metrics(expected)
    for name in ("result.json", "manifest.json"):
        a, b = (without_times(files.read_json(run / name)) for run in (got, expected))
        assert a == b
    assert (got / "config.toml").read_bytes() == (expected / "config.toml").read_bytes()
    steps = [sorted(p.name for p in (run / "checkpoints").iterdir()) for run in (got, expected)]
    assert steps[0] == steps[1] == ["step-12"]
    assert sorted(p.name for p in got.iterdir()) == sorted(p.name for p in expected.iterdir())


def test_metrics_are_complete(unbroken: dict[str, Path]) -> None:
    lines = metrics(unbroken["distill"])
    assert [m["step"] for m in lines if "loss" in m] == list(range(1, 13))
    assert [m["step"] for m in lines if m.get("split")] == [5, 10, 12]
    assert "next_token_loss" in lines[0]


@pytest.mark.parametrize("name", ["muon", "adamw", "distill", "stored"])
def test_stopped_by_sigterm(
    name: str,
    settings: dict[str, dict[str, Any]],
    unbroken: dict[str, Path],
    children: Children,
    tmp_path: Path,
) -> None:
    out = tmp_path / "run"
    assert children.train(settings[name], out, sigterm_at=3) == 130
    assert [p.name for p in (out / "checkpoints").iterdir()] == ["step-3"]
    assert not (out / "result.json").exists()
    assert children.train(settings[name], out, resume=True, sigterm_at=4) == 130
    assert children.train(settings[name], out, resume=True) == 0
    assert_same_run(out, unbroken[name])
    assert files.read_json(out / "carbon.json")["sessions"] == 3


# Renames: 1 is step-4, 2 step-8, 3 step-12, 4 the model. JSON: 1 is carbon.json at step 4, …
MOMENTS = [
    ("muon", "config", 1),
    ("muon", "step", 1),
    ("muon", "step", 6),
    ("adamw", "step", 6),
    ("distill", "step", 10),
    ("stored", "step", 6),
    ("stored", "after the rename", 2),
    ("muon", "writing tensors", 2),
    ("distill", "before the rename", 1),
    ("muon", "before the rename", 2),
    ("adamw", "after the rename", 2),
    ("muon", "after the rename", 3),
    ("muon", "dropping old ones", 1),
    ("muon", "metrics", 7),
    ("muon", "manifest", 1),
    ("muon", "carbon", 3),
    ("muon", "model", 1),
    ("muon", "before the rename", 4),
    ("muon", "result", 1),
]


@pytest.mark.parametrize(("name", "where", "at"), MOMENTS)
def test_killed_at(
    name: str,
    where: str,
    at: int,
    settings: dict[str, dict[str, Any]],
    unbroken: dict[str, Path],
    children: Children,
    tmp_path: Path,
) -> None:
    out = tmp_path / "run"
    assert children.train(settings[name], out, where=where, at=at) == KILLED
    assert not (out / "result.json").exists()
    resume = (out / "config.toml").is_file()
    assert resume == (where != "config")
    assert children.train(settings[name], out, resume) == 0
    assert_same_run(out, unbroken[name])


@pytest.mark.parametrize(
    ("name", "seed"), [("muon", 0), ("muon", 1), ("muon", 2), ("stored", 0), ("stored", 1)]
)
def test_killed_again_and_again_at_random_moments(
    name: str,
    seed: int,
    settings: dict[str, dict[str, Any]],
    unbroken: dict[str, Path],
    children: Children,
    tmp_path: Path,
) -> None:
    out = tmp_path / "run"
    moments = random.Random(seed)
    for _ in range(4):
        resume = (out / "config.toml").is_file()
        after = moments.uniform(0.02, 0.3)
        assert children.train(settings[name], out, resume, kill_after=after) in (KILLED, 0)
    assert children.train(settings[name], out, (out / "config.toml").is_file()) == 0
    assert_same_run(out, unbroken[name])


def test_killed_before_its_line(
    settings: dict[str, dict[str, Any]],
    unbroken: dict[str, Path],
    children: Children,
    tmp_path: Path,
) -> None:
    out = tmp_path / "run"
    assert children.train(settings["muon"], out, where="line", at=1) == KILLED
    assert (out / "result.json").exists()
    assert not (out / LEDGER).exists()
    assert children.train(settings["muon"], out, resume=True) == 0
    assert_same_run(out, unbroken["muon"])
    assert [line.outcome for line in own_lines(out)] == ["killed"]


def assert_same_store(got: Path, expected: Path) -> None:
    """The same windows, however they are cut into shards, and nothing left lying about."""
    mine, theirs = Store.open(got), Store.open(expected)
    mine.check_complete()
    for window in range(theirs.sequences):
        a, b = (store.read(window) for store in (mine, theirs))
        assert a.id_M.tobytes() == b.id_M.tobytes()
        assert a.weight_M.tobytes() == b.weight_M.tobytes()
        assert a.entropy_T.tobytes() == b.entropy_T.tobytes()
    assert [p.name for p in (got / "shards").iterdir() if p.name.startswith(".")] == []
    tokens = sum(s["tokens"] for s in mine.sessions())
    assert tokens <= mine.sequences * mine.seq_len  # a session killed between a shard and its note


@pytest.mark.parametrize(
    ("where", "at"),
    [("recording", 1), ("recording", 10), ("before a shard", 2), ("after a shard", 1),
     ("before a shard's rename", 2), ("before a shard's rename", 3), ("carbon", 1)],
)  # fmt: skip
def test_recording_killed_at(
    where: str,
    at: int,
    settings: dict[str, dict[str, Any]],
    children: Children,
    tmp_path: Path,
) -> None:
    out = tmp_path / "store"
    assert children.ask(record=settings["record"], out=str(out), where=where, at=at) == KILLED
    assert children.ask(record=settings["record"], out=str(out)) == 0
    assert_same_store(out, Path(settings["store"]["path"]))


@pytest.mark.parametrize("seed", range(3))
def test_recording_killed_at_random_moments(
    seed: int, settings: dict[str, dict[str, Any]], children: Children, tmp_path: Path
) -> None:
    out = tmp_path / "store"
    moments = random.Random(seed)
    for _ in range(5):
        after = moments.uniform(0.02, 0.4)
        code = children.ask(record=settings["record"], out=str(out), kill_after=after)
        assert code in (KILLED, 0)
    assert children.ask(record=settings["record"], out=str(out)) == 0
    assert_same_store(out, Path(settings["store"]["path"]))


def test_recording_stopped_by_sigterm(
    settings: dict[str, dict[str, Any]], children: Children, tmp_path: Path
) -> None:
    """What was in hand is written before it stops."""
    out = tmp_path / "store"
    assert children.ask(record=settings["record"], out=str(out), sigterm_at=7) == 130
    assert Store.open(out).recorded == 7 * settings["record"]["batch_size"]
    assert children.ask(record=settings["record"], out=str(out)) == 0
    assert_same_store(out, Path(settings["store"]["path"]))
    assert sum(s["tokens"] for s in Store.open(out).sessions()) == Store.open(out).sequences * 24


def test_a_finished_run_is_left_as_it_is(
    settings: dict[str, dict[str, Any]], unbroken: dict[str, Path], children: Children
) -> None:
    run = unbroken["muon"]
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*")}
    assert children.train(settings["muon"], run, resume=True) == 0
    assert {p: p.stat().st_mtime_ns for p in run.rglob("*")} == before


@pytest.mark.parametrize("at", [1, 2, 3])
def test_killed_while_tokenising(
    at: int,
    children: Children,
    text_folder: Path,
    pieces: Tokenizer,
    prepared: Path,
    tmp_path: Path,
) -> None:
    pieces.save(tmp_path / "tokenizer")
    request = {"source": str(text_folder), "tokenizer": str(tmp_path / "tokenizer")}
    out = tmp_path / "data"
    assert children.ask(**request, out=str(out), where="tokenising", at=at) == KILLED
    assert not (out / "manifest.json").exists()
    assert children.ask(**request, out=str(out)) == 0

    def content(folder: Path) -> dict[str, bytes]:
        paths = [p for p in folder.rglob("*") if p.is_file()]
        return {str(p.relative_to(folder)): p.read_bytes() for p in paths}

    assert content(out) == content(prepared)
