"""One rank of a run: trained in one go, and stopped on the second rank and resumed.

Arguments: settings as JSON, folder. Prints the losses and a checksum of each model's weights.
"""

import dataclasses
import hashlib
import json
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gemmule.runs.carbon
from gemmule.data.batch import Batch
from gemmule.data.dataset import Dataset
from gemmule.data.source import Source
from gemmule.errors import Interrupted
from gemmule.model.gemma import Gemma
from gemmule.runs.metrics import read_metrics
from gemmule.runs.run_dir import RunDir
from gemmule.runtime.world import World
from gemmule.train.config import RunConfig
from gemmule.train.loop import train
from gemmule.train.recipes import build_recipe


class Share:
    """One rank's rows of every batch; the second rank is asked to stop at batch `stop_at`."""

    def __init__(self, source: Source, world: World, stop_at: int) -> None:
        self.source, self.world, self.stop_at, self.calls = source, world, stop_at, 0

    def next(self) -> Batch:
        whole, self.calls = self.source.next(), self.calls + 1
        if self.calls == self.stop_at and self.world.rank == 1:
            signal.raise_signal(signal.SIGTERM)
        rows = slice(self.world.rank, None, self.world.size)
        return Batch(whole.tokens_BT[rows], whole.labels_BT[rows], whole.doc_ids_BT[rows])

    def state(self) -> dict[str, Any]:
        return self.source.state()

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.source.load_state(state)


def train_part(config: RunConfig, out: Path, world: World, stop_at: int = 0) -> Gemma:
    recipe = build_recipe(config, Dataset.open(config.data.path))
    recipe = dataclasses.replace(recipe, source=Share(recipe.source, world, stop_at))
    train(RunDir(out), config, recipe, out.name, recipe.probes, world)
    return recipe.model


def checksum(model: Gemma) -> str:
    weights = [p.detach().numpy().tobytes() for p in model.parameters()]
    return hashlib.sha256(b"".join(weights)).hexdigest()


def main(settings: str, folder: Path) -> None:
    gemmule.runs.carbon.start_tracker = lambda *_: 1 / 0  # type: ignore[assignment,return-value]
    config = RunConfig.parse(json.loads(settings))
    with World.from_env("cpu", timeout=60) as world:
        for name in ("whole", "stopped"):
            if world.first:
                (folder / name).mkdir()
        world.barrier()
        whole = train_part(config, folder / "whole", world)
        message = ""
        try:
            train_part(config, folder / "stopped", world, stop_at=3)
        except Interrupted as e:
            message = str(e)
        resumed = train_part(config, folder / "stopped", world)
        losses = [m["loss"] for m in read_metrics(folder / "whole") if "loss" in m]
        answer = {"message": message, "losses": losses, "norm": whole.norm.weight.tolist()}
        print(json.dumps({**answer, "checksums": [checksum(whole), checksum(resumed)]}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
