"""The stage itself: which rules apply to a document, and in which order."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import pydantic

from gemmule.data.recipe.heuristics import gopher, lines
from gemmule.data.recipe.heuristics.gopher import GopherQuality, GopherRepetition
from gemmule.data.recipe.heuristics.lines import C4, Code, FineWeb
from gemmule.data.recipe.heuristics.words import Words, batches
from gemmule.data.recipe.stage import Outcome, Stage, StageSettings, dropped, fingerprint
from gemmule.data.sources import Document

_VERSION = 1
_CHARACTERS_AT_ONCE = 2**19  # what fits in a processor's cache is fastest

Rule = Literal["gopher_repetition", "gopher_quality", "c4", "fineweb", "code"]


class HeuristicsSettings(StageSettings):
    """Settings of the stage.

    Attributes:
        rules: sets of rules, applied in this order; the default is FineWeb's pipeline.
        by_source: sets of rules for some sources, by their name, instead of `rules`.
        gopher_repetition: limits of Gopher's rules on repetition.
        gopher_quality: limits of Gopher's rules on quality.
        c4: limits of C4's rules.
        fineweb: limits of FineWeb's rules.
        code: limits of the rules for source code.
    """

    rules: tuple[Rule, ...] = ("gopher_repetition", "gopher_quality", "c4", "fineweb")
    by_source: Mapping[str, tuple[Rule, ...]] = pydantic.Field(default_factory=dict)
    gopher_repetition: GopherRepetition = GopherRepetition()
    gopher_quality: GopherQuality = GopherQuality()
    c4: C4 = C4()
    fineweb: FineWeb = FineWeb()
    code: Code = Code()

    def open(self, folder: Path) -> Stage:
        """The stage."""
        return Heuristics(self)


class Heuristics(Stage):
    """Drops documents that break a limit, for the reason "rules: limit"."""

    name = "heuristics"

    def __init__(self, settings: HeuristicsSettings) -> None:
        self._settings = settings
        self._last: tuple[Sequence[str], Words] | None = None
        self.fingerprint = fingerprint(self.name, _VERSION, settings)

    def apply(self, document: Document) -> Outcome:
        """What becomes of one document."""
        return self.apply_batch([document])[0]

    def apply_batch(self, documents: Sequence[Document]) -> list[Outcome]:
        """What becomes of each document."""
        outcomes: list[Outcome] = []
        for first, last in batches([len(d.text) for d in documents], _CHARACTERS_AT_ONCE):
            group = documents[first:last]
            outcomes += self._apply(group)
        return outcomes

    def _apply(self, documents: Sequence[Document]) -> list[Outcome]:
        texts = [document.text for document in documents]
        reasons: list[str | None] = [None] * len(texts)
        rules = [
            self._settings.by_source.get(document.source, self._settings.rules)
            for document in documents
        ]
        for step in range(max(map(len, rules), default=0)):
            for rule in dict.fromkeys(each[step] for each in rules if len(each) > step):
                rows = [
                    n for n, each in enumerate(rules) if len(each) > step and each[step] == rule
                ]
                broken = self._broken(rule, rows, texts, reasons)
                for n, limit in zip(rows, broken, strict=True):
                    if limit is not None and reasons[n] is None:
                        reasons[n] = f"{rule}: {limit}"
        return [
            Outcome(text, counts={} if text is document.text else {"lines removed": 1})
            if reason is None
            else dropped(reason)
            for document, text, reason in zip(documents, texts, reasons, strict=True)
        ]

    def _broken(
        self, rule: Rule, rows: Sequence[int], texts: list[str], reasons: Sequence[str | None]
    ) -> list[str | None]:
        """The limit of `rule` that the texts in these rows break; C4 changes them as well."""
        settings = self._settings
        if rule == "gopher_repetition":
            group = [texts[n] for n in rows]
            return gopher.repetition(group, self._words(group), settings.gopher_repetition)
        if rule == "gopher_quality":
            group = [texts[n] for n in rows]
            return gopher.quality(group, self._words(group), settings.gopher_quality)
        broken: list[str | None] = []
        for n in rows:
            limit = None
            if reasons[n] is not None:
                pass
            elif rule == "fineweb":
                limit = lines.fineweb(texts[n], settings.fineweb)
            elif rule == "code":
                limit = lines.code(texts[n], settings.code)
            else:
                cleaned, limit = lines.c4(texts[n], settings.c4)
                texts[n] = texts[n] if cleaned == texts[n] else cleaned
            broken.append(limit)
        return broken

    def _words(self, texts: Sequence[str]) -> Words:
        """The words of the texts, which are kept for the next rule."""
        if self._last is None or self._last[0] != texts:
            self._last = (texts, Words(texts))
        return self._last[1]
