"""Chooses a runner for a model: the native one if it supports the model."""

from gemmule.errors import ConfigError
from gemmule.infer.runners.batch_runner import BatchRunner
from gemmule.infer.runners.native_runner import NativeRunner
from gemmule.infer.runners.protocol import Runner
from gemmule.infer.runners.torch_runner import TorchRunner
from gemmule.model.gemma import Gemma


def make_runner(model: Gemma, cache: str | None = None) -> Runner:
    """Returns the fastest runner for a few sequences; it shares the model's weights.

    Args:
        model: a Gemma module, quantized or not.
        cache: format of keys and values, as in NativeRunner; None: as suits the weights.

    Raises:
        ConfigError: for an unknown cache, or one that the plain runner does not have.
    """
    if NativeRunner.supports(model):
        return NativeRunner(model, cache=cache)
    if cache is not None:
        raise ConfigError(f"cache {cache!r} needs the native kernels, on the CPU: leave it out")
    return TorchRunner(model)


def make_batch_runner(model: Gemma) -> Runner:
    """Returns the fastest batch-invariant runner, for many sequences.

    Args:
        model: a Gemma module, quantized or not.
    """
    return NativeRunner(model) if NativeRunner.supports(model) else BatchRunner(model)
