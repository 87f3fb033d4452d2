"""Problems with answers that a program can check: deterministic, split without overlap."""
