"""Hugging Face's layout: config.json, safetensors and the tokenizer's files."""
