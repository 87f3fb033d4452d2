"""gemmule data."""

import json
from pathlib import Path
from typing import Annotated, Literal

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
from gemmule.config import ModelName
from gemmule.errors import ConfigError


@command(DATA)
def data(
    tokenizer: Annotated[
        ModelName,
        typer.Option(help="Folder or .model file of the tokenizer; with --trim, or a model."),
    ],
    out: Out,
    trimming: Trimming,
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
    near_duplicates: Annotated[
        Literal["group", "drop", "ignore"],
        typer.Option(
            help="What becomes of documents that are nearly the same: group keeps them in one "
            "split, drop keeps one of them, ignore lets a near copy of what is trained on be "
            "held out."
        ),
    ] = "group",
    as_json: AsJson = False,
) -> None:
    """Tokenize text and split it into train, validation and held-out documents.

    If it is stopped, the same command continues from there.

    With --trim (or one of its two extents), the tokenizer is that of a Gemma 1, 2 or 3, and
    students of the data have an embedding for the tokens of the text alone.

    With --tokens, ids that another program made with this tokenizer stay as they are.

    Example: gemmule data ~/notes --tokenizer runs/tokenizer --out runs/data
    """
    from gemmule.console import counting, stage, table
    from gemmule.data.prepare import prepare
    from gemmule.data.read_log import dropped_lines
    from gemmule.data.text_trim import Extent, compared, prepare_trimmed
    from gemmule.data.token_shards.source import find_tokens
    from gemmule.model.tokenizer import Tokenizer
    from gemmule.teachers.whole_tokenizer import gemma_tokenizer

    if tokens is not None:
        given = {"text": source, "--field": field, "--license-field": license_field,
                 "--trim": trim or trimming.given() or None}  # fmt: skip
        for what, value in given.items():
            if value is not None:
                raise ConfigError(f"--tokens names files of ids, which have no use for {what}: "
                                  "leave one of them out")  # fmt: skip
    fitted = None
    with stoppable(RERUN), counting("tokenizing") as progress:
        if trim or trimming.given():
            full = gemma_tokenizer(tokenizer)
            dataset, fitted = prepare_trimmed(
                full, source, out, Extent(**trimming.extent()), field=field, name=name,
                licence=licence, license_field=license_field, near_duplicates=near_duplicates,
                progress=progress, stage=stage,
            )  # fmt: skip
        else:
            loaded = Tokenizer.load(Path(tokenizer))
            dataset = prepare(
                source if tokens is None else find_tokens(tokens, loaded, name, licence),
                loaded, out, field=field, name=name,
                licence=licence, license_field=license_field, near_duplicates=near_duplicates,
                progress=progress,
            )  # fmt: skip
    splits = dataset.manifest["splits"]
    counts = {k: {n: s[n] for n in ("documents", "tokens", "bytes")} for k, s in splits.items()}
    if as_json:
        shown = ("name", "licence", "dropped", "dropped_examples", "notes")
        about = {k: dataset.manifest[k] for k in shown if k in dataset.manifest}
        if fitted is not None:
            about["trimmed"] = {
                "vocabulary": {"before": full.vocab_size, "after": len(fitted.trimmed.kept_K)},
                "coverage": fitted.trimmed.coverage,
                "segmentation": fitted.segmentation,
            }
        print(json.dumps({**about, "fingerprint": dataset.fingerprint, "splits": counts}))
        return
    rows = [[k, *(f"{n:,}" for n in c.values())] for k, c in counts.items()]
    table(["split", "documents", "tokens", "bytes"], rows, title=dataset.name)
    if fitted is not None:
        print(
            f"{len(fitted.trimmed.kept_K):,} of {full.vocab_size:,} tokens kept, "
            f"{fitted.trimmed.coverage:.4%} of the text's; segmentation "
            f"{compared(fitted.segmentation)}"
        )
    for note in [*dataset.manifest["notes"], *dropped_lines(dataset.manifest)]:
        print(note)
