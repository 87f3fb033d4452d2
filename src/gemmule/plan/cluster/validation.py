"""The planner against what others have published: the tables of docs/plan-cluster.md."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gemmule.plan.cluster import efficiency, memory
from gemmule.plan.cluster.devices import Cluster, devices
from gemmule.plan.cluster.forecast import forecast, models
from gemmule.plan.cluster.published import PublishedRun, published_runs, reported_carbon
from gemmule.plan.cluster.request import ClusterRequest

WORLD_GRID = 475.0  # gCO2e/kWh, IEA 2019: the report states neither a grid nor a contract
MEDIAN_AIM, WORST_AIM, MEMORY_AIM, CARBON_AIM = 0.15, 0.35, 0.10, 2.0


@dataclass(frozen=True)
class Check:
    """A published run, and predicted over published figures from fits that have not seen it.

    Attributes:
        run: the run.
        speed: tokens/s, the run left out.
        speed_by_source: tokens/s, all runs of its page left out.
        memory: peak memory, the run left out; None where none is published.
    """

    run: PublishedRun
    speed: float
    speed_by_source: float
    memory: float | None


def checks() -> list[Check]:
    """Every published run."""
    runs = published_runs()
    columns = efficiency.errors(), efficiency.errors_by_source(), memory.left_out(runs)
    return [Check(*row) for row in zip(runs, *columns, strict=True)]


def off(ratios: Sequence[float]) -> dict[str, float]:
    """Median and worst relative error of predictions."""
    errors = np.abs(np.array(ratios) - 1)
    return {"runs": len(errors), "median": float(np.median(errors)), "worst": float(errors.max())}


def summary(rows: Sequence[Check]) -> dict[str, dict[str, float]]:
    """Errors of speed and memory: for the listed anchors, and for all runs."""
    listed = [row for row in rows if row.run.listed]
    return {
        "speed, listed": off([row.speed for row in listed]),
        "speed, all": off([row.speed for row in rows]),
        "speed by source, listed": off([row.speed_by_source for row in listed]),
        "speed by source, all": off([row.speed_by_source for row in rows]),
        "memory, listed": off([row.memory for row in listed if row.memory is not None]),
        "memory, all": off([row.memory for row in rows if row.memory is not None]),
    }


def gemma_2() -> dict[str, Any]:
    """Carbon of Gemma 2's pre-training, predicted for the devices and tokens of its report.

    Returns:
        JSON-able: reported tonnes, predicted ones with an interval, and days and GWh of each run.
    """
    reported = reported_carbon("gemma-2")
    runs, total = [], dict.fromkeys(("low", "best", "high"), 0.0)
    for row in reported["run"]:
        request = ClusterRequest.parse(
            {"cluster": row["cluster"], "student": row["preset"], "teacher": row.get("teacher")}
        )
        student, teacher = models(request)
        plan = forecast(
            request, Cluster.parse(row["cluster"]), student, teacher, int(row["tokens"]),
            WORLD_GRID, "world average",
        )  # fmt: skip
        for key in total:
            total[key] += plan["carbon"]["kg"][key] / 1000
        runs.append(
            {
                **row, "layout": plan["layout"]["text"], "mfu": plan["mfu"],
                "days": {key: hours / 24 for key, hours in plan["hours"].items()},
                "gwh": plan["energy"]["kwh"]["best"] / 1e6,
                "tonnes": plan["carbon"]["kg"]["best"] / 1000,
            }
        )  # fmt: skip
    return {"reported_tonnes": reported["tonnes"], "tonnes": total, "runs": runs}


def device_table() -> list[str]:
    """Lines of a Markdown table of the devices."""
    lines = [
        "| name | device | bfloat16 TFLOP/s | GiB | W | kg CO2e | assumed |",
        "| --- | --- | ---: | ---: | ---: | ---: | --- |",
    ]
    for key, device in devices().items():
        kg = device.embodied_kg + device.host_kg
        lines.append(
            f"| `{key}` | {device.name} | {device.peak_of('bfloat16') / 1e12:,.4g} | "
            f"{device.memory_gib:g} | {device.watts:g} | {kg:g} | {device.assumed} |"
        )
    return lines


def speed_table(rows: Sequence[Check]) -> list[str]:
    """Lines of a Markdown table of every run."""
    lines = [
        "| run | cluster | software | tokens/s per device | TFLOP/s | run left out | page left out "
        "| memory GiB | memory |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        run = row.run
        gib = "" if run.memory_gib is None else f"{run.memory_gib:.1f}"
        ratio = "" if row.memory is None else f"{row.memory:.2f}"
        star = "*" if run.listed else ""
        lines.append(
            f"| {run.name}{star} | {run.cluster} | {run.stack} | {run.tokens:,.0f} | "
            f"{run.tflops:,.0f} | {row.speed:.2f} | {row.speed_by_source:.2f} | {gib} | {ratio} |"
        )
    return lines


def summary_table(rows: Sequence[Check]) -> list[str]:
    """Lines of a Markdown table of the errors, with what was aimed at."""
    lines = [
        "| predicted | runs | median error | worst error | aim |",
        "| --- | ---: | ---: | ---: | --- |",
    ]
    for name, figures in summary(rows).items():
        aim = {
            "speed, listed": f"median {MEDIAN_AIM:.0%}, worst {WORST_AIM:.0%}",
            "memory, listed": f"median {MEMORY_AIM:.0%}",
        }.get(name, "")
        lines.append(
            f"| {name} | {figures['runs']} | {figures['median']:.1%} | {figures['worst']:.1%} | "
            f"{aim} |"
        )
    return lines


def gemma_2_table() -> list[str]:
    """Lines of a Markdown table of Gemma 2's pre-training."""
    result = gemma_2()
    lines = [
        "| model | devices | tokens | useful FLOP/s of peak | days (90%) | GWh | t CO2e |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for run in result["runs"]:
        days = run["days"]
        lines.append(
            f"| {run['preset']} | {run['cluster']} | {run['tokens'] / 1e12:g}T | {run['mfu']:.0%} "
            f"| {days['best']:.0f} ({days['low']:.0f} to {days['high']:.0f}) | {run['gwh']:.2f} | "
            f"{run['tonnes']:,.0f} |"
        )
    total = result["tonnes"]
    lines.append(
        f"| together | | | | | {sum(run['gwh'] for run in result['runs']):.2f} | "
        f"{total['best']:,.0f} ({total['low']:,.0f} to {total['high']:,.0f}) |"
    )
    lines.append(f"| reported | | | | | | {result['reported_tonnes']:,.0f} |")
    return lines
