"""Has lm-eval know gemmule's models: lm_eval --model gemmule --model_args pretrained=RUN.

lm-eval has no place where a package could say so. This module is installed beside `gemmule`, and
gemmule_lm_eval.pth has each start of Python import it. All it does then is to wait for the moment
that lm-eval's models are imported; gemmule itself is imported when one of its models is asked for.
"""

import sys

_MODELS = "lm_eval.models"
_TARGET = "gemmule.evals.lm_eval_model:GemmuleLM"


class Finder:
    """Finds nothing; it only sees what is imported."""

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
        except Exception as e:  # another lm-eval than is known here: it must work without us
            import logging

            logging.getLogger("gemmule").debug("lm-eval does not take a model's name: %r", e)


if _MODELS not in sys.modules:
    sys.meta_path.insert(0, Finder)
