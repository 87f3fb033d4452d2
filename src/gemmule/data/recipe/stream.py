"""The documents of a recipe as one of its stages gets them, without writing anything."""

import dataclasses
import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path

from gemmule.data.corpus import why_unusable
from gemmule.data.read_log import ReadLog
from gemmule.data.recipe.settings import ORDER, Recipe
from gemmule.data.recipe.work import open_source
from gemmule.data.sources import Document

_AT_ONCE = 256


def documents_before(recipe: Recipe, stage: str) -> Iterator[Document]:
    """The documents that come to a stage, or would if the recipe had it.

    Args:
        recipe: the recipe.
        stage: name of one of the stages that are functions of a document.

    Raises:
        DataError: when a source cannot be used.
        MissingExtraError: when an earlier stage needs a package that is not installed.
    """
    earlier = ORDER[: ORDER.index(stage)]
    with tempfile.TemporaryDirectory() as folder:
        stages = []
        for name, settings in recipe.stages():
            if name in earlier:
                settings.fit(Path(folder) / name)
                stages.append(settings.open(Path(folder) / name))
        for group in _groups(recipe):
            documents = group
            for each in stages:
                outcomes = each.apply_batch(documents)
                documents = [
                    dataclasses.replace(document, text=outcome.text)
                    for document, outcome in zip(documents, outcomes, strict=True)
                    if outcome.text is not None
                ]
            yield from documents


def _groups(recipe: Recipe) -> Iterator[list[Document]]:
    for settings in recipe.sources:
        source, in_sections = open_source(settings)
        documents = (
            dataclasses.replace(document, source=settings.name)
            for document in source.documents(ReadLog(), in_sections)
            if why_unusable(document.text) is None
        )
        while group := list(itertools.islice(documents, _AT_ONCE)):
            yield group
