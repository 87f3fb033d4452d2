"""The stage "normalize"."""

from pathlib import Path

import pytest

from gemmule.data.recipe.normalize import NormalizeSettings
from gemmule.data.sources import Document


def normalized(text: str, **settings: object) -> str | None:
    return NormalizeSettings.parse(settings).open(Path()).apply(Document("a", text)).text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain\n\ttext\n", "plain\n\ttext\n"),
        ("cafe\u0301", "café"),
        ("a\r\nb\rc\x85d\u2028e", "a\nb\nc\nd\ne"),
        ("\ufeffzero\u200bwidth so\u00adft \x00\x1b[1m", "zerowidth soft [1m"),
        ("end  \nof\t\nline", "end\nof\nline"),
        ("a\n\n\n\n\n\nb", "a\n\n\nb"),
        ("e\u200b\u0301 e\x00\u0301", "é é"),
        ("👩\u200d💻 क्\u200dष", "👩\u200d💻 क्\u200dष"),
    ],
)
def test_one_spelling(text: str, expected: str) -> None:
    assert normalized(text) == expected
    assert normalized(expected) == expected


def test_settings_switch_parts_off() -> None:
    assert normalized("ﬁ", unicode="NFKC") == "fi"
    assert normalized("cafe\u0301", unicode="none") == "cafe\u0301"
    assert normalized("a\x00b", invisible=False) == "a\x00b"
    assert normalized("a  \n\n\n\n\n", spaces=False) == "a  \n\n\n\n\n"


def test_what_is_no_text_is_dropped_for_a_reason() -> None:
    stage = NormalizeSettings().open(Path())
    assert stage.apply(Document("a", "\ud800")).reason is not None
    assert stage.apply(Document("a", " \u200b\n")).reason == "empty"
    assert stage.apply(Document("a", "x ")).counts == {"changed": 1}
    assert stage.apply(Document("a", "x")).counts == {}
