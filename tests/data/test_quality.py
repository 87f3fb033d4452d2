"""The classifier tells examples apart, the same whatever their order; limits drop what they say."""

import json
import random
from pathlib import Path

import numpy as np
import pytest

from gemmule.data import stdlib
from gemmule.data.quality.bands import Bands, classified
from gemmule.data.quality.classifier import WEIGHTS, Classifier
from gemmule.data.quality.features import features, joined
from gemmule.data.quality.fit import FitConfig, auc, fit
from gemmule.data.quality.logistic import minimum, regression, sigmoid
from gemmule.data.quality.teacher_bits import TeacherBits, digest
from gemmule.data.recipe.quality import QualitySettings
from gemmule.data.recipe.settings import Recipe
from gemmule.data.recipe.stream import documents_before
from gemmule.data.sources import Document
from gemmule.errors import ConfigError, DataError

GOODS = "reason evidence because therefore measure explain history theorem careful argument"
BADS = "buy cheap click winner free casino now bonus offer deal"
BOTHS = "the a of and to in is it that was for on with as at by from this"
GOOD, BAD, BOTH = GOODS.split(), BADS.split(), BOTHS.split()
MAIL = "jane.doe@acme.co.uk"


def document(draw: random.Random, good: bool) -> str:
    words = [draw.choice(BOTH) for _ in range(30)]
    words += [draw.choice(GOOD if good else BAD) for _ in range(4)]
    words += [draw.choice(BAD if good else GOOD) for _ in range(2)]
    draw.shuffle(words)
    return " ".join(words)


def examples(folder: Path, count: int = 200, seed: int = 0) -> FitConfig:
    draw = random.Random(seed)
    for good in (True, False):
        rows = [json.dumps({"text": document(draw, good)}) for _ in range(count)]
        draw.shuffle(rows)
        (folder / f"{good}.jsonl").write_text("\n".join(rows))
    return FitConfig(good=folder / "True.jsonl", bad=folder / "False.jsonl", bits=14)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("fitted")
    config = examples(folder)
    classifier, report = fit(config)
    classifier.save(folder / "classifier")
    return folder / "classifier", config, report


def test_features_are_words_and_pairs() -> None:
    both = features(["A b, b a!", "", "日本"], 20)
    assert both.counts_D.tolist() == [5, 0, 3]  # a, b, "a b", "b b", "b a"; 日, 本 and the pair
    one = [features([text], 20) for text in ("a B b a", "", "日本")]
    assert joined(one).buckets_K.tolist() == both.buckets_K.tolist()
    weights = np.random.default_rng(0).normal(size=2**20)
    sums = both.sums(weights)
    assert sums[0] == pytest.approx(weights[both.buckets_K[:5]].sum() / np.sqrt(5))
    assert sums[1] == 0
    dense = np.zeros((3, 2**20))
    rows = np.repeat(np.arange(3), both.counts_D)
    dense[rows, both.buckets_K] = both.lengths_D[rows]
    assert np.allclose(dense @ weights, sums)
    values = np.array([1.0, 2.0, -3.0])
    assert np.allclose(both.spread(values, 2**20), values @ dense)


def test_the_minimum_is_one() -> None:
    draw = np.random.default_rng(1)
    scales = np.logspace(0, 3, 30)
    place = draw.normal(size=30)

    def loss(x):
        return float((scales * (x - place) ** 2).sum()), 2 * scales * (x - place)

    assert np.allclose(minimum(loss, np.zeros(30)), place, atol=1e-4)


def test_regression_is_at_its_minimum() -> None:
    """The gradient of the loss, by finite differences, is 0."""
    draw = random.Random(0)
    good_D = np.array([n % 3 == 0 for n in range(90)])
    own = features([document(draw, good) for good in good_D], 10)
    weights_W = regression(own, good_D, 2**10, 0.01)

    def loss(w: np.ndarray) -> float:
        margins = np.where(good_D, 1, -1) * (own.sums(w[:-1]) + w[-1])
        losses = np.logaddexp(0, -margins)
        balanced = (losses[good_D].mean() + losses[~good_D].mean()) / 2
        return balanced + 0.005 * (w[:-1] ** 2).sum()

    for place in [*own.buckets_K[:12], -1]:
        step = np.zeros_like(weights_W)
        step[place] = 1e-4
        slope = (loss(weights_W + step) - loss(weights_W - step)) / 2e-4
        assert abs(slope) < 2e-5
    assert sigmoid(np.array([-800.0, 0.0, 800.0])).tolist() == [0.0, 0.5, 1.0]


