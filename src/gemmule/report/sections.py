"""Tables of facts: architecture, data, procedure, energy, limitations."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from gemmule.report import figures
from gemmule.report.figures import Ledger, Sentence, say
from gemmule.report.parts import Section
from gemmule.report.run_files import Quickstart, Run

ARCHITECTURE = {
    "num_hidden_layers": "layers",
    "hidden_size": "model width",
    "intermediate_size": "feed-forward width (gate and up, each)",
    "num_attention_heads": "query heads",
    "num_key_value_heads": "key-value heads",
    "head_dim": "head width",
    "vocab_size": "vocabulary",
    "max_position_embeddings": "context, tokens",
    "sliding_window": "window of local layers, tokens",
    "attn_logit_softcapping": "soft cap of attention scores",
    "final_logit_softcapping": "soft cap of final logits",
}


HOW = {
    "cpu": "processor",
    "memory": "memory",
    "gpu": "graphics card",
    "grid": "carbon of the electricity",
    "scope": "what is counted",
}


def architecture(model: Run, ledger: Ledger) -> Section:
    """Sizes and shape, from result.json and manifest.json."""
    rows: list[tuple[str, Sentence]] = [
        ("parameters", [ledger.take(model.result, "parameters", "parameters", figures.count)])
    ]
    outside = "parameters outside the embedding"
    figure = ledger.take(model.manifest, "non_embedding_parameters", outside, figures.count)
    rows.append((outside, [figure]))
    for key, title in ARCHITECTURE.items():
        if model.manifest.get(f"model.{key}") is not None:
            rows.append(
                (title, [ledger.take(model.manifest, f"model.{key}", title, figures.exact)])
            )
    return Section("Architecture", rows)


def data(source: Run | Quickstart, model: Run, ledger: Ledger) -> Section:
    """What the model was trained on and what was held out."""
    rows: list[tuple[str, Sentence]] = []
    for key, title, form in (
        ("name", "training data", str),
        ("licence", "its licence", str),
        ("documents", "documents", figures.exact),
        ("train_tokens", "training tokens in the corpus", figures.exact),
        ("fingerprint", "fingerprint", _short),
    ):
        rows.append((title, [ledger.take(model.manifest, f"data.{key}", title, form)]))
    title = "tokenizer's fingerprint"
    rows.append((title, [ledger.take(model.manifest, "tokenizer", title, _short)]))
    if isinstance(source, Quickstart):
        for key in ("name", "documents", "tokens", "bytes"):
            title = "held-out text" if key == "name" else f"held-out {key}"
            form = str if key == "name" else figures.exact
            rows.append((title, [ledger.take(source.comparison, f"heldout.{key}", title, form)]))
    else:
        title = "held-out tokens"
        rows.append((title, [ledger.take(source.result, "heldout_tokens", title, figures.exact)]))
    return Section("Training data", rows)


def procedure(model: Run, ledger: Ledger) -> Section:
    """Objective, settings, versions and machine, as the run's files hold them."""
    rows: list[tuple[str, Sentence]] = []
    groups = [(name, model.manifest) for name in ("objective", "parent", "targets")]
    groups += [("seed", model.manifest), ("created", model.manifest)]
    groups += [("versions", model.manifest), ("machine", model.manifest)]
    if model.config is not None:
        groups += [(key, model.config) for key in model.config.content]
    for group, document in groups:
        for key in _leaves(document.get(group), group):
            if key.startswith("targets.recording."):  # under energy
                continue
            title = key if document is model.config else key.replace("_", " ").replace(".", ": ")
            rows.append((title, [ledger.take(document, key, title, _setting)]))
    return Section("Training procedure", rows)


