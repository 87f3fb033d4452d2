"""Plans for clusters: layouts, memory, time, goodput, carbon, budgets and the command."""

import dataclasses
import json
import math
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from gemmule import cli
from gemmule.cli.plan import count
from gemmule.errors import ConfigError
from gemmule.model.config import preset
from gemmule.plan.cluster import efficiency
from gemmule.plan.cluster.choice import choose, estimate, usable_bytes
from gemmule.plan.cluster.devices import Cluster
from gemmule.plan.cluster.footprint import MTBF_HOURS, footprint, goodput
from gemmule.plan.cluster.forecast import plan_cluster, time_spread
from gemmule.plan.cluster.layout import Layout, candidates
from gemmule.plan.cluster.memory import STATE_BYTES, count_memory
from gemmule.plan.cluster.plan_tables import show_cluster_plan
from gemmule.plan.cluster.request import ClusterRequest
from gemmule.plan.cluster.shapes import Shape
from gemmule.plan.cluster.step import step_work

LARGE = Shape.of_gemma("27b", preset("27b"))
H100S = Cluster.parse("h100x512")


def plan(**settings: Any) -> dict[str, Any]:
    values = {"cluster": "h100x512", "student": "27b", "tokens": 13 * 10**12, **settings}
    given = {name: value for name, value in values.items() if value is not None}
    return plan_cluster(ClusterRequest.parse(given))


def test_candidates_use_every_device_and_fill_the_batch() -> None:
    layouts = list(candidates(LARGE, H100S, 2048, "bfloat16"))
    assert {layout.devices for layout in layouts} == {512}
    assert {layout.tensor for layout in layouts} == {1, 2, 4, 8}
    assert all(layout.sequences <= 2048 for layout in layouts)
    assert {layout.sequences for layout in layouts if layout.micro_batch == 1} == {2048}
    assert any(layout.replicas > 1 for layout in layouts)


def test_states_are_shared_out_and_recomputation_keeps_less() -> None:
    whole = count_memory(LARGE, Layout(), 8192)
    assert whole.states == pytest.approx(STATE_BYTES * LARGE.parameters)
    shared = count_memory(LARGE, Layout(shards=512), 8192)
    assert shared.states == pytest.approx(whole.states / 512, rel=1e-2)
    kept = [
        count_memory(LARGE, Layout(shards=512, recompute=mode), 8192).kept
        for mode in ("none", "selective", "full")
    ]
    assert kept[0] > kept[1] > kept[2] == LARGE.layers * 8192 * 2 * LARGE.width
    half = count_memory(LARGE, Layout(shards=256, tensor=2, recompute="full"), 8192)
    assert half.kept == kept[2] / 2


def test_work_is_flops_over_peak_and_bytes_over_links() -> None:
    layout = Layout(shards=512, micro_batch=1)
    work = step_work(LARGE, H100S, layout, 8192)
    products = 3 * (LARGE.linear_flops() + LARGE.head_flops()) * 8192
    assert work.matrix == pytest.approx(products / 989e12)
    # Weights twice in two bytes, gradients once in four; eight cards of a server share its traffic.
    moved = 8 * (LARGE.layers * LARGE.elements(1, 1)[0] + LARGE.elements(1, 1)[1]) * 511 / 512
    assert work.gather == pytest.approx(moved / 400e9)
    more = step_work(LARGE, H100S, dataclasses.replace(layout, recompute="full"), 8192)
    blocks = LARGE.linear_flops() * 8192 / 989e12
    assert more.matrix == pytest.approx(work.matrix + blocks)
    pipeline = Layout(shards=64, pipeline=8, micro_batch=8, microbatches=8)
    assert step_work(LARGE, H100S, pipeline, 8192).bubble == 7 / 8


def test_a_step_is_the_sum_of_its_parts() -> None:
    work = step_work(LARGE, H100S, Layout(shards=512), 8192)
    setting = efficiency.Setting("hopper", "torchtitan", True, False)
    parts = efficiency.fitted().seconds(work, setting)
    assert parts.pop("step") == pytest.approx(sum(parts.values()))
    eager = efficiency.fitted().seconds(work, dataclasses.replace(setting, compiled=False))
    assert eager["memory"] > parts["memory"]


