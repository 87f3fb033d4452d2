"""Threads of torch in this process: as many as the machine gives it, usable after a fork."""

import os
from functools import cache

import torch

from gemmule.runtime import forks, host

_SETTINGS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


@cache
def set_up_torch() -> None:
    """Prepares torch's threads, once in a process; to be called before it computes.

    torch counts the machine's cores and does not know of a control group's quota. More threads
    than the quota has cores wait for each other while the group is throttled. The number that the
    environment sets (OMP_NUM_THREADS), and one set after this call, stay as they are.
    """
    forks.keep_torch_usable()
    if not any(name in os.environ for name in _SETTINGS):
        torch.set_num_threads(min(torch.get_num_threads(), host.usable_cores()))
