"""The report's ablations at the user's scale, and some of our own: `gemmule ablate`."""
