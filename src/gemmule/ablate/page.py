"""A sweep's table, verdicts and plot, and the page that shows them next to the report's results."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gemmule import files
from gemmule.ablate.factor_plot import draw_factors
from gemmule.ablate.plots import draw
from gemmule.ablate.results import METRICS
from gemmule.ablate.size_factor import in_words

TABLE, PLOT, FACTOR_PLOT, PAGE = "table.md", "plot.svg", "size-factor.svg", "README.md"
Row = Sequence[str]
_LONG = ("bits/byte", "parameters", "non-embedding", "tokens", "TFLOP", "seconds")


def write_page(results: Mapping[str, Any], out: Path) -> None:
    """Writes table.md, plot.svg and README.md into the sweep's folder.

    A sweep of sizes gets size-factor.svg, too.

    Raises:
        MissingExtraError: when matplotlib is not installed.
    """
    files.write_text(out / TABLE, markdown(*summary_table(results)) + "\n")
    picture = draw(results)
    if picture is not None:
        files.write_text(out / PLOT, picture)
    factors = draw_factors(results)
    if factors is not None:
        files.write_text(out / FACTOR_PLOT, factors)
    files.write_text(out / PAGE, _page(results, picture is not None, factors is not None))


def summary_table(results: Mapping[str, Any], *, brief: bool = False) -> tuple[Row, list[Row]]:
    """Headings, and a row for each group and arm: means ± half of the 95% interval.

    A brief table fits a terminal: the compared metrics, without sizes and costs.
    """
    metric = results["metric"]
    headings = ["", "seeds", "nats/token", "perplexity", "bits/byte"]
    if metric == "induction":
        headings = ["", "seeds", "induction score", "copied"]
    if metric == "mean_source_nats":
        headings = ["", "seeds", "mean of sources", *_sources(results), "held out"]
    headings.append(f"better by, {METRICS[metric][2]}")
    if _by_size(results):
        headings.append("bytes/token")
    headings += ["parameters", "non-embedding", "tokens", "TFLOP", "seconds"]
    rows = [_row(row, results, metric) for row in results["summary"]]
    if brief:
        kept = [i for i, name in enumerate(headings) if name not in _LONG]
        return [headings[i] for i in kept], [[row[i] for i in kept] for row in rows]
    return headings, rows


def _row(row: Mapping[str, Any], results: Mapping[str, Any], metric: str) -> Row:
    cells = [title(row), _seeds(row)]
    if metric == "induction":
        cells += [interval(row.get("induction"), 4), interval(row.get("copied"), 4)]
    elif metric == "mean_source_nats":
        own = row.get("source_nats", {})
        cells += [interval(row.get(metric), 4)]
        cells += [interval(own.get(name), 4) for name in _sources(results)]
        cells += [interval(row.get("nats_per_token"), 4)]
    else:
        cells += [
            interval(row.get("nats_per_token"), 4),
            interval(row.get("perplexity"), 2),
            interval(row.get("bits_per_byte"), 4),
        ]
    gain = next(
        (d for d in results["differences"] if (d["group"], d["arm"]) == (row["group"], row["arm"])),
        None,
    )
    flops = row["train_flops"]
    return [
        *cells,
        "" if gain is None else interval(gain, 4, signed=True),
        *([stored_size(row)] if _by_size(results) else []),
        _count(row["parameters"]),
        _count(row["non_embedding_parameters"]),
        _count(row["train_tokens"]),
        "" if flops is None else f"{flops / 1e12:.2f}",
        "" if row["seconds"] is None else f"{row['seconds']:.0f}",
    ]


def _sources(results: Mapping[str, Any]) -> list[str]:
    """Names of the sources of a sweep of mixtures, as far as a run has measured them."""
    return list(dict.fromkeys(n for row in results["summary"] for n in row.get("source_nats", ())))


def _by_size(results: Mapping[str, Any]) -> bool:
    """Whether the rows differ in the size of the stored targets."""
    return len({row["bytes_per_token"] for row in results["summary"]}) > 2


def stored_size(row: Mapping[str, Any]) -> str:
    """Bytes per token of a row's logit store; empty if there is none."""
    return "" if row["bytes_per_token"] is None else f"{row['bytes_per_token']:.1f}"


def title(row: Mapping[str, Any]) -> str:
    """Title of a row."""
    return " ".join(part for part in (row["group"], row["arm"]) if part)


def _seeds(row: Mapping[str, Any]) -> str:
    text = str(row["done"])
    missing = row["seeds"] - row["done"] - row["failed"]
    if row["failed"]:
        text += f", {row['failed']} failed"
    return f"{text}, {missing} not run" if missing else text


