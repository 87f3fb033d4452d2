"""The report's benchmarks as lm-eval tasks, with documents from the hub or from local files."""
