"""Runners: one model, one step of a batch at a time."""
