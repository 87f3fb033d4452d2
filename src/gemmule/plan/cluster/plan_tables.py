"""A plan for a cluster as tables."""

from collections.abc import Mapping
from typing import Any

from gemmule.console import console, key_values, table

_UNITS = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))
_PARTS = {
    "states": "weights, gradients, optimizer",
    "gathered": "gathered units",
    "kept": "activations",
    "working": "one block's backward pass",
    "logits": "loss",
    "teacher": "teacher",
}


def show_cluster_plan(plan: Mapping[str, Any]) -> None:
    """Prints a plan."""
    cluster, run, layout = plan["cluster"], plan["run"], plan["layout"]
    teacher = plan["teacher"]
    key_values(
        [
            ["cluster", f"{cluster['devices']:,} x {cluster['device']}, "
             f"{cluster['peak_tflops']:,.0f} TFLOP/s {run['dtype']} each"],
            ["student", _model(plan["student"])],
            *([["teacher", _model(teacher)]] if teacher else []),
            ["run", f"{_count(run['tokens'])} tokens, {run['flops']:.2e} FLOP: {run['steps']:,} "
             f"steps of {_count(run['batch_tokens'])} tokens, {run['seq_len']:,} per sequence"],
            ["layout", layout["text"]],
        ],
        title="plan",
    )  # fmt: skip
    _show_result(plan)
    _show_memory(plan)
    table(
        ["layouts that fit, fastest first", "GiB", "tokens/s per device"],
        [
            [one["text"], f"{one['peak_gib']:,.1f}", _rate(one["tokens_per_second_per_device"])]
            for one in plan["alternatives"]
        ],
    )
    if plan["teacher_placement"]:
        _show_placement(plan["teacher_placement"])
    if plan["budget"]:
        _show_budget(plan["budget"])
    _show_sources(plan)


def _show_result(plan: Mapping[str, Any]) -> None:
    carbon = plan["carbon"]
    rows = [
        _interval("tokens/s per device", plan["tokens_per_second_per_device"], _rate),
        _interval("tokens/s", _times(plan, plan["cluster"]["devices"]), _rate),
        _interval("time", plan["hours"], _hours),
        _interval("device-hours", plan["device_hours"], _count),
        _interval("energy", plan["energy"]["kwh"], _energy),
    ]
    if carbon["kg"] is None:
        rows.append(["carbon", "?", "?", "?"])
    else:
        rows.append(_interval("carbon", carbon["kg"], _mass))
        rows.append(_interval("  electricity", carbon["operational_kg"], _mass))
    rows.append(_interval("  making the devices", carbon["embodied_kg"], _mass))
    rows.append(
        ["loss, nats/token", *(f"{plan['loss'][key]:.2f}" for key in ("low", "median", "high"))]
    )
    table(["", "5%", "expected", "95%"], rows)


def _show_memory(plan: Mapping[str, Any]) -> None:
    step, memory = plan["step"], plan["memory"]
    table(
        ["step", "share"],
        [
            [f"{step['seconds']:,.2f} s", "100%"],
            *([f"  {name}", f"{step[name]:.0%}"]
              for name in ("compute", "memory", "communication", "idle")),
        ],
    )  # fmt: skip
    parts = memory["counted_gib"]
    table(
        ["memory per device", "GiB"],
        [
            ["predicted peak", f"{memory['peak_gib']:,.1f}"],
            ["may be filled", f"{memory['usable_gib']:,.1f}"],
            *([f"  {label}", f"{parts[name]:,.1f}"]
              for name, label in _PARTS.items() if name != "teacher" or parts[name]),
        ],
    )  # fmt: skip


def _show_budget(budget: Mapping[str, Any]) -> None:
    limits = [
        f"{budget[key]:,.6g} {unit}"
        for key, unit in (("wh", "Wh"), ("gco2e", "gCO2e"))
        if budget[key]
    ]
    table(
        [f"for {' and '.join(limits)}", "tokens", "nats/token, 90%", "P(best)"],
        [
            [row["student"], _count(row["tokens"]),
             f"{row['loss']['median']:.2f} ({row['loss']['low']:.2f} to {row['loss']['high']:.2f})",
             f"{row['best']:.2f}"]
            for row in budget["rows"]
        ],
    )  # fmt: skip
    for note in budget["notes"]:
        console.print(f"left out: {note}", style="dim")


