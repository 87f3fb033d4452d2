"""Quantized models: a folder in Hugging Face's layout whose matrices are packed."""
