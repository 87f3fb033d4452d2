"""One rank of several runs, one after the other, as a list of them says.

Argument: a file of JSON, a list of runs: "settings", "out", and optionally "resume", and "stop_at":
the number of steps after which the second rank alone is asked to stop. Prints a list of what became
of them: the result, or the kind of the error and its message.
"""

import json
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gemmule.runs.carbon
from gemmule.errors import GemmuleError
from gemmule.runtime.world import World
from gemmule.train import loop
from gemmule.train.config import RunConfig
from gemmule.train.run import run_training

plain = loop.clip_gradients


def train(run: Mapping[str, Any], world: World) -> Any:
    steps = 0

    def clip(*args: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == run.get("stop_at") and world.rank == 1:
            signal.raise_signal(signal.SIGTERM)
        return plain(*args)

    loop.clip_gradients = clip
    try:
        config = RunConfig.parse(run["settings"])
        return run_training(config, Path(run["out"]), resume=run.get("resume", False), world=world)
    except GemmuleError as e:
        return f"{type(e).__name__}: {e}"


def main(runs: list[dict[str, Any]]) -> None:
    gemmule.runs.carbon.start_tracker = lambda *_: 1 / 0  # type: ignore[assignment,return-value]
    with World.from_env("cpu", timeout=60) as world:
        print(json.dumps([train(run, world) for run in runs]))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
