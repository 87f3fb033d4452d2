"""Promotion gates: whether a candidate may replace the model that it was made from."""
