"""Power of the machine: energy counters where they can be read, and models where not."""
