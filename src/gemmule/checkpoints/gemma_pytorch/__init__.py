"""gemma_pytorch's .ckpt files."""
