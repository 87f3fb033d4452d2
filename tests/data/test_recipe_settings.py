"""A recipe's TOML: what it takes, and what it says about mistakes."""

from pathlib import Path
from typing import Any

import pytest

from gemmule.data.recipe.settings import ORDER, Recipe
from gemmule.data.recipe.stage import StageSettings
from gemmule.errors import ConfigError

SOURCE = {"name": "books", "path": "books"}


def recipe(**tables: Any) -> Recipe:
    return Recipe.parse({"sources": [SOURCE], **tables})


def test_stages_run_in_a_fixed_order(tmp_path: Path) -> None:
    file = tmp_path / "data.toml"
    file.write_text(
        '[split]\nheldout = 0.1\n[normalize]\n[[sources]]\nname = "a"\npath = "a"\n'
        '[[sources]]\nname = "b"\npath = "b"\nfield = "body"\nlicense = "CC0-1.0"\n'
    )
    loaded = Recipe.load(file)
    assert [name for name, _ in loaded.stages()] == ["normalize"]
    assert [source.name for source in loaded.sources] == ["a", "b"]
    assert loaded.split.heldout == 0.1
    tables = [name for name in Recipe.model_fields if name in ORDER]
    assert tables == sorted(tables, key=ORDER.index), "fields are in the order of the stages"


def test_a_stage_is_a_pure_function_with_a_fingerprint(tmp_path: Path) -> None:
    for name, settings in recipe(normalize={}).stages():
        assert isinstance(settings, StageSettings)
        settings.fit(tmp_path / name)
        stage = settings.open(tmp_path / name)
        assert stage.name == name
        assert len(stage.fingerprint) == 64
        assert stage.fingerprint == settings.open(tmp_path / name).fingerprint


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"normalise": {}}, "unknown key 'normalise'; did you mean 'normalize'?"),
        ({"normalize": {"unicod": "NFC"}}, "'normalize.unicod'; did you mean 'unicode'?"),
        ({"normalize": {"unicode": "NFD"}}, "'NFC', 'NFKC' or 'none'"),
        ({"sources": []}, "at least 1 item"),
        ({"sources": [SOURCE, SOURCE]}, "two sources are named 'books'"),
        ({"sources": [{"name": "a b", "path": "."}]}, "letters, digits"),
        ({"sources": [{"name": "a"}]}, "sources.0.path"),
        ({"split": {"heldout": 0.6, "validation": 0.5}}, "leave nothing to train on"),
        ({"near_duplicates": {"action": "keep"}}, "'group', 'drop' or 'ignore'"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_clear_error(tables: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as e:
        recipe(**tables)
    assert message in str(e.value)
