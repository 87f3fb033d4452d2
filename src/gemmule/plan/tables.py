"""A plan as tables."""

from collections.abc import Mapping
from typing import Any

from gemmule.console import console, duration, key_values, table

ROUTES = {
    "scratch": "from scratch",
    "online": "distilled online",
    "record": "recording the teacher once",
    "stored": "distilled from the record",
    "scratch_equal_online": "from scratch, compute of online",
    "scratch_equal_stored": "from scratch, compute of record + stored",
}
COMPARISONS = {
    "equal_tokens": "equal tokens",
    "equal_compute_online": "equal compute, online",
    "equal_compute_stored": "equal compute, recorded",
    "equal_compute_with_teacher": "teacher's training included",
}


def show(plan: Mapping[str, Any]) -> None:
    """Prints a plan."""
    run, memory = plan["run"], plan["memory"]
    limit = memory["limit_bytes"]
    key_values(
        [
            ["teacher", _model(plan["teacher"])],
            ["student", _model(plan["student"])],
            ["run", f"{run['tokens']:,} tokens: {run['steps']:,} steps of {run['batch_size']} x "
             f"{run['seq_len']}"],
            ["machine", f"{plan['machine']['processor']}, {plan['machine']['cores']} cores, "
             f"{_bytes(limit)} usable"],
            ["calibration", f"{plan['calibration']['seconds']:.0f} s"],
        ],
        title="plan",
    )  # fmt: skip
    table(
        ["memory", "peak", "largest micro-batch"],
        [
            [label, _bytes(memory[name]["peak_bytes"]), _rows(memory[name]["largest_micro_batch"])]
            for name, label in ROUTES.items() if name in memory
        ],
    )  # fmt: skip
    table(
        ["time and energy", "tokens", "FLOP", "time", "Wh", "gCO2e"],
        [[label, *_route(plan["routes"][name])] for name, label in ROUTES.items()],
    )
    disk = plan["disk"]
    table(
        [f"store of {disk['tokens']:,} tokens", "bytes/token", "size"],
        [
            [name, f"{t['bytes_per_token']:,.1f}", _bytes(t["bytes"])]
            for name, t in disk["targets"].items()
        ],
    )
    law = plan["scaling"]
    table(
        ["nats/token, 90%", "scratch", "distilled", "gain", "P(gain)"],
        [
            [label, _loss(law[name]["scratch"]), _loss(law[name]["distilled"]),
             _interval(law[name]["gap"]), f"{law[name]['probability']:.2f}"]
            for name, label in COMPARISONS.items() if name in law
        ],
    )  # fmt: skip
    if plan["budget"] is not None:
        show_budget(plan["budget"])
    if plan["processes"] is not None:
        show_processes(plan["processes"])
    scarce, teacher = plan["scarce_text"], law["teacher_loss"]
    if scarce["rows"]:
        table(
            ["little text, at best epoch", "from scratch", "distilled", "nats/token better by"],
            [
                [f"{row['tokens']:,} tokens of {row['text']}", _epochs(row["scratch"]),
                 _epochs(row["distilled"]), _better(row["better_by"])]
                for row in scarce["rows"]
            ],
        )  # fmt: skip
    known = [
        ["verdict", law["verdict"]],
        ["little text", scarce["verdict"]],
        ["law", f"{law['source']}; {law['basis']}"],
        ["teacher's loss", f"{teacher['median']:.3f} nats/token, {teacher['how']}"],
        ["store's sizes", disk["how"]],
        *([f"energy, {part}", how] for part, how in plan["energy_how"].items()),
        *(["note", note] for note in plan["notes"]),
    ]
    key_values(known, title="sources")
    console.print(
        "equal compute includes the teacher's forward passes; all students share a record",
        style="dim",
    )


def show_budget(budget: Mapping[str, Any], rows: int = 8) -> None:
    """Prints what a budget buys, the lowest expected loss first."""
    limits = [
        f"{value:,.6g} {unit}"
        for unit, value in (("Wh", budget["wh"]), ("gCO2e", budget["gco2e"]))
        if value
    ]
    table(
        [f"for {' and '.join(limits)}", "tokens", "passes", "time", "nats/token, 90%", "P(best)"],
        [
            [f"{row['student']}, {ROUTES[row['way']]}", f"{row['tokens'] / 1e6:,.2f}M",
             "?" if row["passes"] is None else f"{row['passes']:,.1f}", _time(row["seconds"]),
             _interval(row["loss"]), f"{row['best']:.2f}"]
            for row in budget["rows"][:rows]
        ],
    )  # fmt: skip
    for note in budget["notes"]:
        console.print(f"left out: {note}", style="dim")


def show_processes(processes: Mapping[str, Any]) -> None:
    """Prints what several processes would make of a step."""
    table(
        ["a step from scratch", "compute", "communication", "seconds"],
        [
            ["one process", "", "", f"{processes['alone_seconds']:.3f}"],
            [f"{processes['count']} processes", f"{processes['compute_seconds']:.3f}",
             f"{processes['communication_seconds']:.3f}", f"{processes['together_seconds']:.3f}"],
        ],
    )  # fmt: skip
    console.print(processes["verdict"], style="dim")


def _model(about: Mapping[str, Any]) -> str:
    return (
        f"{about['name']}: {about['parameters'] / 1e6:,.1f}M parameters, "
        f"{about['non_embedding_parameters'] / 1e6:,.1f}M without the embedding of "
        f"{about['vocab_size']:,} tokens"
    )


def _route(route: Mapping[str, Any]) -> list[str]:
    wh, grams = route["energy_wh"], route["gco2e"]
    return [
        f"{route['tokens'] / 1e6:,.2f}M",
        f"{route['flops']:.2e}",
        _time(route["seconds"]),
        "?" if wh is None else f"{wh:,.2f}",
        "?" if grams is None else f"{grams:,.2f}",
    ]


def _time(seconds: float) -> str:
    return duration(seconds) if seconds < 4 * 86400 else f"{seconds / 86400:,.0f} days"


def _loss(interval: Mapping[str, float]) -> str:
    return f"{interval['median']:.2f} ±{(interval['high'] - interval['low']) / 2:.2f}"


def _interval(interval: Mapping[str, float]) -> str:
    return f"{interval['median']:.2f} ({interval['low']:.2f} to {interval['high']:.2f})"


def _epochs(best: Mapping[str, Any]) -> str:
    return f"{best['nats_per_token']:.2f}, epoch {best['epochs']:g} of {best['schedule_epochs']:g}"


def _better(gain: Mapping[str, Any]) -> str:
    if gain["half_width"] is None:
        return f"{gain['mean']:+.3f} (one seed)"
    return f"{gain['mean']:+.3f} ±{gain['half_width']:.3f} ({gain['n']} seeds)"


def _rows(count: int | None) -> str:
    return "?" if count is None else f"{count:,}" if count else "not even 1"


def _bytes(count: float | None) -> str:
    if count is None:
        return "?"
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:,.2f} {unit}"
    return f"{count / 1e3:,.1f} kB"
