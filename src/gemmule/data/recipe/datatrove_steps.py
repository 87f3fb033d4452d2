"""Stages and phases as steps of a datatrove pipeline: any callable of (data, rank, world_size).

    LocalPipelineExecutor([JsonlReader("in"), StageStep(HeuristicsSettings()), JsonlWriter("out")])
    SlurmPipelineExecutor([PhaseStep(Path("runs/data"), "filter")], tasks=100, …)

They use a document's `text`, `id` and `metadata` and need nothing of datatrove's, so that its
executors can send them to other machines.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from gemmule.data.recipe.run import Phase
from gemmule.data.recipe.stage import StageSettings
from gemmule.data.recipe.task import run_task
from gemmule.data.sources import Document

_AT_ONCE = 256  # documents


@dataclasses.dataclass(frozen=True)
class StageStep:
    """Applies a stage to a pipeline's documents; those that it drops do not come out.

    Attributes:
        settings: the stage's settings.
        folder: folder of its artifact, made with `settings.fit(folder)`.
        source: the documents' source, for stages with other settings for some.
    """

    settings: StageSettings
    folder: Path = Path()
    source: str = ""

    def __call__(self, data: Iterable[Any], rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        """The documents that pass, with their new text."""
        stage = self.settings.open(self.folder)
        documents = iter(data)
        while batch := list(itertools.islice(documents, _AT_ONCE)):
            ours = [Document(str(d.id), d.text, source=self.source) for d in batch]
            for document, outcome in zip(batch, stage.apply_batch(ours), strict=True):
                if outcome.text is not None:
                    document.text = outcome.text
                    yield document


@dataclasses.dataclass(frozen=True)
class PhaseStep:
    """One task's share of a phase of a recipe, as a pipeline of its own.

    Attributes:
        out: the data folder, which `gemmule data` or `run.start` has started.
        phase: the phase; all tasks of one must be done before the next begins.
    """

    out: Path
    phase: Phase

    def __call__(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        """Does the share; nothing comes out but what is in the folder."""
        run_task(self.out, self.phase, rank, world_size)
        return iter(())
