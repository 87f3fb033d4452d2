"""The page of a recipe."""

import re
from typing import Any

from gemmule.report import data_page


def content() -> tuple[dict[str, Any], dict[str, Any]]:
    dropped = {"gopher_quality: min_words": [2, 30], "c4: min_sentences": [5, 900]}
    stages = {
        "read": {"passed": [10, 4000], "dropped": {}, "counts": {}},
        "language": {"passed": [10, 4000], "dropped": {}, "counts": {"en": 9, "de": 1}},
        "heuristics": {"passed": [3, 3070], "dropped": dropped, "counts": {"lines removed": 1}},
        "near_duplicates": {"passed": [3, 3070], "dropped": {}, "counts": {}},
    }
    funnel = {
        "stages": list(stages),
        "total": {"read": [10, 4000], "stages": stages, "lengths": {"9": 2, "11": 1}},
        "sources": {"web": {"read": [10, 4000]}},
        "near_duplicates": 2,
        "examples": [
            {"stage": "heuristics", "reason": "c4: min_sentences", "key": f"web/{n}", "bytes": 5,
             "excerpt": "<script>alert(1)</script>\x1b[2J"} for n in range(7)
        ],
    }  # fmt: skip
    split = {"documents": 1, "tokens": 700}
    manifest = {
        "name": "a <b> corpus", "source_fingerprint": "f" * 64, "fingerprint": "e" * 64,
        "splits": {"train": split, "validation": split, "heldout": split},
        "sources": {"web": {"license": None, "path": "web", "documents": 3, "bytes": 3070,
                            "tokens": 2100}},
        "dropped": {"malformed JSON line": 4, "gopher_quality: min_words": 2},
    }  # fmt: skip
    return manifest, funnel


def test_every_figure_is_on_the_page() -> None:
    page = data_page.render(*content())
    text = re.sub(r"<[^>]+>", "", page.partition("<body>")[2])
    assert "3 of 10 documents kept, 3.07 kB of 4 kB" in text
    assert re.search(r"5 c4: min_sentences; 2 gopher_quality: min_words", text)
    assert "4 malformed JSON line" in text
    assert text.count("2 gopher_quality: min_words") == 1
    assert "1 document and 700 tokens in train" in text
    assert "heuristics: c4: min_sentences 5 documents" in " ".join(text.split())
    assert data_page.title_of("language", "language: de") == "language: de"
    assert "not stated" in text
    assert "en" in text
    assert "lines removed" in text
    assert page.count('<div class="sample example">') == 5
    assert page.count("<li title=") == 3  # a bar for 1 kB too, although no document is so long


def test_text_of_documents_is_no_markup() -> None:
    page = data_page.render(*content())
    assert "<script" not in page
    assert "<b>" not in page
    assert "\x1b" not in page
    assert page == data_page.render(*content())
