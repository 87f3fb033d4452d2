"""How large the pool of pages is. Memory is taken only as pages are used."""

from pathlib import Path

from gemmule.errors import ConfigError
from gemmule.infer.core.pages import most_pages
from gemmule.infer.runners.protocol import PAGE, Runner

_SHARE = 4  # of the memory that is available, one part
_CONTEXTS = 16  # whole ones, at most, where nothing is asked for
_UNKNOWN = 4 * 2**30  # taken as available where the system does not say


def pages_for(
    runner: Runner, cache_bytes: int | None = None, cache_tokens: int | None = None
) -> int:
    """Pages of a pool.

    Args:
        runner: whose pages.
        cache_bytes: what the pool may take; None: by the memory that is available and the context.
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
        share = available_memory() // _SHARE // runner.page_bytes
        pages = max(2, min(share, _CONTEXTS * context))
    if pages < 2:
        least = 2 * runner.page_bytes
        raise ConfigError(
            f"the cache is to hold {pages} pages; it needs two at least: cache_bytes={least} or "
            f"more, or cache_tokens={PAGE} or more"
        )
    return pages


def available_memory() -> int:
    """Bytes that can be had without swapping, within the control group's limit."""
    found = [size for size in (_machine(), _control_group()) if size is not None]
    return min(found, default=_UNKNOWN)


def _machine() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _control_group() -> int | None:
    root = Path("/sys/fs/cgroup")
    try:
        limit = (root / "memory.max").read_text().strip()
        used = (root / "memory.current").read_text().strip()
    except OSError:
        return None
    if not (limit.isdigit() and used.isdigit()):  # "max" is none
        return None
    return max(0, int(limit) - int(used))