def test_auc_counts_pairs() -> None:
    draw = np.random.default_rng(0)
    good, bad = draw.integers(0, 9, 50) / 3.0, draw.integers(0, 7, 40) / 3.0
    pairs = (good[:, None] > bad) + 0.5 * (good[:, None] == bad)
    result = auc(good, bad)
    assert result["value"] == pytest.approx(pairs.mean())
    assert result["low"] < result["value"] < result["high"]


def test_held_out_examples_are_told_apart(fitted) -> None:
    report = fitted[2]
    assert report["auc"]["value"] > 0.9
    assert report["auc"]["low"] > 0.8
    assert 50 < report["examples"]["good"]["heldout"] + report["examples"]["bad"]["heldout"] < 110
    half = next(row for row in report["limits"] if row["limit"] == 0.5)
    assert half["good_dropped"]["value"] < 0.2
    assert half["bad_dropped"]["value"] > 0.8
    assert sum(band["documents"] for band in report["bands"]) == sum(
        report["examples"][name]["heldout"] for name in ("good", "bad")
    )
    assert any("(bad)" in e["document"] for band in report["bands"] for e in band["examples"])


def test_the_order_of_examples_does_not_matter(fitted, tmp_path: Path) -> None:
    folder, config, _ = fitted
    for path in (config.good, config.bad):
        lines = path.read_text().splitlines()
        random.Random(3).shuffle(lines)
        (tmp_path / path.name).write_text("\n".join([*lines, lines[0]]))  # and one of them twice
    again, _ = fit(
        config.model_copy(update={"good": tmp_path / "True.jsonl", "bad": tmp_path / "False.jsonl"})
    )
    texts = [document(random.Random(n), n % 2 == 0) for n in range(40)]
    first = Classifier.open(folder)
    assert np.allclose(first.probabilities(texts), again.probabilities(texts), atol=1e-4)
    assert again.about["examples"] == first.about["examples"]
    same, _ = fit(config)
    assert same.fingerprint == first.fingerprint


def test_one_by_one_as_all_at_once(fitted) -> None:
    classifier = Classifier.open(fitted[0])
    texts = [document(random.Random(n), n % 2 == 0) for n in range(40)] + ["", "unseen"]
    assert classifier.probabilities(texts) == [classifier.probabilities([t])[0] for t in texts]


