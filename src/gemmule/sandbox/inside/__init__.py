"""Scripts that run inside the sandbox. They import nothing of gemmule, which is not there."""
