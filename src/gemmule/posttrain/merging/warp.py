"""WARP (arXiv 2406.16768, algorithm 1): rounds of runs from one start, merged by SLERP and LITI.

    start = the model of model.init
    for each iteration:
        train M runs from `start`, which differ in their seeds only
        merged = slerp of their task vectors, layer by layer
        start = (1 - eta) start + eta merged
    the result is the last iteration's merge

The runs are of any kind; WARP's own are `rl` with `method = "rloo"` and an EMA anchor
(`anchor_rate = 0.01`), of which each run keeps its own. Models on the way from the first start to
the result, WARP's front of reward against KL, are made with
`gemmule merge OUT --base START --method lerp --eta ETA`.

The folder:

    config.toml, warp.json              settings
    iteration-1/run-1/, run-2/, …       training runs
    iteration-1/merge/, next/           their merge, and the start of the next iteration
    model/, manifest.json, result.json  the result, a merge; written last
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from gemmule import files
from gemmule.config import Config
from gemmule.errors import CheckpointError, ConfigError
from gemmule.posttrain.merging.coefficients import Method
from gemmule.posttrain.merging.merge import merge, merge_into
from gemmule.runs.layout import RunLayout
from gemmule.runs.lock import locked
from gemmule.runs.run_dir import RunDir, claim
from gemmule.runs.schema import RunResult
from gemmule.train.config import RunConfig, load_run_config
from gemmule.train.probe import MakeProbe
from gemmule.train.run import run_training

SETTINGS = "warp.json"
Stage = Callable[[str], None]


class WarpConfig(Config):
    """Settings of the loop.

    Attributes:
        runs: runs of an iteration, M.
        iterations: iterations, I.
        eta: how far the next iteration starts on the way to the merge (LITI).
        method: how runs are merged.
    """

    runs: int = Field(default=2, ge=2)
    iterations: int = Field(default=2, ge=1)
    eta: float = Field(default=0.3, gt=0, le=1)
    method: Method = "slerp"


def warp(
    config: RunConfig,
    settings: WarpConfig,
    out: Path,
    *,
    resume: bool = False,
    stage: Stage = lambda _: None,
    make_probes: Sequence[MakeProbe] = (),
) -> dict[str, Any]:
    """Runs the loop.

    Args:
        config: settings of each run; `model.init` is where the first iteration starts, and run m
            of iteration i has the seed `seed` + (i - 1) M + m - 1. With `resume` the saved ones
            count.
        settings: settings of the loop; with `resume` the saved ones count.
        out: a new folder, or with `resume` one that the loop was stopped in.
        resume: continue; what is finished is left as it is.
        stage: called with the name of each stage.
        make_probes: as for `run_training`.

    Returns:
        The content of result.json: what `merge` says about the last iteration.

    Raises:
        UserError: when a setting, a model or the folder cannot be used.
        Interrupted: when stopped; run again with `resume`.
    """
    layout = RunLayout(out)
    if resume:
        config, settings = read_settings(out)
    elif config.model.init is None:
        raise ConfigError(
            "WARP merges what runs learn from one start: set model.init to a model, such as one "
            "made by gemmule sft"
        )
    with locked(out):
        if not resume:
            own = [out / SETTINGS]
            claim(out, "add --resume to continue the loop there, or ", own)
            # Before config.toml, which is what makes a folder one that can be continued.
            files.write_json(out / SETTINGS, settings.model_dump(mode="json"))
            RunDir.create(out, config, besides=own)
        if layout.finished:
            return RunResult.read(layout.result).to_json()
        start = str(config.model.init)
        for i in range(settings.iterations):
            folder = out / f"iteration-{i + 1}"
            runs = _runs(config, settings, start, folder, i, stage, make_probes)
            last = i + 1 == settings.iterations
            made = [(folder / "merge", 1.0)] + ([] if last else [(folder / "next", settings.eta)])
            for path, eta in made:
                if not RunLayout(path).finished:
                    stage(f"{path.relative_to(out)}: {settings.method}, eta {eta:g}")
                    merge(runs, path, base=start, method=settings.method, eta=eta)
            if not last:
                start = str(made[-1][0])
        return merge_into(runs, out, base=start, method=settings.method, eta=1.0)


def _runs(
    config: RunConfig,
    settings: WarpConfig,
    start: str,
    folder: Path,
    iteration: int,
    stage: Stage,
    make_probes: Sequence[MakeProbe],
) -> list[Path]:
    """Trains the runs of an iteration that are not finished yet; their folders."""
    paths = [folder / f"run-{m + 1}" for m in range(settings.runs)]
    for m, path in enumerate(paths):
        layout = RunLayout(path)
        if layout.finished:
            continue
        label = f"iteration {iteration + 1}, run {m + 1}"
        stage(label)
        own = config.model_copy(
            update={
                "model": config.model.model_copy(update={"init": start}),
                "seed": config.seed + iteration * settings.runs + m,
            }
        )
        run_training(
            own, path, resume=layout.config.is_file(), label=label, make_probes=make_probes
        )
    return paths


def read_settings(out: Path) -> tuple[RunConfig, WarpConfig]:
    """The settings that a stopped loop saved.

    Raises:
        OutputError: when there is no run at `out`.
        CheckpointError: when it is not one of WARP.
    """
    RunDir.open(out)
    if not (out / SETTINGS).is_file():
        raise CheckpointError(f"{out} holds a run that was not started by gemmule warp")
    saved = WarpConfig.parse(files.read_json(out / SETTINGS), str(out / SETTINGS))
    return load_run_config(RunLayout(out).config), saved
