"""Speed of a model on this machine, next to the roofline."""
