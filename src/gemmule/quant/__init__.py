"""Quantized weights and activations, and the kernels that multiply them."""
