"""Programs that a model wrote, run so that they cannot touch the user's files or network."""

from gemmule.evals.sandbox.limits import Limits, Outcome
from gemmule.evals.sandbox.sandbox import Sandbox

__all__ = ["Limits", "Outcome", "Sandbox"]
