"""Scripts that run inside the sandbox. They cannot import gemmule, which is not visible there."""
