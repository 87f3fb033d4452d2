"""Tokenizers of Gemma's kind with other ids split text as they did, with Gemma 2's ids."""

import ast
import json
import random
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from gemmule.errors import TokenizerError
from gemmule.model.foreign_layout import load_in_gemma_layout
from gemmule.model.tokenizer import Tokenizer, train_tokenizer

TEXTS = [
    "def f(x):\n\n\n\treturn  x   # tab\t\there",
    "<table><tr>a</tr></table> <mark>b</mark>",
    "日本語 e\u0301 👩\u200d👧 \x00",
    "<start_of_turn>user<unused7><image>",
]


@pytest.fixture(scope="module")
def gemma() -> Tokenizer:
    return train_tokenizer([Path(ast.__file__).read_text()], 800)


def moved(gemma: Tokenizer, folder: Path) -> dict[str, Any]:
    """The content of a tokenizer.json with the layout of Gemma 3: turns at 105, bytes later."""
    gemma.save(folder)
    content: dict[str, Any] = json.loads((folder / "tokenizer.json").read_text())
    texts = list(content["model"]["vocab"])
    missing = {"<2mass>", "[@BOS@]"}  # which it does not have
    texts = [text for text in texts if text not in missing]
    fixed, learned = texts[:471], texts[471:]
    fixed.insert(4, fixed.pop(fixed.index("<unused7>")))
    texts = [*fixed[:230], "<mark>", "</mark>", *fixed[230:], *learned, "<image>"]
    new = {text: i for i, text in enumerate(texts)}
    content["model"]["vocab"] = new
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    content["added_tokens"] = [
        {**entry, "id": new[entry["content"]]}
        for entry in content["added_tokens"]
        if entry["content"] in new
    ]
    content["added_tokens"] += [
        {"id": new[text], "content": text, "special": text == "<image>", **flags}
        for text in ("<mark>", "</mark>", "<image>")
    ]
    content["added_tokens"].sort(key=lambda entry: entry["id"])
    return content


@pytest.fixture(scope="module")
def foreign(gemma: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("foreign")
    content = moved(gemma, folder)
    for file in folder.iterdir():
        file.unlink()
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return folder


def test_every_text_has_the_same_tokens(gemma: Tokenizer, foreign: Path) -> None:
    with pytest.raises(TokenizerError, match="not a Gemma tokenizer"):
        Tokenizer.load(foreign)
    ours = load_in_gemma_layout(foreign)
    theirs = tokenizers.Tokenizer.from_file(str(foreign / "tokenizer.json"))
    pieces = [piece.text for piece in ours.pieces]
    lines = Path(ast.__file__).read_text().splitlines()
    for text in [*TEXTS[:3], *random.Random(0).sample(lines, 200)]:
        assert [pieces[i] for i in ours.encode(text)] == theirs.encode(
            text, add_special_tokens=False
        ).tokens
    assert pieces[:473] == [piece.text for piece in gemma.pieces[:473]]


def test_control_tokens_in_text_stay_text(foreign: Path) -> None:
    ours = load_in_gemma_layout(foreign)
    ids = ours.encode(TEXTS[3])
    assert not any(ours.is_control[i] for i in ids)
    assert ours.decode(ids) == TEXTS[3]
    assert "<image>" not in [piece.text for piece in ours.pieces]


def test_a_gemma_2_is_read_as_it_is(gemma: Tokenizer, tmp_path: Path) -> None:
    gemma.save(tmp_path)
    assert load_in_gemma_layout(tmp_path).fingerprint == gemma.fingerprint
    assert load_in_gemma_layout(tmp_path / "tokenizer.model").fingerprint == gemma.fingerprint


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"type": "Unigram"}, "its model is 'Unigram'"),
        ({"byte_fallback": False}, "its BPE has no byte fallback"),
        ({"vocab": {"<pad>": 0, "a": 1}}, "has no token for the byte <0x00>"),
    ],
)
def test_other_kinds_are_refused(
    foreign: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    content = json.loads((foreign / "tokenizer.json").read_text())
    content["model"] |= change
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(TokenizerError, match=message):
        load_in_gemma_layout(tmp_path)


def test_what_is_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="cannot read a tokenizer"):
        load_in_gemma_layout(tmp_path)
    (tmp_path / "tokenizer.json").write_text("[]")
    with pytest.raises(TokenizerError, match="expected a JSON object"):
        load_in_gemma_layout(tmp_path)
