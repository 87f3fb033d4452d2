"""Making, running and checking small Gemma 2 models."""
