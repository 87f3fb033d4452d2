"""lm-eval without its own progress bars and warnings: gemmule draws one bar itself."""

import functools
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def silenced() -> Iterator[None]:
    """Inside, neither lm-eval nor `datasets` writes to the terminal.

    lm-eval has no switch for the bars of its tasks. Inside, `disable=True` is therefore tqdm's
    default; every other argument of a bar is left as it is.
    """
    try:
        import datasets
        import lm_eval  # noqa: F401
        from tqdm import tqdm  # type: ignore[import-untyped]
    except ImportError:  # load_tasks says what to install
        yield
        return

    bar: Any = tqdm
    init = bar.__init__
    logger = logging.getLogger("lm_eval")
    level = logger.level
    bars_shown = datasets.is_progress_bar_enabled()  # type: ignore[no-untyped-call]
    logger.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    bar.__init__ = functools.partialmethod(init, disable=True)
    try:
        yield
    finally:
        bar.__init__ = init
        if bars_shown:
            datasets.enable_progress_bars()
        logger.setLevel(level)
