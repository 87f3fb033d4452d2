"""Structured output: grammars that answers must match, and tool calls."""
