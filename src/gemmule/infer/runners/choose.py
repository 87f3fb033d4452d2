"""Who computes a model: the native runner where there is one for it, else the plain one."""

from gemmule.errors import ConfigError
from gemmule.infer.runners.batch_runner import BatchRunner
from gemmule.infer.runners.native_runner import NativeRunner
from gemmule.infer.runners.protocol import Runner
from gemmule.infer.runners.torch_runner import TorchRunner
from gemmule.model.gemma import Gemma


def make_runner(model: Gemma, cache: str | None = None) -> Runner:
    """The fastest runner that can run `model` as it is; both share its weights.

    Args:
        model: a Gemma module, quantized or not.
        cache: what keys and values are kept as: see NativeRunner; None: as fits the weights.

    Raises:
        ConfigError: for a cache that is not known, or that the plain runner does not have.
    """
    if NativeRunner.supports(model):
        return NativeRunner(model, cache=cache)
    if cache is not None:
        raise ConfigError(f"cache {cache!r} needs the native kernels, on the CPU: leave it out")
    return TorchRunner(model)


def make_batch_runner(model: Gemma) -> Runner:
    """The fastest runner for many sequences whose predictions do not depend on one another.

    Args:
        model: a Gemma module, quantized or not.
    """
    return NativeRunner(model) if NativeRunner.supports(model) else BatchRunner(model)