def test_the_best_layout_is_the_fastest_that_fits() -> None:
    fitting = choose(LARGE, H100S, 2048, 8192, "bfloat16")
    assert all(one.peak_bytes <= usable_bytes(H100S) for one in fitting)
    assert fitting[0].tokens == max(one.tokens for one in fitting)
    everything = [
        estimate(LARGE, H100S, x, 8192) for x in candidates(LARGE, H100S, 2048, "bfloat16")
    ]
    too_large = [one for one in everything if one.peak_bytes > usable_bytes(H100S)]
    assert too_large
    assert len(too_large) + len(fitting) == len(everything)


def test_what_does_not_fit_says_what_would() -> None:
    with pytest.raises(ConfigError, match=r"27b does not fit on h100x1: .*at least h100x\d+") as e:
        plan(cluster="h100x1")
    enough = str(e.value).split("at least ")[1].split(",")[0]
    assert plan(cluster=enough)["memory"]["peak_gib"] < 80
    with pytest.raises(ConfigError, match="does not fit"):
        plan(cluster=f"h100x{int(enough.split('x')[1]) // 2}")


def test_goodput_and_carbon_by_hand() -> None:
    good = goodput(1e9, Cluster.parse("h100x1000"))
    between = MTBF_HOURS * 3600 / 1000
    saved = 12e9 / (2e12 / 16384 * 1000)
    interval = math.sqrt(2 * saved * between)
    lost = saved / interval + (interval / 2 + 600) / between
    assert good.fraction == pytest.approx(1 / (1 + lost))
    assert good.interruptions_per_day == pytest.approx(86400 / between)
    assert pytest.approx(50_678, rel=1e-3) == MTBF_HOURS
    used = footprint(Cluster.parse("h100x8"), 100.0, 400.0, pue=1.2)
    assert used.kwh == pytest.approx(800 * 0.745 * 1.2)
    assert used.operational_kg == pytest.approx(used.kwh * 0.4)
    assert used.embodied_kg == pytest.approx(876 * 800 / (3 * 8766))
    assert footprint(Cluster.parse("h100x8"), 100.0, None).kg is None


def test_27b_on_13t_tokens() -> None:
    result = plan(cluster="tpu-v5px6144")
    assert result["run"]["flops"] == pytest.approx(2.23e24, rel=0.01)
    days = {key: hours / 24 for key, hours in result["hours"].items()}
    # By hand: 6,144 chips of 459 TFLOP/s at 30 to 70% of the peak take 13 to 31 days.
    assert 12 < days["low"] < days["best"] < days["high"] < 40
    assert result["carbon"]["kg"]["best"] > result["carbon"]["operational_kg"]["best"]
    fewer = plan()
    assert fewer["hours"]["best"] > 2 * result["hours"]["best"]


def test_where_the_teacher_computes() -> None:
    placement = plan(student="9b", tokens=8 * 10**12, teacher="27b")["teacher_placement"]
    beside, apart, recorded = placement["each"]
    # A forward pass of 57 GFLOP a token next to 63 of training: nearly as many devices again.
    assert 0.5 < placement["teacher_devices_per_student_device"] < 1.3
    assert apart["bytes_per_token"] == 2 * 4608
    assert recorded["device_hours"] == apart["device_hours"]
    assert recorded["device_hours_further"] < 0.75 * beside["device_hours"]
    assert beside["device_hours_further"] == beside["device_hours"]
    assert placement["recording_pays_from"] == 2
    first = {one["name"]: one["device_hours"] for one in placement["each"]}
    assert first[placement["cheapest"]] == min(first.values())
    assert plan(student="9b", tokens=10**12)["teacher_placement"] is None


def test_a_teacher_costs_its_forward_pass() -> None:
    alone = plan(student="9b", tokens=10**12)
    taught = plan(student="9b", tokens=10**12, teacher="27b")
    assert taught["run"]["flops"] / alone["run"]["flops"] == pytest.approx(1.91, abs=0.01)
    assert 1.5 < taught["hours"]["best"] / alone["hours"]["best"] < 2.2
    assert taught["memory"]["counted_gib"]["teacher"] > 0


