"""The report's safety tests: stereotypes, truthfulness and toxicity, with a gate for releases."""
