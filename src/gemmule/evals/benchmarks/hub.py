"""Whether documents can be fetched: known in seconds, instead of after minutes of trying."""

import contextlib
import functools
from collections.abc import Iterator

from gemmule.errors import first_line

_SECONDS = 5.0  # to answer at all


@functools.cache
def unreachable() -> str:
    """Why the hub cannot be asked, "" if it can; tried once."""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        get_session().head(constants.ENDPOINT, timeout=_SECONDS)
    except Exception as e:  # the HTTP library differs between the hub's versions
        return first_line(e)
    return ""


@contextlib.contextmanager
def asked_once() -> Iterator[str]:
    """Within it, a hub that cannot be reached is not asked again; the cache still is.

    Yields:
        as `unreachable`.
    """
    import datasets
    from huggingface_hub import constants

    why = unreachable()
    before = datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE
    if why:
        datasets.config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE = True
    try:
        yield why
    finally:
        datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE = before