def _show_placement(placement: Mapping[str, Any]) -> None:
    table(
        ["the teacher", "device-hours", "further students, each", "bytes per token"],
        [
            [one["name"], _count(one["device_hours"]), _count(one["device_hours_further"]),
             f"{one['bytes_per_token']:,.0f}"]
            for one in placement["each"]
        ],
    )  # fmt: skip
    console.print(
        f"Cheapest for one student: {placement['cheapest']}; recorded from "
        f"{placement['recording_pays_from']} students on. Devices of its own: "
        f"{placement['teacher_devices_per_student_device']:.2g} per device of the student."
    )


def _show_sources(plan: Mapping[str, Any]) -> None:
    nearest, good, checked = plan["nearest"], plan["goodput"], plan["checked"]
    ratio = nearest["predicted_over_published"]
    key_values(
        [
            ["nearest run", f"{nearest['name']} on {nearest['cluster']}, "
             f"{_rate(nearest['tokens_per_second_per_device'])} tokens/s per device "
             f"({nearest['tflops']:,.0f} useful TFLOP/s); predicted without it: {ratio:.2f} times "
             f"that. {nearest['source']}"],
            ["speed, checked", f"{checked['runs']} published runs, each left out of its fit: "
             f"median error {checked['median']:.0%}, worst {checked['worst']:.0%}"],
            ["useful FLOP/s", f"{plan['mfu']:.0%} of the peak, without recomputation"],
            ["goodput", f"{good['fraction']:.1%}: {good['interruptions_per_day']:,.2f} "
             f"interruptions a day, a checkpoint of {good['checkpoint_seconds']:,.0f} s every "
             f"{good['minutes_between_checkpoints']:,.0f} min"],
            ["power", f"{plan['energy']['watts_per_device']:g} W per device and "
             f"{plan['energy']['host_watts']:g} W of its host, PUE {plan['energy']['pue']:g}"],
            ["grid", plan["carbon"]["grid"]],
            ["loss", plan["loss"]["of"]],
            ["device", plan["cluster"]["source"]],
            *(["note", note] for note in plan["notes"]),
        ],
        title="sources",
    )  # fmt: skip


def _model(about: Mapping[str, Any]) -> str:
    return (
        f"{about['name']}: {_count(about['parameters'])} parameters, "
        f"{_count(about['non_embedding_parameters'])} without the embedding of "
        f"{about['vocab_size']:,} tokens"
    )


def _times(plan: Mapping[str, Any], factor: float) -> dict[str, float]:
    return {k: v * factor for k, v in plan["tokens_per_second_per_device"].items()}


def _interval(label: str, values: Mapping[str, float], text: Any) -> list[str]:
    return [label, *(text(values[key]) for key in ("low", "best", "high"))]


def _count(value: float) -> str:
    for size, unit in _UNITS:
        if value >= size:
            return f"{value / size:,.3g}{unit}"
    return f"{value:,.0f}"


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:,.2f}"


def _hours(value: float) -> str:
    if value >= 24 * 365.25 * 2:
        return f"{value / 24 / 365.25:,.0f} years"
    if value >= 96:
        return f"{value / 24:,.0f} days"
    return f"{value:,.1f} h" if value >= 1 else f"{value * 60:,.0f} min"


def _energy(kwh: float) -> str:
    for size, unit in ((1e6, "GWh"), (1e3, "MWh"), (1.0, "kWh")):
        if kwh >= size:
            return f"{kwh / size:,.3g} {unit}"
    return f"{kwh * 1000:,.3g} Wh"


def _mass(kg: float) -> str:
    for size, unit in ((1e6, "kt"), (1e3, "t"), (1.0, "kg")):
        if kg >= size:
            return f"{kg / size:,.3g} {unit}"
    return f"{kg * 1000:,.3g} g"
