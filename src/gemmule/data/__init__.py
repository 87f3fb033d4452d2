"""From files of text to packed, memory-mapped tokens."""
