"""torch.compile: whether it works here, and compiling a model block by block."""

import functools
import warnings
from collections.abc import Iterable

import torch
from torch import nn

from gemmule.console import console


@functools.cache
def can_compile() -> bool:
    """Whether torch.compile works here: tries once, on a function of one line."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.compile(lambda x: x + 1)(torch.zeros(16))
    except Exception as e:  # eager mode does the same without whatever is missing
        console.print(
            f"torch.compile does not work here ({type(e).__name__}): running without it, slower. "
            "It needs a C++ compiler (g++ or clang++)."
        )
        return False
    return True


def compile_blocks(layers: Iterable[nn.Module]) -> None:
    """Compiles each layer by itself; layers of one kind share a graph, which makes it quick."""
    # One function serves every size and mode in the process; the default of 8 would stop short.
    torch._dynamo.config.recompile_limit = 64
    for layer in layers:
        layer.compile(dynamic=False)
