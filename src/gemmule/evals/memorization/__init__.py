"""How much of its training text a model reproduces."""
