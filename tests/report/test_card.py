import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from fixture_runs import make_quickstart, make_run

from gemmule.errors import CheckpointError, MissingExtraError
from gemmule.report import write_card

HOSTILE = (
    "</pre></bdi><script>alert(1)</script><img src=x onerror=alert(1)>"
    "\"'&{{7*7}}\n```\n# hi\n\x00\x1b[31m"
)


class Reader(HTMLParser):
    """Collects the figures, tags, attributes and text of a page."""

    def __init__(self):
        super().__init__()
        self.figures, self.tags, self.attributes, self.text = [], [], [], ""
        self._open = None

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        self.text += " " * (tag in ("dd", "td", "tr", "p", "li"))
        if tag == "data":
            self._open = (dict(attrs), len(self.text))

    def handle_data(self, data):
        self.text += data

    def handle_endtag(self, tag):
        if tag == "data":
            attrs, at = self._open
            self.figures.append((attrs["title"], attrs["value"], self.text[at:]))


def read(card):
    reader = Reader()
    reader.feed((card / "index.html").read_text(encoding="utf-8"))
    reader.text = " ".join(reader.text.split())
    return reader


def front_matter(card):
    text = (card / "README.md").read_text(encoding="utf-8")
    _, head, body = text.split("---\n", 2)
    return yaml.safe_load(head), body


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs") / "quickstart"
    make_quickstart(root)
    write_card(root)
    return root


def value_in(root, file, key):
    value = json.loads((root / file).read_text())
    for part in key.split("."):
        value = value[part]
    return value


def as_number(text):
    number, _, unit = text.replace(",", "").partition(" ")
    scale = {"k": 1e3, "M": 1e6, "TFLOP": 1e12, "GFLOP": 1e9}.get(unit, 1)
    return float(number) * scale


def test_every_figure_on_the_page_is_the_one_in_its_file(quickstart):
    figures = read(quickstart / "card").figures
    assert len(figures) > 90
    numbers = 0
    for title, value, text in figures:
        file, _, key = title.partition(": ")
        if file == "computed" or file.endswith(".toml"):
            continue
        held = value_in(quickstart, file, key)
        if isinstance(held, str):
            assert held.endswith(value.removeprefix("…/")), title
            continue
        assert value == str(held), title
        if key.split(".")[-1] != "seconds":
            assert as_number(text) == pytest.approx(held, rel=6e-3), title
            numbers += 1
    assert numbers > 50


def test_computed_figures_are_right_and_name_their_parts(quickstart):
    figures = {
        title: float(value)
        for title, value, _ in read(quickstart / "card").figures
        if title.startswith("computed")
    }
    loss = "comparison.json: {0}.%s.nats_per_token"
    both = f"|{loss % 'scratch'} - {loss % 'distilled'}|"
    assert figures["computed: " + both.format("equal_tokens")] == pytest.approx(0.21)
    assert figures["computed: " + both.format("equal_compute")] == pytest.approx(0.14)
    total = [v for title, v in figures.items() if "teacher/carbon.json: energy_wh" in title]
    assert total == [pytest.approx(41.2 + 12.345 + 24.9 + 24.5)]


def test_the_headline_says_the_gap(quickstart):
    headline = "Distilled 3.751 vs from scratch 3.961 nats/token at equal tokens"
    text = read(quickstart / "card").text
    assert text.count(headline) == 2  # title and heading
    assert headline in (quickstart / "card" / "README.md").read_text()


@pytest.mark.parametrize(
    ("distilled", "more", "tokens", "compute"),
    [
        (3.75, 3.61, "distillation is ahead by 0.210", "training from scratch is ahead by 0.140"),
        (3.75, 3.80, "distillation is ahead by 0.210", "distillation is ahead by 0.050"),
        (4.00, 3.80, "training from scratch is ahead by 0.040", "from scratch is ahead by 0.200"),
        (3.96, 3.96, "the losses are equal", "the losses are equal"),
    ],
)
def test_the_result_is_said_whichever_way_it_falls(tmp_path, distilled, more, tokens, compute):
    make_quickstart(tmp_path / "q", distilled=distilled, more=more)
    card = write_card(tmp_path / "q")
    for text in (read(card).text, (card / "README.md").read_text()):
        assert f"At equal tokens, {tokens}" in text
        assert re.search(f"At equal training compute, .*{compute}", text)


