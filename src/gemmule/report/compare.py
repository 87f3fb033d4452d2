"""The comparison: who is ahead, at equal tokens and at equal compute, whichever way it falls."""

from collections.abc import Sequence

from gemmule.report import figures
from gemmule.report.figures import Figure, Ledger, Sentence, say
from gemmule.report.parts import Group, Rung
from gemmule.report.run_files import Document, Quickstart, Run

COLUMNS = (
    ("nats_per_token", "nats per token", figures.loss),
    ("perplexity", "perplexity", figures.significant),
    ("bits_per_byte", "bits per byte", figures.loss),
    ("parameters", "parameters", figures.count),
    ("train_tokens", "training tokens", figures.count),
    ("train_flops", "training compute", figures.flops),
    ("seconds", "time", figures.duration),
    ("energy_wh", "energy", figures.watt_hours),
    ("gco2e", "carbon", figures.grams),
)


def row_of(document: Document, prefix: str, name: str, ledger: Ledger) -> list[Figure]:
    """The figures of COLUMNS for one model, read from the keys that start with `prefix`."""
    return [
        ledger.take(document, prefix + key, f"{name}: {title}", form)
        for key, title, form in COLUMNS
    ]


def _verdict(scratch: Figure, distilled: Figure, ledger: Ledger, where: str) -> Sentence:
    """Who is ahead, said the same way whichever it is."""
    gap = ledger.difference(scratch, distilled, f"difference {where}", figures.loss)
    if not gap.known or gap.text == figures.loss(0.0):
        return ["there is no difference to three decimals"]
    ahead = "distillation" if distilled.value < scratch.value else "training from scratch"
    return say(f"{ahead} is ahead by {{}} nats per token", gap)


def compared(
    source: Quickstart, ledger: Ledger
) -> tuple[Sentence, list[Sentence], list[Group], list[Rung]]:
    """Headline, opening sentences, tables and scale of a quickstart."""
    comparison = source.comparison
    rows = {
        (group, model): row_of(comparison, f"{group}.{model}.", f"{title}, {words}", ledger)
        for group, words in (("equal_tokens", "equal tokens"), ("equal_compute", "equal compute"))
        for model, title in (("distilled", "distilled"), ("scratch", "from scratch"))
    }
    teacher = row_of(source.teacher.result, "", "teacher", ledger)
    groups, verdicts = [], {}
    for group, title in (
        ("equal_tokens", "At equal tokens"),
        ("equal_compute", "At equal training compute"),
    ):
        distilled, scratch = rows[group, "distilled"], rows[group, "scratch"]
        verdicts[group] = _verdict(scratch[0], distilled[0], ledger, title.lower())
        best = "Distilled" if distilled[0].value < scratch[0].value else "From scratch"
        tied = len(verdicts[group]) == 1
        pair = [("Distilled", distilled), ("From scratch", scratch)]
        groups.append(Group(title, pair, verdicts[group], None if tied else best))
    groups.append(Group("The teacher", [("Teacher", teacher)], [], None))
    tokens, even = rows["equal_tokens", "distilled"], rows["equal_tokens", "scratch"]
    more = rows["equal_compute", "scratch"]
    name = ledger.take(source.student.manifest, "data.name", "training data", str)
    headline = say("Distilled {} vs from scratch {} nats/token at equal tokens", tokens[0], even[0])
    lead = [
        say(
            "A {}-parameter Gemma 2 model, taught by a {}-parameter one on {}. Lower loss is "
            "better; the losses are on text held out of training.",
            tokens[3],
            teacher[3],
            name,
        ),
        say(
            "At equal tokens, {} (perplexity {} distilled, {} from scratch).",
            verdicts["equal_tokens"],
            tokens[1],
            even[1],
        ),
        say(
            "At equal training compute, {}: from scratch then sees {} tokens, distilled {}. "
            "The teacher's forward passes are counted, its own training is not.",
            verdicts["equal_compute"],
            more[4],
            rows["equal_compute", "distilled"][4],
        ),
    ]
    models = [
        ("Teacher", "teacher", teacher),
        ("Distilled", "distilled", tokens),
        ("From scratch, equal tokens", "scratch", even),
        ("From scratch, equal compute", "scratch more", more),
    ]
    return headline, lead, groups, _rungs(models)


def alone(source: Run, ledger: Ledger) -> tuple[Sentence, list[Sentence], list[Group], list[Rung]]:
    """The same for a single run, which has nothing to be compared with."""
    row = row_of(source.result, "", "this model", ledger)
    name = ledger.take(source.manifest, "data.name", "training data", str)
    headline = say("Held-out loss {} nats/token after {} tokens", row[0], row[4])
    lead = [say("A {}-parameter Gemma 2 model trained on {}.", row[3], name)]
    if source.distilled:
        title = "teacher: parameters"
        size = ledger.take(source.manifest, "parent.parameters", title, figures.count)
        text = "A {}-parameter Gemma 2 model, taught by a teacher of {} parameters on {}."
        lead = [say(text, row[3], size, name)]
    lead.append(say("Perplexity {}, {} bits per byte, on text held out of it.", row[1], row[2]))
    return headline, lead, [Group("Held out", [("This model", row)], [], None)], []


def _rungs(models: Sequence[tuple[str, str, Sequence[Figure]]]) -> list[Rung]:
    losses = [row[0].value for _, _, row in models]
    low, high = min(losses), max(losses)
    span = (high - low) or 1.0
    rungs = []
    for name, role, row in models:
        place = 4 + 92 * (row[0].value - low) / span
        note = say("{} parameters, {} tokens", row[3], row[4])
        rungs.append(Rung(name, role, row[0], note, round(place, 2)))
    return sorted(rungs, key=lambda rung: rung.percent)
