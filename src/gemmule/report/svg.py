"""Plots as SVG text that is the same every time, whatever the user's matplotlib style is."""

import contextlib
import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gemmule.errors import MissingExtraError

_SETTINGS: dict[str, Any] = {
    "svg.hashsalt": "gemmule",
    "svg.fonttype": "none",
    "font.size": 10.5,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # ships with matplotlib: the same widths everywhere
    "text.usetex": False,
}
_NO_METADATA = {"Creator": None, "Date": None, "Format": None, "Type": None}


@contextmanager
def figures(what: str, ink: str, ticks: str, **settings: Any) -> Iterator[tuple[Any, Any]]:
    """Matplotlib's Figure class and ticker module, under our settings.

    Args:
        what: what the plot is for, for the error message.
        ink: color of text and axis labels.
        ticks: color of the axes' tick labels.
        settings: more of matplotlib's rcParams, dots in their names written as two underscores.

    Raises:
        MissingExtraError: when matplotlib is not installed.
    """
    try:
        with _undisturbed():
            import matplotlib as mpl
            from matplotlib import ticker
            from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError("matplotlib", "report", what) from None
    with mpl.rc_context():
        mpl.rcdefaults()
        params: Any = mpl.rcParams
        params.update(_SETTINGS)
        params.update({"text.color": ink, "axes.labelcolor": ink})
        params.update({"xtick.color": ticks, "ytick.color": ticks})
        params.update({name.replace("__", "."): value for name, value in settings.items()})
        yield Figure, ticker


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Imports matplotlib without a file in the current folder, and without words about caches.

    A matplotlibrc in the current folder is read by the import, and a bad one ends it. Where the
    home folder cannot be written, the cache is in a temporary one, which is said at length.
    """
    log = logging.getLogger("matplotlib")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with contextlib.chdir("/") if Path("matplotlibrc").exists() else contextlib.nullcontext():
            yield
    finally:
        log.setLevel(level)


def text_of(figure: Any, *, transparent: bool = False) -> str:
    """A figure as the text of an SVG file without metadata."""
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata=_NO_METADATA, transparent=transparent)
    return out.getvalue()


def bare_axes(axes: Any, rule: str, pad: float = 5) -> None:
    """Leaves of the axes a grid and the line at the bottom, both in the color `rule`."""
    axes.grid(color=rule, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(rule)
    axes.tick_params(length=0, which="both", pad=pad)
