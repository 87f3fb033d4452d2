"""The report's safety benchmarks: stereotypes, truthfulness and toxicity, and a release gate."""
