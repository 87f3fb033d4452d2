"""What a model can do, how safe it is, and what it remembers: benchmarks, safety, memorization."""
