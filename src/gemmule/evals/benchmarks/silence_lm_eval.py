"""lm-eval without its own bars and warnings: gemmule draws one bar, and says what matters."""

import functools
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def quietly() -> Iterator[None]:
    """While inside, neither lm-eval nor `datasets` writes to the terminal."""
    try:
        import datasets
        import lm_eval.api.model
        import lm_eval.api.task
    except ImportError:  # load_tasks says what to install
        yield
        return

    modules = (lm_eval.api.model, lm_eval.api.task)
    bars: list[Any] = [vars(module)["tqdm"] for module in modules]
    logger = logging.getLogger("lm_eval")
    level = logger.level
    drawn = datasets.is_progress_bar_enabled()  # type: ignore[no-untyped-call]
    logger.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    for module, bar in zip(modules, bars, strict=True):
        vars(module)["tqdm"] = functools.partial(bar, disable=True)
    try:
        yield
    finally:
        for module, bar in zip(modules, bars, strict=True):
            vars(module)["tqdm"] = bar
        if drawn:
            datasets.enable_progress_bars()
        logger.setLevel(level)
