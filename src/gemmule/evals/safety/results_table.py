"""The table of a safety result: metrics, chance, the report's values, what is missing and why."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from gemmule.console import Progress, ProgressBar, console, table


@contextmanager
def bars() -> Iterator[Progress]:
    """A callback progress(done, total, what) that draws a bar for each `what`."""
    with ExitStack() as stack:
        drawn: list[ProgressBar] = []

        def progress(done: int, total: int, what: str) -> None:
            if not drawn or drawn[-1].label != what:
                stack.close()
                drawn.append(stack.enter_context(ProgressBar(what, total, "texts", done)))
            drawn[-1].update(done)

        yield progress


def show(result: Mapping[str, Any]) -> None:
    """Prints a result."""
    rows, missing = [], []
    for metric in result["figures"].values():
        if "missing" in metric:
            missing.append(f"{metric['title']}: {metric['missing']}")
        else:
            rows.append(_row(metric))
    if rows:
        headers = ["percent", "", "95%", "chance", *result["report"]["sizes"], "asked"]
        table(headers, rows, f"Safety of {result['model']['name']}")
        console.print(
            f"{', '.join(result['report']['sizes'])}: {result['report']['source']}",
            style="dim", markup=False,
        )  # fmt: skip
    scorer = result["scorer"]
    if scorer is not None:
        console.print(
            f"toxicity: {scorer['kind']} {scorer['name']}, label {scorer['label']}, weights "
            f"{scorer['weights'][:12]}…; toxic from {scorer['threshold']:g} on",
            style="dim", markup=False,
        )  # fmt: skip
    for line in missing:
        console.print(line, style="yellow", markup=False)
    for benchmark in result["benchmarks"].values():
        notes = _notes(benchmark)
        if notes:
            console.print(f"{benchmark['title']}: {notes}", style="dim", markup=False)
    gate = result.get("gate")
    if gate is not None:
        show_gate(gate)


def _notes(benchmark: Mapping[str, Any]) -> str:
    """Notes about this result; how each benchmark is measured is in the result and the docs."""
    asked, available = benchmark["asked"], benchmark["there"]
    notes = [] if asked == available else [f"{asked:,} of {available:,} asked"]
    if benchmark["truncated"]:
        notes.append(f"{benchmark['truncated']:,} longer than the model's context, and cut")
    if benchmark.get("empty"):
        notes.append(f"{benchmark['empty']:,} of the continuations empty")
    if benchmark.get("cut_by_scorer"):
        notes.append(f"{benchmark['cut_by_scorer']:,} longer than the scorer reads, and cut")
    return "; ".join([*notes, *benchmark["notes"]])


def _row(metric: Mapping[str, Any]) -> list[str]:
    chance = "" if metric["chance"] is None else f"{metric['chance']:.1f}"
    report = [f"{value:.1f}" for value in metric["report"].values()] or [""] * 3
    interval = f"{metric['low']:.1f}…{metric['high']:.1f}"
    return [
        metric["title"], f"{metric['value']:.1f}", interval, chance, *report, f"{metric['n']:,}",
    ]  # fmt: skip


def show_gate(gate: Mapping[str, Any]) -> None:
    """Prints the outcome of a gate."""
    failed = [c for c in gate["checks"] if not c["passed"]]
    for check in gate["checks"]:
        word, style = ("passed", "green") if check["passed"] else ("FAILED", "red")
        console.print(
            f"{word} {check['figure']}: {check['rule']}; {check['found']}",
            style=style,
            markup=False,
        )
    done = f"{len(failed)} of {len(gate['checks'])} rules failed" if failed else "passed"
    console.print(f"gate {gate['file']}: {done}", markup=False, style="red" if failed else "green")