def interval(estimate: Mapping[str, Any] | None, digits: int, *, signed: bool = False) -> str:
    """Mean ± half width; the mean alone for a single seed."""
    if estimate is None or estimate["mean"] is None:
        return "-"
    mean = f"{estimate['mean']:{'+' if signed else ''}.{digits}f}"
    half = estimate["half_width"]
    return mean if half is None else f"{mean} ± {half:.{digits}f}"


def _count(value: int | None) -> str:
    return "" if value is None else f"{value:,}"


def markdown(headings: Row, rows: Sequence[Row]) -> str:
    """A Markdown table with aligned columns: the first to the left, numbers to the right."""
    widths = [max(3, *(len(r[i]) for r in (headings, *rows))) for i in range(len(headings))]

    def line(cells: Row) -> str:
        padded = [c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(_zip(cells))]
        return f"| {' | '.join(padded)} |"

    def _zip(cells: Row) -> list[tuple[str, int]]:
        return list(zip(cells, widths, strict=True))

    rule = [f"{'-' * (w - 1)}{'-' if i == 0 else ':'}" for i, w in enumerate(widths)]
    return "\n".join([line(headings), line(rule), *(line(row) for row in rows)])


def verdicts(results: Mapping[str, Any]) -> list[str]:
    """The results in words."""
    lines = [
        f"{d['group']}: {d['verdict']}" if d["group"] else d["verdict"]
        for d in results["differences"]
    ]
    if results["chosen"] is not None:
        lines.append(results["chosen"]["verdict"])
    if results["trend"] is not None:
        lines.append(results["trend"]["verdict"])
    lines += [entry["verdict"] for entry in results["size_factors"]]
    return lines


def factor_table(results: Mapping[str, Any]) -> tuple[Row, list[Row]]:
    """Headings, and a row for each student and basis: size factors with their intervals."""
    headings = ["", "against from scratch at", "seeds", "size factor", "counting the embedding"]
    rows: list[Row] = [
        [
            title(entry),
            entry["basis"],
            str(entry["factor"]["n"]),
            in_words(entry["factor"]),
            in_words(entry["factor_of_all_parameters"]),
        ]
        for entry in results["size_factors"]
    ]
    return headings, rows


def _size_factors(results: Mapping[str, Any], with_plot: bool) -> list[str]:
    parts = [
        "## Size factor",
        "How many times larger a model trained from scratch has to be to reach the distilled "
        "model's held-out loss, by parameters without the embedding and by all of them. Within a "
        "seed, the loss from scratch is interpolated linearly over the logarithm of parameters; "
        "a larger model counts as no worse than a smaller one. The mean is geometric, the interval "
        "is Student's. Where no model from scratch is as good, the factor is a bound: nothing is "
        "extrapolated. At equal training compute, a model from scratch trains for the student's "
        "operations and the student's share of the teacher's forward passes; the teacher's own "
        "training is counted in neither.",
        markdown(*factor_table(results)),
    ]
    if with_plot:
        parts.append(f"![Held-out loss against parameters]({FACTOR_PLOT})")
    return parts


def failures(results: Mapping[str, Any]) -> list[str]:
    """A line for each failed cell, with its reason."""
    return [f"{c['name']}: {c['reason']}" for c in results["cells"] if c["status"] == "failed"]


def _page(results: Mapping[str, Any], with_plot: bool, with_factors: bool) -> str:
    settings, report = results["settings"], results["report"]
    percent = f"{100 * results['confidence']:.0f}%"
    parts = [
        f"# {results['title'][0].upper()}{results['title'][1:]}",
        f"{settings['tokens']:,} training tokens per student, {settings['seeds']} seeds each. "
        f"Means over seeds, ± half of the {percent} interval (Student's t). *Better by* is the "
        "mean of differences within a seed: same batches, and same initial weights where the "
        "shapes agree.",
        markdown(*summary_table(results)),
        "\n".join(f"- {line}" for line in verdicts(results)),
    ]
    if failed := failures(results):
        parts += ["Failed:", "\n".join(f"- {line}" for line in failed)]
    if with_plot:
        parts.append(f"![{results['title']}]({PLOT})")
    if results["size_factors"]:
        parts += _size_factors(results, with_factors)
    if report["table"]:
        heading, *rows = report["figures"]
        parts += [
            f"## The report's table {report['table'][1:]}",
            markdown(heading, rows),
            f"Source: {report['source']}. {report['differs']}".strip(),
        ]
    parts += [
        "## Sources",
        "Every cell of [results.json](results.json) names the file that it was read from; "
        "[sweep.toml](sweep.toml) holds the settings.",
    ]
    return "\n\n".join(parts) + "\n"
