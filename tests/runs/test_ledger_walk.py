"""The cost of a model: a walk over its sources, with teachers divided by use."""

from pathlib import Path

import pytest

from fake_machine import line
from gemmule.errors import CheckpointError
from gemmule.runs.ledger import heartbeat
from gemmule.runs.ledger.file import append, read_ledger
from gemmule.runs.ledger.known import accounts_of, in_reach, within
from gemmule.runs.ledger.line import Line, Source
from gemmule.runs.ledger.summary import as_json, notes, rows, sci
from gemmule.runs.ledger.walk import Cost, cost_at


def put(folder: Path, *lines: Line) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "file").touch()
    append(folder, [entry.model_copy(update={"name": folder.name}) for entry in lines])
    return folder


def source(role: str, fingerprint: str, tokens: int | None = None) -> Source:
    return Source(role=role, name=fingerprint, fingerprint=fingerprint, tokens=tokens)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Data, a teacher, its record of 1000 tokens, and two students of it with 500 and 1500."""
    wh = 3600.0
    put(tmp_path / "data", line("d", 1 * wh, kind="data", product="data"))
    put(
        tmp_path / "teacher",
        line("t-killed", 2 * wh, outcome="killed", sources=[source("data", "data")]),
        line("t", 10 * wh, product="teacher", sources=[source("data", "data")], tokens_in=5000,
             flop=7e15),
        line("t-eval", 1 * wh, kind="evaluate"),
        line("t-serve", 50 * wh, kind="serve", tokens_out=10),
    )  # fmt: skip
    taught = [source("teacher", "teacher", 1000), source("data", "data")]
    put(
        tmp_path / "record",
        line("r", 4 * wh, kind="record", product="record", sources=taught, tokens_in=1000),
    )
    for name, tokens in (("small", 500), ("large", 1500)):
        learned = [source("targets", "record", tokens), source("data", "data")]
        put(
            tmp_path / name,
            line(name, 3 * wh, kind="distill", product=name, sources=learned, tokens_in=tokens,
                 parameters=2_000_000, flop=1e15),
            line(f"{name}-serve", 2 * wh, kind="serve", tokens_out=4000, request_joules=0.25 * wh),
        )  # fmt: skip
    put(tmp_path / "attempt", line("a", 8 * wh, outcome="failed"))
    return tmp_path


def cost(folder: Path) -> Cost:
    result = cost_at(folder, in_reach(folder))
    assert result is not None
    return result


def wh(each: Cost) -> float:
    assert each.making.energy_wh is not None
    return each.making.energy_wh.best


def test_a_teacher_and_a_record_are_divided_by_tokens_learned(runs: Path) -> None:
    small = cost(runs / "small")
    shares = {stage.account.name: stage.share for stage in small.stages}
    # 500 of 2000 tokens that both learned, which is more than the 1000 that were recorded.
    assert shares == {"data": 1.0, "teacher": 0.25, "record": 0.25, "small": 1.0}
    # The teacher's failed session and its evaluation are in it, its use is not.
    assert wh(small) == pytest.approx(1 + 0.25 * (2 + 10 + 1) + 0.25 * 4 + 3)
    assert small.upper_bound.energy_wh is not None
    assert small.upper_bound.energy_wh.best == pytest.approx(1 + 13 + 4 + 3)
    assert small.without_teacher.energy_wh is not None
    assert small.without_teacher.energy_wh.best == pytest.approx(1 + 3)


def test_students_together_have_no_more_than_the_whole(runs: Path) -> None:
    shares = [
        {stage.account.name: stage.share for stage in cost(runs / name).stages}["teacher"]
        for name in ("small", "large")
    ]
    assert sum(shares) == pytest.approx(1.0)


def test_a_single_student_has_the_part_that_it_learned(runs: Path) -> None:
    import shutil

    shutil.rmtree(runs / "large")
    shares = {stage.account.name: stage.share for stage in cost(runs / "small").stages}
    assert shares["record"] == shares["teacher"] == 0.5  # 500 of 1000 that were recorded


def test_what_is_not_part_of_the_model_is_shown_apart(runs: Path) -> None:
    small = cost(runs / "small")
    assert {account.name for account in small.others} == {"large", "attempt"}
    assert small.other_cost.energy_wh is not None
    assert small.other_cost.energy_wh.best == pytest.approx(8 + 5)
    assert small.other_cost.failed == 1
    assert small.using.energy_wh is not None
    assert small.using.energy_wh.best == 2
    assert small.generated == 4000
    table = {row[0]: row for row in rows(small)}
    assert table["teacher, 25%"][1] == "train, 1 of 3 failed or stopped"
    assert table["made"][3] == "8.25"
    requests, idle = (float(table[f"  {name}"][3]) for name in
                      ("requests", "idle, and starting"))  # fmt: skip
    assert (requests, idle) == (0.25, 1.75)
    assert as_json(small)["using"]["requests_wh"] == 0.25


def test_a_broken_ledger_of_a_neighbor_is_left_out_by_name(runs: Path) -> None:
    with (runs / "large" / "ledger.jsonl").open("a") as f:
        f.write("{}\n")
    small = cost(runs / "small")
    assert {stage.account.name: stage.share for stage in small.stages}["record"] == 0.5
    assert any("large" in note and "line 3" in note for note in notes(small))
    with pytest.raises(CheckpointError, match="large"):
        cost(runs / "large")


def test_only_uses_that_count_tokens_give_a_score(runs: Path) -> None:
    before = sci(cost(runs / "small"))["consumer"]
    append(runs / "small", [line("small-bench", 90 * 3600.0, kind="bench")])
    assert sci(cost(runs / "small"))["consumer"] == before


def test_a_ledger_that_travels_alone_has_the_whole_lineage(runs: Path, tmp_path: Path) -> None:
    alone = tmp_path / "elsewhere" / "small"
    lines = [*read_ledger(runs / "small")]
    for name in ("record", "teacher", "data"):
        lines += read_ledger(runs / name)
    alone.mkdir(parents=True)
    append(alone, lines)
    travelled = cost_at(alone, within(alone))
    assert travelled is not None
    assert [stage.account.name for stage in travelled.stages] == [
        "data", "teacher", "record", "small",
    ]  # fmt: skip
    assert travelled.upper_bound.energy_wh == cost(runs / "small").upper_bound.energy_wh


def test_a_teacher_used_in_both_ways_counts_once(tmp_path: Path) -> None:
    put(tmp_path / "teacher", line("t", product="teacher"))
    put(tmp_path / "record", line("r", kind="record", product="record", tokens_in=100,
                                  sources=[source("teacher", "teacher", 100)]))  # fmt: skip
    learned = [source("targets", "record", 100), source("teacher", "teacher", 300)]
    put(tmp_path / "student", line("s", kind="distill", sources=learned, tokens_in=300))
    shares = {stage.account.name: stage.share for stage in cost(tmp_path / "student").stages}
    assert shares["teacher"] == pytest.approx(1.0)


def test_sources_without_a_ledger_are_named(tmp_path: Path) -> None:
    hub = Source(role="teacher", name="gemma-2-2b", fingerprint="f", tokens=5)
    put(tmp_path / "student", line("s", sources=[hub]))
    student = cost(tmp_path / "student")
    assert [each.name for each in student.unknown] == ["gemma-2-2b"]
    assert any("Not known, and not in it: gemma-2-2b" in note for note in notes(student))
    assert as_json(student)["unknown_sources"][0]["name"] == "gemma-2-2b"


def test_a_circle_of_sources_ends(tmp_path: Path) -> None:
    put(tmp_path / "a", line("a", product="a", sources=[source("start", "b")]))
    put(tmp_path / "b", line("b", product="b", sources=[source("start", "a")]))
    assert wh(cost(tmp_path / "a")) == pytest.approx(2)


def test_lines_without_energy_are_counted_and_not_guessed(tmp_path: Path) -> None:
    put(tmp_path / "run", line("a"), line("b", energy_wh=None, gco2e=None))
    run = cost(tmp_path / "run")
    assert wh(run) == 1
    assert run.making.unknown == 1
    assert any("1 lines have no energy" in note for note in notes(run))


def test_two_machines_are_summed(tmp_path: Path) -> None:
    devices = line("x").devices
    put(
        tmp_path / "run",
        line("a", tokens_in=100, devices=devices.model_copy(update={"nodes": 2})),
        line("b", devices=devices.model_copy(update={"node": 1, "nodes": 2})),
    )
    run = cost(tmp_path / "run")
    assert (wh(run), run.trained) == (2, 100)


def test_sci_is_per_unit_and_its_units_agree(runs: Path) -> None:
    """SCI for AI's own example is a thousand times off: 130 kg per 10^9 is 0.13 g per 10^3."""
    small = cost(runs / "small")
    grams = small.making.total_gco2e
    assert grams is not None
    assert grams == pytest.approx(8.25 * 0.5 + 1 + 0.25 * 3 + 0.25 * 1 + 1)
    provider = sci(small)["provider"]
    assert provider["gco2e_per_million_training_tokens"] == pytest.approx(grams / 500 * 1e6)
    assert provider["gco2e_per_million_parameters"] == pytest.approx(grams / 2)
    assert provider["gco2e_per_pflop"] == pytest.approx(grams / (1 + 0.25 * 7))
    used = sci(small)["consumer"]["gco2e_per_thousand_generated_tokens"]
    assert used == pytest.approx((2 * 0.5 + 1) / 4)


def test_nothing_known_is_none(tmp_path: Path) -> None:
    assert cost_at(tmp_path, within(tmp_path)) is None


def test_a_folder_that_only_a_killed_activity_wrote(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It has no ledger yet, and is asked for as it was typed."""
    monkeypatch.setattr(heartbeat, "_this_process", lambda: {"pid": None, "host": None})
    monkeypatch.setattr(heartbeat, "_STALE_SECONDS", -1.0)
    (tmp_path / "run").mkdir()
    assert heartbeat.write(tmp_path / "run", line("a"))
    monkeypatch.chdir(tmp_path)
    cost = cost_at(Path("run"), in_reach(Path("run")))
    assert cost is not None
    assert cost.making.energy_wh is not None
    assert (cost.making.lines, cost.making.energy_wh.best) == (1, 1.0)


def test_accounts_keep_copies_once(runs: Path) -> None:
    append(runs / "small", read_ledger(runs / "teacher"))
    accounts = accounts_of(in_reach(runs / "small"))
    ids = [entry.id for account in accounts.values() for entry in account.lines]
    assert len(ids) == len(set(ids))
