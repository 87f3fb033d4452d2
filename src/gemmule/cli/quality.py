"""gemmule quality fit, preview and score."""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gemmule.cli.app import DATA, RERUN, app, command, stoppable
from gemmule.cli.options import AsJson, Device, Dtype, Field, Model, Options, Out, Quantize

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gemmule.data.sources import Document

quality_app = typer.Typer(
    no_args_is_help=True, help="Tell good documents from bad: a classifier, a teacher's bits."
)
app.add_typer(quality_app, name="quality", rich_help_panel=DATA)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Corpus(Options):
    """The documents that are looked at."""

    source: Annotated[
        Path | None,
        typer.Option("--text", help="File, folder or glob; default: Python's standard library."),
    ] = None
    recipe: Annotated[
        Path | None,
        typer.Option(help="Recipe whose documents are taken, as its stage quality gets them."),
    ] = None
    field: Field = None

    def documents(self) -> "Iterator[Document]":
        """The documents, streamed."""
        from gemmule.data.read_log import ReadLog
        from gemmule.data.sources import find_source
        from gemmule.errors import ConfigError

        if self.recipe is not None:
            from gemmule.data.recipe.settings import Recipe
            from gemmule.data.recipe.stream import documents_before

            if self.source is not None or self.field is not None:
                raise ConfigError("give --recipe, or --text and --field, not both")
            return documents_before(Recipe.load(self.recipe), "quality")
        source = find_source(self.source, self.field)
        return source.documents(ReadLog(), source.is_one_text)


@command(DATA, "fit", to=quality_app)
def quality_fit(
    good: Annotated[Path, typer.Option(help="File, folder or glob of good documents.")],
    bad: Annotated[Path, typer.Option(help="File, folder or glob of bad documents.")],
    out: Out,
    field: Field = None,
    bits: Annotated[int, typer.Option(help="Words and pairs are hashed to 2^BITS buckets.")] = 20,
    regularization: Annotated[
        float, typer.Option(help="How strongly weights are held near 0.")
    ] = 0.01,
    seed: Annotated[int, typer.Option(help="Another seed holds out other examples.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Fit a classifier of documents to examples of good and of bad ones.

    A fifth of the examples is held out, and the report says how well these are told apart, and
    which of them each limit would drop.

    Example: gemmule quality fit --good texts/good --bad texts/bad --out runs/quality
    """
    from gemmule import files
    from gemmule.console import console, counting, table
    from gemmule.data.quality.bands import example_lines
    from gemmule.data.quality.fit import REPORT, FitConfig, fit

    values = {"good": good, "bad": bad, "field": field, "bits": bits, "seed": seed}
    config = FitConfig.parse({**values, "regularization": regularization}, "quality")
    with stoppable("nothing was written"), counting("reading") as progress:
        classifier, report = fit(config, progress)
    classifier.save(out)
    files.write_json(out / REPORT, report)
    if as_json:
        print(json.dumps({**report, "fingerprint": classifier.fingerprint}))
        return
    columns = ["limit", "of the good dropped", "of the bad dropped"]
    rows = [
        [f"{row['limit']:g}", *(f"{row[f'{n}_dropped']['value']:.1%}" for n in ("good", "bad"))]
        for row in report["limits"]
    ]
    auc = report["auc"]
    title = f"held-out AUC {auc['value']:.4f} ({auc['low']:.4f} to {auc['high']:.4f})"
    table(columns, rows, title=title)
    for line in example_lines(report["bands"]):
        console.print(line, markup=False)


@command(DATA, "preview", to=quality_app)
def quality_preview(
    classifier: Annotated[Path, typer.Option(help="Folder that gemmule quality fit wrote.")],
    corpus: Corpus,
    as_json: AsJson = False,
) -> None:
    """Show which documents of a corpus a classifier would drop, with examples.

    Example: gemmule quality preview --classifier runs/quality --text ~/notes
    """
    from gemmule.console import counting
    from gemmule.data.quality.bands import classified

    with stoppable("nothing was written"), counting("reading") as progress:
        bands = classified(classifier, corpus.documents(), progress)
    _show(bands, str(classifier), as_json, {"bands": bands})


@command(DATA, "score", to=quality_app)
def quality_score(
    model: Model,
    out: Out,
    corpus: Corpus,
    tokens: Annotated[
        int, typer.Option(help="Tokens of a document that count, from its beginning on.")
    ] = 1024,
    quantize: Quantize = None,
    dtype: Dtype = None,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Score documents by the bits per byte that a teacher needs for them.

    If it is stopped, the same command continues from there. The report says what a lower limit
    (boilerplate) and an upper limit (noise) would drop, with examples.

    Example: gemmule quality score runs/teacher --recipe data.toml --out runs/bits
    """
    from gemmule.console import counting
    from gemmule.evals.document_bits import score_documents
    from gemmule.evals.eval_target import LoadOptions, open_target

    with stoppable(RERUN), counting("scoring") as progress:
        target = open_target(model, out=out, options=LoadOptions(dtype, device, quantize))
        report = score_documents(target, corpus.documents(), tokens=tokens, progress=progress)
    _show(report["bands"], f"bits per byte of {target.name}", as_json, report)


def _show(bands: list[dict[str, object]], title: str, as_json: bool, report: object) -> None:
    from gemmule.console import console, table
    from gemmule.data.quality.bands import example_lines, table_of

    if as_json:
        print(json.dumps(report))
        return
    table(*table_of(bands), title=f"{title}; a limit drops what is below, or above")
    for line in example_lines(bands):
        console.print(line, markup=False)
