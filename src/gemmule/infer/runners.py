"""Who computes a model: the native runner where there is one for it, else the plain one."""

import importlib
import importlib.util

from gemmule.infer.runner import Runner
from gemmule.infer.torch_runner import TorchRunner
from gemmule.model.gemma import Gemma

_NATIVE = "gemmule.infer.native_runner"


def make_runner(model: Gemma) -> Runner:
    """The fastest runner that can run `model` as it is; both share its weights."""
    if importlib.util.find_spec(_NATIVE) is not None:
        native = importlib.import_module(_NATIVE).NativeRunner
        if native.supports(model):
            runner: Runner = native(model)
            return runner
    return TorchRunner(model)
