"""Runs programs that a model wrote so that they cannot touch the user's files or network."""

from gemmule.sandbox.limits import Limits, Outcome
from gemmule.sandbox.sandbox import Sandbox

__all__ = ["Limits", "Outcome", "Sandbox"]
