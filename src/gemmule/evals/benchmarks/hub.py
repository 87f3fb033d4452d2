"""Whether the hub can be reached: known in seconds instead of after minutes of retries."""

import contextlib
import functools
from collections.abc import Iterator

from gemmule.errors import first_line

_SECONDS = 5.0  # for the hub's first response


@functools.cache
def unreachable() -> str:
    """Why the hub cannot be reached, "" if it can; tried once per process."""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        get_session().head(constants.ENDPOINT, timeout=_SECONDS)
    except Exception as e:  # the HTTP library differs between versions of huggingface_hub
        return first_line(e)
    return ""


@contextlib.contextmanager
def offline_if_unreachable() -> Iterator[str]:
    """Inside, an unreachable hub is not contacted; its cache is still used.

    Yields:
        Why the hub cannot be reached, "" if it can.
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
