"""gemmule quality and decontamination, from examples to a recipe's artifacts."""

import json
import random
from pathlib import Path

import pytest

from gemmule import cli
from gemmule.checkpoints.hf.writer import save_model
from gemmule.data import benchmark_texts
from gemmule.data.quality.classifier import Classifier
from gemmule.data.quality.teacher_bits import TeacherBits
from gemmule.model.tokenizer import Tokenizer
from models import random_model

pytestmark = pytest.mark.usefixtures("no_meter")
MAIL = "jane.doe@acme.co.uk"


@pytest.fixture
def gemmule(capsys):
    """Runs a command; gives what it printed, as a table or as JSON."""

    def run(*arguments, code=0):
        with pytest.raises(SystemExit) as e:
            cli.main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert (e.value.code or 0) == code, err
        return json.loads(out) if out else " ".join(err.split())

    return run


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    draw = random.Random(0)
    for name, words in (
        ("good", "reason evidence measure theorem"),
        ("bad", "buy cheap click now"),
    ):
        (tmp_path / name).mkdir()
        for n in range(60):
            own = [draw.choice([*words.split(), "the", "of", "and"]) for _ in range(20)]
            (tmp_path / name / f"{n}.txt").write_text(" ".join(own) + f" {MAIL}\n")
    return tmp_path


def test_fit_and_preview(texts: Path, gemmule) -> None:
    out = texts / "quality"
    fit = ["quality", "fit", "--good", texts / "good", "--bad", texts / "bad", "--out", out]
    printed = gemmule(*fit, "--bits", 12)
    assert "held-out AUC 1.0000" in printed
    assert "of the bad dropped" in printed
    assert MAIL not in printed
    assert "xxxx.xxx@xxxx.xx.xx" in printed
    report = gemmule(*fit, "--bits", 12, "--json")
    assert report["fingerprint"] == Classifier.open(out).fingerprint
    assert MAIL not in (out / "report.json").read_text()
    assert json.loads((out / "report.json").read_text())["auc"] == report["auc"]
    shown = gemmule("quality", "preview", "--classifier", out, "--text", texts / "bad")
    assert "a limit drops what is below, or above" in shown
    recipe = texts / "data.toml"
    recipe.write_text(f'[[sources]]\nname = "all"\npath = "{texts}/*/*.txt"\n[normalize]\n')
    both = gemmule("quality", "preview", "--classifier", out, "--recipe", recipe, "--json")
    assert sum(band["documents"] for band in both["bands"]) == 120
    refused = ["quality", "preview", "--classifier", out, "--recipe", recipe, "--text", texts]
    assert "give --recipe, or --text and --field, not both" in gemmule(*refused, code=2)


def test_score(texts: Path, pieces: Tokenizer, gemmule) -> None:
    save_model(random_model(), pieces, texts / "model")
    out = texts / "bits"
    ask = ["quality", "score", texts / "model", "--text", texts / "good", "--out", out]
    printed = gemmule(*ask)
    assert "a limit drops what is below, or above" in printed
    assert MAIL not in printed
    report = gemmule(*ask, "--json")
    assert report["documents"] == len(TeacherBits.open(out)) == 60
    assert report["teacher"]["path"] == str(texts / "model")


def test_decontamination(texts: Path, gemmule) -> None:
    pytest.importorskip("lm_eval", reason="needs lm-eval, of the extra eval")
    folder = texts / "benchmarks/piqa"
    folder.mkdir(parents=True)
    row = json.dumps({"goal": "To open a jar", "sol1": "turn it.", "sol2": "throw it."})
    (folder / "valid.jsonl").write_text(f"{row}\n")
    (folder / "valid-labels.lst").write_text("0\n")
    out = texts / "collected/all.json"
    ask = ["decontamination", "--data-dir", texts / "benchmarks", "--tasks", "piqa,boolq"]
    printed = gemmule(*ask, "--out", out)
    assert "missing: BoolQ: there is no boolq/val.jsonl" in printed
    (benchmark,) = benchmark_texts.read(out)
    assert benchmark.name == "PIQA"
    assert "To open a jar turn it. throw it." in benchmark.texts[0]
    listed = gemmule(*ask, "--out", out, "--json")
    assert listed["benchmarks"]["PIQA"] == {"items": 1, "sha256": benchmark.sha256}
