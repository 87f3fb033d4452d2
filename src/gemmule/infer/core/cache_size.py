"""How many pages of keys and values the cache has.

On a CPU memory is taken only as pages are used, on a GPU at once.
"""

from gemmule.errors import ConfigError
from gemmule.infer.core.pages import max_pages
from gemmule.infer.runners.protocol import PAGE, Runner
from gemmule.runtime import memory

_FRACTION = 4  # one part in four of the memory that is available
_CONTEXTS = 16  # full contexts, at most, where no size is given
_UNKNOWN = 4 * 2**30  # bytes assumed to be available where the system does not say


def pages_for(
    runner: Runner, cache_bytes: int | None = None, cache_tokens: int | None = None
) -> int:
    """Returns the number of pages of a runner's cache.

    Args:
        runner: runner of the cache, on a CPU or a GPU.
        cache_bytes: largest size in bytes; None: by the model's context and the memory available on
            the runner's device.
        cache_tokens: instead, tokens that fit into it (more do once their windows have passed).

    Raises:
        ConfigError: for a size that is not positive, or less than a page of each kind.
    """
    for name, value in (("cache_bytes", cache_bytes), ("cache_tokens", cache_tokens)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise ConfigError(f"{name} is {value!r}; it must be a whole number")
    if cache_tokens is not None:
        if cache_bytes is not None:
            raise ConfigError("cache_bytes and cache_tokens are both given; give one of them")
        pages = 2 * -(-cache_tokens // PAGE)
    elif cache_bytes is not None:
        pages = cache_bytes // runner.page_bytes
    else:
        config = runner.config
        context = max_pages(config.max_position_embeddings, config.sliding_window)
        pages = max(2, min(affordable_pages(runner), _CONTEXTS * context))
    if pages < 2:
        minimum = 2 * runner.page_bytes
        raise ConfigError(
            f"the cache would hold {pages} pages; it needs at least two: cache_bytes={minimum} or "
            f"more, or cache_tokens={PAGE} or more"
        )
    return pages


def affordable_pages(runner: Runner) -> int:
    """Returns how many pages fit in the part of the available memory that a cache may take."""
    available = memory.available(runner.device)
    return (_UNKNOWN if available is None else available) // _FRACTION // runner.page_bytes
