"""Trains LoRA and DoRA adapters: a few weights next to a model that stays as it is."""
