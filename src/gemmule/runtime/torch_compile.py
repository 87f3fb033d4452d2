"""torch.compile: whether it works here, and compiling a model block by block."""

import errno
import functools
import warnings
from collections.abc import Iterable

import torch
from torch import nn

from gemmule.console import console
from gemmule.errors import first_line


@functools.cache
def can_compile() -> bool:
    """Whether torch.compile works here: tries once, on a function of one line."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.compile(lambda x: x + 1)(torch.zeros(16))
    except Exception as e:  # eager mode does the same without whatever is missing
        reason, advice = _explain(e)
        console.print(
            f"torch.compile does not work here ({reason}): running without it, slower. {advice}",
            markup=False,
        )
        return False
    return True


def _explain(error: BaseException) -> tuple[str, str]:
    """Why nothing could be compiled, and what to do."""
    cause: BaseException | None = error
    while cause is not None:
        # What was compiled is written to a folder and loaded from there.
        refused = isinstance(cause, OSError) and cause.errno not in (None, errno.ENOENT)
        if refused or "failed to map segment" in str(cause):
            return first_line(cause), (
                "Set TORCHINDUCTOR_CACHE_DIR to a folder in which you may write and run files."
            )
        cause = cause.__cause__ or cause.__context__
    return type(error).__name__, "It needs a C++ compiler (g++ or clang++)."


def compile_blocks(layers: Iterable[nn.Module]) -> None:
    """Compiles each layer by itself; layers of one kind share a graph, which makes it quick."""
    # One function serves every size and mode in the process; the default of 8 would stop short.
    torch._dynamo.config.recompile_limit = 64
    for layer in layers:
        layer.compile(dynamic=False)