@pytest.mark.parametrize(
    ("losses", "verdict", "best"),
    [
        ((5.0, 4.6), "distillation is ahead by 0.400", "4.601"),
        ((4.6, 5.0), "training from scratch is ahead by 0.400", "4.601"),
        ((4.6, 4.6), "the losses are equal", None),
    ],
)
def test_little_text_is_a_third_comparison(tmp_path, losses, verdict, best):
    make_quickstart(tmp_path / "q", scarce=losses)
    card = write_card(tmp_path / "q")
    page, markdown = read(card), (card / "README.md").read_text()
    for text in (page.text, markdown):
        assert "From 60.0 k tokens (200 kB) alone" in text
        assert verdict in text
        assert "distilled after epoch 8 of 8, from scratch after epoch 5 of 8" in text
        # Trained once for two students, recorded once for this one.
        assert "took 54.0 TFLOP, 27.0 TFLOP for each of its 2 students" in text
        assert "recording it for the little text took 540 GFLOP" in text
    html = (card / "index.html").read_text()
    if best is not None:
        assert f"{best}</data></strong>" in html
    total = [float(v) for title, v, _ in page.figures if "scarce_text.recording.energy_wh" in title]
    assert pytest.approx(41.2 + 12.345 + 24.9 + 24.5 + 3.0 + 4.0 + 0.5) in total


def test_a_size_sweep_in_the_quickstarts_folder_is_shown(tmp_path):
    make_quickstart(tmp_path / "q")
    assert "Size factor" not in read(write_card(tmp_path / "q")).text

    def ratio(value, bound=None, low=None, high=None, n=3):
        return {"value": value, "low": low, "high": high, "bound": bound, "n": n}

    def entry(basis, own, whole):
        return {
            "group": "0.1m", "basis": basis, "factor": own, "factor_of_all_parameters": whole,
        }  # fmt: skip

    factors = [
        entry("equal tokens", ratio(9.4, "more than"), ratio(5.0, "more than")),
        entry("equal training compute", ratio(2.5, None, 2.1, 3.0), ratio(1.8, None, 1.6, 2.1)),
        entry("nothing", ratio(None, n=0), ratio(None, n=0)),
        entry("both", ratio(None, "undetermined"), ratio(None, "undetermined")),
        entry("one", ratio(2.0, n=1), ratio(1.5, n=1)),
    ]
    folder = tmp_path / "q" / "ablate-size"
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps({"size_factors": factors, "cells": []}))
    card = write_card(tmp_path / "q")
    for text in (read(card).text, (card / "README.md").read_text()):
        assert "more than 9.4, seeds: 3; counting the embedding more than 5.0" in text
        assert "2.5 (2.1 to 3.0), seeds: 3; counting the embedding 1.8" in text
        assert "2.0, one seed; counting the embedding 1.5" in text
        assert "undetermined" in text
    (folder / "results.json").write_text("{}")
    with pytest.raises(CheckpointError, match="size_factors is missing; repeat the sweep's"):
        write_card(tmp_path / "q")


def test_front_matter_is_what_the_hub_reads(quickstart):
    head, body = front_matter(quickstart / "card")
    assert head["library_name"] == "gemmule"
    assert head["pipeline_tag"] == "text-generation"
    assert head["base_model"] == "teacher"
    assert head["license"] == "other"
    assert "distillation" in head["tags"]
    result = json.loads((quickstart / "student" / "result.json").read_text())
    [entry] = head["model-index"]
    metrics = {metric["type"]: metric["value"] for metric in entry["results"][0]["metrics"]}
    assert metrics == {
        key: result[key] for key in ("nats_per_token", "perplexity", "bits_per_byte")
    }
    for heading in (
        "## Use",
        "## Held-out results",
        "## Samples",
        "## Architecture",
        "## Training data",
        "## Training procedure",
        "## Energy and carbon",
        "## Limitations",
        "## Sources",
    ):
        assert f"\n{heading}\n" in body
    for line in body.splitlines():  # tables: as many cells as the separator above them
        if line.startswith("| distilled, equal tokens: perplexity"):
            assert len(re.findall(r"(?<!\\)\|", line)) == 6
    assert "PSF-2.0" in body


