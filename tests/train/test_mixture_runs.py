"""Runs over a mixture of data folders: settings, table, manifest, result, resuming, refusals."""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gemmule import files
from gemmule.data.mixture.mixed_dataset import MixedDataset
from gemmule.data.prepare import prepare
from gemmule.errors import ConfigError, Interrupted
from gemmule.evals.training_data import open_training_data
from gemmule.model.tokenizer import Tokenizer
from gemmule.report.card import write_card
from gemmule.runs.metrics import read_metrics
from gemmule.train import loop
from gemmule.train.config import RunConfig, load_run_config
from gemmule.train.evaluate import pooled
from gemmule.train.mixtures import describe, open_data, schedule_of
from gemmule.train.run import run_training

Settings = Callable[..., dict[str, Any]]
pytestmark = pytest.mark.usefixtures("no_meter")


@pytest.fixture(scope="module")
def other(pieces: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("other")
    for n in range(30):
        (folder / f"{n}.txt").write_text(f"other words {n} stand in this text " * (n % 7 + 3))
    return prepare(folder, pieces, folder / "good", licence="CC0-1.0").path


@pytest.fixture
def mixed(tiny: Settings, prepared: Path, other: Path) -> dict[str, Any]:
    values = tiny()
    del values["data"]["path"]
    values["data"]["mixture"] = [
        {"path": str(prepared), "name": "main", "weight": 3},
        {"path": str(other), "weight": 1, "max_epochs": 2},
    ]
    values["data"]["stages"] = [{"share": 0.25, "weights": {"main": 1}}]
    return values


def weights(run_folder: Path) -> bytes:
    return (run_folder / "model" / "model.safetensors").read_bytes()


def test_a_run_says_what_it_read_of_each_source(
    mixed: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_training(RunConfig.parse(mixed), tmp_path / "run")
    table = capsys.readouterr().err
    assert "75% > 50%" in table
    assert "shares change after step 9" in table
    manifest = files.read_json(tmp_path / "run/manifest.json")
    main, good = manifest["mixture"]["sources"]
    assert (main["name"], good["name"]) == ("main", "good")
    assert good["licence"] == "CC0-1.0"
    assert main["weights"] == [3, 1]
    # 9 steps of 4 rows at 3 : 1, then 3 steps at 1 : 1; a row has 24 tokens.
    assert (main["tokens"], good["tokens"]) == ((27 + 6) * 24, (9 + 6) * 24)
    assert "CC0-1.0" in manifest["data"]["licence"]
    result = files.read_json(tmp_path / "run/result.json")
    assert result["sources"]["main"]["tokens"] == 33 * 24
    assert result["train_tokens"] == 48 * 24
    own = {name: s["nats_per_token"] for name, s in result["sources"].items()}
    assert min(own.values()) <= result["nats_per_token"] <= max(own.values())
    (line,) = [m for m in read_metrics(tmp_path / "run") if m.get("split") and m["step"] == 12]
    assert {"nats_per_token", "nats_per_token/main", "nats_per_token/good"} <= set(line)
    saved = load_run_config(tmp_path / "run/config.toml")
    assert saved.data.mixture == RunConfig.parse(mixed).data.mixture
    assert saved.data.stages == RunConfig.parse(mixed).data.stages
    pytest.importorskip("matplotlib")
    card = (write_card(tmp_path / "run") / "README.md").read_text()
    assert re.search(
        r"\| source good \| 360 tokens read, [\d.]+ epochs of .* \(CC0.1\.0\) \|", card
    )
    known = open_training_data(tmp_path / "run")
    assert known.dataset.fingerprint == manifest["data"]["fingerprint"]
    assert known.reading is None
    assert "not counted for a mixture" in known.notes[0]


@pytest.mark.parametrize("windows", [1, 2, 3, 5])
def test_the_step_of_a_source_s_last_window(mixed: dict[str, Any], windows: int) -> None:
    (good,) = [s for s in mixed["data"]["mixture"] if "name" not in s]
    config = RunConfig.parse(mixed)
    dataset = open_data(config.data)
    assert isinstance(dataset, MixedDataset)
    whole = int(schedule_of(config, dataset).windows[1])
    good["max_epochs"] = (windows + 0.5) / whole
    config = RunConfig.parse(mixed)
    schedule = schedule_of(config, dataset)
    sources, _ = schedule.at(np.arange(schedule.rows))
    last = int(np.flatnonzero(sources == 1)[-1])
    (about,) = [s for s in describe(config, dataset, schedule)["sources"] if "max_epochs" in s]
    assert (sources == 1).sum() == windows
    assert about["exhausted_in_step"] == last // config.data.batch_size + 1


def test_a_stopped_run_ends_in_the_same_bytes(
    mixed: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_training(RunConfig.parse(mixed), tmp_path / "whole")
    plain, steps = loop.accumulate, 0

    def accumulate(*arguments: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == 10:
            raise Interrupted("stopped by the test")
        return plain(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "accumulate", accumulate)
        with pytest.raises(Interrupted):
            run_training(RunConfig.parse(mixed), tmp_path / "stopped")
    run_training(RunConfig.parse(mixed), tmp_path / "stopped", resume=True)
    assert weights(tmp_path / "stopped") == weights(tmp_path / "whole")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"corpus_tokens": 1000}, "corpus_tokens limits one data folder"),
        ({"path": "elsewhere"}, "path elsewhere is one data folder and mixture names others"),
        ({"mixture": None, "path": "x"}, "stages change the weights of a mixture"),
        ({"stages": [{"share": 0.1, "weights": {"god": 1}}]}, "did you mean 'good'"),
        (
            {"mixture": [{"path": "x", "wieght": 1}]},
            "'data.mixture.0.wieght'; did you mean 'weight'",
        ),
        ({"mixture": [{"path": "x", "weight": -1}]}, "data.mixture.0.weight = -1"),
    ],
)
def test_settings_that_cannot_be(
    mixed: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    data = {name: value for name, value in (mixed["data"] | changes).items() if value is not None}
    with pytest.raises(ConfigError, match=message):
        RunConfig.parse({**mixed, "data": data})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": {"kind": "distill", "targets": "store"}}, "logit store of one data folder"),
        ({"objective": {"kind": "sft"}}, "a run of kind 'sft' reads one data folder"),
        ({"evaluation": {"memorization": {}}}, "passages of one data folder"),
    ],
)
def test_runs_that_cannot_read_a_mixture(
    mixed: dict[str, Any], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        run_training(RunConfig.parse({**mixed, **changes}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_metrics_of_several_texts_are_pooled_by_their_sizes() -> None:
    texts = [
        {"nats_per_token": 2.0, "perplexity": 0.0, "bits_per_byte": 1.0, "tokens": 10},
        {"nats_per_token": 4.0, "perplexity": 0.0, "bits_per_byte": 3.0, "tokens": 10},
    ]
    both = pooled(texts, [300, 100])
    assert both["nats_per_token"] == pytest.approx(2.5)
    assert both["perplexity"] == pytest.approx(math.exp(2.5))
    # 600 nats over as many bits' bytes, and 400 nats over a third of their bits.
    assert both["bits_per_byte"] == pytest.approx(1000 / (600 + 400 / 3))
    assert both["tokens"] == 20


def test_a_request_that_the_limits_cannot_fill(mixed: dict[str, Any], tmp_path: Path) -> None:
    for source in mixed["data"]["mixture"]:
        source["max_epochs"] = 0.2
    with pytest.raises(ConfigError, match=r"max_epochs allows main .* windows; raise"):
        run_training(RunConfig.parse({**mixed, "steps": 100_000}), tmp_path / "run")
