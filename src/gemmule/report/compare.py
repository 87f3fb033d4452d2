"""Which model is ahead, at equal tokens and at equal training compute."""

from collections.abc import Sequence

from gemmule.report import values
from gemmule.report.lineage import title_of
from gemmule.report.parts import Group, Rung
from gemmule.report.run_files import Document, Quickstart, Run, is_number
from gemmule.report.values import Provenance, Sentence, Value, sentence

COLUMNS = (
    ("nats_per_token", "nats per token", values.loss),
    ("perplexity", "perplexity", values.significant),
    ("bits_per_byte", "bits per byte", values.loss),
    ("parameters", "parameters", values.count),
    ("train_tokens", "training tokens", values.count),
    ("train_flops", "training compute", values.flops),
    ("seconds", "time", values.duration),
    ("energy_wh", "energy", values.watt_hours),
    ("gco2e", "carbon", values.grams),
)


_RUN = {
    "split",
    "parameters",
    "train_tokens",
    "train_flops",
    "seconds",
    "energy_wh",
    "gco2e",
    "seed",
}
_MOST_METRICS = 4


def columns_of(run: Run) -> Sequence[tuple[str, str, values.Format]]:
    """COLUMNS; of a run that is not evaluated by its loss, with its own metrics in place of it."""
    if run.has_loss:
        return COLUMNS
    own = [key for key, value in run.result.content.items() if key not in _RUN and is_number(value)]
    metrics = [(key, key.replace("_", " "), values.significant) for key in own[:_MOST_METRICS]]
    return (*metrics, *COLUMNS[3:])


def row_of(document: Document, prefix: str, name: str, provenance: Provenance) -> list[Value]:
    """The values of COLUMNS for one model, read from the keys that start with `prefix`."""
    return [
        provenance.take(document, prefix + key, f"{name}: {title}", form)
        for key, title, form in COLUMNS
    ]


def _verdict(scratch: Value, distilled: Value, provenance: Provenance, where: str) -> Sentence:
    """Which model is ahead, and by how much, in the same words for either."""
    gap = provenance.difference(scratch, distilled, f"difference {where}", values.loss)
    if not gap.known or gap.text == values.loss(0.0):
        return ["the losses are equal to three decimals"]
    ahead = "distillation" if distilled.value < scratch.value else "training from scratch"
    return sentence(f"{ahead} is ahead by {{}} nats per token", gap)


def compared(
    source: Quickstart, provenance: Provenance
) -> tuple[Sentence, list[Sentence], list[Group], list[Rung]]:
    """Headline, opening sentences, tables and scale of a quickstart."""
    comparison = source.comparison
    rows = {
        (group, model): row_of(comparison, f"{group}.{model}.", f"{title}, {words}", provenance)
        for group, words in (("equal_tokens", "equal tokens"), ("equal_compute", "equal compute"))
        for model, title in (("distilled", "distilled"), ("scratch", "from scratch"))
    }
    teacher = row_of(source.teacher.result, "", "teacher", provenance)
    groups, verdicts = [], {}
    for group, title in (
        ("equal_tokens", "At equal tokens"),
        ("equal_compute", "At equal training compute"),
    ):
        distilled, scratch = rows[group, "distilled"], rows[group, "scratch"]
        verdicts[group] = _verdict(scratch[0], distilled[0], provenance, title.lower())
        best = "Distilled" if distilled[0].value < scratch[0].value else "From scratch"
        tied = len(verdicts[group]) == 1
        pair = [("Distilled", distilled), ("From scratch", scratch)]
        groups.append(Group(title, pair, verdicts[group], None if tied else best))
    scarce: list[Sentence] = []
    if comparison.get("scarce_text") is not None:
        on_scarce, scarce = _scarce(source, provenance)
        groups.append(on_scarce)
    groups.append(Group("The teacher", [("Teacher", teacher)], [], None))
    tokens, even = rows["equal_tokens", "distilled"], rows["equal_tokens", "scratch"]
    more = rows["equal_compute", "scratch"]
    name = provenance.take(source.student.manifest, "data.name", "training data", str)
    headline = sentence(
        "Distilled {} vs from scratch {} nats/token at equal tokens", tokens[0], even[0]
    )
    lead = [
        sentence(
            "A {}-parameter Gemma 2 model, distilled from a {}-parameter teacher on {}. Losses are "
            "measured on text held out of training; lower is better.",
            tokens[3],
            teacher[3],
            name,
        ),
        sentence(
            "At equal tokens, {} (perplexity {} distilled, {} from scratch).",
            verdicts["equal_tokens"],
            tokens[1],
            even[1],
        ),
        sentence(
            "At equal training compute, {}: the model from scratch then sees {} tokens, the "
            "distilled one {}. The teacher's forward passes are counted, its own training is not.",
            verdicts["equal_compute"],
            more[4],
            rows["equal_compute", "distilled"][4],
        ),
        *scarce,
    ]
    models = [
        ("Teacher", "teacher", teacher),
        ("Distilled", "distilled", tokens),
        ("From scratch, equal tokens", "scratch", even),
        ("From scratch, equal compute", "scratch more", more),
    ]
    return headline, lead, groups, _rungs(models)


