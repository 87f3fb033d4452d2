"""The stage "language"."""

import builtins
from pathlib import Path
from typing import Any

import pytest

from gemmule.data.recipe import language
from gemmule.data.recipe.language import LanguageSettings
from gemmule.data.recipe.settings import Recipe
from gemmule.data.sources import Document
from gemmule.errors import ConfigError, MissingExtraError

TEXTS = {
    "en": "The ship came into the harbour in the evening, and nobody had expected it so early.",
    "de": "Das Schiff kam am Abend in den Hafen, und niemand hatte es so früh erwartet.",
    "fr": "Le navire est entré dans le port le soir, et personne ne l'attendait si tôt.",
    "ru": "Корабль вошёл в гавань вечером, и никто не ожидал его так рано.",
    "ja": "船は夕方に港に入り、誰もそんなに早く来るとは思っていなかった。",
}


def test_documents_are_kept_by_language(tmp_path: Path) -> None:
    pytest.importorskip("py3langid")
    settings = LanguageSettings.parse({"keep": ["en", "de"], "by_source": {"git": []}})
    settings.fit(tmp_path)
    stage = settings.open(tmp_path)
    outcomes = {code: stage.apply(Document("a", text)) for code, text in TEXTS.items()}
    assert {code for code, outcome in outcomes.items() if outcome.text} == {"en", "de"}
    assert outcomes["fr"].reason == "language: fr"
    assert outcomes["ja"].counts == {"ja": 1}
    assert stage.apply(Document("a", TEXTS["ru"], source="git")).text == TEXTS["ru"]
    assert stage.apply(Document("a", "1 2 3")).reason == "language is uncertain"


def test_unknown_languages_and_sources_are_errors(tmp_path: Path) -> None:
    pytest.importorskip("py3langid")
    with pytest.raises(ConfigError, match="language 'english' is not known"):
        LanguageSettings.parse({"keep": ["english"]}).fit(tmp_path)
    with pytest.raises(ConfigError, match="names 'boks'; did you mean 'books'"):
        Recipe.parse(
            {
                "sources": [{"name": "books", "path": "."}],
                "language": {"by_source": {"boks": ["de"]}},
            }
        )


def test_without_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("py3langid"):
            raise ImportError
        return real(name, *rest)

    language._identifier.cache_clear()
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match=r"gemmule\[language\]"):
        LanguageSettings().fit(tmp_path)
    monkeypatch.undo()
    language._identifier.cache_clear()
