"""A new kind of run needs an objective, a source and a recipe of its own, and nothing of train/."""

import inspect
import itertools
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from gemmule import files
from gemmule.data.batch import Batch
from gemmule.data.dataset import Dataset
from gemmule.errors import ConfigError, Interrupted
from gemmule.model.gemma import Gemma
from gemmule.runs.metrics import read_metrics
from gemmule.train.config import ObjectiveConfig, RunConfig, load_run_config
from gemmule.train.initial_model import initial_model
from gemmule.train.objective import Objective
from gemmule.train.recipe import Recipe, language_model_recipe
from gemmule.train.recipes import alone, register_recipe
from gemmule.train.run import run_training

Settings = Callable[..., dict[str, Any]]
pytestmark = pytest.mark.usefixtures("no_meter")


def toy() -> Iterator[object]:
    """Everything that the kind "repeat" consists of."""

    class RepeatConfig(ObjectiveConfig):
        kind: Literal["repeat"] = "repeat"
        ids: int = 8

    class Repeats:
        """Sequences of one id each, which the model is to repeat."""

        def __init__(self, rows: int, seq_len: int, ids: int, model: Gemma) -> None:
            self.rows, self.seq_len, self.ids, self.model, self.drawn = rows, seq_len, ids, model, 0

        def next(self) -> Batch:
            first = torch.arange(self.drawn, self.drawn + self.rows) % self.ids + 500
            self.drawn += self.rows
            tokens = first[:, None].expand(-1, self.seq_len).contiguous()
            size = torch.tensor([self.model.norm.weight.abs().sum().item()])  # it sees the model
            return Batch(tokens, tokens, torch.ones_like(tokens), extras={"norm": size})

        def state(self) -> dict[str, Any]:
            return {"drawn": self.drawn}

        def load_state(self, state: Mapping[str, Any]) -> None:
            self.drawn = state["drawn"]

    class Repeat(Objective):
        """Next-token loss; one answer is one sequence, whatever its length."""

        def loss(self, model: Gemma, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
            x_BTD = model.hidden_states(batch.tokens_BT, doc_ids_BT=batch.doc_ids_BT)
            loss = model.head.cross_entropy(x_BTD.flatten(0, 1), batch.labels_BT.flatten())
            hits = model.head.logits(x_BTD).argmax(-1) == batch.labels_BT
            return loss, {"repeated": hits.all(-1).sum(), "norm": batch.extras["norm"][0]}

        def denominator(self, batches: Sequence[Batch]) -> float:
            return float(sum(len(batch.tokens_BT) for batch in batches))

        def describe(self) -> dict[str, Any]:
            return {"name": "repetition"}

    def build(config: RunConfig, dataset: Dataset) -> Recipe:
        settings, model = config.objective, initial_model(config, dataset)
        assert isinstance(settings, RepeatConfig)
        data = config.data
        source = Repeats(data.micro_batch, data.seq_len, settings.ids, model)
        return language_model_recipe(config, dataset, model, source, Repeat())

    register_recipe(RepeatConfig, alone(build))
    yield from (RepeatConfig, Repeat)


TOY = list(toy())


def weights(run: Path) -> bytes:
    return (run / "model/model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def unbroken(tiny: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("toy") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gemmule.runs.carbon.start_tracker", lambda *_: 1 / 0)
        run_training(RunConfig.parse(tiny(objective={"kind": "repeat", "ids": 4})), out)
    return out


def test_it_is_small() -> None:
    lines = [line for line in inspect.getsource(toy).splitlines() if line.strip()]
    assert len(lines) < 60


def test_it_trains_and_logs_metrics_of_its_own(unbroken: Path) -> None:
    lines = [m for m in read_metrics(unbroken) if "loss" in m]
    assert [m["step"] for m in lines] == list(range(1, 13))
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert all(0 <= m["repeated"] <= 1 for m in lines)
    # The loss is a mean over sequences of 24 tokens: a mean over tokens would be 24 times smaller.
    assert lines[0]["loss"] > 24 * 3
    # The source saw the model as each step had left it.
    assert len({m["norm"] for m in lines}) > 1
    assert [m["step"] for m in read_metrics(unbroken) if m.get("split") == "validation"]
    manifest = files.read_json(unbroken / "manifest.json")
    assert (manifest["kind"], manifest["objective"]) == ("repeat", {"name": "repetition"})
    saved = load_run_config(unbroken / "config.toml")
    assert saved.objective.model_dump() == {"kind": "repeat", "ids": 4}


def test_it_resumes_bit_for_bit(
    tiny: Settings, unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective = TOY[1]
    plain, calls = objective.loss, itertools.count(1)  # type: ignore[attr-defined]

    def loss(self: Any, model: Gemma, batch: Batch) -> Any:
        if next(calls) == 10:  # the second micro-batch of step 5
            signal.raise_signal(signal.SIGTERM)
        return plain(self, model, batch)

    out = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(Interrupted, match="after step 5 of 12"):
        patch.setattr(objective, "loss", loss)
        run_training(RunConfig.parse(tiny(objective={"kind": "repeat", "ids": 4})), out)
    run_training(load_run_config(out / "config.toml"), out, resume=True)
    assert weights(out) == weights(unbroken)
    ours, theirs = ([m.get("loss") for m in read_metrics(run)] for run in (out, unbroken))
    assert ours == theirs


def test_its_settings_are_checked(tiny: Settings) -> None:
    with pytest.raises(ConfigError, match=r"unknown key 'objective\.idds'; did you mean 'ids'"):
        RunConfig.parse(tiny(objective={"kind": "repeat", "idds": 4}))
    with pytest.raises(ConfigError, match=r"objective\.ids is a setting of kind 'repeat'"):
        RunConfig.parse(tiny(objective={"kind": "pretrain", "ids": 4}))
