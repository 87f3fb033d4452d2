"""The Gemma 2 architecture, its cache and its tokenizer."""