def test_a_chosen_licence_is_in_the_front_matter(tmp_path):
    make_run(tmp_path / "run")
    head, _ = front_matter(write_card(tmp_path / "run", licence="apache-2.0"))
    assert head["license"] == "apache-2.0"
    assert "license_name" not in head
    assert "base_model" not in head


def test_what_was_taken_out_of_the_text_is_said(tmp_path):
    make_run(tmp_path / "run")
    _, body = front_matter(write_card(tmp_path / "run"))
    assert "decontaminated" not in body
    file = tmp_path / "run/manifest.json"
    manifest = json.loads(file.read_text())
    benchmarks = [{"name": "ARC-e", "sha256": "12" * 32}, {"name": "PIQA", "sha256": "34" * 32}]
    manifest["data"]["decontaminated"] = {"n": 13, "benchmarks": benchmarks, "dropped": 1234}
    manifest["data"]["redacted"] = {"e-mail address, replaced": 2345, "payment card, removed": 6}
    file.write_text(json.dumps(manifest))
    page = read(write_card(tmp_path / "run")).text
    assert "ARC-e (12121212), PIQA (34343434); by 13 words in a row; 1,234 documents" in page
    assert "e-mail address, replaced: 2,345; payment card, removed: 6" in page
    manifest["data"]["redacted"] = {}
    source = {"name": "web", "redacted": {"e-mail address, replaced": 77}}
    manifest["mixture"] = {"stage_starts": [0], "sources": [{"name": "code"}, source]}
    file.write_text(json.dumps(manifest))
    page = read(write_card(tmp_path / "run")).text
    assert re.search(r"source web: personal data in the text\s+e-mail address, replaced: 77", page)
    assert "none was found" in read(write_card(tmp_path / "run")).text


def test_hostile_text_stays_text(tmp_path):
    sample = dict.fromkeys(("prompt", "scratch", "distilled", "teacher"), HOSTILE + "\ud800")
    root = tmp_path / "<b>run&"
    make_quickstart(root, samples=[sample], data=HOSTILE)
    card = write_card(root)
    page = read(card)
    assert not {"script", "img", "b>run&", "iframe", "link", "object"} & set(page.tags)
    assert not [a for a in page.attributes if a[1].startswith("on")]
    assert page.text.count("<script>alert(1)</script>") > 5
    assert "49" not in page.text.split("{{7*7}}")[1][:3]
    head, body = front_matter(card)
    assert head["model-index"][0]["results"][0]["dataset"]["name"].startswith("</pre>")
    outside = re.sub(r"(?ms)^(`{3,})[a-z]+\n.*?\n\1$", "", body)
    assert "<script>" not in outside
    assert "\n# hi" not in outside
    assert not re.search(r"[\x00-\x08\x0b-\x1f]", body + (card / "index.html").read_text())


def test_nothing_is_loaded_from_elsewhere(quickstart):
    page = read(quickstart / "card")
    html = (quickstart / "card" / "index.html").read_text()
    assert not re.search(r"https?://|@import|//[a-z]+\.[a-z]", html)
    links = [value for _, name, value in page.attributes if name in ("href", "src", "xlink:href")]
    assert links
    assert all(value.startswith("#") for value in links)
    assert "default-src 'none'" in html


def test_the_page_can_be_read_without_seeing_it(quickstart):
    page = read(quickstart / "card")
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    labelled = [value for _, name, value in page.attributes if name == "aria-labelledby"]
    assert set(labelled) <= set(ids)
    used = {v[1:] for _, name, v in page.attributes if name == "href"}
    assert used <= set(ids)
    assert ("html", "lang", "en") in page.attributes
    assert page.tags.count("th") == sum(name == "scope" for _, name, _ in page.attributes)
    assert page.tags.count("table") == page.tags.count("caption")
    words = [v for tag, name, v in page.attributes if name == "aria-label" and "chart" in v]
    assert len(words) == 2
    last = json.loads((quickstart / "student" / "metrics.jsonl").read_text().splitlines()[-1])
    for text in words:
        assert f"Distilled ends at {last['nats_per_token']:.3f} nats per token" in text
    assert page.tags.count("h1") == 1


