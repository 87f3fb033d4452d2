"""Several data folders read as one: weights, most epochs, and stages of a run."""
