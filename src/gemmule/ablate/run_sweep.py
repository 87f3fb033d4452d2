"""`gemmule ablate`: runs a sweep's cells, one after the other, and writes what they say together.

sweep.toml       settings, and what data and teacher were
cells/NAME/      a training run, or result.json of a measurement
results.json     every cell with its figures and the file they are from; written after each cell
table.md, plot.svg, README.md
"""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gemmule import files
from gemmule.ablate.ablations import Ablation, find
from gemmule.ablate.config import SweepConfig, save_or_compare
from gemmule.ablate.equal_compute import at_compute_of_needed
from gemmule.ablate.page import write_page
from gemmule.ablate.results import METRICS, combine
from gemmule.ablate.run_metrics import MEASURES, losses_by_source
from gemmule.ablate.sweep import STORE, Cell, SweepPlan, make_plan, source_names
from gemmule.console import console
from gemmule.data.dataset import Dataset
from gemmule.data.mixture.mixed_dataset import MixedDataset
from gemmule.data.mixture.settings import MixtureSource
from gemmule.errors import (
    ConfigError,
    GemmuleError,
    Interrupted,
    MissingExtraError,
    OutputError,
)
from gemmule.runs.layout import SIZE_FACTOR, RunLayout
from gemmule.runs.ledger import activity as ledger
from gemmule.runs.lock import locked
from gemmule.runs.run_dir import is_free
from gemmule.runs.schema import Manifest
from gemmule.runs.schema_evals import SizeFactors
from gemmule.runtime import torch_compile
from gemmule.teachers.open import open_teacher
from gemmule.teachers.record import record
from gemmule.teachers.record_config import RecordConfig
from gemmule.train.config import DataConfig, RunConfig
from gemmule.train.run import run_training

SWEEP = "sweep.toml"
RESULTS = "results.json"
COMPILE_EARNS_ITS_TIME = 3_000_000  # tokens of the whole sweep


def run_ablation(config: SweepConfig, out: Path) -> dict[str, Any]:
    """Runs every cell that is not finished yet; failed ones are tried again.

    A cell that fails is recorded with its reason, and the others run.

    Returns:
        The content of results.json.

    Raises:
        UserError: when the data, the teacher, a setting or the folder cannot be used at all.
        Interrupted: when stopped; the same call continues.
    """
    ablation = find(config.ablation)
    if find_spec("matplotlib") is None:
        raise MissingExtraError("matplotlib", "report", "the sweep's plot")
    dataset = _open_data(config)
    config, vocab_size = _with_inputs(config, dataset)
    plan = make_plan(config, out, vocab_size)
    settings = {
        c.name: RunConfig.parse(c.settings, c.name) for c in plan.cells if c.measure is None
    }
    with locked(out):
        _claim(out, config)
        return _run_cells(config, ablation, plan, settings, dataset, out)


def _open_data(config: SweepConfig) -> Dataset:
    if not config.sources:
        return Dataset.open(config.data)
    names = source_names(config.sources)
    return MixedDataset.open_all(
        [MixtureSource(path=p, name=n) for p, n in zip(config.sources, names, strict=True)]
    )


def _run_cells(
    config: SweepConfig,
    ablation: Ablation,
    plan: SweepPlan,
    settings: Mapping[str, RunConfig],
    dataset: Dataset,
    out: Path,
) -> dict[str, Any]:
    """Runs the cells that are not finished, and writes their results together."""
    settings = _compiled_where_it_pays(settings)
    records = [_record(cell, out) for cell in plan.cells]
    for i, cell in enumerate(plan.cells):
        if records[i]["status"] == "done":
            continue
        label = f"{i + 1}/{len(plan.cells)} {cell.name}"
        lacking = [r["name"] for r in records if r["name"] == cell.needs and r["status"] != "done"]
        try:
            if lacking:
                raise ConfigError(f"it needs the cell {lacking[0]}, which failed")
            with _going_on(f"{sum(r['status'] == 'done' for r in records)} of {len(records)}"):
                own = settings.get(cell.name)
                if own is not None and cell.equal_compute:
                    own = at_compute_of_needed(cell, own, plan.cells, records)
                _perform(cell, own, dataset, out, label)
        except Interrupted:
            raise
        except GemmuleError as e:
            console.print(f"{label}: failed: {e}", markup=False)
            records[i] = {**_record(cell, out), "status": "failed", "reason": str(e)}
        else:
            records[i] = _record(cell, out)
            console.print(
                f"{label}: {_summary_line(records[i]['figures'], ablation)}", markup=False
            )
        files.write_json(out / RESULTS, combine(config, ablation, plan, records))
    results = combine(config, ablation, plan, records)
    files.write_json(out / RESULTS, results)
    write_page(results, out)
    _give_runs_their_factors(results, plan, out)
    return results


def _give_runs_their_factors(results: Mapping[str, Any], plan: SweepPlan, out: Path) -> None:
    """Leaves in the folder of every distilled run the size factors of its size, for its card."""
    for cell in plan.cells:
        own = [
            entry for entry in results["size_factors"]
            if (entry["group"], entry["arm"]) == (cell.group, cell.arm) and entry["factor"]["n"]
        ]  # fmt: skip
        run = RunLayout(_folder(cell, out))
        if own and run.finished:
            SizeFactors.parse({"size_factors": own}, SIZE_FACTOR).write(run.size_factor)


