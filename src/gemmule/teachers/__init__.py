"""Teachers of every kind, and logit stores, which hold the predictions of one."""
