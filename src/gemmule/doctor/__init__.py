"""Property tests of a Gemma 2 stack, ours or somebody else's, that name the bug they find."""
