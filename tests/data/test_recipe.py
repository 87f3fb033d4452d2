"""Recipes from end to end: the same bytes however they are run, and honest counts."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gemmule.data.prepare as preparing
from gemmule import files
from gemmule.data.dataset import Dataset
from gemmule.data.prepare import prepare
from gemmule.data.recipe import chunks, work
from gemmule.data.recipe.run import PHASES, run_phase, run_recipe
from gemmule.data.recipe.settings import Recipe
from gemmule.data.recipe.work import Work
from gemmule.errors import ConfigError, DataError, OutputError
from gemmule.model.tokenizer import Tokenizer

GREEK = str.maketrans("etaoinbcdfghlmprsu", "ετάοιηβκδφγχλμπρσύ")  # two bytes each
WORDS = ["the", "of", "and", "that", "ship", "captain", "harbour", "between", "wind", "never"]


def sentence(draw: random.Random) -> str:
    own = ["".join(draw.choices("bcdefgilmnoprstu", k=7)) for _ in range(6)]
    return " ".join(draw.choices(WORDS + own, k=12)).capitalize() + "."


def text(seed: int, sentences: int = 30) -> str:
    draw = random.Random(seed)
    return "\n".join(sentence(draw) for _ in range(sentences))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sources: files, and records; with an exact copy, near copies, and what is no text."""
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "books").mkdir()
    for n in range(40):
        (folder / "books" / f"{n:02d}.txt").write_text(text(n))
    (folder / "books" / "copy.txt").write_text(text(7))
    (folder / "books" / "near.txt").write_text(text(8) + "\nOne more sentence of it.")
    (folder / "books" / "short.txt").write_text("Too short to keep, ask ann@ship.org.")
    rows = [{"body": text(100 + n)} for n in range(40)] + [{"body": " "}, {"body": text(9)}]
    (folder / "web.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def recipe(corpus: Path, **tables: Any) -> Recipe:
    sources = [
        {"name": "books", "path": corpus / "books", "license": "CC0-1.0"},
        {"name": "web", "path": corpus / "web.jsonl", "field": "body"},
    ]
    return Recipe.parse({"sources": sources, "normalize": {}, **tables})


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name != ".lock"
    }


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many chunks and units of a small corpus."""
    monkeypatch.setattr(chunks, "CHARACTERS", 8000)
    monkeypatch.setattr(work, "_UNIT_BYTES", 20_000)


def test_a_recipe_without_stages_is_gemmule_data(
    corpus: Path, pieces: Tokenizer, tmp_path: Path
) -> None:
    plain = prepare(corpus / "books", pieces, tmp_path / "plain")
    made = run_recipe(
        Recipe.parse({"sources": [{"name": "books", "path": corpus / "books"}]}),
        pieces, tmp_path / "made", workers=1,
    )  # fmt: skip
    assert made.fingerprint == plain.fingerprint
    assert made.manifest["near_duplicates"] == plain.manifest["near_duplicates"] == 2
    assert made.manifest["dropped"] == plain.manifest["dropped"] == {"duplicate": 1}


@pytest.mark.usefixtures("small")
def test_shards_are_cut_as_by_gemmule_data_in_any_alphabet(
    pieces: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparing, "_MIN_SHARD_BYTES", 9000)
    (tmp_path / "books").mkdir()
    for n in range(24):
        (tmp_path / "books" / f"{n:02d}.txt").write_text(text(n).translate(GREEK))
    plain = prepare(tmp_path / "books", pieces, tmp_path / "plain")
    made = run_recipe(
        Recipe.parse({"sources": [{"name": "books", "path": tmp_path / "books"}]}),
        pieces, tmp_path / "made", workers=1,
    )  # fmt: skip
    assert len(plain.manifest["splits"]["train"]["shards"]) > 3
    assert made.fingerprint == plain.fingerprint


@pytest.mark.usefixtures("small")
def test_the_funnel_adds_up(corpus: Path, pieces: Tokenizer, tmp_path: Path) -> None:
    tables = {"heuristics": {"rules": ["gopher_quality"]}, "near_duplicates": {"action": "drop"}}
    made = run_recipe(recipe(corpus, **tables), pieces, tmp_path / "out", workers=1)
    funnel = files.read_json(tmp_path / "out/funnel.json")
    for part in (funnel["total"], *funnel["sources"].values()):
        documents, size = part["read"]
        for name in funnel["stages"]:
            stage = part["stages"][name]
            dropped = list(stage["dropped"].values())
            assert documents == stage["passed"][0] + sum(d for d, _ in dropped)
            if name != "normalize":  # which changes what passes
                assert size == stage["passed"][1] + sum(b for _, b in dropped)
            documents, size = stage["passed"]
        assert [documents, size] == [sum(s[i] for s in part["splits"].values()) for i in (0, 1)]
        assert sum(part["lengths"].values()) >= documents
    assert made.manifest["dropped"] == {
        "empty": 1, "gopher_quality: min_words": 1, "duplicate": 2, "near-duplicate": 1,
    }  # fmt: skip
    sources = made.manifest["sources"]
    assert sources["books"]["license"] == "CC0-1.0"
    total = sum(split["tokens"] for split in made.manifest["splits"].values())
    assert sum(source["tokens"] for source in sources.values()) == total
    by_reason = {example["reason"]: example for example in funnel["examples"]}
    assert by_reason.keys() == made.manifest["dropped"].keys()
    assert (
        by_reason["gopher_quality: min_words"]["excerpt"] == "Too short to keep, ask xxx@xxxx.xxx."
    )
    near = by_reason["near-duplicate"]
    assert {near["key"], near["like"]} == {"books/08.txt#0", "books/near.txt#0"}
    assert not (tmp_path / "out/work").exists()


@pytest.mark.usefixtures("small")
def test_the_same_bytes_for_any_number_of_tasks(
    corpus: Path, pieces: Tokenizer, tmp_path: Path
) -> None:
    wanted = recipe(corpus, heuristics={"rules": ["gopher_repetition"]})
    run_recipe(wanted, pieces, tmp_path / "alone", workers=1)

    def four(out: Path) -> None:
        def execute(phase: Any) -> None:
            for rank in (2, 0, 3, 1):
                run_phase(Work.of(wanted, out), phase, pieces, rank, 4, 1)

        run_recipe(wanted, pieces, out, workers=1, execute=execute)

    four(tmp_path / "four")
    assert content(tmp_path / "alone") == content(tmp_path / "four")


@pytest.mark.usefixtures("small")
def test_a_key_stays_out_of_the_manifest(corpus: Path, pieces: Tokenizer, tmp_path: Path) -> None:
    pytest.importorskip("stdnum", reason="needs python-stdnum, of the extra eval")
    made = run_recipe(
        recipe(corpus, redact={"key": "open sesame"}), pieces, tmp_path / "out", workers=1
    )
    assert made.manifest["recipe"]["settings"]["redact"]["high"] == "remove"
    key = tmp_path / "out/artifacts/redact/key"
    assert key.stat().st_mode & 0o777 == 0o600
    for path in (tmp_path / "out").rglob("*"):
        if path.is_file():
            assert (b"open sesame" in path.read_bytes()) == (path == key), path
    saved = Recipe.load(tmp_path / "out/recipe.toml")  # as tasks read it
    assert run_recipe(saved, pieces, tmp_path / "out", workers=1).fingerprint == made.fingerprint
    with pytest.raises(ConfigError, match=r"key_sha256, .* the key is not there: write key ="):
        run_recipe(saved, pieces, tmp_path / "elsewhere", workers=1)


def test_a_finished_folder_is_returned_and_another_recipe_refused(
    corpus: Path, pieces: Tokenizer, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    made = run_recipe(recipe(corpus), pieces, out, workers=1)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert run_recipe(recipe(corpus), pieces, out, workers=1).fingerprint == made.fingerprint
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    (out / "work/filter").mkdir(parents=True)  # a run that was killed at its very end
    run_recipe(recipe(corpus), pieces, out, workers=1)
    assert not (out / "work").exists()
    with pytest.raises(OutputError, match="other settings"):
        run_recipe(recipe(corpus, split={"heldout": 0.2}), pieces, out, workers=1)


def test_an_empty_result_is_an_error(corpus: Path, pieces: Tokenizer, tmp_path: Path) -> None:
    wanted = recipe(corpus, heuristics={"gopher_quality": {"min_words": 10_000}})
    with pytest.raises(DataError, match=r"'books': nothing is left of 43 documents: .*min_words"):
        run_recipe(wanted, pieces, tmp_path / "out", workers=1)
    # The corrected recipe takes the folder over: nothing of the first is left in it.
    corrected = recipe(corpus, heuristics={"rules": ["gopher_quality"]})
    made = run_recipe(corrected, pieces, tmp_path / "out", workers=1)
    run_recipe(corrected, pieces, tmp_path / "new", workers=1)
    assert content(made.path) == content(tmp_path / "new")
    wrong = Recipe.parse({"sources": [{"name": "web", "path": corpus / "web.jsonl"}]})
    with pytest.raises(DataError, match="no field 'text'; its fields are body"):
        run_recipe(wrong, pieces, tmp_path / "wrong", workers=1)


@pytest.mark.parametrize(("ending", "kind"), [("", "duplicate"), (" More.", "near-duplicate")])
def test_a_source_of_duplicates_is_an_error(
    ending: str, kind: str, pieces: Tokenizer, tmp_path: Path
) -> None:
    for name in ("books", "copies"):
        (tmp_path / name).mkdir()
    for n in range(30):
        (tmp_path / f"books/{n}.txt").write_text(text(n, 90))
        (tmp_path / f"books/0-{n}.txt").write_text(f"{text(0, 90)} {n}.")
    (tmp_path / "copies/0.txt").write_text(text(0, 90) + ending)
    sources = [{"name": name, "path": tmp_path / name} for name in ("books", "copies")]
    wanted = Recipe.parse({"sources": sources, "near_duplicates": {"action": "drop"}})
    with pytest.raises(DataError, match=rf"'copies': nothing is left .*\b1 {kind}.*remove"):
        run_recipe(wanted, pieces, tmp_path / "out", workers=1)


def test_a_phase_out_of_order_is_an_error(corpus: Path, pieces: Tokenizer, tmp_path: Path) -> None:
    at_work = Work.of(recipe(corpus), tmp_path / "out")
    for phase in PHASES[1:]:
        with pytest.raises(DataError, match="again"):
            run_phase(at_work, phase, pieces, 0, 1, 1)


@pytest.mark.usefixtures("small")
def test_what_was_written_is_verified(
    corpus: Path, pieces: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"

    def damage(phase: Any) -> None:
        run_phase(Work.of(recipe(corpus), out), phase, pieces, 0, 1, 1)
        if phase == "shards":
            path = out / "shards/heldout-00000.tokens"
            path.write_bytes(path.read_bytes()[:-2] + b"\0\0")

    with pytest.raises(DataError, match=r"heldout-00000\.tokens is missing or is not what"):
        run_recipe(recipe(corpus), pieces, out, workers=1, execute=damage)
    run_recipe(recipe(corpus), pieces, out, workers=1)
    whole = run_recipe(recipe(corpus), pieces, tmp_path / "whole", workers=1)
    assert Dataset.open(out).fingerprint == whole.fingerprint


@pytest.mark.usefixtures("small")
def test_a_damaged_chunk_is_made_again(corpus: Path, pieces: Tokenizer, tmp_path: Path) -> None:
    out = tmp_path / "out"
    at_work = Work.of(recipe(corpus), out)
    run_phase(at_work, "filter", pieces, 0, 1, 1)
    path = out / "work/filter/00000/00000.safetensors"
    good = path.read_bytes()
    path.write_bytes(good[:-1] + b"!")
    with pytest.raises(DataError, match=r"does not match its checksum: .* delete .*/00000 and run"):
        run_phase(at_work, "links", pieces, 0, 1, 1)
    shutil.rmtree(path.parent)  # as the message says
    run_phase(at_work, "filter", pieces, 0, 1, 1)
    assert path.read_bytes() == good


def test_held_out_documents_have_no_near_copy_in_training(
    corpus: Path, pieces: Tokenizer, tmp_path: Path
) -> None:
    many = tmp_path / "many"
    many.mkdir()
    draw = random.Random(1)
    for n in range(30):
        lines = text(n).splitlines()
        for copy in range(3):
            lines[draw.randrange(len(lines))] = sentence(draw)
            (many / f"{n}-{copy}.txt").write_text("\n".join(lines))
    made = run_recipe(
        Recipe.parse({"sources": [{"name": "many", "path": many}], "split": {"heldout": 0.3}}),
        pieces, tmp_path / "out", workers=1,
    )  # fmt: skip
    side = {
        name: split
        for split in made.manifest["splits"]
        for name in made.split(split).document_names()
    }
    assert made.manifest["near_duplicates"] > 60
    groups = [{side[f"many/{n}-{copy}.txt#0"] for copy in range(3)} for n in range(30)]
    assert np.mean([len(group) == 1 for group in groups]) > 0.9
