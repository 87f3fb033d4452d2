"""Builds a card's content from the files of a run; the templates turn it into Markdown and HTML."""

import json
from collections.abc import Sequence
from pathlib import Path

from gemmule.report import (
    answers,
    benchmarks,
    compare,
    ledger,
    lineage,
    memorization,
    plots,
    safety,
    sections,
    size_factor,
    values,
)
from gemmule.report.parts import Page, Tile
from gemmule.report.plots import Plot
from gemmule.report.run_files import Quickstart, Run
from gemmule.report.values import Provenance
from gemmule.shell import quoted

_COSTS = (
    ("parameters", ("Parameters", "embedding counted once")),
    ("train_tokens", ("Training tokens", "seen in training")),
    ("seconds", ("Training time", "wall clock")),
)


def build(source: Run | Quickstart, name: str, shown_path: str, root: Path) -> Page:
    """Builds the content of the page.

    Args:
        source: the run or quickstart, as read by `run_files.load`.
        name: the run's name, for titles.
        shown_path: the run's path as the reader would type it.
        root: the folder that was read.

    Raises:
        CheckpointError: when a file of a run that this one started from is broken.
        MissingExtraError: when matplotlib is not installed.
    """
    provenance = Provenance()
    model = source.student if isinstance(source, Quickstart) else source
    home = f"{shown_path}/{model.folder}" if model.folder else shown_path
    if isinstance(source, Quickstart):
        headline, lead, groups, rungs = compare.compared(source, provenance)
        lines = _quickstart_lines(source)
    else:
        headline, lead, groups, rungs = compare.alone(source, provenance)
        role = "distilled" if source.distilled else "scratch"
        lines = [plots.Line("This model", source, role, "", "o")]
    # The order of these calls is the order of the table of sources.
    tiles = _tiles(model, provenance)
    architecture = sections.architecture(model, provenance)
    data = sections.data(source, model, provenance)
    procedure = sections.procedure(model, provenance)
    energy = sections.energy(source, model, provenance)
    costs = ledger.section(root, provenance)
    scores = benchmarks.section(model.benchmarks, provenance)
    measured = safety.section(model.safety, provenance)
    remembered = memorization.section(model.memorization, provenance)
    compared_sizes = size_factor.section(source, provenance)
    came_from = lineage.stages(root, model, provenance)
    answered = answers.section(model.answers, provenance)
    samples = _samples(source)
    prompt = samples[0][0] if samples else "The"
    limitations = sections.limitations(model, provenance)
    return Page(
        name=name,
        headline=headline,
        lead=lead,
        tiles=tiles,
        rungs=rungs,
        columns=[title for _, title, _ in compare.columns_of(model)],
        groups=groups,
        lines=lines,
        pictures=_pictures(lines),
        samples=samples,
        python=_python(home, prompt),
        shell=f"gemmule chat {quoted(Path(home))}",
        transformers=_transformers(f"{home}/model", prompt),
        architecture=architecture,
        data=data,
        procedure=procedure,
        energy=energy,
        limitations=limitations,
        sources=provenance.values,
        distilled=model.distilled,
        model=model,
        benchmarks=scores,
        safety=measured,
        memorization=remembered,
        size_factor=compared_sizes,
        lineage=came_from,
        cost=None if costs is None else costs[0],
        emissions=None if costs is None else ledger.emissions(costs[1]),
        answers=answered,
    )


def _tiles(model: Run, provenance: Provenance) -> list[Tile]:
    what = "this model" if not model.folder else "distilled"
    columns = compare.columns_of(model)
    row = {
        key: provenance.take(model.result, key, f"{what}: {title}", form)
        for key, title, form in columns
    }
    watt = provenance.take(
        model.carbon, "energy_wh", "energy of this model's training", values.watt_hours
    )
    gram = provenance.take(model.carbon, "gco2e", "carbon of this model's training", values.grams)
    cpu = model.carbon.get("how.cpu") if model.carbon else None
    country = model.carbon.get("country") if model.carbon else None
    known = str(cpu).split(" (")[0].split(":")[0] if cpu and watt.known else ""
    if model.has_loss:
        first = [
            Tile("Held-out loss", row["nats_per_token"], "nats per token"),
            Tile("Perplexity", row["perplexity"], "held out"),
            Tile("Bits per byte", row["bits_per_byte"], "held out"),
        ]
    else:
        own = [(column[0], column[1]) for column in columns if column not in compare.COLUMNS]
        first = [Tile(title[0].upper() + title[1:], row[key], "held out") for key, title in own]
    return [
        *first,
        *(Tile(title, row[key], note) for key, (title, note) in _COSTS),
        Tile("Energy", watt, known),
        Tile("Carbon", gram, f"grid of {country}" if country else "world-average grid")
        if gram.known
        else Tile("Carbon", gram, ""),
    ]