def test_files_that_are_no_classifier(fitted, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no classifier \(No such file.* gemmule quality fit"):
        Classifier.open(tmp_path)
    folder = tmp_path / "changed"
    Classifier.open(fitted[0]).save(folder)
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[-3] ^= 1
    (folder / WEIGHTS).write_bytes(data)
    with pytest.raises(DataError, match=r"is not what classifier\.json describes"):
        Classifier.open(folder)


def test_examples_that_are_too_few(tmp_path: Path) -> None:
    config = examples(tmp_path, 15)
    with pytest.raises(DataError, match=r"holds 15 different documents, .* at least 20"):
        fit(config)
    config = examples(tmp_path, 40)
    with pytest.raises(DataError, match="holds 0 different documents"):
        fit(config.model_copy(update={"bad": config.good}))
    for path in (config.good, config.bad):
        path.write_text('{"text": " "}\n')
    with pytest.raises(DataError, match="holds 0 different documents"):
        fit(config)


def test_bands_count_what_limits_drop() -> None:
    bands = Bands((1.0, 2.0))
    for n, score in enumerate((0.5, 1.0, 1.5, 1.7, 1.9, 2.0, 9.0)):
        bands.add(score, Document(f"f#{n}", f"text {n}, from {MAIL}"))
    low, middle, high = bands.json()
    assert [band["documents"] for band in (low, middle, high)] == [1, 4, 2]
    assert middle["below"] == pytest.approx(1 / 7)
    assert middle["above"] == pytest.approx(2 / 7)
    assert (low["from"], low["to"], high["from"], high["to"]) == (None, 1.0, 2.0, None)
    assert len(middle["examples"]) == 3
    assert MAIL not in json.dumps([low, middle, high])
    assert "xxxx.xxx@" in low["examples"][0]["text"]


def test_a_corpus_before_it_is_filtered(fitted) -> None:
    texts = [document(random.Random(n), n < 12) for n in range(30)]
    bands = classified(fitted[0], [Document(f"{n}", text) for n, text in enumerate(texts)])
    assert sum(band["documents"] for band in bands) == 30
    upper = next(band for band in bands if band["from"] == 0.5)
    assert 0.45 < upper["below"] < 0.75
    with pytest.raises(DataError, match="no document"):
        classified(fitted[0], [])


def scores(folder: Path, texts: dict[str, float]) -> Path:
    made = TeacherBits.made({digest(t): b for t, b in texts.items()}, {"teacher": {"path": "m"}})
    made.save(folder)
    return folder


def test_the_stage(fitted, tmp_path: Path) -> None:
    draw = random.Random(5)
    good, bad = document(draw, True), document(draw, False)
    texts = {good: 1.2, good + " x": 0.1, good + " y": 4.0, bad: 1.0}
    chosen = QualitySettings(
        classifier=fitted[0], bits=scores(tmp_path / "bits", texts), fewest_bits=0.3, most_bits=2.5
    )
    chosen.fit(tmp_path / "fitted")
    stage = chosen.open(tmp_path / "fitted")
    documents = [Document(f"{n}", text) for n, text in enumerate(texts)]
    outcomes = stage.apply_batch(documents)
    assert [stage.apply(document) for document in documents] == outcomes
    assert [outcome.reason for outcome in outcomes] == [
        None,
        "the teacher knows it by heart",
        "the teacher makes nothing of it",
        "unlike the good examples",
    ]
    assert all(sum(outcome.counts.values()) == 1 for outcome in outcomes)
    about = stage.about()
    assert about["classifier"]["auc"]["value"] > 0.9
    assert about["bits"]["teacher"] == {"path": "m"}
    with pytest.raises(DataError, match=r"bits of other are not known.*quality score"):
        stage.apply(Document("other", good + " z"))

    by_bits = QualitySettings(bits=tmp_path / "bits", most_bits=2.5)
    by_bits.fit(tmp_path / "bits alone")
    only = by_bits.open(tmp_path / "bits alone")
    assert [o.text is None for o in only.apply_batch(documents)] == [False, False, True, False]
    assert only.fingerprint != stage.fingerprint


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "names neither"),
        ({"bits": "b"}, "bits needs fewest_bits or most_bits"),
        ({"classifier": "c", "most_bits": 2.0}, "bits needs"),
        ({"bits": "b", "fewest_bits": 2.0, "most_bits": 1.0}, "must be below"),
        ({"classifier": "c", "least": 2.0}, "least"),
    ],
)
def test_settings_that_contradict(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        QualitySettings.parse(values, "recipe")


def test_documents_as_the_stage_gets_them(tmp_path: Path) -> None:
    for name, text in (("a.txt", "one  \r\ntwo\n"), ("b.txt", "\x00"), ("c.txt", f"mail {MAIL}")):
        (tmp_path / name).write_text(text, newline="")
    recipe = Recipe.parse(
        {
            "sources": [{"name": "texts", "path": str(tmp_path)}],
            "normalize": {},
            "redact": {},
        },
        "recipe",
    )
    texts = [document.text for document in documents_before(recipe, "quality")]
    assert texts[0].startswith("one\ntwo")
    assert any(MAIL in text for text in texts)  # redaction comes after quality
    later = [document.text for document in documents_before(recipe, "decontaminate")]
    assert not any(MAIL in text for text in later)


def test_documents_are_those_that_the_recipe_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty.txt").write_text(" ")
    (tmp_path / "long.txt").write_text("\n\n".join(f"Paragraph {n}." * 20 for n in range(400)))
    (tmp_path / "module.py").write_text("import this\n")
    monkeypatch.setattr(stdlib, "stdlib_files", lambda: [("this.py", tmp_path / "module.py")])
    sources = [
        {"name": "texts", "path": str(tmp_path / "*.txt"), "sections": True},
        {"name": "python", "path": "stdlib"},
    ]
    recipe = Recipe.parse({"sources": sources}, "recipe")
    documents = list(documents_before(recipe, "quality"))
    assert len(documents) > 2
    assert {document.source for document in documents} == {"texts", "python"}
    assert all(document.text.strip() for document in documents)