def _perform(
    cell: Cell, settings: RunConfig | None, dataset: Dataset, out: Path, label: str
) -> None:
    """Leaves result.json in the cell's folder."""
    folder = _folder(cell, out)
    if cell.measure == "record":
        console.print(f"{label} …", markup=False)
        with ledger.activity("record", folder / STORE):
            result = record(RecordConfig.parse(cell.settings), folder / STORE)
        files.write_json(RunLayout(folder).result, result)
    elif cell.measure is not None:
        trained = out / "cells" / str(cell.needs)
        console.print(f"{label} …", markup=False)
        figures = MEASURES[cell.measure](trained, dataset, cell.settings)
        files.write_json(RunLayout(folder).result, figures)
    elif settings is not None:
        resumable = RunLayout(folder).started
        if folder.exists() and not resumable:
            shutil.rmtree(folder)  # stopped before it had begun
        if cell.route_quantile is not None:
            entropies = files.read_json(RunLayout(out / "cells" / str(cell.needs)).result)
            above = entropies["quantiles"][str(cell.route_quantile)]
            objective = settings.objective.model_copy(update={"route_above": above})
            settings = settings.model_copy(update={"objective": objective})
        run_training(settings, folder, resume=resumable, label=label)


def _record(cell: Cell, out: Path) -> dict[str, Any]:
    """What is known of a cell, from its files."""
    folder = _folder(cell, out)
    record: dict[str, Any] = {
        "name": cell.name,
        "group": cell.group,
        "arm": cell.arm,
        "seed": cell.seed,
        "status": "pending",
    }
    run = RunLayout(folder)
    if not run.finished:
        return record
    figures = files.read_json(run.result)
    if run.started:
        manifest = Manifest.read(run.manifest)
        figures["non_embedding_parameters"] = manifest.non_embedding_parameters
        figures |= losses_by_source(folder)
        if manifest.targets is not None:
            figures["bytes_per_token"] = manifest.targets["bytes_per_token"]
    result_file = run.result.relative_to(out)
    return {**record, "status": "done", "result_file": str(result_file), "figures": figures}


def _folder(cell: Cell, out: Path) -> Path:
    return out / "cells" / cell.name


def _claim(out: Path, config: SweepConfig) -> None:
    """Makes the folder of a new sweep, or finds that it holds this very one.

    Raises:
        OutputError: when it holds something else.
        ConfigError: when it holds a sweep with other settings.
    """
    with files.writing_to(out):
        out.mkdir(parents=True, exist_ok=True)
    if not (out / SWEEP).is_file() and not is_free(out):
        raise OutputError(f"{out} is in use by something other than a sweep: choose another folder")
    save_or_compare(config, out / SWEEP)
    files.remove_leftovers(out)


def _with_inputs(config: SweepConfig, dataset: Dataset) -> tuple[SweepConfig, int]:
    """The settings with fingerprints of what they name, and the rows of every vocabulary.

    Raises:
        UserError: when the teacher cannot teach from the data: another tokenizer, a context shorter
            than a sequence, nothing readable.
    """
    prints = {"data_fingerprint": dataset.fingerprint}
    rows = dataset.tokenizer.vocab_size
    if config.teacher is not None:
        seq_len = config.settings.get("data", {}).get(
            "seq_len", DataConfig.model_fields["seq_len"].default
        )
        teacher = open_teacher(config.teacher, dataset, seq_len)
        rows = max(rows, teacher.vocab_size)  # students of a padded teacher are padded the same way
        prints["teacher_fingerprint"] = teacher.describe()["fingerprint"]
    return config.model_copy(update=prints), rows


def _compiled_where_it_pays(
    settings: Mapping[str, RunConfig],
) -> dict[str, RunConfig]:
    """Replaces compile = "auto" by true if the sweep as a whole is long enough.

    Compiled code is shared by all seeds, so the sweep as a whole decides whether it pays.
    """
    tokens = sum(c.steps * c.data.tokens_per_step for c in settings.values())
    if tokens < COMPILE_EARNS_ITS_TIME or not torch_compile.can_compile():
        return dict(settings)
    return {name: _compiled(c) for name, c in settings.items()}


def _compiled(config: RunConfig) -> RunConfig:
    if config.runtime.compile != "auto":
        return config
    runtime = config.runtime.model_copy(update={"compile": True})
    return config.model_copy(update={"runtime": runtime})


@contextmanager
def _going_on(done: str) -> Iterator[None]:
    try:
        yield
    except (Interrupted, KeyboardInterrupt):
        raise Interrupted(
            f"stopped; {done} cells are done: the same command continues from there"
        ) from None


def _summary_line(figures: Mapping[str, Any], ablation: Ablation) -> str:
    """A finished cell in a line; teachers and records have figures of their own."""
    if "identity" in figures:
        return f"{figures['targets']}, {figures['bytes_per_token']:.1f} bytes a token"
    if "quantiles" in figures:
        return f"the teacher's mean entropy {figures['entropy']:.4f} nats"
    key = ablation.metric if ablation.metric in figures else "nats_per_token"
    _, name, unit = METRICS[key]
    return f"{name} {figures[key]:.4f} {unit}"
