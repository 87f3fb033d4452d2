"""The card's section on cost: every figure comes from lines of a ledger, and names them."""

import re
from pathlib import Path

import pytest
import yaml
from fixture_runs import make_quickstart
from test_card import front_matter, read

from fake_machine import line
from gemmule.errors import CheckpointError
from gemmule.report import write_card
from gemmule.runs.ledger.file import append, ledger_of, read_ledger
from gemmule.runs.ledger.line import Market, Source


def put_ledgers(root: Path) -> None:
    """Ledgers of a quickstart whose first attempt at its student was killed."""
    for name in ("tokenizer", "data"):
        (root / name).mkdir()
        (root / name / "file").touch()
    tokenizer = Source(role="tokenizer", fingerprint="tok")
    data = Source(role="data", fingerprint="dat")
    lines = {
        "tokenizer": [line("1" * 32, 360, kind="tokenizer", product="tok")],
        "data": [line("2" * 32, 720, kind="data", product="dat", sources=[tokenizer])],
        "teacher": [
            line("3" * 32, 36000, product="tea", sources=[data], tokens_in=500, flop=3e15)
        ],
        "scratch": [line("4" * 32, 18000, sources=[data])],
        "student": [
            line("5" * 32, 3600, kind="distill", outcome="killed", tokens_in=100),
            line(
                "6" * 32, 14400, kind="distill", product="stu", tokens_in=200, flop=1e15,
                parameters=1_524_096,
                sources=[data, Source(role="teacher", name="big", fingerprint="tea", tokens=300)],
                market=Market(gco2e_per_kwh=0.0, source="a contract"), market_gco2e=0.0,
            ),
            line("7" * 32, 180, kind="evaluate"),
            line("8" * 32, 7200, kind="serve", tokens_out=5000, request_joules=1800.0),
        ],
        ".": [line("9" * 32, 540, kind="quickstart")],
    }  # fmt: skip
    for name, entries in lines.items():
        folder = root / name
        append(folder, [entry.model_copy(update={"name": folder.name}) for entry in entries])


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs") / "quickstart"
    make_quickstart(root)
    put_ledgers(root)
    write_card(root)
    return root


def test_every_figure_on_cost_names_its_lines_and_is_their_sum(quickstart: Path) -> None:
    """Each rule is computed again from the lines that it names."""
    lines = {
        entry.id[:8]: entry
        for name in ("tokenizer", "data", "teacher", "student", "scratch", ".")
        for entry in read_ledger(quickstart / name)
    }
    checked = 0
    for title, value, _ in read(quickstart / "card").figures:
        match = re.fullmatch(r"computed: ledger.jsonl: (\w+)\.best of lines? ([^,]*)(.*)", title)
        if match is None:
            continue
        field, names, share = match.groups()
        assert "more" not in names
        total = sum(getattr(lines[name], field).best for name in names.split(" + "))
        total *= float(share.removeprefix(", times ")) if share else 1.0
        assert float(value) == pytest.approx(total), title
        checked += 1
    assert checked >= 10


def test_sums_are_those_of_the_rows(quickstart: Path) -> None:
    text = read(quickstart / "card").text
    assert "made, in all" in text
    # 0.1 + 0.2 + 10 + 1 + 4 Wh, all of the teacher: no other student is known.
    assert re.search(r"made, in all 15\.3 Wh 14\.5 Wh to 16\.1 Wh 7\.65 g CO₂e 5\.00 g CO₂e", text)
    assert re.search(r"if teachers were there anyway 5\.30 Wh", text)
    assert re.search(r"used 2\.00 Wh", text)
    assert re.search(r"other attempts and models here 5\.15 Wh", text)
    assert "carbon by contracts" not in text  # not every line has one


def test_the_hub_gets_the_grams_of_the_final_run(quickstart: Path) -> None:
    head, body = front_matter(quickstart / "card")
    emissions = head["co2_eq_emissions"]
    assert emissions["emissions"] == pytest.approx(2.5)
    assert "what it was made from (tokenizer, data, teacher) adds 8.15 g" in emissions["source"]
    assert emissions["hardware_used"] == "P, 2 cores"
    assert emissions["geographical_location"] == "not given"
    assert "## Cost" in body
    assert "| teacher | train | | 10.0 Wh | 9.50 Wh to 10.5 Wh |" in " ".join(body.split())
    assert yaml.safe_dump(head)


def test_the_same_files_give_the_same_card(quickstart: Path) -> None:
    before = (quickstart / "card/index.html").read_bytes()
    write_card(quickstart)
    assert (quickstart / "card/index.html").read_bytes() == before


def test_a_broken_ledger_is_named(tmp_path: Path) -> None:
    make_quickstart(tmp_path / "q")
    put_ledgers(tmp_path / "q")
    with ledger_of(tmp_path / "q/student").open("a") as f:
        f.write("{}\n")
    with pytest.raises(CheckpointError, match=r"ledger\.jsonl, line 5: \w+ is missing"):
        write_card(tmp_path / "q")
