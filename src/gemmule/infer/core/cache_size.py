"""How many pages of keys and values the cache has.

On a CPU memory is taken only as pages are used, on a GPU at once.
"""

from gemmule.errors import ConfigError
from gemmule.infer.core.pages import most_pages
from gemmule.infer.runners.protocol import PAGE, Runner
from gemmule.runtime import memory

_FRACTION = 4  # one part in four of the memory that is available
_CONTEXTS = 16  # full contexts, at most, where no size is given
_UNKNOWN = 4 * 2**30  # bytes assumed to be available where the system does not say


def pages_for(
    runner: Runner, cache_bytes: int | None = None, cache_tokens: int | None = None
) -> int:
    """Number of pages of a runner's cache.

    Args:
        runner: runner of the cache, on a CPU or a GPU.
        cache_bytes: largest size in bytes; None: by the model's context and the memory available on
            the runner's device.
        cache_tokens: instead, tokens that fit into it (more do where their windows have passed).

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
        context = most_pages(config.max_position_embeddings, config.sliding_window)
        available = memory.available(runner.device)
        affordable = (_UNKNOWN if available is None else available) // _FRACTION
        pages = max(2, min(affordable // runner.page_bytes, _CONTEXTS * context))
    if pages < 2:
        least = 2 * runner.page_bytes
        raise ConfigError(
            f"the cache is to hold {pages} pages; it needs two at least: cache_bytes={least} or "
            f"more, or cache_tokens={PAGE} or more"
        )
    return pages
