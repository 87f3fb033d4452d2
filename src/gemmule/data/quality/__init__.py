"""How good a document is: a classifier fitted to examples, and what a teacher makes of it."""
