"""The stage "heuristics": rules on words and lines that drop boilerplate, lists and noise."""
