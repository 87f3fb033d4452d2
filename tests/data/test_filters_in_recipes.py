"""Quality, redaction and decontamination in a recipe, from text to the facts of a card."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from gemmule.data import benchmark_texts
from gemmule.data.benchmark_texts import Benchmark
from gemmule.data.dataset import Dataset
from gemmule.data.ngrams import NgramIndex, training_text
from gemmule.data.quality.fit import FitConfig, fit
from gemmule.data.recipe.facts import facts
from gemmule.data.recipe.funnel import excerpt
from gemmule.data.recipe.redact import KEY
from gemmule.data.recipe.run import run_recipe
from gemmule.data.recipe.settings import Recipe
from gemmule.errors import DataError, OutputError
from gemmule.model.tokenizer import Tokenizer

pytest.importorskip("stdnum", reason="needs python-stdnum, of the extra eval")
MAILS = [f"{name}@acme.co.uk" for name in ("jane.doe", "omar", "ingrid")]
GOOD, BAD = "reason evidence theorem measure careful", "buy cheap click winner casino"


def text(draw: random.Random, words: str, count: int = 60) -> str:
    own = ["".join(draw.choices("bcdefgilmnoprstu", k=6)) for _ in range(30)]
    return " ".join(draw.choices([*words.split(), *own], k=count))


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Settings, and files with bad text, e-mail addresses and items of a benchmark."""
    folder = tmp_path_factory.mktemp("filters")
    draw = random.Random(0)
    for name, words in (("good", GOOD), ("bad", BAD)):
        rows = [json.dumps({"text": text(draw, words)}) for _ in range(60)]
        (folder / f"{name}.jsonl").write_text("\n".join(rows))
    classifier, _ = fit(FitConfig(good=folder / "good.jsonl", bad=folder / "bad.jsonl", bits=12))
    classifier.save(folder / "classifier")
    items = tuple(text(draw, GOOD, 20) for _ in range(4))
    benchmark_texts.write(
        folder / "all.json", [Benchmark("Birds", benchmark_texts.digest(items), items)]
    )
    rows = []
    for n in range(80):
        own = [text(draw, BAD if n % 8 == 7 else GOOD) for _ in range(3)]
        own.insert(0, f"Write to {MAILS[n % 3]}, {text(draw, GOOD, 3)}.")
        if n % 10 == 0:
            own.insert(2, items[n % 4].upper())
        rows.append(json.dumps({"text": "\n".join(own)}))
    (folder / "corpus.jsonl").write_text("\n".join(rows))
    return {
        "sources": [{"name": "web", "path": folder / "corpus.jsonl"}],
        "quality": {"classifier": folder / "classifier"},
        "redact": {"key": "a key of the test"},
        "decontaminate": {"benchmarks": [folder / "all.json"]},
    }


def test_what_comes_out(recipe: dict[str, Any], pieces: Tokenizer, tmp_path: Path) -> None:
    data = run_recipe(Recipe.parse(recipe), pieces, tmp_path / "out", workers=1)
    texts = []
    for name in ("train", "validation", "heldout"):
        split = data.split(name)
        texts += [pieces.decode(split.document(n)) for n in range(split.document_count)]
    assert 40 < len(texts) <= 70
    assert not any(mail in text for mail in MAILS for text in texts)
    placeholders = {word for text in texts for word in text.split() if "<EMAIL_ADDRESS_" in word}
    assert len(placeholders) == 3  # one for each address, wherever it is
    items = benchmark_texts.read(Path(recipe["decontaminate"]["benchmarks"][0]))[0].texts
    index = NgramIndex({"Birds": items})
    for chunk, _ in training_text(data.split("train"), pieces):
        index.search(chunk)
    assert index.overlaps()["Birds"].contaminated == []

    told = facts(data.manifest)
    assert told["decontaminated"]["n"] == 13
    assert told["decontaminated"]["dropped"] == 8
    (benchmark,) = told["decontaminated"]["benchmarks"]
    assert (benchmark["name"], benchmark["items"]) == ("Birds", 4)
    assert benchmark["sha256"] == benchmark_texts.digest(items)
    assert told["redacted"] == {"e-mail address, replaced": 70}
    stages = {stage["name"]: stage for stage in data.manifest["recipe"]["stages"]}
    assert stages["quality"]["classifier"]["auc"]["value"] > 0.9
    funnel = data.manifest["recipe"]["funnel"]
    assert funnel["quality"]["dropped"]["unlike the good examples"][0] == 10
    assert sum(funnel["quality"]["counts"].values()) == 80


def test_a_file_that_a_stage_names_has_changed(
    recipe: dict[str, Any], pieces: Tokenizer, tmp_path: Path
) -> None:
    benchmark, classifier = tmp_path / "all.json", tmp_path / "classifier"
    shutil.copy(recipe["decontaminate"]["benchmarks"][0], benchmark)
    shutil.copytree(recipe["quality"]["classifier"], classifier)
    named = {
        "quality": {"classifier": classifier},
        "decontaminate": {"benchmarks": [benchmark]},
    }
    wanted = Recipe.parse({**recipe, **named})
    made = run_recipe(wanted, pieces, tmp_path / "out", workers=1)
    assert run_recipe(wanted, pieces, tmp_path / "out", workers=1).fingerprint == made.fingerprint
    for path in (benchmark, classifier / "classifier.json"):
        before = path.read_bytes()
        path.write_bytes(before + b"\n")
        with pytest.raises(OutputError, match=f"{path} as it was before it changed: choose anoth"):
            run_recipe(wanted, pieces, tmp_path / "out", workers=1)
        path.write_bytes(before)
    benchmark.unlink()
    with pytest.raises(DataError, match=r"\[decontaminate\] names .*: correct its path"):
        run_recipe(wanted, pieces, tmp_path / "out", workers=1)


def test_nothing_that_is_shown_has_personal_data(
    recipe: dict[str, Any], pieces: Tokenizer, tmp_path: Path
) -> None:
    """The examples are of documents that fell out before redaction, and after it."""
    run_recipe(Recipe.parse(recipe), pieces, tmp_path / "out", workers=1)
    for path in tmp_path.joinpath("out").rglob("*"):
        if path.is_file() and path.suffix in {".json", ".html", ".md", ".toml"}:
            shown = path.read_text(encoding="utf-8")
            assert not any(mail in shown for mail in MAILS), path
    assert "xxxx@xxxx.xx.xx" in (tmp_path / "out/funnel.json").read_text()


@pytest.mark.parametrize("end", range(370, 402, 3))
def test_what_an_excerpt_cuts_is_hidden_too(end: int) -> None:
    shown = excerpt("word " * (end // 5) + f"to {MAILS[0]} or to {MAILS[1]}, " + "word " * 200)
    assert len(shown) == 400
    assert not any(part in shown for part in ("jane", "doe", "omar", "acme"))


def test_a_random_key_stays_with_the_artifacts(
    recipe: dict[str, Any], pieces: Tokenizer, tmp_path: Path
) -> None:
    settings = {**recipe, "redact": {}}
    made = [run_recipe(Recipe.parse(settings), pieces, tmp_path / n, workers=1) for n in "ab"]
    assert made[0].fingerprint != made[1].fingerprint
    keys = {(tmp_path / n / "artifacts/redact" / KEY).read_text() for n in "ab"}
    assert len(keys) == 2
    again = run_recipe(Recipe.parse(settings), pieces, tmp_path / "a", workers=1)
    assert again.fingerprint == made[0].fingerprint == Dataset.open(tmp_path / "a").fingerprint
