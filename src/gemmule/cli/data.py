"""gemmule data."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from gemmule.cli.app import DATA, RERUN, command, stoppable
from gemmule.cli.options import (
    AsJson,
    CorpusLicence,
    CorpusName,
    Field,
    LicenseField,
    Out,
    Text,
    Trimming,
)
from gemmule.cli.recipes import RecipeOptions
from gemmule.config import ModelName
from gemmule.errors import ConfigError

if TYPE_CHECKING:
    from gemmule.data.dataset import Dataset


@command(DATA)
def data(
    tokenizer: Annotated[
        ModelName,
        typer.Option(help="Folder or .model file of the tokenizer; with --trim, or a model."),
    ],
    out: Out,
    trimming: Trimming,
    recipes: RecipeOptions,
    source: Text = None,
    tokens: Annotated[
        Path | None,
        typer.Option(help="Folder of token files to read instead: datatrove's .ds, OLMo's .npy."),
    ] = None,
    trim: Annotated[
        bool, typer.Option("--trim", help="Trim the tokenizer to the tokens that the text uses.")
    ] = False,
    field: Field = None,
    name: CorpusName = None,
    licence: CorpusLicence = None,
    license_field: LicenseField = None,
    subset: Annotated[
        str | None,
        typer.Option(help="Of a hub's data set: CONFIGURATION or CONFIGURATION/SPLIT."),
    ] = None,
    near_duplicates: Annotated[
        Literal["group", "drop", "ignore"] | None,
        typer.Option(
            help="What becomes of documents that are nearly the same: group keeps them in one "
            "split (the default), drop keeps one of them, ignore lets a near copy of what is "
            "trained on be held out."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Tokenize text and split it into train, validation and held-out documents.

    If it is stopped, the same command continues from there.

    With --trim (or one of its two extents), the tokenizer is that of a Gemma 1, 2 or 3, and
    students of the data have an embedding for the tokens of the text alone.

    With --tokens, ids that another program made with this tokenizer stay as they are.

    With --recipe, a file names several sources and the stages that filter, redact, decontaminate
    and deduplicate them.

    Example: gemmule data ~/notes --tokenizer runs/tokenizer --out runs/data
    """
    from gemmule.cli import recipes as of_recipe
    from gemmule.console import counting, stage
    from gemmule.data.prepare import prepare
    from gemmule.data.text_trim import Extent, compared, prepare_trimmed
    from gemmule.data.token_shards.source import find_tokens
    from gemmule.model.tokenizer import Tokenizer
    from gemmule.teachers.whole_tokenizer import gemma_tokenizer

    given = {
        "TEXT": source, "--field": field, "--license-field": license_field,
        "--subset": subset, "--trim": trim or trimming.given() or None, "--tokens": tokens,
        "--name": name, "--licence": licence, "--near-duplicates": near_duplicates,
    }  # fmt: skip
    given = {what: value for what, value in given.items() if value is not None}
    if tokens is not None:
        for what in ("TEXT", "--field", "--license-field", "--subset", "--trim"):
            if what in given:
                raise ConfigError(
                    f"--tokens names files of ids, which have no use for {what}: leave one of "
                    "them out"
                )
    of_recipe.check(recipes, list(given))
    fitted = None
    if recipes.recipe is not None:
        with stoppable(RERUN):
            made = of_recipe.run(recipes, Tokenizer.load(Path(tokenizer)), out)
        if made is None:
            return
        if not as_json:
            of_recipe.show(made, recipes.explain)
        _show(made, as_json, dropped=False)
        return
    near = near_duplicates or "group"
    with stoppable(RERUN), counting("tokenizing") as progress:
        if trim or trimming.given():
            full = gemma_tokenizer(tokenizer)
            dataset, fitted = prepare_trimmed(
                full, source, out, Extent(**trimming.extent()), field=field, name=name,
                licence=licence, license_field=license_field, subset=subset, near_duplicates=near,
                progress=progress, stage=stage,
            )  # fmt: skip
        else:
            loaded = Tokenizer.load(Path(tokenizer))
            dataset = prepare(
                source if tokens is None else find_tokens(tokens, loaded, name, licence),
                loaded, out, field=field, name=name,
                licence=licence, license_field=license_field, subset=subset, near_duplicates=near,
                progress=progress,
            )  # fmt: skip
    trimmed, lines = None, []
    if fitted is not None:
        kept, coverage = len(fitted.trimmed.kept_K), fitted.trimmed.coverage
        trimmed = {
            "vocabulary": {"before": full.vocab_size, "after": kept},
            "coverage": coverage,
            "segmentation": fitted.segmentation,
        }
        lines = [
            f"{kept:,} of {full.vocab_size:,} tokens kept, {coverage:.4%} of the text's; "
            f"segmentation {compared(fitted.segmentation)}"
        ]
    _show(dataset, as_json, trimmed, lines)


def _show(
    dataset: "Dataset",
    as_json: bool,
    trimmed: dict[str, Any] | None = None,
    lines: Sequence[str] = (),
    dropped: bool = True,
) -> None:
    """Prints what a data folder holds, and what was left out of it.

    Args:
        dataset: the data folder.
        as_json: print JSON.
        trimmed: facts about the trimmed tokenizer, for JSON.
        lines: the same in words.
        dropped: whether what was left out has not been shown yet.
    """
    from gemmule.console import table
    from gemmule.data.read_log import dropped_lines

    manifest = dataset.manifest
    splits = manifest["splits"]
    counts = {k: {n: s[n] for n in ("documents", "tokens", "bytes")} for k, s in splits.items()}
    if as_json:
        shown = ("name", "licence", "dropped", "dropped_examples", "notes", "sources")
        about = {k: manifest[k] for k in shown if k in manifest}
        if trimmed is not None:
            about["trimmed"] = trimmed
        print(json.dumps({**about, "fingerprint": dataset.fingerprint, "splits": counts}))
        return
    rows = [[k, *(f"{n:,}" for n in c.values())] for k, c in counts.items()]
    table(["split", "documents", "tokens", "bytes"], rows, title=dataset.name)
    for line in [*lines, *manifest["notes"], *(dropped_lines(manifest) if dropped else [])]:
        print(line)
