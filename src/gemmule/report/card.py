"""`write_card`: the model card as README.md for the hub and as index.html, from a run's files."""

import re
import unicodedata
from pathlib import Path
from typing import Any

from gemmule import files
from gemmule.report import page, run_files
from gemmule.report.parts import Page
from gemmule.report.values import UNKNOWN, Value

_TEMPLATES = Path(__file__).parent / "templates"


def write_card(run: Path, licence: str | None = None) -> Path:
    """Writes `card/README.md` and `card/index.html` into a run or quickstart directory.

    Reads only the run's files, and those of the runs that it started from, where they are still
    there; the same files give the same card, byte for byte. An existing card is replaced.

    Args:
        run: a run directory (manifest.json, result.json, metrics.jsonl …) or a quickstart
            directory (comparison.json, teacher/, scratch/, student/).
        licence: license of the weights, by its identifier on the hub ("apache-2.0"); with None
            the card says that it is still to be chosen.

    Returns:
        The card's folder.

    Raises:
        CheckpointError: naming the file of the run that is missing or broken.
        MissingExtraError: when matplotlib is not installed.
        OutputError: when the card cannot be written.
    """
    import jinja2

    source = run_files.load(run)
    content = page.build(source, clean(run.resolve().name), clean(page.shown_path(run)), run)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES, encoding="utf-8"),
        autoescape=jinja2.select_autoescape(["html"]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=lambda value: clean(value) if type(value) is str else value,
    )
    environment.filters |= {"md": _markdown, "fenced": _fenced}
    environment.tests["value"] = lambda part: isinstance(part, Value)
    names: dict[str, Any] = {"page": content, "unknown": UNKNOWN}
    html = environment.get_template("index.html").render(names)
    text = environment.get_template("README.md").render(names)
    card = run / "card"
    with files.atomic_dir(card) as folder:
        (folder / "index.html").write_text(html, encoding="utf-8", newline="\n")
        readme = f"---\n{_front_matter(content, licence)}---\n\n{text}"
        (folder / "README.md").write_text(readme, encoding="utf-8", newline="\n")
    return card


def clean(text: str) -> str:
    """Text for any file and browser: control characters and lone surrogates replaced."""

    def shown(c: str) -> str:
        bad = unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t"
        return "\N{REPLACEMENT CHARACTER}" if bad else c

    return "".join(map(shown, text))


def _front_matter(content: Page, licence: str | None) -> str:
    """The hub's metadata, with the held-out results as model-index."""
    from huggingface_hub import EvalResult, ModelCardData

    model = content.model
    data = clean(str(model.manifest.get("data.name") or "unnamed"))
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=_slug(data),
            dataset_name=data,
            dataset_split="heldout",
            metric_type=metric,
            metric_name=name,
            metric_value=model.result.get(metric),
        )
        for metric, name in (
            ("nats_per_token", "held-out loss, nats per token"),
            ("perplexity", "held-out perplexity"),
            ("bits_per_byte", "held-out bits per byte"),
        )
        if model.has_loss
    ]
    tags = ["gemma2", "small-language-model"] + ["distillation"] * content.distilled
    languages = model.manifest.get("data.language")
    teacher = model.manifest.get("parent.path") if content.distilled else None
    card = ModelCardData(
        model_name=content.name,
        license=licence or "other",
        license_name=None if licence else "to-be-chosen",
        language=[languages] if isinstance(languages, str) else languages,
        library_name="gemmule",
        pipeline_tag="text-generation",
        tags=tags,
        datasets=[_slug(data)],
        base_model=_slug(re.split(r"[/\\]", str(teacher))[-1]) if teacher else None,
        eval_results=results or None,
    )
    if content.emissions is not None:
        card["co2_eq_emissions"] = content.emissions
    return card.to_yaml(line_break="\n") + "\n"


def _slug(text: str) -> str:
    """A name that the hub accepts: letters, digits, dots and dashes."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-.").lower()[:96] or "unnamed"


def _markdown(text: object) -> str:
    """Text for a line of Markdown, with all markup and HTML escaped."""
    line = " ".join(clean(str(text)).split())
    return re.sub(r"([\\`*_{}\[\]<>|#~&$])", r"\\\1", line)


def _fenced(text: object) -> str:
    """A Markdown code block with a fence that the text cannot close."""
    body = clean(str(text))
    ticks = max([2, *(len(run) for run in re.findall("`+", body))]) + 1
    return f"{'`' * ticks}text\n{body}\n{'`' * ticks}"