def test_an_interval_always_holds_its_middle_and_grows_for_unseen_devices() -> None:
    for cluster in ("h100x64", "b200x64", "xeon-8480x64"):
        low, high = time_spread(Cluster.parse(cluster))
        assert low < 1 < high
    seen, unseen, cpu = (
        time_spread(Cluster.parse(name)) for name in ("h100x64", "b200x64", "xeon-8480x64")
    )
    assert seen[1] / seen[0] < unseen[1] / unseen[0] < cpu[1] / cpu[0]


def test_a_budget_buys_what_its_plan_takes() -> None:
    result = plan(student="2b", tokens=None, max_wh=1e8)
    assert result["energy"]["kwh"]["best"] * 1000 == pytest.approx(1e8, rel=0.02)
    rows = result["budget"]["rows"]
    assert {"2b", "9b", "400m"} <= {row["student"] for row in rows}
    assert [row["loss"]["median"] for row in rows] == sorted(r["loss"]["median"] for r in rows)
    assert sum(row["best"] for row in rows) == pytest.approx(1.0, abs=0.01)
    tokens = {row["student"]: row["tokens"] for row in rows}
    assert tokens["2b"] > tokens["9b"]
    by_carbon = plan(student="2b", tokens=None, max_gco2e=1e7, country="FRA")
    assert by_carbon["carbon"]["kg"]["best"] == pytest.approx(1e4, rel=0.02)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cluster": "h1000x8"}, "no device 'h1000'"),
        ({"student": "28b"}, "neither a preset nor a folder"),
        ({"dtype": "float8", "cluster": "a100x512"}, "has no float8: use bfloat16"),
        ({"dtype": "fp8"}, "has no fp8: use bfloat16 or float8"),
        ({"seq_len": 9000}, "longer than the context of 27b, 8192"),
        ({"max_wh": 1e9}, "give either tokens or a budget"),
        ({"tokens": None, "max_wh": 1.0}, "less than one step"),
        ({"country": "ZZZ"}, "no electricity data for country 'ZZZ'"),
        ({"pue": 0.5}, "pue = 0.5"),
    ],
    ids=str,
)
def test_a_mistake_is_one_clear_error(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(**settings)


@pytest.mark.parametrize(
    ("text", "value"),
    [("1000000", 10**6), ("500M", 5 * 10**8), ("13T", 13 * 10**12), ("13e12", 13 * 10**12),
     ("1.5b", 15 * 10**8)],
)  # fmt: skip
def test_counts_are_read_as_people_write_them(text: str, value: int) -> None:
    assert count(text) == value


@pytest.mark.parametrize("text", ["1.5", "1.2345k", "-1", "1.5.5M", "", "many"])
def test_other_counts_are_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="number of tokens"):
        count(text)


def run(*arguments: str, code: int = 0) -> Any:
    done = CliRunner().invoke(cli.app, ["plan", *arguments])
    assert done.exit_code == code, done.output
    return done


def test_the_command_prints_tables_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--cluster", "h100x512", "--student", "27b", "--tokens", "13T")
    result = json.loads(run(*arguments, "--json").stdout)
    assert result["run"]["tokens"] == 13 * 10**12
    show_cluster_plan(result)
    printed = capsys.readouterr().err
    for part in ("tokens/s per device", "predicted peak", "nearest run", "FSDP", "13T tokens"):
        assert part in printed
    show_cluster_plan(plan(student="2b", tokens=None, max_wh=1e8, teacher="9b"))
    assert "for 1e+08 Wh" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--student", "1m"], "--teacher is required without --cluster"),
        (["--student", "1m", "--teacher", "3m", "--pue", "1.2"], "--pue is for plans of a"),
        (["--student", "2b", "--cluster", "h100x8", "--steps", "9"], "--steps is for plans of"),
        (["--student", "2b", "--cluster", "h100x8", "--set", "a=1"], "--set is for plans of this"),
    ],
)  # fmt: skip
def test_options_of_the_other_kind_are_refused(arguments: list[str], message: str) -> None:
    done = CliRunner().invoke(cli.app, ["plan", *arguments])
    assert isinstance(done.exception, ConfigError)
    assert message in str(done.exception)