def _scarce(source: Quickstart, provenance: Provenance) -> tuple[Group, list[Sentence]]:
    """Table and sentences of the comparison on little text."""
    comparison, key = source.comparison, "scarce_text"
    title = "From little text, each at its best epoch"
    rows, epochs = {}, {}
    for way, name in (("distilled", "distilled"), ("scratch", "from scratch")):
        what = f"{name}, little text"
        rows[way] = row_of(comparison, f"{key}.{way}.", what, provenance)
        epochs[way] = [
            provenance.take(comparison, f"{key}.{way}.{part}", f"{what}: {label}", values.exact)
            for part, label in (("epochs", "best epoch"), ("schedule_epochs", "epochs of the run"))
        ]
    verdict = _verdict(rows["scratch"][0], rows["distilled"][0], provenance, "on little text")
    best = "Distilled" if rows["distilled"][0].value < rows["scratch"][0].value else "From scratch"
    pair = [("Distilled", rows["distilled"]), ("From scratch", rows["scratch"])]
    group = Group(title, pair, verdict, None if len(verdict) == 1 else best)
    tokens, size = (
        provenance.take(comparison, f"{key}.text.{unit}", f"little text: {unit}", values.count)
        for unit in ("tokens", "bytes")
    )
    recorded = provenance.take(
        comparison, f"{key}.recording.flops", "recording for little text: compute", values.flops
    )
    trained = provenance.take(comparison, "teacher.train_flops", "teacher: compute", values.flops)
    shared = provenance.take(
        comparison, f"{key}.students_of_teacher", "students of the teacher", values.exact
    )
    whole, students = trained.value, shared.value
    each = provenance.derived(
        comparison, "teacher.train_flops / scarce_text.students_of_teacher",
        whole / students if whole is not None else None,
        "teacher: compute for each of its students", values.flops,
    )  # fmt: skip
    read = provenance.take(
        source.teacher.result, "train_tokens", "teacher: training tokens", values.count
    )
    lead = [
        sentence(
            "From {} tokens ({}B) alone, read several times, each way at its best epoch by "
            "validation loss, {}: distilled after epoch {} of {}, from scratch after epoch {} of "
            "{}.",
            tokens, size, verdict, *epochs["distilled"], *epochs["scratch"],
        ),
        sentence(
            "The teacher of that student had read {} tokens of the whole text. Its training took "
            "{}, {} for each of its {} students; recording it for the little text took {}. Neither "
            "is in the student's own {}.",
            read, trained, each, shared, recorded, rows["distilled"][5],
        ),
    ]  # fmt: skip
    return group, lead


def alone(
    source: Run, provenance: Provenance
) -> tuple[Sentence, list[Sentence], list[Group], list[Rung]]:
    """The same for a single run, which is not compared with anything."""
    if not source.has_loss:
        return _other(source, provenance)
    row = row_of(source.result, "", "this model", provenance)
    name = provenance.take(source.manifest, "data.name", "training data", str)
    headline = sentence("Held-out loss {} nats/token after {} tokens", row[0], row[4])
    done = title_of(source) if is_post_trained(source) else ""
    trained = f"after {done[0].lower() + done[1:]} on" if done else "trained on"
    lead = [sentence(f"A {{}}-parameter Gemma 2 model {trained} {{}}.", row[3], name)]
    if source.distilled:
        title = "teacher: parameters"
        size = provenance.take(source.manifest, "parent.parameters", title, values.count)
        text = "A {}-parameter Gemma 2 model, distilled from a {}-parameter teacher on {}."
        lead = [sentence(text, row[3], size, name)]
    lead.append(
        sentence("Perplexity {} and {} bits per byte on text held out of training.", row[1], row[2])
    )
    return headline, lead, [Group("Held out", [("This model", row)], [], None)], []


def is_post_trained(run: Run) -> bool:
    """Whether a run is of a kind that starts from a model."""
    return run.manifest.get("kind") not in ("train", "distill")


def _other(
    source: Run, provenance: Provenance
) -> tuple[Sentence, list[Sentence], list[Group], list[Rung]]:
    """The same for a run that is not evaluated by its loss on text."""
    title = title_of(source)
    columns = columns_of(source)
    row = [
        provenance.take(source.result, key, f"this model: {label}", form)
        for key, label, form in columns
    ]
    by_key = {key: value for (key, _, _), value in zip(columns, row, strict=True)}
    headline = sentence("{}: {} parameters", [title], by_key["parameters"])
    if columns[0] not in COLUMNS:
        headline = sentence(f"{title}: {columns[0][1]} {{}} on held-out data", row[0])
    lead = [sentence("A {}-parameter Gemma 2 model.", by_key["parameters"])]
    return headline, lead, [Group("Held out", [("This model", row)], [], None)], []


def _rungs(models: Sequence[tuple[str, str, Sequence[Value]]]) -> list[Rung]:
    losses = [row[0].value for _, _, row in models]
    low, high = min(losses), max(losses)
    span = (high - low) or 1.0
    rungs = []
    for name, role, row in models:
        place = 4 + 92 * (row[0].value - low) / span
        note = sentence("{} parameters, {} tokens", row[3], row[4])
        rungs.append(Rung(name, role, row[0], note, round(place, 2)))
    return sorted(rungs, key=lambda rung: rung.percent)
