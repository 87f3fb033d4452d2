"""torch.compile: whether it works here, and compiling a model block by block."""

import functools
import warnings
from collections.abc import Iterable

import torch
from torch import nn

from gemmule.console import console


@functools.cache
def can_compile() -> bool:
    """Whether torch.compile works here; tried for real, once, on a function of one line."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.compile(lambda x: x + 1)(torch.zeros(16))
    except Exception as e:  # whatever is missing, eager mode does the same job
        console.print(
            f"torch.compile does not work here ({type(e).__name__}): running without it, slower. "
            "A C++ compiler (g++ or clang++) is what it needs."
        )
        return False
    return True


def compile_blocks(layers: Iterable[nn.Module]) -> None:
    """Compiles each layer on its own: layers of one kind share one graph, so it is quick."""
    # One function serves every size and mode in the process; the default of 8 would stop short.
    torch._dynamo.config.recompile_limit = 64
    for layer in layers:
        layer.compile(dynamic=False)