def _quickstart_lines(source: Quickstart) -> list[plots.Line]:
    lines = [
        plots.Line("Teacher", source.teacher, "teacher", "5 1.6 1.2 1.6", "D"),
        plots.Line("From scratch", source.scratch, "scratch", "", "s"),
        plots.Line("Distilled", source.student, "distilled", "", "o"),
    ]
    if source.scratch_equal_compute is not None:
        more = source.scratch_equal_compute
        line = plots.Line("From scratch, equal compute", more, "scratch", "3.2 1.8", "^")
        lines.insert(2, line)
    return lines


def _pictures(lines: Sequence[plots.Line]) -> list[Plot]:
    files = ", ".join(f"{line.run.folder}/metrics.jsonl".lstrip("/") for line in lines)
    more = ", result.json" if not lines[0].run.folder else " and each run's result.json"
    faint = "Faint: training loss. " if any(not line.run.distilled for line in lines) else ""
    if any(line.run.distilled for line in lines):
        faint += (
            "A distilled model's training loss is relative to its teacher's distribution, another "
            "quantity, and is not drawn. "
        )
    passes = ""
    taught = [line.run for line in lines if line.run.distilled]
    if any(run.manifest.get("targets") is None for run in taught):
        passes = "The teacher's forward passes count; its own training does not. "
    elif taught:
        passes = "The teacher was recorded beforehand; neither that nor its training counts. "
    pictures = []
    for against, caption in (
        ("tokens", f"Validation loss, nats per token, against training tokens. {faint}"),
        ("compute", f"The same losses against training compute. {passes}"),
    ):
        drawn = plots.curves(lines, against)
        if drawn:
            source = files if against == "tokens" else files + more
            pictures.append(Plot(drawn[0], drawn[1], f"{caption}Source: {source}."))
    return pictures


def _samples(
    source: Run | Quickstart,
) -> list[tuple[str, Sequence[tuple[str, str, str]]]]:
    if not isinstance(source, Quickstart):
        return []
    order = (("distilled", "Distilled"), ("scratch", "From scratch"), ("teacher", "Teacher"))
    return [
        (
            sample.get("prompt", ""),
            [(key, name, sample[key]) for key, name in order if key in sample],
        )
        for sample in source.samples
    ]


def _python(path: str, prompt: str) -> str:
    folder, start = (json.dumps(text, ensure_ascii=False) for text in (path, prompt))
    return (
        "import gemmule\n\n"
        f"lm = gemmule.load({folder})\n"
        f"print(lm.generate({start}, max_new_tokens=32))"
    )


def _transformers(path: str, prompt: str) -> str:
    folder, start = (json.dumps(text, ensure_ascii=False) for text in (path, prompt))
    return (
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f"folder = {folder}\n"
        "tokenizer = AutoTokenizer.from_pretrained(folder)\n"
        "model = AutoModelForCausalLM.from_pretrained(\n"
        '    folder, attn_implementation="eager"  # the others leave out the soft caps\n'
        ")\n"
        f'inputs = tokenizer({start}, return_tensors="pt")\n'
        "tokens = model.generate(**inputs, max_new_tokens=32)[0]\n"
        "print(tokenizer.decode(tokens))"
    )


def shown_path(run: Path) -> str:
    """The run's path as a reader would type it: relative as given, else its name only."""
    name = run.resolve().name
    return name if run.is_absolute() or not run.name or ".." in run.parts else run.as_posix()
