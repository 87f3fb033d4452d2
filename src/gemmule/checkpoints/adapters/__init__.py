"""Reads adapters in peft's format, merged into their base model."""
