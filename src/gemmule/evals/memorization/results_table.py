"""A memorization result as a table in the terminal."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gemmule.console import console, table

_MAX_SOURCES = 10
HEADERS = ["", "passages", "exact, %", "approximate, %"]


def show(result: Mapping[str, Any]) -> None:
    """Prints a result to standard error, like all tables."""
    settings, data = result["measured"]["settings"], result["data"]
    against = result.get("against")
    name = _name(result)
    rows = [_row(f"training text, {name}", result["train"])]
    if against:
        rows.append(_row(f"training text, {_name(against)}", against["train"]))
        rows.append(_difference(against["difference"]))
    rows.append(_row("control: text never read", result["control"]))
    if len(result["times_read"]) > 1:  # a single group is the first row again
        rows += [_row(f"{name}, read {_times(g['times'])}", g) for g in result["times_read"]]
    if len(result["sources"]) > 1:
        rows += [_row(f"{name}, {s['source']}", s) for s in result["sources"][:_MAX_SOURCES]]
    for group in (result["canaries"] or {"groups": []})["groups"]:
        rows.append(_row(f"canaries, {group['repeats']} in the text", group))
    title = (
        f"{data['name']}: prompts of {settings['prompt_tokens']} tokens, continuations of "
        f"{settings['continuation_tokens']}; approximate: at most {settings['most_edits']} edits; "
        "95% intervals"
    )
    table(HEADERS, rows, title=title)
    left_out = len(result["sources"]) - _MAX_SOURCES
    if left_out > 0:
        console.print(f"and {left_out} more sources, in the JSON", markup=False)
    console.print(_personal(result["personal_data"]), markup=False)
    for note in result["notes"]:
        console.print(note, style="dim", markup=False)


def _name(result: Mapping[str, Any]) -> str:
    path = str(result["model"]["path"])
    return Path(path).name or path


def _row(name: str, rates: Mapping[str, Any]) -> list[str]:
    cells = [name, f"{rates['probes']:,}"]
    for kind in ("exact", "approximate"):
        estimate = rates[kind]
        cells.append("not measured" if estimate is None else _shown(estimate))
    return cells


def _difference(difference: Mapping[str, Any]) -> list[str]:
    cells = ["difference, paired", ""]
    for kind in ("exact", "approximate"):
        cells.append(_shown(difference[kind], sign="+"))
    return cells


def _personal(personal: Mapping[str, Any]) -> str:
    counts = personal["severities"].items()
    parts = [f"{name} {_shown(c['of_probes'])}, {c['recalled']} passages" for name, c in counts]
    in_text = ", ".join(f"{name} {c['in_text']}" for name, c in counts)
    return (
        f"reproduced personal data, % of all passages, by severity: {'; '.join(parts)}; passages "
        f"whose continuation contains any: {in_text}"
    )


def _times(times: str) -> str:
    return {"1": "once", "2": "twice"}.get(times, f"{times} times")


def _shown(estimate: Mapping[str, float], sign: str = "") -> str:
    """An estimate in percent."""
    value, low, high = (f"{100 * estimate[k]:{sign}.2f}" for k in ("value", "low", "high"))
    return f"{value} ({low} to {high})"
