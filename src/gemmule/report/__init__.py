"""The model card and its plots; reads run files only, never torch."""

from gemmule.report.card import write_card

__all__ = ["write_card"]
