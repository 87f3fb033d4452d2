"""The cost of a model by stage, as stacked bars: operational and embodied emissions."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gemmule import files
from gemmule.report import plots, svg
from gemmule.runs.ledger.walk import Cost, Figures

_INK, _TICKS, _RULE = "#1f2328", "#59636e", "#d1d9e0"
_COLORS = ("#2f6f8f", "#c9732c")  # of electricity, embodied
_HEIGHT, _ROW, _CARD_ROW = 1.0, 0.42, 0.34  # inches


def bars_of(cost: Cost) -> list[tuple[str, Figures]]:
    """The bars of the plot, from the top: each stage's share, then evaluation and use."""
    bars = [
        (
            (stage.account.name or stage.account.kind)
            + (f", {stage.share:.0%}" if stage.share < 1 else ""),
            stage.attributed,
        )
        for stage in cost.stages
    ]
    further = [("evaluation", cost.evaluating), ("use", cost.using)]
    return [*bars, *(bar for bar in further if bar[1].lines)]


def write_plot(cost: Cost, path: Path) -> None:
    """Writes the plot as a file of its own.

    Raises:
        MissingExtraError: when matplotlib is not installed.
        OutputError: when the file cannot be written.
    """
    bars = bars_of(cost)
    with svg.figures("the plot of a ledger", _INK, _TICKS) as (figure_class, _):
        figure = figure_class(figsize=(7.2, _HEIGHT + _ROW * len(bars)), layout="constrained")
        _draw(figure.add_subplot(), bars, _INK, _RULE, _COLORS)
        text = svg.text_of(figure)
    files.write_text(path, text)


def card_plot(cost: Cost) -> plots.Plot:
    """The plot in a card's page.

    Raises:
        MissingExtraError: when matplotlib is not installed.
    """
    bars = bars_of(cost)
    with plots.page_figures() as (figure_class, _):
        figure = figure_class(figsize=(5.4, _HEIGHT + _CARD_ROW * len(bars)), layout="constrained")
        colors = (plots.COLORS["distilled"], plots.COLORS["scratch"])
        _draw(figure.add_subplot(), bars, plots.INK, plots.RULE, colors)
        text = svg.text_of(figure, transparent=True)
    described = ", ".join(
        f"{name} {bar.total_gco2e:.3g} g" for name, bar in bars if bar.total_gco2e is not None
    )
    return plots.Plot(
        plots.inline(text, "cost"),
        f"Bars of emissions by stage: {described or 'not known'}",
        "Emissions by stage, those of electricity by the grid's intensity. The thin line over a "
        "bar is the interval that the method gives them. Source: ledger.jsonl.",
    )


def _draw(
    axes: Any, bars: Sequence[tuple[str, Figures]], ink: str, rule: str, colors: Sequence[str]
) -> None:
    places = range(len(bars))
    operational = [bar.gco2e.best if bar.gco2e is not None else 0.0 for _, bar in bars]
    embodied = [bar.embodied_gco2e for _, bar in bars]
    axes.barh(places, operational, 0.6, color=colors[0], label="electricity")
    axes.barh(places, embodied, 0.6, operational, color=colors[1], label="embodied")
    for place, (_, bar) in enumerate(bars):
        if bar.gco2e is not None:
            height = [place - 0.38] * 2
            axes.plot([bar.gco2e.low, bar.gco2e.high], height, color=ink, linewidth=1)
    axes.set_yticks(list(places), [name.replace("$", r"\$") for name, _ in bars])
    axes.invert_yaxis()
    axes.set_xlabel("g CO₂e")
    axes.set_xlim(left=0)
    svg.bare_axes(axes, rule)
    axes.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=2, borderpad=0)