def energy(source: Run | Quickstart, model: Run, ledger: Ledger) -> Section:
    """Energy and carbon, and how each was known."""
    rows: list[tuple[str, Sentence]] = []
    for key, title, form in (
        ("energy_wh", "energy of this model's training", figures.watt_hours),
        ("gco2e", "carbon of this model's training", figures.grams),
        ("seconds", "time covered", figures.duration),
        ("sessions", "sessions covered", figures.exact),
        ("grid_gco2e_per_kwh", "electricity, gCO₂e per kWh", figures.significant),
        ("country", "country", str),
        ("tool", "measured with", str),
    ):
        rows.append((title, [ledger.take(model.carbon, key, title, form)]))
        if key == "country" and not rows[-1][1][0].known:  # type: ignore[union-attr]
            rows[-1] = (title, ["not given"])
    if model.manifest.get("targets") is not None:
        # Not part of this run's own: other students share it.
        for key, title, form in (
            ("targets.recording.energy_wh", "energy of recording the teacher", figures.watt_hours),
            ("targets.recording.gco2e", "carbon of recording the teacher", figures.grams),
        ):
            rows.append((title, [ledger.take(model.manifest, key, title, form)]))
    for part in _leaves(model.carbon.get("how") if model.carbon else None, "how"):
        title = HOW.get(part.removeprefix("how."), part.removeprefix("how."))
        rows.append((title, [ledger.take(model.carbon, part, title, str)]))
    if isinstance(source, Quickstart):
        runs = [source.teacher, source.scratch, source.student]
        runs += [source.scratch_equal_compute] if source.scratch_equal_compute else []
        for key, title, form in (
            ("energy_wh", "energy of all the runs together", figures.watt_hours),
            ("gco2e", "carbon of all the runs together", figures.grams),
        ):
            parts = [
                ledger.take(run.carbon, key, f"{run.folder}: {title.split(' ')[0]}", form)
                for run in runs
            ]
            rows.append((title, [ledger.total(parts, title, form)]))
    return Section("Energy and carbon", rows)


def limitations(model: Run, ledger: Ledger) -> list[Sentence]:
    """What the figures do not show."""
    name = ledger.take(model.manifest, "data.name", "training data", str)
    seed = ledger.take(model.manifest, "seed", "seed", figures.exact)
    tokens = ledger.take(model.result, "train_tokens", "training tokens", figures.count)
    known = str(model.carbon.get("how.cpu") if model.carbon else "")
    lines = [
        say(
            "A small model after {} tokens of {}: it continues text in that style. It knows no "
            "facts to rely on and is not meant for advice or decisions.",
            tokens,
            name,
        ),
        say(
            "The held-out text comes from the same source as the training text; how the model "
            "does on other text was not measured."
        ),
        say(
            "One run, seed {}. Another seed gives other figures; differences as small as that "
            "spread may be chance, and the spread was not measured here.",
            seed,
        ),
    ]
    missing = [
        what
        for what, document in (
            ("benchmarks", model.benchmarks),
            ("safety", model.safety),
            ("memorisation", model.memorization),
        )
        if document is None
    ]
    if missing:
        lines.append(say(f"Not measured: {', '.join(missing)}."))
    if model.manifest.get("targets.biased"):
        label = ledger.take(model.manifest, "targets.label", "stored targets", str)
        lines.append(
            say(
                "It learned from the likeliest words of its teacher alone ({}): such targets are "
                "biased, and a student of them is surer of itself than its teacher.",
                label,
            )
        )
    if known.startswith("modelled"):
        lines.append(say("Energy is modelled, not metered: take it as an order of magnitude."))
    return lines


def _leaves(value: Any, key: str) -> Iterator[str]:
    if isinstance(value, Mapping):
        for name in value:
            yield from _leaves(value[name], f"{key}.{name}")
    elif value is not None and not key.endswith((".hostname", ".host", ".user")):
        yield key


def _setting(value: Any) -> str:
    if isinstance(value, str):
        return _short(value) if len(value) == 64 and value.isalnum() else value
    if isinstance(value, bool):
        return "yes" if value else "no"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list) else str(value)


def _short(value: Any) -> str:
    text = str(value)
    return text[:16] + "…" if len(text) > 20 else text
