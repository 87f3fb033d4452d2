"""Tables of a card: architecture, data, procedure, energy; and its limitations."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from gemmule.report import values
from gemmule.report.parts import Section
from gemmule.report.run_files import Quickstart, Run
from gemmule.report.values import Provenance, Sentence, sentence

ARCHITECTURE = {
    "num_hidden_layers": "layers",
    "hidden_size": "model width",
    "intermediate_size": "feed-forward width (gate and up, each)",
    "num_attention_heads": "query heads",
    "num_key_value_heads": "key-value heads",
    "head_dim": "head width",
    "vocab_size": "vocabulary size",
    "max_position_embeddings": "context length, tokens",
    "sliding_window": "sliding window of local layers, tokens",
    "attn_logit_softcapping": "soft cap of attention logits",
    "final_logit_softcapping": "soft cap of final logits",
}


HOW = {
    "cpu": "processor",
    "memory": "memory",
    "gpu": "GPU",
    "grid": "carbon intensity of the electricity",
    "scope": "what is counted",
}


def architecture(model: Run, provenance: Provenance) -> Section:
    """Parameter counts and shape, from result.json and manifest.json."""
    rows: list[tuple[str, Sentence]] = [
        ("parameters", [provenance.take(model.result, "parameters", "parameters", values.count)])
    ]
    outside = "parameters without the embedding"
    value = provenance.take(model.manifest, "non_embedding_parameters", outside, values.count)
    rows.append((outside, [value]))
    for key, title in ARCHITECTURE.items():
        if model.manifest.get(f"model.{key}") is not None:
            rows.append(
                (title, [provenance.take(model.manifest, f"model.{key}", title, values.exact)])
            )
    return Section("Architecture", rows)


def data(source: Run | Quickstart, model: Run, provenance: Provenance) -> Section:
    """Training data and held-out data."""
    rows: list[tuple[str, Sentence]] = []
    for key, title, form in (
        ("name", "training data", str),
        ("licence", "its license", str),
        ("documents", "documents", values.exact),
        ("train_tokens", "training tokens in the corpus", values.exact),
        ("fingerprint", "fingerprint", _short),
    ):
        rows.append((title, [provenance.take(model.manifest, f"data.{key}", title, form)]))
    rows += _by_license(model, provenance) + _by_source(model, provenance)
    rows += _filtered(model, provenance)
    title = "tokenizer's fingerprint"
    rows.append((title, [provenance.take(model.manifest, "tokenizer", title, _short)]))
    if isinstance(source, Quickstart):
        for key in ("name", "documents", "tokens", "bytes"):
            title = "held-out text" if key == "name" else f"held-out {key}"
            form = str if key == "name" else values.exact
            rows.append(
                (title, [provenance.take(source.comparison, f"heldout.{key}", title, form)])
            )
    else:
        title = "held-out tokens"
        rows.append(
            (title, [provenance.take(source.result, "heldout_tokens", title, values.exact)])
        )
    return Section("Training data", rows)


_SHOWN = 12  # licenses, or sources, with rows of their own


def _by_license(model: Run, provenance: Provenance) -> list[tuple[str, Sentence]]:
    """Tokens by the documents' own licenses, the most first."""
    tokens = model.manifest.get("data.tokens_by.license") or {}
    order = sorted(tokens, key=lambda licence: (-tokens[licence], licence))
    rows: list[tuple[str, Sentence]] = []
    for licence in order[:_SHOWN]:
        title = f"training tokens under {licence}"
        rule = f"data.tokens_by.license, {licence}"
        value = provenance.derived(model.manifest, rule, tokens[licence], title, values.exact)
        rows.append((title, [value]))
    if rest := order[_SHOWN:]:
        title = f"training tokens under {len(rest):,} other licenses"
        total = sum(tokens[licence] for licence in rest)
        rule = "the others of data.tokens_by.license"
        rows.append((title, [provenance.derived(model.manifest, rule, total, title, values.exact)]))
    return rows


def _by_source(model: Run, provenance: Provenance) -> list[tuple[str, Sentence]]:
    """What the run read of each source of its mixture, with the source's license."""
    read = model.result.get("sources") or {}
    rows: list[tuple[str, Sentence]] = []
    for n, source in enumerate(model.manifest.get("mixture.sources") or []):
        key, name = f"mixture.sources.{n}", str(source.get("name"))
        title = f"source {name}"
        tokens = provenance.derived(
            model.result, f"sources, {name}: tokens", read.get(name, {}).get("tokens"),
            f"{title}: tokens read", values.exact,
        )  # fmt: skip
        epochs = provenance.derived(
            model.result, f"sources, {name}: epochs", read.get(name, {}).get("epochs"),
            f"{title}: epochs", values.significant,
        )  # fmt: skip
        licence = provenance.take(model.manifest, f"{key}.licence", f"{title}: license", str)
        corpus = provenance.take(model.manifest, f"{key}.corpus", f"{title}: corpus", str)
        rows.append(
            (
                title,
                sentence("{} tokens read, {} epochs of {} ({})", tokens, epochs, corpus, licence),
            )
        )
    return rows