def test_private_paths_and_host_names_are_left_out(quickstart):
    for file in ("README.md", "index.html"):
        text = (quickstart / "card" / file).read_text()
        assert "somebody" not in text
        assert "secret-host" not in text
        assert str(quickstart.parent) not in text


def test_the_same_files_give_the_same_card(quickstart, tmp_path):
    again = tmp_path / "elsewhere" / "quickstart"
    shutil.copytree(quickstart, again)
    (again / "card" / "stale.txt").write_text("left from before")
    code = "import sys, pathlib, gemmule.report as r; r.write_card(pathlib.Path(sys.argv[1]))"
    (tmp_path / "matplotlibrc").write_text("axes.facecolor: red\nfont.size: 40\n")
    environment = {**os.environ, "PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo", "LC_ALL": "C"}
    subprocess.run(
        [sys.executable, "-W", "error", "-c", code, str(again)],
        check=True,
        cwd=tmp_path,
        env=environment,
    )
    assert sorted(p.name for p in (again / "card").iterdir()) == ["README.md", "index.html"]
    for file in ("README.md", "index.html"):
        assert (again / "card" / file).read_bytes() == (quickstart / "card" / file).read_bytes()


def test_what_is_not_known_is_not_invented(tmp_path):
    make_run(tmp_path / "run", wh=None)
    (tmp_path / "run" / "carbon.json").unlink()
    card = write_card(tmp_path / "run")
    page = read(card)
    assert "Energy not measured" in page.text
    assert "Carbon not measured" in page.text
    assert "0 Wh" not in page.text
    assert "Held-out loss 3.961 nats/token after 500 k tokens" in page.text
    _, body = front_matter(card)
    assert "not measured | not measured |" in body


def test_a_distilled_run_alone_names_its_teacher(tmp_path):
    make_run(tmp_path / "student", kind="distill")
    card = write_card(tmp_path / "student")
    assert "distilled from a 6.95 M-parameter teacher" in read(card).text
    assert "another quantity, and is not drawn" in read(card).text


@pytest.mark.parametrize("biased", [False, True])
def test_stored_targets_are_named_and_their_bias_is_said(tmp_path, biased):
    run = tmp_path / "student"
    make_run(run, kind="distill")
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["targets"] = {
        "path": "/home/somebody/targets",
        "identity": "ab" * 32,
        "label": "top-32" if biased else "sampled-50",
        "biased": biased,
        "bytes_per_token": 34.2,
        "recording": {"seconds": 80.0, "energy_wh": 1.25, "gco2e": None},
    }
    (run / "manifest.json").write_text(json.dumps(manifest))
    text = (write_card(run) / "README.md").read_text()
    assert ("Such targets are biased" in text) == biased
    assert manifest["targets"]["label"] in text
    assert "energy of recording the teacher" in text
    page = (run / "card" / "index.html").read_text()
    assert "neither that nor its training counts" in page
    assert "forward passes count" not in page
    assert "somebody" not in text


