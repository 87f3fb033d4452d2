"""Property tests of a Gemma 2 implementation, ours or another, that name the bug they find."""