def _filtered(model: Run, provenance: Provenance) -> list[tuple[str, Sentence]]:
    """What was taken out of the text before training, where a recipe says so."""
    rows: list[tuple[str, Sentence]] = []
    places = {"data": ""}
    for n, source in enumerate(model.manifest.get("mixture.sources") or []):
        places[f"mixture.sources.{n}"] = f"source {source.get('name')}: "
    for place, of in places.items():
        for name, what, form in (
            ("decontaminated", "decontaminated against", _benchmarks),
            ("redacted", "personal data in the text", _redacted),
        ):
            key, title = f"{place}.{name}", of + what
            if model.manifest.get(key) is not None:
                rows.append((title, [provenance.take(model.manifest, key, title, form)]))
    return rows


def _benchmarks(value: Any) -> str:
    names = [f"{each.get('name')} ({str(each.get('sha256'))[:8]})" for each in value["benchmarks"]]
    documents = f"{value['dropped']:,} documents dropped"
    return f"{', '.join(names)}; by {value['n']} words in a row; {documents}"


def _redacted(value: Any) -> str:
    kinds = [f"{what}: {count:,}" for what, count in sorted(value.items())]
    return "; ".join(kinds) or "none was found"


def procedure(model: Run, provenance: Provenance) -> Section:
    """Objective, settings, versions and machine, as in the run's files."""
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
            rows.append((title, [provenance.take(document, key, title, _setting)]))
    return Section("Training procedure", rows)


def energy(source: Run | Quickstart, model: Run, provenance: Provenance) -> Section:
    """Energy and carbon, and how each was measured."""
    rows: list[tuple[str, Sentence]] = []
    for key, title, form in (
        ("energy_wh", "energy of this model's training", values.watt_hours),
        ("gco2e", "carbon of this model's training", values.grams),
        ("seconds", "time covered", values.duration),
        ("sessions", "sessions covered", values.exact),
        ("grid_gco2e_per_kwh", "carbon intensity, gCO₂e per kWh", values.significant),
        ("country", "country", str),
        ("tool", "measured with", str),
    ):
        rows.append((title, [provenance.take(model.carbon, key, title, form)]))
        if key == "country" and not rows[-1][1][0].known:  # type: ignore[union-attr]
            rows[-1] = (title, ["not given"])
    if model.manifest.get("targets") is not None:
        # Not included in this run's own: other students share it.
        for key, title, form in (
            ("targets.recording.energy_wh", "energy of recording the teacher", values.watt_hours),
            ("targets.recording.gco2e", "carbon of recording the teacher", values.grams),
        ):
            rows.append((title, [provenance.take(model.manifest, key, title, form)]))
    for part in _leaves(model.carbon.get("how") if model.carbon else None, "how"):
        title = HOW.get(part.removeprefix("how."), part.removeprefix("how."))
        rows.append((title, [provenance.take(model.carbon, part, title, str)]))
    if isinstance(source, Quickstart):
        runs = [source.teacher, source.scratch, source.student]
        runs += [source.scratch_equal_compute] if source.scratch_equal_compute else []
        runs += source.scarce
        for key, title, form in (
            ("energy_wh", "energy of all runs together", values.watt_hours),
            ("gco2e", "carbon of all runs together", values.grams),
        ):
            parts = [
                provenance.take(run.carbon, key, f"{run.folder}: {title.split(' ')[0]}", form)
                for run in runs
            ]
            if source.scarce:
                parts.append(
                    provenance.take(
                        source.comparison, f"scarce_text.recording.{key}",
                        f"recording for little text: {title.split(' ')[0]}", form,
                    )
                )  # fmt: skip
            rows.append((title, [provenance.total(parts, title, form)]))
    return Section("Energy and carbon", rows)


def limitations(model: Run, provenance: Provenance) -> list[Sentence]:
    """What the numbers do not show."""
    name = provenance.take(model.manifest, "data.name", "training data", str)
    seed = provenance.take(model.manifest, "seed", "seed", values.exact)
    tokens = provenance.take(model.result, "train_tokens", "training tokens", values.count)
    known = str(model.carbon.get("how.cpu") if model.carbon else "")
    tuned = model.manifest.get("kind") not in ("train", "distill")
    first = (
        "A small model, tuned in several stages; the last had {} tokens of {}. Its answers are not "
        if tuned
        else "A small model trained on {} tokens of {}: it continues text in that style. Its "
        "statements are not "
    )
    lines = [
        sentence(
            first + "reliable, and it is not meant for advice or decisions.",
            tokens,
            name,
        ),
    ]
    if model.has_loss:
        lines.append(
            sentence(
                "The held-out text comes from the same source as the training text. Performance on "
                "other text was not measured."
            )
        )
    if seed.known:
        lines.append(
            sentence(
                "One run, seed {}. Another seed gives other numbers. The spread over seeds was not "
                "measured here, and differences smaller than it may be due to chance.",
                seed,
            )
        )
    missing = [
        what
        for what, document in (
            ("benchmarks", model.benchmarks),
            ("safety", model.safety),
            ("memorization", model.memorization),
        )
        if document is None
    ]
    if missing:
        lines.append(sentence(f"Not measured: {', '.join(missing)}."))
    if model.manifest.get("targets.biased"):
        label = provenance.take(model.manifest, "targets.label", "stored targets", str)
        lines.append(
            sentence(
                "It learned only from the most likely tokens of its teacher ({}). Such targets are "
                "biased: a student trained on them is more confident than its teacher.",
                label,
            )
        )
    if known.startswith("modelled"):
        lines.append(sentence("Energy is modeled, not metered: take it as an order of magnitude."))
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