def test_a_run_without_evaluations_says_so(tmp_path):
    make_run(tmp_path / "run")
    (tmp_path / "run" / "metrics.jsonl").write_text("")
    assert "Loss during training: not measured" in read(write_card(tmp_path / "run")).text


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("student/result.json", None, "no result.json in .*student: the run has not finished"),
        ("student/manifest.json", None, "no manifest.json in .*student"),
        ("teacher/metrics.jsonl", None, "no metrics.jsonl in .*teacher"),
        ("scratch/result.json", "{", "scratch/result.json is not readable JSON"),
        ("scratch/result.json", "[]", "scratch/result.json: expected a JSON object"),
        ("scratch/result.json", '{"nats_per_token": NaN}', "result.json: nats_per_token is nan"),
        ("scratch/result.json", '{"nats_per_token": "3"}', "nats_per_token is '3', not a finite"),
        ("scratch/result.json", '{"nats_per_token": 3}', "parameters is missing"),
        ("student/manifest.json", '{"model": {}, "data": {}}', "manifest.json: kind is missing"),
        ("student/manifest.json", '{"kind": "train"}', "manifest.json: data is missing"),
        ("student/carbon.json", "not json", "carbon.json is not readable JSON"),
        ("student/config.toml", "a = ", "config.toml is not readable TOML"),
        ("student/metrics.jsonl", '{"step": 1, "tok', "metrics.jsonl, line 1: not JSON"),
        ("student/metrics.jsonl", '{"loss": 1}', "metrics.jsonl, line 1: tokens is missing"),
        (
            "comparison.json",
            "{}",
            "comparison.json: equal_tokens is missing",
        ),
        ("comparison.json", None, "no comparison.json in .*: the quickstart has not finished"),
        ("samples.json", "{}", "samples.json: not a list"),
    ],
)
def test_a_broken_run_is_one_clear_error(quickstart, tmp_path, file, content, message):
    root = tmp_path / "quickstart"
    shutil.copytree(quickstart, root)
    if content is None:
        (root / file).unlink()
    else:
        (root / file).write_text(content)
    before = (root / "card" / "index.html").read_bytes()
    with pytest.raises(CheckpointError, match=message):
        write_card(root)
    assert (root / "card" / "index.html").read_bytes() == before


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(CheckpointError, match=r"is not a run: it holds neither manifest\.json"):
        write_card(tmp_path)
    with pytest.raises(CheckpointError, match="no run at"):
        write_card(tmp_path / "nothing")


def test_a_missing_package_names_its_extra(tmp_path, monkeypatch):
    make_run(tmp_path / "run")
    for name in [n for n in sys.modules if n.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=re.escape('pip install "gemmule[report]"')):
        write_card(tmp_path / "run")
    assert not (tmp_path / "run" / "card").exists()


def test_importing_the_report_is_light():
    heavy = "{'torch', 'matplotlib', 'jinja2', 'huggingface_hub', 'numpy'}"
    code = f"import sys, gemmule.report; sys.exit(' '.join({heavy} & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def chromium(tmp_path, *arguments):
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("needs chromium")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    flags += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    flags += ["--hide-scrollbars", f"--user-data-dir={tmp_path / 'profile'}"]
    command = [program, *flags, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


@pytest.mark.browser
@pytest.mark.parametrize(("width", "scheme"), [(1280, 1), (1280, 0), (500, 1)])
def test_a_browser_shows_the_page(quickstart, tmp_path, width, scheme):
    from matplotlib.image import imread

    page = (quickstart / "card" / "index.html").as_uri()
    shot = tmp_path / "shot.png"
    chromium(
        tmp_path,
        f"--blink-settings=preferredColorScheme={scheme}",
        f"--screenshot={shot}",
        f"--window-size={width},1600",
        page,
    )
    pixels = imread(shot)[..., :3]
    assert pixels.shape[:2] == (1600, width)
    assert pixels.std() > 0.05
    assert (pixels.mean() > 0.5) == (scheme == 1)  # light and dark are really two schemes
    # Nothing sticks out sideways: the outermost columns are background.
    assert pixels[:, -4:].std(axis=0).max() < 0.02


@pytest.mark.browser
def test_the_browser_finds_the_headline_and_both_plots(quickstart, tmp_path):
    dom = chromium(tmp_path, "--dump-dom", (quickstart / "card" / "index.html").as_uri())
    reader = Reader()
    reader.feed(dom)
    text = " ".join(reader.text.split())
    assert "Distilled 3.751 vs from scratch 3.961 nats/token at equal tokens" in text
    assert dom.count('role="img"') == 2


def test_the_templates_are_part_of_the_package():
    import gemmule.report

    folder = Path(gemmule.report.__file__).parent / "templates"
    assert {p.name for p in folder.iterdir()} == {
        "README.md",
        "index.html",
        "card.css",
        "data.html",
    }
