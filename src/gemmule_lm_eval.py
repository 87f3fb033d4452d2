"""Registers gemmule's models with lm-eval: lm_eval --model gemmule --model_args pretrained=RUN.

lm-eval has no entry point for packages. This module is installed next to `gemmule`, and
gemmule_lm_eval.pth imports it at each start of Python. It only waits until lm-eval's models are
imported; gemmule itself is imported when one of its models is requested.
"""

import sys

_MODELS = "lm_eval.models"
_TARGET = "gemmule.evals.lm_eval_model:GemmuleLM"


class Finder:
    """Finds no module; it only watches what is imported."""

    @classmethod
    def find_spec(cls, name: str, path: object = None, target: object = None) -> None:
        """Registers the model before lm-eval's own list of them is read."""
        if name != _MODELS:
            return
        sys.meta_path[:] = [finder for finder in sys.meta_path if finder is not cls]
        try:
            from lm_eval.api.registry import model_registry

            if "gemmule" not in model_registry:
                model_registry.register("gemmule", target=_TARGET)
        except Exception as e:  # an unknown version of lm-eval: it must work without us
            import logging

            logging.getLogger("gemmule").debug("gemmule could not register with lm-eval: %r", e)


if _MODELS not in sys.modules:
    sys.meta_path.insert(0, Finder)
