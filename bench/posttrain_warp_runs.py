"""Training runs of bench/posttrain_warp.py in a folder: what is finished is not done again."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

import harness
import resumable
from gemmule import files
from gemmule.errors import GemmuleError
from gemmule.infer.language_model import load
from gemmule.model.gemma import Gemma
from gemmule.model.tokenizer import Tokenizer
from gemmule.posttrain.chat_data import ChatOptions
from gemmule.posttrain.filters import Filters
from gemmule.runs.layout import RunLayout
from gemmule.train.config import RunConfig, load_run_config


class UnfinishedError(GemmuleError):
    """Something is not there, and nothing may be trained or measured."""


SEQ_LEN = 128  # a bound, which no answer comes near


class Runs:
    """The runs, data and measurements of a seed.

    Args:
        seed: seed of all runs, times 100, so that those of WARP's loop are no other seed's.
        out: the folder.
        threads: CPU threads.
        states: training states that a run keeps besides the last one.
        finished: whether only what is finished may be used.
    """

    def __init__(
        self, seed: int, out: Path, threads: int, states: int, finished: bool = False
    ) -> None:
        self.seed, self.out, self.threads, self._states = seed, out, threads, states
        self._finished = finished

    def begin(self, name: str) -> None:
        """To be called before something is made.

        Raises:
            UnfinishedError: when only what is finished may be used.
        """
        if self._finished:
            raise UnfinishedError(f"{name} of seed {self.seed} is not finished")

    def say(self, line: str) -> None:
        """A line to the terminal."""
        harness.say(f"seed {self.seed}, {line}")

    def kept(self, name: str, make: Callable[[], Any]) -> Any:
        """What a file has, or what is made and then kept there, as JSON."""
        path = self.out / "measured" / f"{slug(name)}.json"
        if not path.is_file():
            self.begin(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            files.write_json(path, make())
        return files.read_json(path)

    def folder(
        self, name: str, write: Callable[..., Any], items: Sequence[Any], tokenizer: Tokenizer
    ) -> Path:
        """A chat data folder; nothing is filtered, and almost everything is for training."""
        none = Filters(duplicates=False, self_identification=False, cut=False)
        options = ChatOptions(name=name, validation=0.02, heldout=0.02, filters=none)
        write(items, tokenizer, self.out / name, options)
        return self.out / name

    def config(
        self,
        data: Path,
        model: Mapping[str, Any],
        objective: Mapping[str, Any],
        steps: int,
        rows: int,
        optimizer: Mapping[str, Any],
        *,
        decay: float = 0.0,
        seq_len: int = SEQ_LEN,
        every: int | None = None,
    ) -> RunConfig:
        """Settings of a run.

        Args:
            data: chat data folder.
            model: the group `model`.
            objective: the group `objective`.
            steps: number of steps.
            rows: rows of a batch.
            optimizer: the group `optimizer`.
            decay: part of the steps in which the rate falls; it is constant before.
            seq_len: tokens of a row.
            every: steps between training states; None: there is only the last.
        """
        return RunConfig.parse(
            {
                "steps": steps,
                "seed": 100 * self.seed,
                "data": {"path": str(data), "seq_len": seq_len, "batch_size": rows},
                "model": dict(model),
                "objective": dict(objective),
                "optimizer": dict(optimizer),
                "schedule": {"name": "wsd", "warmup": 0.05, "decay": decay},
                "evaluation": {"every": steps, "tokens": 256, "heldout_tokens": 256},
                "checkpoint": {"every": every or steps, "keep": self._states + 1},
                "runtime": {"dtype": "float32", "compile": False, "threads": self.threads},
            }
        )

    def trained(self, name: str, make: Callable[[], RunConfig]) -> Path:
        """A finished run; one that is not is started or continued, with the settings of `make`."""
        run = self.out / slug(name)
        if not RunLayout(run).finished:
            self.begin(name)
            config = make()
            self.say(f"{name}: {config.steps} steps")
            resumable.train(config, run, label=f"seed {self.seed} {name}")
        return run


def adamw(rate: float) -> dict[str, Any]:
    """AdamW with one learning rate for all weights."""
    return {
        "name": "adamw", "learning_rate": rate, "embedding_learning_rate": rate,
        "weight_decay": 0.0,
    }  # fmt: skip


def slug(name: str) -> str:
    """A name of a file or folder."""
    return name.replace(", ", "-").replace(" ", "-")


def states_of(run: Path) -> list[tuple[int, Path]]:
    """The regular training states of a run with their steps, in order.

    A run that was stopped has another one of that step.
    """
    layout = RunLayout(run)
    every = load_run_config(layout.config).checkpoint.every
    folders = layout.checkpoints.glob("step-*")
    states = sorted((int(path.name.partition("-")[2]), path) for path in folders)
    return [(step, path) for step, path in states if step % every == 0]


def loaded(model: Path, state: Path | None = None) -> Gemma:
    """A model without gradients, with the weights of one of its training states if one is given."""
    gemma = load(model).model
    if state is not None:
        tensors = load_file(state / "state.safetensors")
        own = {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
        gemma.load_state_dict(own)
    return gemma.requires_grad_(False).eval()
