"""Kinds of post-training runs, one recipe a module; gemmule.posttrain.kinds registers them."""
