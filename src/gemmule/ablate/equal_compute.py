"""Cells of a sweep that train for as much compute as another cell took."""

from collections.abc import Mapping, Sequence
from typing import Any

from gemmule.ablate.sweep import Cell
from gemmule.errors import ConfigError
from gemmule.model.config import GemmaConfig
from gemmule.train.config import RunConfig


def at_compute_of_needed(
    cell: Cell,
    settings: RunConfig,
    cells: Sequence[Cell],
    records: Sequence[Mapping[str, Any]],
) -> RunConfig:
    """The settings of `cell`, with as many steps as the compute of the cell that it needs pays for.

    That compute is the student's own training, and an equal share of the teacher's forward passes
    if several students learn from one recording. The part of the corpus grows with the steps, so
    that no text is read twice as long as there is more.

    Args:
        cell: a cell with `equal_compute`.
        settings: its settings.
        cells: every cell of the sweep.
        records: what is known of each of them; that of the needed cell is finished.

    Raises:
        ConfigError: when the recording does not say its compute.
    """
    by_name = {c.name: (c, r) for c, r in zip(cells, records, strict=True)}
    student, record = by_name[str(cell.needs)]
    flops = float(record["figures"]["train_flops"])
    source, recording = by_name.get(str(student.needs), (None, None))
    if source is not None and recording is not None and source.measure == "record":
        whole = recording["figures"].get("teacher_flops")
        if whole is None:
            raise ConfigError(
                f"{recording['result_file']} is of an earlier version and lacks the recording's "
                "compute (teacher_flops): delete that file, and the same command adds it"
            )
        flops += whole / sum(c.needs == source.name for c in cells)
    shape = GemmaConfig.parse(cell.settings["model"], cell.name)
    data = settings.data
    per_step = 3 * shape.forward_flops_per_token(data.seq_len) * data.tokens_per_step
    steps = max(1, round(flops / per_step))
    if data.corpus_tokens is not None:
        read = max(data.corpus_tokens, steps * data.tokens_per_step)
        data = data.model_copy(update={"corpus_tokens": read})
    return settings.model_copy(update={"steps": steps, "data": data})
